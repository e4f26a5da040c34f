//! What a packet meets as it leaves: SNAT of requests whose flow wants it, un-DNAT of replies.

use super::parse::{Ordinary, Thorough, ordinary_v4, ordinary_v6, thorough};
use super::pass::{give_up, keep, kept};
use super::{Headers, Next, Packet, Question, Stage, World, fragment, icmp, nat, snat};
use crate::addr::{BackendId, Endpoint};
use crate::env::{Env, PacketTables, Tables};
use crate::flow::{Flow, FlowState, Flows};
use crate::table::{Config, Filter};
use crate::wire::TcpFlags;

/// One stage of treating a packet that is about to leave.
#[inline(always)]
pub fn egress<P: Packet, W: World>(stage: Stage, packet: &mut P, world: &W) -> Next {
    let Some(config) = world.tables().config() else {
        return Next::Continue;
    };
    match stage {
        Stage::OrdinaryV4 => ordinary(packet, world, config, ordinary_v4(packet)),
        Stage::OrdinaryV6 => ordinary(packet, world, config, ordinary_v6(packet)),
        Stage::Rare => rare(packet, world),
        Stage::Parsed => match kept(world) {
            // Rare packets do without the filter, which only saves time: it is one look at the flow
            // table more for those that are not ours, and less stack for those that are.
            Some(mut headers) => segment(packet, world, config, None, &mut headers),
            None => Next::Continue,
        },
        Stage::Icmp => match kept(world) {
            Some(headers) => icmp::treat(Question::Egress, packet, world, config, &headers),
            None => Next::Continue,
        },
        Stage::Open => match kept(world) {
            Some(mut headers) => open(packet, world, config, &mut headers),
            None => Next::Continue,
        },
        Stage::Begin | Stage::Refuse | Stage::Return | Stage::Mark => Next::Continue,
    }
}

/// Goes on with what the quick look has found.
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "inlined: the headers stay where they are"
)]
fn ordinary<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    found: Ordinary,
) -> Next {
    match found {
        Ordinary::Segment(mut headers) => match world.tables().filter(config) {
            Some(filter) => segment(packet, world, config, Some(filter), &mut headers),
            None => Next::Continue,
        },
        Ordinary::Rare => Next::Rare,
        Ordinary::Foreign => Next::Continue,
    }
}

/// Fragments, options, extension headers, ICMP. Nothing is counted: ingress has.
#[inline(always)]
fn rare<P: Packet, W: World>(packet: &mut P, world: &W) -> Next {
    match thorough(packet, 0) {
        Thorough::Segment(mut headers) => {
            if !fragment::complete(world.tables(), &mut headers, fragment::Hook::Egress) {
                return Next::Continue;
            }
            keep(world, &headers, Next::Parsed)
        }
        Thorough::Icmp(headers) => keep(world, &headers, Next::Icmp),
        Thorough::Foreign | Thorough::Unparsable => Next::Continue,
    }
}

#[inline(always)]
fn segment<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    filter: Option<Filter<'_>>,
    headers: &mut Headers,
) -> Next {
    let flows = world.flows(config);
    let (source, destination) = (headers.source, headers.destination);
    let protocol = headers.protocol;

    let may_be_backend = |end: &Endpoint| {
        filter.is_none_or(|filter| filter.may_be_backend(&end.addr, end.port, protocol))
    };

    // A hairpin is from a backend to a backend: the direction is the one that has a flow.
    if may_be_backend(&destination)
        && let Some(flow) = flows.by_backend(&source, &destination, protocol)
    {
        return request(packet, world, config, headers, &flow);
    }
    if may_be_backend(&source) {
        if let Some(flow) = flows.by_backend(&destination, &source, protocol) {
            return reply(packet, world, config, headers, &flow);
        }
        if snat::is_snat_port(config, destination.port) {
            return reply_to_other_port(packet, world, config, headers);
        }
    }
    Next::Continue
}

/// A request on its way to its backend.
#[inline(always)]
fn request<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
    flow: &Flow,
) -> Next {
    if TcpFlags::opens(headers.flags) && flow.is_closing() {
        // Ingress begins a new flow with such a segment. So this one has not passed it: the client
        // now talks to the backend itself, from the port of a conversation that is over. What comes
        // back is its own, also where nothing but the destination was translated before.
        world.flows(config).remove(flow);
        return Next::Continue;
    }
    if !wants_snat(flow) {
        return Next::Continue;
    }
    if flow.snat_port.0 == 0 {
        return keep(world, headers, Next::Open);
    }
    snat::translate(packet, world, config, headers, flow)
}

#[inline(always)]
const fn wants_snat(flow: &Flow) -> bool {
    flow.state & (FlowState::WANTS_SNAT | FlowState::SNAT_PORT_ONLY) == FlowState::WANTS_SNAT
}

/// The first packet of a flow that wants SNAT.
#[inline(always)]
fn open<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
) -> Next {
    let flow =
        world
            .flows(config)
            .by_backend(&headers.source, &headers.destination, headers.protocol);
    let Some(flow) = flow.filter(wants_snat) else {
        return Next::Continue;
    };
    let flow = if flow.snat_port.0 == 0 {
        match snat::masquerade(world, config, headers, &flow, packet.device()) {
            Ok(flow) => flow,
            Err(reason) => {
                world.tables().count(reason);
                return Next::Drop;
            }
        }
    } else {
        flow
    };
    snat::translate(packet, world, config, headers, &flow)
}

/// A reply on its way to its client: it comes from the frontend.
#[inline(always)]
fn reply<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
    flow: &Flow,
) -> Next {
    note_reply(packet, world, config, headers, flow);
    match replace_source(packet, world, headers, &flow.frontend) {
        // The node's own backend answers the node's own client.
        Next::Continue if flow.state & FlowState::OF_NODE != 0 => Next::Deliver,
        next => next,
    }
}

/// Notes and counts a reply.
#[inline(always)]
pub(super) fn note_reply<P: Packet, W: World>(
    packet: &P,
    world: &W,
    config: &Config,
    headers: &Headers,
    flow: &Flow,
) {
    world
        .flows(config)
        .note(flow, state_after_reply(headers.flags), world.env().now());
    count(world.tables(), packet, headers, flow.backend);
}

/// A reply to a flow that has the client's address and another port: both ends are translated.
#[inline(always)]
fn reply_to_other_port<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
) -> Next {
    let flow =
        world
            .flows(config)
            .by_alias(&headers.destination, &headers.source, headers.protocol);
    let Some(flow) = flow else {
        return Next::Continue;
    };
    if flow.state & FlowState::SNAT_PORT_ONLY == 0 {
        return Next::Continue;
    }
    if nat::replace_destination(packet, headers, &flow.client).is_err() {
        return give_up(world);
    }
    reply(packet, world, config, headers, &flow)
}

#[inline(always)]
pub(super) fn replace_source<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    headers: &mut Headers,
    to: &Endpoint,
) -> Next {
    if nat::replace_source(packet, headers, to).is_err() {
        return give_up(world);
    }
    Next::Continue
}

#[inline(always)]
const fn state_after_reply(flags: u8) -> u16 {
    let mut state = FlowState::REPLIED;
    if flags & TcpFlags::FIN != 0 {
        state |= FlowState::FIN_REPLY;
    }
    if flags & TcpFlags::RST != 0 {
        state |= FlowState::RESET;
    }
    state
}

#[inline(always)]
fn count<P: Packet>(tables: &impl PacketTables, packet: &P, headers: &Headers, backend: BackendId) {
    if let Some(backend) = tables.backend(backend) {
        let segments = u64::from(packet.segments());
        tables.count_service(backend.service, |counters| {
            counters.packets_out = counters.packets_out.wrapping_add(segments);
            counters.bytes_out = counters.bytes_out.wrapping_add(u64::from(headers.length));
        });
    }
}
