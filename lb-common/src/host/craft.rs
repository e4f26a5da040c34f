//! Packets made by hand, from their IP header on, and a judge of their checksums.

use crate::addr::{Addr, Endpoint, Protocol};
use crate::wire::{Difference, Icmp, Ipv4, Ipv6, Ports, Sctp, Tcp, Udp};
use zerocopy::{FromBytes, IntoBytes};

/// A TCP segment with these [`TcpFlags`](crate::wire::TcpFlags).
pub fn tcp(from: &Endpoint, to: &Endpoint, flags: u8, payload: &[u8]) -> Vec<u8> {
    let header = Tcp {
        ports: ports(from, to),
        sequence: 1000_u32.to_be(),
        acknowledgment: 2000_u32.to_be(),
        data_offset: 5 << 4,
        flags,
        window: 0xffff,
        checksum: 0,
        urgent: 0,
    };
    ip(
        &from.addr,
        &to.addr,
        Protocol::TCP,
        &[header.as_bytes(), payload].concat(),
    )
}

/// A UDP datagram.
pub fn udp(from: &Endpoint, to: &Endpoint, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX) + 8;
    let header = Udp {
        ports: ports(from, to),
        length: length.to_be(),
        checksum: 0,
    };
    ip(
        &from.addr,
        &to.addr,
        Protocol::UDP,
        &[header.as_bytes(), payload].concat(),
    )
}

/// An SCTP packet with one chunk of this type; its initiate tag, if it is an INIT, is 7.
pub fn sctp(from: &Endpoint, to: &Endpoint, chunk: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX) + 8;
    let header = Sctp {
        ports: ports(from, to),
        tag: 5_u32.to_be(),
        checksum: 0,
        chunk,
        chunk_flags: 0,
        chunk_length: length.to_be(),
        initiate_tag: 7_u32.to_be(),
    };
    ip(
        &from.addr,
        &to.addr,
        Protocol::SCTP,
        &[header.as_bytes(), payload].concat(),
    )
}

/// CRC32c as RFC 9260 appendix A writes it, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |register, byte| {
        (0..8).fold(register ^ u32::from(*byte), |register, _| {
            (register >> 1) ^ if register & 1 == 0 { 0 } else { 0x82f6_3b78 }
        })
    })
}

/// The checksum that an SCTP packet, from its own header on, should have.
fn sctp_checksum(body: &[u8]) -> [u8; 4] {
    let mut body = body.to_vec();
    body[8..12].fill(0);
    crc32c(&body).to_le_bytes()
}

/// An ICMP or ICMPv6 error from `router` to `to` that quotes the first `quoted` bytes of `packet`.
pub fn icmp_error(
    router: &Addr,
    to: &Addr,
    kind: u8,
    code: u8,
    packet: &[u8],
    quoted: usize,
) -> Vec<u8> {
    let header = Icmp {
        kind,
        code,
        checksum: 0,
        rest: 0,
    };
    let protocol = if to.is_v4() {
        Protocol::ICMP
    } else {
        Protocol::ICMPV6
    };
    let quote = &packet[..quoted.min(packet.len())];
    ip(router, to, protocol, &[header.as_bytes(), quote].concat())
}

const fn ports(from: &Endpoint, to: &Endpoint) -> Ports {
    Ports {
        source: from.port,
        destination: to.port,
    }
}

/// An IP packet around `body`, with all checksums.
pub fn ip(from: &Addr, to: &Addr, protocol: Protocol, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut packet = if to.is_v4() {
        let header = Ipv4 {
            version_length: Ipv4::PLAIN,
            service: 0,
            total_length: (length + 20).to_be(),
            identification: 7,
            fragment: 0,
            lifetime_protocol_checksum: u32::from_ne_bytes([64, protocol.0, 0, 0]),
            source: from.v4_word(),
            destination: to.v4_word(),
        };
        header.as_bytes().to_vec()
    } else {
        let header = Ipv6 {
            version_class_flow: Ipv6::PLAIN,
            payload_length: length.to_be(),
            next_header: protocol.0,
            hop_limit: 64,
            source: from.words(),
            destination: to.words(),
        };
        header.as_bytes().to_vec()
    };
    packet.extend(body);
    repair(&mut packet);
    packet
}

/// Computes every checksum of a packet anew (not of what an ICMP error quotes).
pub fn repair(packet: &mut [u8]) {
    let Some((transport, protocol)) = layout(packet) else {
        return;
    };
    if packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let checksum = sum(&packet[..transport]).checksum();
        packet[10..12].copy_from_slice(&checksum.to_ne_bytes());
    }
    if protocol == Protocol::SCTP {
        let checksum = sctp_checksum(&packet[transport..]);
        packet[transport + 8..transport + 12].copy_from_slice(&checksum);
    }
    let Some(at) = checksum_offset(protocol) else {
        return;
    };
    let at = transport + at;
    packet[at..at + 2].fill(0);
    let mut checksum = transport_sum(packet, transport, protocol).checksum();
    if checksum == 0 && protocol == Protocol::UDP {
        checksum = 0xffff;
    }
    packet[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
}

/// What is wrong with a packet's lengths and checksums, if anything.
pub fn flaw(packet: &[u8]) -> Option<String> {
    let Some((transport, protocol)) = layout(packet) else {
        return Some("no IP header".to_owned());
    };
    let said = if packet[0] >> 4 == 4 {
        usize::from(u16::from_be_bytes([packet[2], packet[3]]))
    } else {
        usize::from(u16::from_be_bytes([packet[4], packet[5]])) + 40
    };
    if said != packet.len() {
        return Some(format!(
            "the header says {said} bytes, there are {}",
            packet.len()
        ));
    }
    if packet[0] >> 4 == 4 && sum(&packet[..transport]).fold() != 0xffff {
        return Some("the IPv4 header's checksum is wrong".to_owned());
    }
    if protocol == Protocol::SCTP {
        let right = packet[transport + 8..transport + 12] == sctp_checksum(&packet[transport..]);
        return (!right).then(|| "the CRC of SCTP is wrong".to_owned());
    }
    let at = transport + checksum_offset(protocol)?;
    if protocol == Protocol::UDP && packet[at..at + 2] == [0, 0] {
        return None;
    }
    let sum = transport_sum(packet, transport, protocol).fold();
    (sum != 0xffff).then(|| format!("the checksum of protocol {} is wrong", protocol.0))
}

fn checksum_offset(protocol: Protocol) -> Option<usize> {
    match protocol {
        Protocol::TCP => Some(Tcp::CHECKSUM_AT as usize),
        Protocol::UDP => Some(Udp::CHECKSUM_AT as usize),
        Protocol::ICMP | Protocol::ICMPV6 => Some(Icmp::CHECKSUM_AT as usize),
        _ => None,
    }
}

/// Where the transport header begins, and what it is.
fn layout(packet: &[u8]) -> Option<(usize, Protocol)> {
    match packet.first()? >> 4 {
        4 => {
            let (ip, _) = Ipv4::read_from_prefix(packet).ok()?;
            Some((ip.header_length() as usize, ip.protocol()))
        }
        6 => {
            let (ip, _) = Ipv6::read_from_prefix(packet).ok()?;
            Some((40, Protocol(ip.next_header)))
        }
        _ => None,
    }
}

/// The sum of a transport header, its data and its pseudo header.
fn transport_sum(packet: &[u8], transport: usize, protocol: Protocol) -> Difference {
    let body = &packet[transport..];
    let sum = sum(body);
    if protocol == Protocol::ICMP {
        return sum;
    }
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let addresses = if packet[0] >> 4 == 4 {
        &packet[12..20]
    } else {
        &packet[8..40]
    };
    sum.plus(self::sum(addresses))
        .plus_word(length.to_be())
        .plus_word(u32::from(protocol.0).to_be())
}

/// The sum of bytes; an odd last one counts as if a zero followed.
pub fn sum(bytes: &[u8]) -> Difference {
    bytes.chunks(2).fold(Difference::NONE, |sum, pair| {
        let half = u16::from_ne_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        sum.plus_word(u32::from(half))
    })
}
