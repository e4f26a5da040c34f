//! Rewrites keep checksums valid and can be undone, whatever the packet.

use super::*;
use crate::host::craft::{repair, sum};
use crate::packet::nat::{replace_destination, replace_source};
use crate::packet::parse::{Thorough, thorough};
use proptest::prelude::*;

fn any_end(family: Family) -> impl Strategy<Value = Endpoint> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(move |(mut octets, port)| {
        if family == Family::V4 {
            octets[..10].fill(0);
            octets[10..12].fill(0xff);
        }
        Endpoint {
            addr: Addr::from_octets(octets),
            port: Port(port),
        }
    })
}

fn any_packet(family: Family) -> impl Strategy<Value = Vec<u8>> {
    (
        any_end(family),
        any_end(family),
        any::<bool>(),
        any::<u8>(),
        proptest::collection::vec(any::<u8>(), 0..64),
        0_usize..=10,
    )
        .prop_map(move |(from, to, is_tcp, flags, payload, options)| {
            let packet = if is_tcp {
                tcp(&from, &to, flags, &payload)
            } else {
                udp(&from, &to, &payload)
            };
            if family == Family::V4 {
                with_options(packet, options)
            } else {
                packet
            }
        })
}

/// The same packet with this many words of (no-operation) IPv4 options.
fn with_options(mut packet: Vec<u8>, words: usize) -> Vec<u8> {
    packet.splice(20..20, std::iter::repeat_n(1, words * 4));
    packet[0] += u8::try_from(words).unwrap();
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    repair(&mut packet);
    packet
}

/// Replaces both ends of `packet` as the path does, and returns the ends it had.
fn replace(packet: &mut Vec<u8>, from: &Endpoint, to: &Endpoint) -> (Endpoint, Endpoint) {
    let world = PacketWorld::new(HostTables::of_node(), 1);
    let mut packet = world.packet(packet, DEVICE);
    let Thorough::Segment(mut headers) = thorough(&packet, 0) else {
        panic!("not a TCP or UDP packet");
    };
    let ends = (headers.source, headers.destination);
    replace_source(&mut packet, &mut headers, from).unwrap();
    replace_destination(&mut packet, &mut headers, to).unwrap();
    ends
}

fn check(family: Family) {
    let strategy = (any_packet(family), any_end(family), any_end(family));
    proptest!(|((packet, from, to) in strategy)| {
        let mut changed = packet.clone();
        let ends_before = replace(&mut changed, &from, &to);
        prop_assert_eq!(flaw(&changed), None);
        prop_assert_eq!(ends(&changed), (from, to));
        replace(&mut changed, &ends_before.0, &ends_before.1);
        prop_assert_eq!(changed, packet);
    });
}

#[test]
fn an_ipv4_rewrite_keeps_checksums_valid_and_can_be_undone() {
    check(Family::V4);
}

#[test]
fn an_ipv6_rewrite_keeps_checksums_valid_and_can_be_undone() {
    check(Family::V6);
}

#[test]
fn udp_without_a_checksum_keeps_none() {
    let mut packet = udp(&Family::V4.end(9, 1, 1), &Family::V4.end(9, 2, 2), b"data");
    packet[26..28].fill(0);
    replace(
        &mut packet,
        &Family::V4.end(1, 1, 7),
        &Family::V4.end(1, 2, 8),
    );
    assert_eq!(packet[26..28], [0, 0]);
    assert_eq!(flaw(&packet), None);
}

#[test]
fn crafted_packets_are_what_an_independent_parser_expects() {
    let (from, to) = (Family::V4.end(9, 1, 1000), Family::V4.end(9, 2, 80));
    let built = |builder: etherparse::PacketBuilderStep<etherparse::UdpHeader>| {
        let mut out = Vec::new();
        builder.write(&mut out, b"data").unwrap();
        out
    };
    let mut other =
        built(etherparse::PacketBuilder::ipv4([10, 0, 9, 1], [10, 0, 9, 2], 64).udp(1000, 80));
    // The identification and the flags are free.
    other[4..8].copy_from_slice(&udp(&from, &to, b"data")[4..8]);
    repair(&mut other);
    assert_eq!(udp(&from, &to, b"data"), other);
    assert_eq!(sum(&other[..20]).fold(), 0xffff);
}
