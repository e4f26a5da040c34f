//! The core's answer to one flow.

use super::traffic::{Endpoints, Flow};
use super::world::{DEVICE, SNAT_V4, SNAT_V6, World};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb_common::addr::Protocol;
use lb_common::host::craft;
use lb_common::verdict::{Reason, Verdict};
use lb_common::wire::Sctp;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What happens to the first packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Forward {
        endpoints: BTreeSet<SocketAddr>,
        masquerade: bool,
    },
    Drop,
    Reject,
    Untouched,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward {
                endpoints,
                masquerade,
            } => {
                let with = if *masquerade { "with" } else { "without" };
                let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "one of [{}] {with} SNAT", endpoints.join(", "))
            }
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Untouched => f.write_str("untouched"),
        }
    }
}

/// A protocol as cases write it.
fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        _ => Err(format!("{text} is no protocol")),
    }
}

/// How often each endpoint is to be drawn on average.
const DRAWS: u32 = 100;

/// Sends first packets, as many as it takes to see every endpoint that may be chosen.
pub(super) fn answer(world: &mut World, flow: &Flow) -> Result<Answer, String> {
    let protocol = protocol(&flow.protocol)?;
    let draws = match &flow.expect.endpoints {
        Endpoints::List(list) => DRAWS * u32::try_from(list.len().max(1)).unwrap_or(1),
        Endpoints::Word(_) => 1,
    };
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut masqueraded = BTreeSet::new();
    for draw in 0..draws {
        // The table of these worlds is small.
        if draw % 64 == 0 {
            world.forget_flows();
        }
        let port = 10_000 + u16::try_from(draw).unwrap_or(u16::MAX / 2);
        // Each draw is another client as far as affinity is concerned.
        world.packets.tables.affinity.borrow_mut().clear();
        let from = SocketAddr::new(flow.source, port);
        let to = SocketAddr::new(flow.destination, flow.dest_port);
        match first_packet(world, from, to, protocol)? {
            First::Backend(address, with) => {
                *seen.entry(address).or_default() += 1;
                masqueraded.insert(with);
            }
            First::Drop => return Ok(Answer::Drop),
            First::Reject => return Ok(Answer::Reject),
            First::Untouched => return Ok(Answer::Untouched),
        }
    }
    let average = draws / u32::try_from(seen.len()).unwrap_or(1).max(1);
    if let Some((address, count)) = seen
        .iter()
        .find(|(_, count)| **count * 2 < average || **count > average * 2)
    {
        return Err(format!(
            "{address} was chosen {count} times of {draws}: not about equal"
        ));
    }
    if masqueraded.len() > 1 {
        return Err("some draws are SNATed and some are not".to_owned());
    }
    Ok(Answer::Forward {
        endpoints: seen.into_keys().collect(),
        masquerade: masqueraded.contains(&true),
    })
}

/// The fate of one first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum First {
    /// It leaves for this endpoint, with its source replaced or not.
    Backend(SocketAddr, bool),
    Drop,
    Reject,
    Untouched,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// A TCP connection's first segment.
    Syn,
    /// Its answer.
    SynAck,
    /// A TCP segment in the middle of a connection.
    Segment,
    /// A UDP datagram.
    Datagram,
    /// An SCTP association's first packet.
    Init,
}

/// Sends the first packet of a conversation.
pub(super) fn first_packet(
    world: &World,
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<First, String> {
    let kind = match protocol {
        Protocol::TCP => Kind::Syn,
        Protocol::UDP => Kind::Datagram,
        Protocol::SCTP => Kind::Init,
        other => return Err(format!("there are no services of protocol {}", other.0)),
    };
    send(world, from, to, kind).map(|(first, _)| first)
}

/// The reasons to refuse.
pub(super) const REFUSALS: [Reason; 2] =
    [Reason::RejectedNoEndpoint, Reason::RejectedUndefinedPort];
/// The reasons to be silent.
pub(super) const SILENCES: [Reason; 3] = [
    Reason::DroppedNoLocalEndpoint,
    Reason::DroppedUnusedAddress,
    Reason::DroppedSourceRange,
];

fn counted(world: &World, reasons: &[Reason]) -> u64 {
    reasons.iter().map(|reason| world.counted(*reason)).sum()
}

/// Sends a packet through both hooks of the packet path. Returns its fate and the source it leaves
/// with.
pub(super) fn send(
    world: &World,
    from: SocketAddr,
    to: SocketAddr,
    kind: Kind,
) -> Result<(First, SocketAddr), String> {
    let mut bytes = packet(from, to, kind)?;
    let before = bytes.clone();
    let rejected = counted(world, &REFUSALS);
    let silent = counted(world, &SILENCES);
    let verdict = world.packets.ingress(&mut bytes, DEVICE);
    if counted(world, &REFUSALS) > rejected {
        return Ok((First::Reject, from));
    }
    match verdict {
        Verdict::Continue if bytes == before => return Ok((First::Untouched, from)),
        Verdict::Continue => {}
        Verdict::Drop if counted(world, &SILENCES) > silent => {
            return Ok((First::Drop, from));
        }
        other => {
            let reasons = world.reasons();
            return Err(format!(
                "an arriving packet ended with {other:?}: {reasons}"
            ));
        }
    }
    let (source, destination) = ends(&bytes)?;
    if source != from {
        return Err(format!("ingress changed the source to {source}"));
    }
    let verdict = world.packets.egress(&mut bytes, 2);
    if verdict != Verdict::Continue {
        let reasons = world.reasons();
        return Err(format!(
            "a leaving packet ended with {verdict:?}: {reasons}"
        ));
    }
    let (source, still) = ends(&bytes)?;
    if still != destination {
        return Err(format!("egress changed the destination to {still}"));
    }
    let masqueraded = source.ip() == SNAT_V4 || source.ip() == SNAT_V6;
    if !masqueraded && source != from {
        return Err(format!("the packet leaves with the source {source}"));
    }
    Ok((First::Backend(destination, masqueraded), source))
}

/// A packet, from its IP header on.
pub(super) fn packet(from: SocketAddr, to: SocketAddr, kind: Kind) -> Result<Vec<u8>, String> {
    let start = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
        _ => return Err(format!("{from} and {to} are of two families")),
    };
    if kind == Kind::Init {
        return Ok(init(from, to));
    }
    let mut bytes = Vec::new();
    let written = if kind.protocol() == Protocol::UDP {
        start
            .udp(from.port(), to.port())
            .write(&mut bytes, b"asked")
    } else {
        let segment = start.tcp(from.port(), to.port(), 1, 1000);
        let segment = match kind {
            Kind::Syn => segment.syn(),
            Kind::SynAck => segment.syn().ack(2),
            Kind::Segment | Kind::Datagram | Kind::Init => segment.ack(2),
        };
        segment.write(&mut bytes, &[])
    };
    written.map_err(|error| format!("the packet cannot be built: {error}"))?;
    Ok(bytes)
}

/// The first packet of an SCTP association.
fn init(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    craft::sctp(&from.into(), &to.into(), Sctp::INIT, &[])
}

/// Source and destination of a packet.
pub(super) fn ends(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr), String> {
    let packet = SlicedPacket::from_ip(bytes)
        .map_err(|error| format!("the packet cannot be parsed any more: {error}"))?;
    let (from, to): (IpAddr, IpAddr) = match packet.net {
        Some(NetSlice::Ipv4(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        Some(NetSlice::Ipv6(ip)) => (
            ip.header().source_addr().into(),
            ip.header().destination_addr().into(),
        ),
        _ => return Err("the packet has no IP header any more".to_owned()),
    };
    let (source, destination) = match packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (udp.source_port(), udp.destination_port()),
        // Of a protocol that the parser does not know: the ports lie where everybody's do.
        None => {
            let at = if from.is_ipv4() { 20 } else { 40 };
            let Some(&[a, b, c, d]) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
                return Err("the packet has no ports any more".to_owned());
            };
            (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
        }
        _ => return Err("the packet has no ports any more".to_owned()),
    };
    Ok((
        SocketAddr::new(from, source),
        SocketAddr::new(to, destination),
    ))
}
