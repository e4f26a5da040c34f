//! TCP (RFC 9293) and UDP (RFC 768).

use crate::addr::Port;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What TCP and UDP begin with.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Ports {
    /// Source port.
    pub source: Port,
    /// Destination port.
    pub destination: Port,
}

impl Ports {
    /// Offset of the source port in the header.
    pub const SOURCE_AT: u32 = 0;
    /// Offset of the destination port in the header.
    pub const DESTINATION_AT: u32 = 2;
    /// Length of the two.
    pub const LENGTH: u32 = 4;
}

/// A TCP header without options.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Tcp {
    /// Both ports.
    pub ports: Ports,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgment number.
    pub acknowledgment: u32,
    /// Length of the header in words of four bytes (upper half).
    pub data_offset: u8,
    /// [`TcpFlags`].
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Tcp {
    /// The header's length without options.
    pub const LENGTH: u32 = 20;
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 16;
    /// Offset of the flags.
    pub const FLAGS_AT: u32 = 13;
}

/// Flags of a TCP segment.
pub struct TcpFlags;

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// A connection begins.
    pub const SYN: u8 = 2;
    /// The connection is reset.
    pub const RST: u8 = 4;
    /// The acknowledgment number is valid.
    pub const ACK: u8 = 16;

    /// True for the segment that asks for a new connection.
    #[inline(always)]
    pub const fn opens(flags: u8) -> bool {
        flags & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// A UDP header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Udp {
    /// Both ports.
    pub ports: Ports,
    /// Length of header and data.
    pub length: u16,
    /// Checksum; zero means none (IPv4 only).
    pub checksum: u16,
}

impl Udp {
    /// The header's length.
    pub const LENGTH: u32 = 8;
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 6;
}

const _: () = {
    assert!(size_of::<Ports>() == Ports::LENGTH as usize);
    assert!(size_of::<Tcp>() == Tcp::LENGTH as usize);
    assert!(size_of::<Udp>() == Udp::LENGTH as usize);
};
