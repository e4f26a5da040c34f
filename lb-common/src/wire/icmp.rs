//! ICMP (RFC 792) and ICMPv6 (RFC 4443), as far as errors go.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The eight bytes every ICMP error of either family begins with; the packet it is about follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// Unused, a pointer or an MTU.
    pub rest: u32,
}

impl Icmp {
    /// The header's length.
    pub const LENGTH: u32 = 8;
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 2;
}

/// ICMP for IPv4.
pub mod icmpv4 {
    /// Destination unreachable (with "fragmentation needed" among its codes).
    pub const DESTINATION_UNREACHABLE: u8 = 3;
    /// Code of it: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 3;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 11;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 12;

    /// True for errors that quote a packet which may have been translated.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            DESTINATION_UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM
        )
    }
}

/// ICMPv6.
pub mod icmpv6 {
    /// Destination unreachable.
    pub const DESTINATION_UNREACHABLE: u8 = 1;
    /// Code of it: nobody listens on the port.
    pub const PORT_UNREACHABLE: u8 = 4;
    /// Packet too big.
    pub const PACKET_TOO_BIG: u8 = 2;
    /// Time exceeded.
    pub const TIME_EXCEEDED: u8 = 3;
    /// Parameter problem.
    pub const PARAMETER_PROBLEM: u8 = 4;

    /// True for errors that quote a packet which may have been translated.
    #[inline(always)]
    pub const fn is_error(kind: u8) -> bool {
        matches!(
            kind,
            DESTINATION_UNREACHABLE | PACKET_TOO_BIG | TIME_EXCEEDED | PARAMETER_PROBLEM
        )
    }
}

const _: () = assert!(size_of::<Icmp>() == Icmp::LENGTH as usize);
