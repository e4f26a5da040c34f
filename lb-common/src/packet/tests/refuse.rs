//! What a client gets from a service without endpoints.

use super::*;
use crate::addr::Prefix;
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

#[test]
fn an_undefined_port_of_a_cluster_ip_is_refused() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let undefined = family.end(8, 1, 81);
        let arrive = |s: &Scene| {
            s.world
                .ingress(&mut s.opening(&s.client(), &undefined), DEVICE)
        };
        assert_eq!(
            arrive(&s),
            Verdict::Continue,
            "nobody said it was a ClusterIP"
        );
        s.world.tables.add_any_port(undefined.addr);
        assert_eq!(arrive(&s), Verdict::Answer);
        assert_eq!(s.reason(Reason::RejectedUndefinedPort), 1);
        // The defined one is served as before.
        let packet = s.opening(&s.client(), &s.cluster_ip());
        s.arrives(packet, &s.client(), &s.backend_end());
    });
}

#[test]
fn a_free_address_of_a_service_cidr_is_met_with_silence() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let free = family.end(8, 2, 80);
        let arrive = |s: &Scene| s.world.ingress(&mut s.opening(&s.client(), &free), DEVICE);
        assert_eq!(arrive(&s), Verdict::Continue, "no range is known");
        let length = if family == Family::V4 { 24 } else { 64 };
        let cidr = Prefix::new(family.addr(8, 0).into(), length);
        s.world.tables.config.set_service_cidrs(&[cidr]);
        assert_eq!(arrive(&s), Verdict::Drop);
        assert_eq!(s.reason(Reason::DroppedUnusedAddress), 1);
        let packet = s.opening(&s.client(), &s.cluster_ip());
        s.arrives(packet, &s.client(), &s.backend_end());
    });
}

#[test]
fn only_first_packets_are_refused_or_dropped_for_their_address() {
    for family in FAMILIES {
        let mut s = Scene::new(family, Protocol::TCP);
        let length = if family == Family::V4 { 24 } else { 64 };
        let cidr = Prefix::new(family.addr(8, 0).into(), length);
        s.world.tables.config.set_service_cidrs(&[cidr]);
        s.world.tables.add_any_port(family.addr(8, 1));
        for end in [family.end(8, 1, 81), family.end(8, 2, 80)] {
            for flags in [TcpFlags::ACK, TcpFlags::SYN | TcpFlags::ACK, TcpFlags::RST] {
                let packet = tcp(&s.client(), &end, flags, b"");
                s.arrives(packet, &s.client(), &end);
            }
        }
    }
}

#[test]
fn a_source_outside_the_ranges_is_met_with_silence() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let vip = family.end(8, 9, 443);
        let allowed = Prefix::new(
            family.addr(9, 0).into(),
            if family == Family::V4 { 24 } else { 32 },
        );
        s.world
            .tables
            .add_guarded_frontend(s.service, &vip, protocol, &[allowed]);
        let packet = s.opening(&s.client(), &vip);
        s.arrives(packet, &s.client(), &s.backend_end());
        let stranger = family.end(7, 1, 40_000);
        let mut packet = s.opening(&stranger, &vip);
        assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Drop);
        assert_eq!(s.reason(Reason::DroppedSourceRange), 1);
        assert_eq!(s.world.tables.counters.borrow()[&s.service].tc_dropped, 1);
        // Ranges are asked of first packets only: what is open stays open.
        s.world.tables.ranges.clear();
        let packet = s.data(&s.client(), &vip);
        s.arrives(packet, &s.client(), &s.backend_end());
    });
}
