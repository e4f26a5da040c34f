//! From a packet to its two ends.
//!
//! Ordinary packets (no IPv4 options, no IPv6 extension headers, no fragments, TCP or UDP, not SCTP) take
//! [`ordinary_v4`] or [`ordinary_v6`], which read at fixed offsets. Everything else takes [`thorough`], which is rare
//! enough to read at leisure. Neither changes anything.

use super::{Packet, is_ordinary, is_translated};
use crate::addr::{Addr, Endpoint, Port, Protocol};
use crate::wire::{Ipv4, Ipv6, Ipv6Fragment, Ports, Sctp, Tcp, TcpFlags, next_header};

/// What the link layer says the packet is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
    /// Anything else, also a second VLAN tag.
    Other,
}

/// Which part of a datagram a packet carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// All of it.
    Whole,
    /// The first fragment, with the transport header.
    First,
    /// Another fragment: no transport header, ports as remembered from the first.
    Later,
}

/// What is known of a TCP, UDP or SCTP packet.
#[derive(Clone, Copy, Debug)]
pub struct Headers {
    /// Who sent it.
    pub source: Endpoint,
    /// Where it goes.
    pub destination: Endpoint,
    /// TCP, UDP or SCTP (ICMP in [`Thorough::Icmp`]).
    pub protocol: Protocol,
    /// Which part of a datagram it is.
    pub part: Part,
    /// TCP flags, or what an SCTP chunk means in terms of them; zero for UDP and where the header is
    /// not there.
    pub flags: u8,
    /// Offset of the transport header.
    pub transport: u32,
    /// Length from the IP header on, as the IP header says it.
    pub length: u32,
    /// IPv4: the header's word of time to live, protocol and checksum.
    pub ipv4_word: u32,
    /// Identification of a fragment's datagram.
    pub identification: u32,
}

impl Headers {
    /// Of no packet.
    pub const NONE: Self = Self {
        source: Endpoint::NONE,
        destination: Endpoint::NONE,
        protocol: Protocol(0),
        part: Part::Whole,
        flags: 0,
        transport: 0,
        length: 0,
        ipv4_word: 0,
        identification: 0,
    };

    /// False for what is certainly not the first packet of a conversation.
    #[inline(always)]
    pub(super) const fn may_begin(&self) -> bool {
        self.protocol.0 == Protocol::UDP.0 || TcpFlags::opens(self.flags)
    }
}

/// What the quick look found.
pub(super) enum Ordinary {
    /// A TCP or UDP packet like most.
    Segment(Headers),
    /// Needs the thorough look.
    Rare,
    /// Nothing that is ever translated.
    Foreign,
}

/// What the thorough look found.
pub(super) enum Thorough {
    /// A TCP, UDP or SCTP packet. Of a later fragment the ports are not known yet.
    Segment(Headers),
    /// ICMP of the packet's family, unfragmented: only the addresses and offsets are meant.
    Icmp(Headers),
    /// Nothing that is ever translated, or that must be left to the stack.
    Foreign,
    /// Broken.
    Unparsable,
}

/// Looks at an IPv4 packet quickly.
#[inline(always)]
pub(super) fn ordinary_v4(packet: &impl Packet) -> Ordinary {
    let Some(ip) = packet.read::<Ipv4, 0>() else {
        return Ordinary::Foreign;
    };
    let protocol = ip.protocol();
    if !is_ordinary(protocol) {
        return if matches!(protocol, Protocol::ICMP | Protocol::SCTP) {
            Ordinary::Rare
        } else {
            Ordinary::Foreign
        };
    }
    if ip.version_length != Ipv4::PLAIN
        || ip.fragment & (Ipv4::MORE_FRAGMENTS | Ipv4::FRAGMENT_OFFSET) != 0
    {
        return Ordinary::Rare;
    }
    let Some(ports) = packet.read::<Ports, { Ipv4::LENGTH as usize }>() else {
        return Ordinary::Foreign;
    };
    let mut flags = 0;
    if protocol.0 == Protocol::TCP.0 {
        let Some(tcp) = packet.read::<Tcp, { Ipv4::LENGTH as usize }>() else {
            return Ordinary::Foreign;
        };
        flags = tcp.flags;
    }
    Ordinary::Segment(Headers {
        source: Endpoint {
            addr: Addr::from_v4_word(ip.source),
            port: ports.source,
        },
        destination: Endpoint {
            addr: Addr::from_v4_word(ip.destination),
            port: ports.destination,
        },
        protocol,
        part: Part::Whole,
        flags,
        transport: Ipv4::LENGTH,
        length: u32::from(u16::from_be(ip.total_length)),
        ipv4_word: ip.lifetime_protocol_checksum,
        identification: 0,
    })
}

/// Looks at an IPv6 packet quickly.
#[inline(always)]
pub(super) fn ordinary_v6(packet: &impl Packet) -> Ordinary {
    let Some(ip) = packet.read::<Ipv6, 0>() else {
        return Ordinary::Foreign;
    };
    let protocol = Protocol(ip.next_header);
    if !is_ordinary(protocol) {
        return match ip.next_header {
            58
            | 132
            | next_header::HOP_BY_HOP
            | next_header::ROUTING
            | next_header::FRAGMENT
            | next_header::DESTINATION => Ordinary::Rare,
            _ => Ordinary::Foreign,
        };
    }
    let Some(ports) = packet.read::<Ports, { Ipv6::LENGTH as usize }>() else {
        return Ordinary::Foreign;
    };
    let mut flags = 0;
    if protocol.0 == Protocol::TCP.0 {
        let Some(tcp) = packet.read::<Tcp, { Ipv6::LENGTH as usize }>() else {
            return Ordinary::Foreign;
        };
        flags = tcp.flags;
    }
    Ordinary::Segment(Headers {
        source: Endpoint {
            addr: ip.source(),
            port: ports.source,
        },
        destination: Endpoint {
            addr: ip.destination(),
            port: ports.destination,
        },
        protocol,
        part: Part::Whole,
        flags,
        transport: Ipv6::LENGTH,
        length: v6_length(packet, &ip),
        ipv4_word: 0,
        identification: 0,
    })
}

/// The length of an IPv6 packet; one larger than 64 KiB (RFC 2675, also the kernel's "big TCP")
/// says zero.
#[inline(always)]
fn v6_length(packet: &impl Packet, ip: &Ipv6) -> u32 {
    if ip.payload_length == 0 {
        packet.length()
    } else {
        u32::from(u16::from_be(ip.payload_length)) + Ipv6::LENGTH
    }
}

/// Looks at a packet thoroughly, with its IP header at offset `at` (an ICMP error quotes another
/// packet, of which no more than eight bytes of the transport header need be there).
#[inline(always)]
pub(super) fn thorough(packet: &impl Packet, at: u32) -> Thorough {
    match packet.family() {
        Family::V4 => thorough_v4(packet, at),
        Family::V6 => thorough_v6(packet, at),
        Family::Other => Thorough::Foreign,
    }
}

#[inline(always)]
fn thorough_v4(packet: &impl Packet, at: u32) -> Thorough {
    let Some(ip) = packet.load::<Ipv4>(at) else {
        return Thorough::Unparsable;
    };
    let header = ip.header_length();
    if ip.version_length >> 4 != 4 || header < Ipv4::LENGTH {
        return Thorough::Unparsable;
    }
    let part = if ip.fragment & Ipv4::FRAGMENT_OFFSET != 0 {
        Part::Later
    } else if ip.fragment & Ipv4::MORE_FRAGMENTS != 0 {
        Part::First
    } else {
        Part::Whole
    };
    let headers = Headers {
        source: Endpoint {
            addr: Addr::from_v4_word(ip.source),
            port: Port(0),
        },
        destination: Endpoint {
            addr: Addr::from_v4_word(ip.destination),
            port: Port(0),
        },
        protocol: ip.protocol(),
        part,
        flags: 0,
        transport: at + header,
        length: u32::from(u16::from_be(ip.total_length)),
        ipv4_word: ip.lifetime_protocol_checksum,
        identification: u32::from(ip.identification),
    };
    transport(packet, headers, Protocol::ICMP)
}

/// How many extension headers are stepped over; packets with more are left to the stack.
const EXTENSIONS: u32 = 4;

#[inline(always)]
fn thorough_v6(packet: &impl Packet, at: u32) -> Thorough {
    let Some(ip) = packet.load::<Ipv6>(at) else {
        return Thorough::Unparsable;
    };
    if ip.version_class_flow.to_ne_bytes()[0] >> 4 != 6 {
        return Thorough::Unparsable;
    }
    let mut next = ip.next_header;
    let mut offset = at + Ipv6::LENGTH;
    let mut part = Part::Whole;
    let mut identification = 0;
    let mut step = 0;
    while step < EXTENSIONS {
        step += 1;
        match next {
            next_header::FRAGMENT => {
                let Some(fragment) = packet.load::<Ipv6Fragment>(offset) else {
                    return Thorough::Unparsable;
                };
                identification = fragment.identification;
                if fragment.offset_more & Ipv6Fragment::OFFSET != 0 {
                    part = Part::Later;
                } else if fragment.offset_more & Ipv6Fragment::MORE != 0 {
                    part = Part::First;
                }
                next = fragment.next_header;
                offset += Ipv6Fragment::LENGTH;
                if matches!(part, Part::Later) {
                    break;
                }
            }
            next_header::HOP_BY_HOP | next_header::DESTINATION | next_header::ROUTING => {
                // Next header, length in units of eight bytes without the first; a routing
                // header's fourth byte tells how many destinations are still to come.
                let Some([following, length, _, left]) = packet.load::<[u8; 4]>(offset) else {
                    return Thorough::Unparsable;
                };
                if next == next_header::ROUTING && left != 0 {
                    return Thorough::Foreign;
                }
                next = following;
                offset += (u32::from(length) + 1) * 8;
            }
            _ => break,
        }
    }
    let headers = Headers {
        source: Endpoint {
            addr: ip.source(),
            port: Port(0),
        },
        destination: Endpoint {
            addr: ip.destination(),
            port: Port(0),
        },
        protocol: Protocol(next),
        part,
        flags: 0,
        transport: offset,
        length: v6_length(packet, &ip),
        ipv4_word: 0,
        identification,
    };
    transport(packet, headers, Protocol::ICMPV6)
}

/// Completes `headers` with the ports and flags, where the packet has them.
#[inline(always)]
fn transport(packet: &impl Packet, mut headers: Headers, icmp: Protocol) -> Thorough {
    if headers.protocol.0 == icmp.0 {
        return if matches!(headers.part, Part::Whole) {
            Thorough::Icmp(headers)
        } else {
            Thorough::Foreign
        };
    }
    if !is_translated(headers.protocol) {
        return Thorough::Foreign;
    }
    if matches!(headers.part, Part::Later) {
        return Thorough::Segment(headers);
    }
    let Some(ports) = packet.load::<Ports>(headers.transport) else {
        return Thorough::Unparsable;
    };
    headers.source.port = ports.source;
    headers.destination.port = ports.destination;
    if headers.protocol.0 == Protocol::TCP.0
        && let Some(tcp) = packet.load::<Tcp>(headers.transport)
    {
        // A quoted segment may end before its flags.
        headers.flags = tcp.flags;
    }
    if headers.protocol.0 == Protocol::SCTP.0
        && let Some(chunk) = packet.load::<u8>(headers.transport + Sctp::CHUNK_AT)
    {
        headers.flags = Sctp::flags(chunk);
    }
    Thorough::Segment(headers)
}
