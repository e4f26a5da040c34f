//! Packets through both hooks of the packet path, all in memory.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use lb_common::addr::{Addr, Protocol};
use lb_common::host::{HostTables, PacketWorld, craft};
use lb_common::table::{Config, SnatAddresses};
use lb_common::verdict::{Reason, Verdict};
use lb_common::wire::Sctp;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The device by which packets come in.
pub const DEVICE: u32 = 1;
/// The device by which they leave.
const OUT: u32 = 2;

/// What packets are SNATed to, on every device: addresses of their own, so that SNAT shows.
pub const SNAT_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));
/// The same for IPv6.
pub const SNAT_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 1));

/// Empty tables of a node that has these.
pub fn tables_of(config: &Config) -> HostTables {
    let mut tables = HostTables::new(*config);
    tables.snat_pool = vec![Addr::UNSPECIFIED, SNAT_V4.into(), SNAT_V6.into()];
    tables.snat.insert(0, SnatAddresses { v4: 1, v6: 2 });
    tables
}

/// The fate of one first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum First {
    /// It leaves for this endpoint, with its source replaced or not.
    Backend(SocketAddr, bool),
    /// Nothing is heard of it any more.
    Drop,
    /// It is refused.
    Reject,
    /// It goes on as it came.
    Untouched,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
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

impl Kind {
    /// The transport of a packet of this kind.
    pub const fn protocol(self) -> Protocol {
        match self {
            Self::Datagram => Protocol::UDP,
            Self::Syn | Self::SynAck | Self::Segment => Protocol::TCP,
            Self::Init => Protocol::SCTP,
        }
    }
}

/// The reasons to refuse.
pub const REFUSALS: [Reason; 2] = [Reason::RejectedNoEndpoint, Reason::RejectedUndefinedPort];
/// The reasons to be silent.
pub const SILENCES: [Reason; 3] = [
    Reason::DroppedNoLocalEndpoint,
    Reason::DroppedUnusedAddress,
    Reason::DroppedSourceRange,
];

/// Everything counted so far, for the message of a failure.
fn counted_so_far(world: &PacketWorld) -> String {
    let counted = world.tables.reasons.borrow();
    let named = Reason::ALL
        .iter()
        .zip(*counted)
        .filter(|(_, count)| *count != 0);
    let named: Vec<String> = named
        .map(|(reason, count)| format!("{} {count}", reason.name()))
        .collect();
    named.join(", ")
}

fn counted(world: &PacketWorld, reasons: &[Reason]) -> u64 {
    reasons
        .iter()
        .map(|reason| world.tables.reasons.borrow()[*reason as usize])
        .sum()
}

/// Sends a packet through both hooks of the packet path. Returns its fate and the source it leaves
/// with.
pub fn send(
    world: &PacketWorld,
    from: SocketAddr,
    to: SocketAddr,
    kind: Kind,
) -> Result<(First, SocketAddr), String> {
    let mut bytes = packet(from, to, kind)?;
    let before = bytes.clone();
    let rejected = counted(world, &REFUSALS);
    let silent = counted(world, &SILENCES);
    let verdict = world.ingress(&mut bytes, DEVICE);
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
            let reasons = counted_so_far(world);
            return Err(format!(
                "an arriving packet ended with {other:?}: {reasons}"
            ));
        }
    }
    let (source, destination) = ends(&bytes)?;
    if source != from {
        return Err(format!("ingress changed the source to {source}"));
    }
    let verdict = world.egress(&mut bytes, OUT);
    if verdict != Verdict::Continue {
        let reasons = counted_so_far(world);
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
pub fn packet(from: SocketAddr, to: SocketAddr, kind: Kind) -> Result<Vec<u8>, String> {
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
pub fn ends(bytes: &[u8]) -> Result<(SocketAddr, SocketAddr), String> {
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
