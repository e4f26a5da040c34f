//! IPv4 (RFC 791) and IPv6 (RFC 8200).

use crate::addr::{Addr, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv4 header without options.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Ipv4 {
    /// Version 4 and the header's length in words of four bytes.
    pub version_length: u8,
    /// Differentiated services.
    pub service: u8,
    /// Length of the whole packet.
    pub total_length: u16,
    /// Identification.
    pub identification: u16,
    /// Flags and fragment offset.
    pub fragment: u16,
    /// Time to live, protocol and checksum: one word, because rewrites store it whole.
    pub lifetime_protocol_checksum: u32,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

impl Ipv4 {
    /// The header's length without options.
    pub const LENGTH: u32 = 20;
    /// Offset of [`lifetime_protocol_checksum`](Self::lifetime_protocol_checksum).
    pub const WORD_AT: u32 = 8;
    /// Offset of the source address.
    pub const SOURCE_AT: u32 = 12;
    /// Offset of the destination address.
    pub const DESTINATION_AT: u32 = 16;
    /// First byte of a header without options.
    pub const PLAIN: u8 = 0x45;
    /// "Don't fragment" in `fragment`.
    pub const DONT_FRAGMENT: u16 = 0x4000_u16.to_be();
    /// "More fragments" in `fragment`.
    pub const MORE_FRAGMENTS: u16 = 0x2000_u16.to_be();
    /// The offset in `fragment`.
    pub const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

    /// The header's length with options, in bytes.
    #[inline(always)]
    pub const fn header_length(&self) -> u32 {
        (self.version_length as u32 & 15) * 4
    }

    /// What follows the header.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        Protocol(self.lifetime_protocol_checksum.to_ne_bytes()[1])
    }

    /// The word of time to live, protocol and checksum with another checksum.
    #[inline(always)]
    pub const fn with_checksum(word: u32, checksum: u16) -> u32 {
        let [ttl, protocol, _, _] = word.to_ne_bytes();
        let [a, b] = checksum.to_ne_bytes();
        u32::from_ne_bytes([ttl, protocol, a, b])
    }

    /// The checksum in the word of time to live, protocol and checksum.
    #[inline(always)]
    pub const fn checksum_of(word: u32) -> u16 {
        let [_, _, a, b] = word.to_ne_bytes();
        u16::from_ne_bytes([a, b])
    }
}

/// An IPv6 header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Ipv6 {
    /// Version 6, traffic class and flow label.
    pub version_class_flow: u32,
    /// Length of what follows this header.
    pub payload_length: u16,
    /// What follows.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u32; 4],
    /// Destination address.
    pub destination: [u32; 4],
}

impl Ipv6 {
    /// The header's length.
    pub const LENGTH: u32 = 40;
    /// Offset of the source address.
    pub const SOURCE_AT: u32 = 8;
    /// Offset of the destination address.
    pub const DESTINATION_AT: u32 = 24;
    /// The first word of a packet without class and flow label.
    pub const PLAIN: u32 = 0x6000_0000_u32.to_be();

    /// The source address.
    #[inline(always)]
    pub const fn source(&self) -> Addr {
        Addr::from_v6_words(self.source)
    }

    /// The destination address.
    #[inline(always)]
    pub const fn destination(&self) -> Addr {
        Addr::from_v6_words(self.destination)
    }
}

/// IPv6 extension headers (IANA protocol numbers) that the packet path can step over.
pub mod next_header {
    /// Hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// Routing.
    pub const ROUTING: u8 = 43;
    /// Fragment.
    pub const FRAGMENT: u8 = 44;
    /// Destination options.
    pub const DESTINATION: u8 = 60;
}

/// The IPv6 fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Ipv6Fragment {
    /// What follows.
    pub next_header: u8,
    /// Reserved.
    pub reserved: u8,
    /// Offset in units of eight bytes (upper 13 bits) and the "more" flag (lowest bit).
    pub offset_more: u16,
    /// Identification.
    pub identification: u32,
}

impl Ipv6Fragment {
    /// The header's length.
    pub const LENGTH: u32 = 8;
    /// The "more fragments" flag in `offset_more`.
    pub const MORE: u16 = 1_u16.to_be();
    /// The offset in `offset_more`.
    pub const OFFSET: u16 = 0xfff8_u16.to_be();
}

const _: () = {
    assert!(size_of::<Ipv4>() == Ipv4::LENGTH as usize);
    assert!(size_of::<Ipv6>() == Ipv6::LENGTH as usize);
    assert!(size_of::<Ipv6Fragment>() == Ipv6Fragment::LENGTH as usize);
};
