//! Fragments follow their first one; options and extension headers are stepped over.

use super::*;
use crate::host::craft::repair;
use crate::wire::next_header;

/// Cuts a datagram into fragments of this many bytes of payload (a multiple of eight).
fn cut(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let v4 = packet[0] >> 4 == 4;
    let header = if v4 { 20 } else { 40 };
    let pieces: Vec<_> = packet[header..].chunks(size).collect();
    let fragment = |(index, piece): (usize, &&[u8])| {
        let units = u16::try_from(index * size / 8).unwrap();
        let more = index + 1 < pieces.len();
        let mut fragment = packet[..header].to_vec();
        if v4 {
            let length = u16::try_from(20 + piece.len()).unwrap();
            fragment[2..4].copy_from_slice(&length.to_be_bytes());
            let flags = units | if more { 0x2000 } else { 0 };
            fragment[6..8].copy_from_slice(&flags.to_be_bytes());
            // Only the IP header's checksum: the datagram's own stays.
            fragment[10..12].fill(0);
            let checksum = crate::host::craft::sum(&fragment).checksum();
            fragment[10..12].copy_from_slice(&checksum.to_ne_bytes());
        } else {
            let length = u16::try_from(8 + piece.len()).unwrap();
            fragment[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut fragment[6], next_header::FRAGMENT);
            let flags = (units << 3) | u16::from(more);
            fragment.extend([next, 0]);
            fragment.extend(flags.to_be_bytes());
            fragment.extend([0, 0, 0, 9]);
        }
        fragment.extend(*piece);
        fragment
    };
    pieces.iter().enumerate().map(fragment).collect()
}

/// Lets fragments through a hook, which must make of them the fragments of `expected`.
#[track_caller]
fn become_fragments_of(hook: impl Fn(&mut Vec<u8>) -> Verdict, packet: &[u8], expected: &[u8]) {
    for (mut fragment, expected) in cut(packet, 64).into_iter().zip(cut(expected, 64)) {
        assert_eq!(hook(&mut fragment), Verdict::Continue);
        assert_eq!(fragment, expected);
    }
}

#[test]
fn all_fragments_of_a_datagram_take_the_way_of_the_first() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::UDP);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        let payload = [3; 300];
        let request = |from: &Endpoint, to: &Endpoint| udp(from, to, &payload);
        let ingress = |packet: &mut Vec<u8>| s.world.ingress(packet, DEVICE);
        let egress = |packet: &mut Vec<u8>| s.world.egress(packet, DEVICE);
        become_fragments_of(
            ingress,
            &request(&client, &frontend),
            &request(&client, &backend),
        );
        let snat = s.leaves_from(s.data(&client, &backend));
        become_fragments_of(
            egress,
            &request(&client, &backend),
            &request(&snat, &backend),
        );
        become_fragments_of(
            ingress,
            &request(&backend, &snat),
            &request(&backend, &client),
        );
        become_fragments_of(
            egress,
            &request(&backend, &client),
            &request(&frontend, &client),
        );
        assert_eq!(s.reason(Reason::Opened), 1);
    }
}

#[test]
fn a_fragment_without_its_first_is_left_to_the_stack() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::UDP);
        let packet = udp(&s.client(), &s.cluster_ip(), &[3; 300]);
        let later = cut(&packet, 64).remove(2);
        let mut same = later.clone();
        assert_eq!(s.world.ingress(&mut same, DEVICE), Verdict::Continue);
        assert_eq!(same, later);
        assert_eq!(s.reason(Reason::FragmentWithoutFirst), 1);
    }
}

#[test]
fn ipv4_options_are_stepped_over() {
    for protocol in PROTOCOLS {
        let s = Scene::new(Family::V4, protocol);
        let mut packet = s.opening(&s.client(), &s.cluster_ip());
        packet.splice(20..20, [1; 8]);
        packet[0] = 0x47;
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        repair(&mut packet);
        s.arrives(packet, &s.client(), &s.backend_end());
    }
}

/// A packet with these extension headers (each of eight bytes) before its transport header.
fn with_extensions(packet: &[u8], extensions: &[u8]) -> Vec<u8> {
    let mut long = packet[..40].to_vec();
    let protocol = long[6];
    long[6] = extensions.first().copied().unwrap_or(protocol);
    for index in 0..extensions.len() {
        let next = extensions.get(index + 1).copied().unwrap_or(protocol);
        long.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    long.extend(&packet[40..]);
    let length = u16::try_from(long.len() - 40).unwrap();
    long[4..6].copy_from_slice(&length.to_be_bytes());
    long
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    for protocol in PROTOCOLS {
        let s = Scene::new(Family::V6, protocol);
        for extensions in [
            &[next_header::HOP_BY_HOP][..],
            &[next_header::DESTINATION, next_header::HOP_BY_HOP],
        ] {
            let request = s.opening(&s.client(), &s.cluster_ip());
            let mut packet = with_extensions(&request, extensions);
            assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Continue);
            let expected = s.opening(&s.client(), &s.backend_end());
            assert_eq!(packet, with_extensions(&expected, extensions));
        }
    }
}

#[test]
fn more_extension_headers_than_we_step_over_are_left_to_the_stack() {
    let s = Scene::new(Family::V6, Protocol::UDP);
    let request = s.opening(&s.client(), &s.cluster_ip());
    let packet = with_extensions(&request, &[next_header::DESTINATION; 9]);
    let mut same = packet.clone();
    assert_eq!(s.world.ingress(&mut same, DEVICE), Verdict::Continue);
    assert_eq!(same, packet);
}
