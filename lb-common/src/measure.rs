//! What the measuring programs and the benchmark tell each other. Nothing else uses it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What the generator sends: packet `n` belongs to client `first + (n * multiplier & mask)`.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Plan {
    /// Number of the next packet.
    pub next: u64,
    /// Odd: clients come in another order than they were inserted.
    pub multiplier: u64,
    /// Number of clients minus one (a power of two minus one).
    pub mask: u64,
    /// Number of the first client.
    pub first: u64,
    /// Zero, of which the compiler and the processor do not know that it always is.
    pub zero: u64,
    /// Destination address as it lies in a packet; IPv4 uses the last word.
    pub destination: [u32; 4],
    /// Destination port, as it lies in a packet.
    pub port: u16,
    /// TCP flags.
    pub flags: u8,
    /// Must be zero.
    pub reserved: [u8; 5],
    /// Number of lines of `lb_cold` minus one (a power of two minus one).
    pub lines: u64,
}

/// The kernel name of the one-element array that holds the [`Plan`].
pub const PLAN: &str = "lb_plan";
/// The kernel name of the array of cache lines.
pub const COLD: &str = "lb_cold";
/// The kernel name of the program array whose only element the generator jumps to.
pub const TARGET: &str = "lb_target";
