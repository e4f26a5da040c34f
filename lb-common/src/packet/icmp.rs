//! ICMP errors follow the flow of the packet they quote, in either direction, so that both ends see
//! the conversation they know: as with netfilter, the error's own addresses are translated too.
//!
//! ```text
//! quote                  hook      quote becomes          error
//! snat end → backend     ingress   client → backend       goes to the client
//! client → backend       egress    client → frontend      comes from the frontend
//! frontend → client      ingress   backend → client       goes to the backend
//! backend → client       egress    backend → snat end     comes from the SNAT address
//! ```

use super::parse::{Thorough, thorough};
use super::pass::give_up;
use super::{Covers, Failed, Headers, Next, Packet, Question, World, node, snat};
use crate::addr::{Addr, Endpoint, Protocol};
use crate::env::{PacketTables, Tables};
use crate::flow::{Flow, FlowState, Flows};
use crate::table::Config;
use crate::verdict::Reason;
use crate::wire::{Difference, Icmp, Ipv4, Ipv6, Ports, Sctp, Tcp, Udp, icmpv4, icmpv6};

/// What is to become of an error.
struct Translation {
    /// The quoted packet's source.
    source: Endpoint,
    /// The quoted packet's destination.
    destination: Endpoint,
    /// The error's source.
    from: Addr,
    /// The error's destination.
    to: Addr,
    /// What becomes of the error.
    next: Next,
}

/// Treats an ICMP packet that has arrived, or is about to leave.
#[inline(always)]
pub(super) fn treat<P: Packet, W: World>(
    question: Question,
    packet: &mut P,
    world: &W,
    config: &Config,
    error: &Headers,
) -> Next {
    let Some(quoted) = quoted(packet, error) else {
        return Next::Continue;
    };
    let translation = match question {
        Question::Ingress => arriving(world, config, error, &quoted),
        Question::Egress => leaving(world, config, error, &quoted),
    };
    match translation {
        Some(translation) => apply(packet, world, error, &quoted, &translation),
        None => Next::Continue,
    }
}

/// The packet an error quotes, if it is an error about TCP, UDP or SCTP.
#[inline(always)]
fn quoted<P: Packet>(packet: &P, error: &Headers) -> Option<Headers> {
    let icmp = packet.load::<Icmp>(error.transport)?;
    let is_error = if error.source.addr.is_v4() {
        icmpv4::is_error(icmp.kind)
    } else {
        icmpv6::is_error(icmp.kind)
    };
    if !is_error {
        return None;
    }
    match thorough(packet, error.transport + Icmp::LENGTH) {
        // A quoted later fragment has no ports, and senders need not be told about one.
        Thorough::Segment(quoted) if quoted.source.port.0 != 0 => Some(quoted),
        _ => None,
    }
}

#[inline(always)]
fn arriving<W: World>(
    world: &W,
    config: &Config,
    error: &Headers,
    quoted: &Headers,
) -> Option<Translation> {
    let flows = world.flows(config);
    if snat::is_snat_port(config, quoted.source.port)
        && let Some(flow) = flows.by_alias(&quoted.source, &quoted.destination, quoted.protocol)
    {
        if flow.state & FlowState::OF_NODE != 0 {
            return Some(about_request(&flow));
        }
        // A flow that kept the client's address is translated in one step at egress.
        if flow.state & FlowState::SNAT_PORT_ONLY != 0 {
            return None;
        }
        return Some(Translation {
            source: flow.client,
            destination: quoted.destination,
            from: error.source.addr,
            to: flow.client.addr,
            next: Next::Continue,
        });
    }
    let flow = flows.by_frontend(&quoted.destination, &quoted.source, quoted.protocol)?;
    let backend = world.tables().backend(flow.backend)?;
    let mut client = quoted.destination;
    if flow.state & FlowState::SNAT_PORT_ONLY != 0 {
        client = snat::end_at_ingress(world.tables(), &flow, &client)?;
    }
    Some(Translation {
        source: Endpoint {
            addr: backend.addr,
            port: backend.port,
        },
        destination: client,
        from: error.source.addr,
        to: backend.addr,
        next: node::after_error(&flow, false),
    })
}

/// Translates an error about a request on its way to its client.
#[inline(always)]
const fn about_request(flow: &Flow) -> Translation {
    Translation {
        source: flow.client,
        destination: flow.frontend,
        from: flow.frontend.addr,
        to: flow.client.addr,
        next: node::after_error(flow, true),
    }
}

#[inline(always)]
fn leaving<W: World>(
    world: &W,
    config: &Config,
    error: &Headers,
    quoted: &Headers,
) -> Option<Translation> {
    let flows = world.flows(config);
    let (source, destination) = (&quoted.source, &quoted.destination);
    // About a request.
    let mut flow = flows.by_backend(source, destination, quoted.protocol);
    if flow.is_none() && snat::is_snat_port(config, source.port) {
        flow = flows
            .by_alias(source, destination, quoted.protocol)
            .filter(|flow| flow.state & FlowState::SNAT_PORT_ONLY != 0);
    }
    if let Some(flow) = flow {
        return Some(Translation {
            to: error.destination.addr,
            ..about_request(&flow)
        });
    }
    // About a reply.
    let flow = flows.by_backend(destination, source, quoted.protocol)?;
    if flow.state & FlowState::SNAT_PORT_ONLY != 0 || flow.snat_port.0 == 0 {
        return None;
    }
    let addr = world.tables().snat_address(flow.snat_address.0)?;
    Some(Translation {
        source: *source,
        destination: Endpoint {
            addr,
            port: flow.snat_port,
        },
        from: addr,
        to: error.destination.addr,
        next: Next::Continue,
    })
}

#[inline(always)]
fn apply<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    error: &Headers,
    quoted: &Headers,
    translation: &Translation,
) -> Next {
    let done = rewrite_quote(packet, error, quoted, translation)
        .and_then(|change| rewrite_error(packet, error, translation, change));
    if done.is_err() {
        return give_up(world);
    }
    world.tables().count(Reason::IcmpErrorTranslated);
    translation.next
}

/// Rewrites the quoted packet with its checksums, as far as they are there; returns how much the
/// data of the error has changed.
#[inline(always)]
fn rewrite_quote<P: Packet>(
    packet: &mut P,
    error: &Headers,
    quoted: &Headers,
    translation: &Translation,
) -> Result<Difference, Failed> {
    let at = error.transport + Icmp::LENGTH;
    let (source, destination) = (&translation.source, &translation.destination);
    let addresses = Difference::NONE
        .replace_address(&quoted.source.addr, &source.addr)
        .replace_address(&quoted.destination.addr, &destination.addr);
    let ports = Difference::NONE
        .replace_port(quoted.source.port, source.port)
        .replace_port(quoted.destination.port, destination.port);
    let mut change = addresses.plus(ports);

    if quoted.source.addr.is_v4() {
        let checksum = addresses.apply(Ipv4::checksum_of(quoted.ipv4_word));
        let word = Ipv4::with_checksum(quoted.ipv4_word, checksum);
        change = change.replace_word(quoted.ipv4_word, word);
        packet.store(
            at + Ipv4::WORD_AT,
            &[word, source.addr.v4_word(), destination.addr.v4_word()],
        )?;
    } else {
        packet.store(at + Ipv6::SOURCE_AT, &source.addr.words())?;
        packet.store(at + Ipv6::DESTINATION_AT, &destination.addr.words())?;
    }
    packet.store(quoted.transport + Ports::SOURCE_AT, &source.port.0)?;
    packet.store(
        quoted.transport + Ports::DESTINATION_AT,
        &destination.port.0,
    )?;

    if quoted.protocol.0 == Protocol::SCTP.0 {
        let crc = rewrite_crc(packet, error, quoted, translation)?;
        return Ok(change.plus(crc));
    }
    let is_udp = quoted.protocol.0 == Protocol::UDP.0;
    let checksum_at = quoted.transport
        + if is_udp {
            Udp::CHECKSUM_AT
        } else {
            Tcp::CHECKSUM_AT
        };
    if checksum_at + 2 > error.length {
        return Ok(change);
    }
    let Some(old) = packet.load::<u16>(checksum_at) else {
        return Ok(change);
    };
    if is_udp && old == 0 {
        return Ok(change);
    }
    let mut new = addresses.plus(ports).apply(old);
    if is_udp && new == 0 {
        new = 0xffff;
    }
    packet.store(checksum_at, &new)?;
    Ok(change.replace_half(old, new))
}

/// Changes the checksum of a quoted SCTP packet, if it is there; returns how much the data of the
/// error has changed. It covers more than is quoted, but how much that is the quoted IP header says.
#[inline(always)]
fn rewrite_crc<P: Packet>(
    packet: &mut P,
    error: &Headers,
    quoted: &Headers,
    translation: &Translation,
) -> Result<Difference, Failed> {
    let at = quoted.transport + Sctp::CHECKSUM_AT;
    let header = quoted.transport - (error.transport + Icmp::LENGTH);
    let (Some(length), true) = (quoted.length.checked_sub(header), at + 4 <= error.length) else {
        return Ok(Difference::NONE);
    };
    let Some(old) = packet.load::<u32>(at).filter(|checksum| *checksum != 0) else {
        return Ok(Difference::NONE);
    };
    let (source, destination) = (&translation.source, &translation.destination);
    let change = Sctp::port_change::<true>(quoted.source.port, source.port)
        | Sctp::port_change::<false>(quoted.destination.port, destination.port);
    let new = old ^ packet.advance_crc32c(change, length).to_le();
    packet.store(at, &new)?;
    Ok(Difference::NONE.replace_word(old, new))
}

/// Rewrites the error's own addresses and its checksum.
#[inline(always)]
fn rewrite_error<P: Packet>(
    packet: &mut P,
    error: &Headers,
    translation: &Translation,
    change: Difference,
) -> Result<(), Failed> {
    let checksum_at = error.transport + Icmp::CHECKSUM_AT;
    packet.change_checksum(checksum_at, change, Covers::Payload, false)?;
    let (from, to) = (&translation.from, &translation.to);
    let addresses = Difference::NONE
        .replace_address(&error.source.addr, from)
        .replace_address(&error.destination.addr, to);
    if error.source.addr.is_v4() {
        let checksum = addresses.apply(Ipv4::checksum_of(error.ipv4_word));
        let word = Ipv4::with_checksum(error.ipv4_word, checksum);
        return packet.store(Ipv4::WORD_AT, &[word, from.v4_word(), to.v4_word()]);
    }
    packet.change_checksum(checksum_at, addresses, Covers::PseudoHeaderV6, false)?;
    packet.store(Ipv6::SOURCE_AT, &from.words())?;
    packet.store(Ipv6::DESTINATION_AT, &to.words())
}
