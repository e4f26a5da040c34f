//! Behaviours of the packet path, on the host.
//!
//! The stage: a client outside, a node with a pod that is a backend and one that is a client, and a
//! second backend on another node; every test runs for both families.

mod errors;
mod flows;
mod fragments;
mod marks;
mod node;
mod refuse;
mod rewrite;
mod translate;

use crate::addr::{Addr, BackendId, Endpoint, Port, Protocol, ServiceId};
use crate::host::craft::{flaw, sctp, tcp, udp};
use crate::host::{HostTables, PacketWorld};
use crate::table::FrontendKind;
use crate::verdict::{Reason, Verdict};
use crate::wire::{Sctp, TcpFlags};

/// The families a test runs for.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// The protocols a test runs for.
const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];
/// The device everything happens at.
const DEVICE: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// The address number `last` of a network: 1 node, 2 pods here, 3 pods elsewhere, 9 outside,
    /// 8 services.
    fn addr(self, network: u8, last: u8) -> Addr {
        let text = match self {
            Self::V4 => format!("10.0.{network}.{last}"),
            Self::V6 => format!("fd00:{network}::{last}"),
        };
        text.parse::<core::net::IpAddr>().unwrap().into()
    }

    fn end(self, network: u8, last: u8, port: u16) -> Endpoint {
        Endpoint {
            addr: self.addr(network, last),
            port: Port::new(port),
        }
    }
}

/// A node with one service: port 80 of the service address and node port 30080.
struct Scene {
    family: Family,
    protocol: Protocol,
    world: PacketWorld,
    service: ServiceId,
    backend: BackendId,
}

impl Scene {
    /// One backend, a pod here.
    fn new(family: Family, protocol: Protocol) -> Self {
        Self::with_flags(family, protocol, 0)
    }

    fn with_flags(family: Family, protocol: Protocol, flags: u32) -> Self {
        let mut tables = HostTables::of_node();
        let service = tables.add_service(flags, 0);
        let backend = tables.add_backend(service, &family.end(2, 10, 8080), protocol, true);
        let kind = FrontendKind::ClusterIp;
        tables.add_frontend(service, &family.end(8, 1, 80), protocol, kind);
        tables.add_node_port(service, &family.addr(1, 1), Port::new(30_080), protocol);
        tables.add_node_address(family.addr(1, 1).into());
        Self {
            family,
            protocol,
            world: PacketWorld::new(tables, 1),
            service,
            backend,
        }
    }

    fn client(&self) -> Endpoint {
        self.family.end(9, 1, 40_000)
    }

    fn backend_end(&self) -> Endpoint {
        self.family.end(2, 10, 8080)
    }

    fn cluster_ip(&self) -> Endpoint {
        self.family.end(8, 1, 80)
    }

    fn node_port(&self) -> Endpoint {
        self.family.end(1, 1, 30_080)
    }

    /// The first packet of a conversation.
    fn opening(&self, from: &Endpoint, to: &Endpoint) -> Vec<u8> {
        self.segment(from, to, TcpFlags::SYN)
    }

    /// A later one.
    fn data(&self, from: &Endpoint, to: &Endpoint) -> Vec<u8> {
        self.segment(from, to, TcpFlags::ACK)
    }

    fn segment(&self, from: &Endpoint, to: &Endpoint, flags: u8) -> Vec<u8> {
        if self.protocol == Protocol::TCP {
            tcp(from, to, flags, b"odd")
        } else if self.protocol == Protocol::SCTP {
            let chunk = match flags {
                TcpFlags::SYN => Sctp::INIT,
                flags if flags & TcpFlags::RST != 0 => Sctp::ABORT,
                flags if flags & TcpFlags::FIN != 0 => Sctp::SHUTDOWN,
                _ => 0,
            };
            sctp(from, to, chunk, b"odd")
        } else {
            udp(from, to, b"odd")
        }
    }

    /// Lets a packet arrive and demands that it goes on as one between these ends.
    #[track_caller]
    fn arrives(&self, mut packet: Vec<u8>, from: &Endpoint, to: &Endpoint) {
        assert_eq!(self.world.ingress(&mut packet, DEVICE), Verdict::Continue);
        assert_ends(&packet, from, to);
    }

    /// Lets a packet leave and demands that it goes on as one between these ends.
    #[track_caller]
    fn leaves(&self, mut packet: Vec<u8>, from: &Endpoint, to: &Endpoint) {
        assert_eq!(self.world.egress(&mut packet, DEVICE), Verdict::Continue);
        assert_ends(&packet, from, to);
    }

    /// Lets a packet leave that the node has made and demands that it is sent on to this end;
    /// returns where it seems to come from.
    #[track_caller]
    fn is_sent_on(&self, mut packet: Vec<u8>, to: &Endpoint) -> Endpoint {
        assert_eq!(self.world.output(&mut packet, DEVICE), Verdict::Route);
        assert_eq!(flaw(&packet), None);
        let (from, sent_to) = ends(&packet);
        assert_eq!(sent_to, *to);
        from
    }

    /// Lets a packet arrive and demands that the node gets it as one between these ends.
    #[track_caller]
    fn is_delivered(&self, mut packet: Vec<u8>, from: &Endpoint, to: &Endpoint) {
        assert_eq!(self.world.ingress(&mut packet, DEVICE), Verdict::Deliver);
        assert_ends(&packet, from, to);
    }

    /// Lets a packet leave and returns where it seems to come from.
    #[track_caller]
    fn leaves_from(&self, mut packet: Vec<u8>) -> Endpoint {
        assert_eq!(self.world.egress(&mut packet, DEVICE), Verdict::Continue);
        ends(&packet).0
    }

    fn reason(&self, reason: Reason) -> u64 {
        self.world.tables.reasons.borrow()[reason as usize]
    }

    fn seconds_pass(&self, seconds: u32) {
        let now = self.world.env.now.get();
        let later = now.0 + crate::addr::Tick::seconds(seconds);
        self.world.env.now.set(crate::addr::Tick(later));
    }
}

/// The two ends of a TCP or UDP packet without options.
fn ends(packet: &[u8]) -> (Endpoint, Endpoint) {
    let (source, destination, transport) = if packet[0] >> 4 == 4 {
        let word = |at: usize| u32::from_ne_bytes(packet[at..at + 4].try_into().unwrap());
        let header = usize::from(packet[0] & 15) * 4;
        (
            Addr::from_v4_word(word(12)),
            Addr::from_v4_word(word(16)),
            header,
        )
    } else {
        let addr = |at: usize| Addr::from_octets(packet[at..at + 16].try_into().unwrap());
        (addr(8), addr(24), 40)
    };
    let port = |at: usize| Port::new(u16::from_be_bytes([packet[at], packet[at + 1]]));
    (
        Endpoint {
            addr: source,
            port: port(transport),
        },
        Endpoint {
            addr: destination,
            port: port(transport + 2),
        },
    )
}

#[track_caller]
fn assert_ends(packet: &[u8], from: &Endpoint, to: &Endpoint) {
    let found = ends(packet);
    assert_eq!((found.0, found.1), (*from, *to));
    assert_eq!(flaw(packet), None);
}

/// Runs a test for both families and both protocols.
fn everywhere(test: impl Fn(Family, Protocol)) {
    for family in FAMILIES {
        for protocol in PROTOCOLS {
            test(family, protocol);
        }
    }
}
