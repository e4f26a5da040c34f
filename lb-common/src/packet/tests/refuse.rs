//! What a client gets from a service without endpoints.

use super::*;
use crate::host::craft::tcp;
use crate::wire::{Icmp, Tcp, Udp};
use zerocopy::FromBytes;

fn without_endpoints(family: Family, protocol: Protocol) -> Scene {
    let mut s = Scene::new(family, protocol);
    s.world.tables.remove_backend(s.backend);
    s
}

fn header_length(family: Family) -> usize {
    if family == Family::V4 { 20 } else { 40 }
}

#[test]
fn a_tcp_client_gets_a_reset_from_the_frontend() {
    for family in FAMILIES {
        let s = without_endpoints(family, Protocol::TCP);
        for (flags, payload) in [(TcpFlags::SYN, &b""[..]), (TcpFlags::SYN, b"fast open")] {
            let mut packet = tcp(&s.client(), &s.cluster_ip(), flags, payload);
            assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Answer);
            assert_ends(&packet, &s.cluster_ip(), &s.client());
            let (reset, _) = Tcp::read_from_prefix(&packet[header_length(family)..]).unwrap();
            assert_eq!(reset.flags, TcpFlags::RST | TcpFlags::ACK);
            let sequence = reset.sequence;
            assert_eq!(sequence, 0);
            let acknowledged = u32::from_be(reset.acknowledgment);
            assert_eq!(acknowledged, 1001 + u32::try_from(payload.len()).unwrap());
            assert_eq!(packet.len(), header_length(family) + 20);
        }
        assert_eq!(s.reason(Reason::RejectedNoEndpoint), 2);
        assert_eq!(s.world.tables.counters.borrow()[&s.service].tc_rejected, 2);
    }
}

#[test]
fn a_udp_client_is_told_that_the_port_is_unreachable() {
    for family in FAMILIES {
        let s = without_endpoints(family, Protocol::UDP);
        for length in [0, 1, 4, 33, 1400] {
            let original = udp(&s.client(), &s.cluster_ip(), &vec![7; length]);
            let mut packet = original.clone();
            assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Answer);
            assert_eq!(flaw(&packet), None);
            let header = header_length(family);
            let (icmp, quote) = Icmp::read_from_prefix(&packet[header..]).unwrap();
            let expected = if family == Family::V4 { (3, 3) } else { (1, 4) };
            assert_eq!((icmp.kind, icmp.code), expected);
            assert_eq!(quote, &original[..header + size_of::<Udp>()]);
        }
    }
}

#[test]
fn a_reset_is_never_answered() {
    let s = without_endpoints(Family::V4, Protocol::TCP);
    let packet = tcp(&s.client(), &s.cluster_ip(), TcpFlags::RST, b"");
    s.arrives(packet, &s.client(), &s.cluster_ip());
}
