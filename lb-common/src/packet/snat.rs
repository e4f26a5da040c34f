//! Replacing the source: which address, which port.
//!
//! The SNAT end is chosen when the outgoing device is known, once for a flow, and is reserved by
//! the flow table for {end, backend}: one port serves as many backends as there are.

use super::pass::give_up;
use super::{Headers, Next, Packet, World, nat};
use crate::addr::{Endpoint, Port, Protocol};
use crate::env::{Env, PacketTables, Tables};
use crate::flow::{Flow, FlowState, Flows, Refused, SnatAddressIndex, SnatEnd};
use crate::table::Config;
use crate::verdict::Reason;

/// How many ports are tried.
const TRIES: u32 = 16;
/// How many of them must be free or over; the rest may be taken from closed flows too. Those keep
/// their ports for stragglers, which is worth less than a new connection.
const POLITE_TRIES: u32 = 8;

/// True if `port` lies in the range SNAT ports are taken from.
#[inline(always)]
pub(super) const fn is_snat_port(config: &Config, port: Port) -> bool {
    let port = port.number();
    port >= config.snat_port_first && port <= config.snat_port_last
}

/// SNATs a request on its way to `headers.destination`, its backend.
#[inline(always)]
pub(super) fn translate<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
    flow: &Flow,
) -> Next {
    let tables = world.tables();
    let Some(addr) = tables.snat_address(flow.snat_address.0) else {
        tables.count(Reason::SnatNoAddress);
        return Next::Drop;
    };
    let end = Endpoint {
        addr,
        port: flow.snat_port,
    };
    if nat::replace_source(packet, headers, &end).is_err() {
        return give_up(world);
    }
    // Done: what encapsulates it further on, mark included, must not be taken for another one.
    packet.mark(0, config.masquerade_mark);
    Next::Continue
}

/// Chooses and reserves the SNAT end of a flow that leaves by `device`, and returns the flow with
/// it.
///
/// # Errors
/// Why the packet must be dropped.
#[inline(always)]
pub(super) fn masquerade<W: World>(
    world: &W,
    config: &Config,
    headers: &Headers,
    flow: &Flow,
    device: u32,
) -> Result<Flow, Reason> {
    let tables = world.tables();
    let v4 = headers.source.addr.is_v4();
    let mut index = address_of(tables, device, v4);
    if index == 0 {
        index = address_of(tables, 0, v4);
    }
    if index == 0 {
        return Err(Reason::SnatNoAddress);
    }
    let wanted = Endpoint {
        addr: tables.snat_address(index).ok_or(Reason::SnatNoAddress)?,
        port: headers.source.port,
    };
    reserve(
        world,
        config,
        flow,
        &wanted,
        SnatAddressIndex(index),
        &headers.destination,
        headers.protocol,
    )
}

/// The index of the SNAT address of a device, 0 if it has none; device 0 stands for the node.
#[inline(always)]
fn address_of(tables: &impl PacketTables, device: u32, v4: bool) -> u32 {
    tables
        .snat_addresses(device)
        .map_or(0, |addresses| if v4 { addresses.v4 } else { addresses.v6 })
}

/// The source of a flow that is given another one at ingress ([`FlowState::SNAT_PORT_ONLY`]).
#[inline(always)]
pub(super) fn end_at_ingress(
    tables: &impl PacketTables,
    flow: &Flow,
    client: &Endpoint,
) -> Option<Endpoint> {
    let addr = match flow.snat_address {
        SnatAddressIndex(0) => client.addr,
        SnatAddressIndex(index) => tables.snat_address(index)?,
    };
    let port = flow.snat_port;
    Some(Endpoint { addr, port })
}

/// Gives a flow that shares client and backend with another one a source port of its own; of the
/// node's `own` also an address, if it has one that no other machine may see.
///
/// # Errors
/// Why the packet must be dropped.
#[inline(always)]
pub(super) fn reserve_port<W: World>(
    world: &W,
    config: &Config,
    headers: &Headers,
    flow: &Flow,
    backend: &Endpoint,
    own: bool,
) -> Result<Flow, Reason> {
    if flow.snat_port.0 != 0 {
        return Ok(*flow);
    }
    let tables = world.tables();
    let (mut wanted, mut index) = (headers.source, 0);
    if own && wanted.addr.is_loopback() {
        index = address_of(tables, 0, wanted.addr.is_v4());
        wanted.addr = tables.snat_address(index).ok_or(Reason::SnatNoAddress)?;
    }
    reserve(
        world,
        config,
        flow,
        &wanted,
        SnatAddressIndex(index),
        backend,
        headers.protocol,
    )
}

/// Where try `step` of a client with this hash looks (two rounds of multiply and xor-shift). The
/// ports of one client follow a pattern that the hash of flows keeps: if the tries kept it too, a
/// busy client would meet its own ports long before the range is full.
#[inline(always)]
const fn scattered(hash: u32, step: u32) -> u32 {
    let number = hash.wrapping_add(step.wrapping_mul(0x9e37_79b9));
    let number = (number ^ (number >> 16)).wrapping_mul(0x7feb_352d);
    let number = (number ^ (number >> 15)).wrapping_mul(0x846c_a68b);
    number ^ (number >> 16)
}

/// Reserves a port on `wanted.addr` for the flow: the client's own if it lies in the range and is
/// free, else the first free one of a few from a place that the flow's ends determine (so that a
/// retransmission on another CPU tries the same ones).
#[inline(always)]
fn reserve<W: World>(
    world: &W,
    config: &Config,
    flow: &Flow,
    wanted: &Endpoint,
    address: SnatAddressIndex,
    backend: &Endpoint,
    protocol: Protocol,
) -> Result<Flow, Reason> {
    let keeps_address = flow.state & FlowState::SNAT_PORT_ONLY != 0;
    let first = u32::from(config.snat_port_first);
    let count = u32::from(config.snat_port_last)
        .wrapping_sub(first)
        .wrapping_add(1);
    if count == 0 || count > 0xffff {
        return Err(Reason::SnatPortsExhausted);
    }
    // The upper half of the hash.
    let hash = (config
        .hash_keys
        .hash(&flow.client.addr, flow.client.port, protocol)
        >> 32) as u32
        ^ u32::from(backend.port.0)
        ^ backend.addr.v4_word();
    // The client's own port is tried first where it can be kept.
    let own = u32::from(wanted.port.number()).wrapping_sub(first);
    let keeps_port = !keeps_address && is_snat_port(config, wanted.port);
    let now = world.env().now();
    let mut step = 0;
    while step < TRIES {
        let offset = if keeps_port && step == 0 {
            own
        } else {
            scattered(hash, step) % count
        };
        let pressure = step >= POLITE_TRIES;
        step += 1;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "first + offset <= snat_port_last"
        )]
        let port = Port::new(first.wrapping_add(offset) as u16);
        let end = Endpoint {
            addr: wanted.addr,
            port,
        };
        // The client may talk to the backend from this port itself.
        if keeps_address
            && world
                .flows(config)
                .by_backend(&end, backend, protocol)
                .is_some()
        {
            continue;
        }
        let snat = SnatEnd {
            end,
            address,
            pressure,
        };
        match world
            .flows(config)
            .attach_snat(flow, &snat, backend, protocol, now)
        {
            Ok(flow) => return Ok(flow),
            Err(Refused::Taken) => {}
            Err(Refused::Full | Refused::Busy) => return Err(Reason::FlowTableFull),
        }
    }
    Err(Reason::SnatPortsExhausted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{HashSet, VecDeque};

    /// How many of 14,000 connections find no port while 6,000 of 13,616 are taken: the hashes of
    /// one client's connections are an arithmetic progression.
    fn without_port(difference: u32, offset: impl Fn(u32, u32) -> u32) -> usize {
        let (mut taken, mut live) = (HashSet::new(), VecDeque::new());
        let finds = |connection: u32| {
            let hash = connection.wrapping_mul(difference);
            let free = (0..TRIES)
                .map(|step| offset(hash, step) % 13_616)
                .find(|port| taken.insert(*port));
            live.extend(free);
            if live.len() > 6_000 {
                live.pop_front().map(|port| taken.remove(&port));
            }
            free.is_some()
        };
        (0..14_000).map(finds).filter(|found| !found).count()
    }

    #[test]
    fn one_busy_client_finds_a_port_while_half_of_them_are_free() {
        let differences = (1..100_u32).map(|number| number.wrapping_mul(0x05eb_ca6b));
        let missed: usize = differences
            .map(|difference| without_port(difference, scattered))
            .sum();
        assert!(missed < 20, "{missed} of 1,386,000");
    }
}
