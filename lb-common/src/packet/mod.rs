//! The packet path: *given these tables and this packet, what happens?*
//!
//! Two questions, asked at the two hooks of a device, are answered here: [`ingress()`] (DNAT of
//! requests, un-SNAT of replies) and [`egress()`] (SNAT of requests, un-DNAT of replies). In
//! between, the packet crosses the kernel's own routing as an ordinary packet between client and
//! backend. What the node itself makes meets no ingress: it is asked both questions as it leaves. Both are idempotent: what an earlier hook has rewritten finds no flow here. Each is made
//! of [`Stage`]s, of which an ordinary packet of a known flow needs the first only.
//!
//! Packets are reached through [`Packet`] only, the world through [`World`]. What a kernel's packet
//! looks like, and the state its checksum is in, is the adapter's business.

mod egress;
mod fragment;
mod icmp;
mod ingress;
mod nat;
mod node;
mod open;
mod parse;
mod pass;
mod reject;
mod snat;
mod stage;
#[cfg(test)]
mod tests;

pub use egress::egress;
pub use ingress::ingress;
pub use parse::{Family, Headers, Part};
pub use stage::{Next, Question, Scratch, Stage, in_stages, leaving};

use crate::addr::{Endpoint, Protocol};
use crate::env::{Env, PacketTables};
use crate::flow::Flows;
use crate::table::Config;
use crate::wire::{Crc32c, Difference};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A packet could not be changed (the kernel had no memory, or the packet is shorter than it says).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Failed;

/// What a changed part of a packet means to the checksum above it. A checksum may be one that a
/// device is yet to compute; then only the pseudo header is in it, and only the adapter knows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Covers {
    /// An address of the IPv4 pseudo header (whose IPv4 header checksum changes along).
    PseudoHeaderV4,
    /// An address or the length of the IPv6 pseudo header, or the length of the IPv4 one: nothing
    /// else changes along.
    PseudoHeaderV6,
    /// Bytes under the checksum.
    Payload,
}

/// One packet, seen from its IP header on: every offset counts from there.
pub trait Packet {
    /// Which IP header it has, as its link layer says.
    fn family(&self) -> Family;
    /// Length from the IP header on, with the padding of a short frame.
    fn length(&self) -> u32;
    /// How many packets it stands for on the wire (segmentation offload), at least one.
    fn segments(&self) -> u32;
    /// The device it comes from (ingress) or leaves by (egress).
    fn device(&self) -> u32;
    /// True if the node itself has made it: it leaves without ever having arrived.
    fn is_made_here(&self) -> bool;
    /// Reads `T` at a fixed offset: the quick way, for the headers of ordinary packets.
    fn read<T: FromBytes + Copy, const AT: usize>(&self) -> Option<T>;
    /// Reads `T` anywhere.
    fn load<T: FromBytes + Copy>(&self, at: u32) -> Option<T>;
    /// Writes bytes. Checksums that cover them are the caller's to change along.
    ///
    /// # Errors
    /// [`Failed`].
    fn store<T: IntoBytes + Immutable>(&mut self, at: u32, value: &T) -> Result<(), Failed>;
    /// Changes the checksum at `at` by what its data has changed. With `optional`, zero means "no
    /// checksum" and stays, and no checksum becomes zero (UDP).
    ///
    /// # Errors
    /// [`Failed`].
    fn change_checksum(
        &mut self,
        at: u32,
        difference: Difference,
        covers: Covers,
        optional: bool,
    ) -> Result<(), Failed>;
    /// [`Crc32c::advance`]: one function, from wherever it is needed.
    fn advance_crc32c(&self, register: u32, bytes: u32) -> u32 {
        Crc32c::advance(register, bytes)
    }
    /// True if the checksum at `at` is still to be computed by a device and holds the pseudo
    /// header's sum only.
    fn is_checksum_pending(&mut self, at: u32) -> bool;
    /// Cuts the packet to `length`, or lengthens it with zeroes.
    ///
    /// # Errors
    /// [`Failed`].
    fn resize(&mut self, length: u32) -> Result<(), Failed>;
    /// Makes room in front: the old IP header then lies at offset `by`.
    ///
    /// # Errors
    /// [`Failed`].
    fn prepend(&mut self, by: u32) -> Result<(), Failed>;
    /// Sets and clears bits of the mark that netfilter and routing rules see.
    fn mark(&mut self, set: u32, clear: u32);
    /// True if this UDP packet belongs to a socket of the host: one that is connected to its
    /// source, or bound to its destination port.
    fn has_host_socket(&self, source: &Endpoint, destination: &Endpoint) -> bool;
}

/// The tables, the clock and the flows a hook works with.
pub trait World {
    /// See [`PacketTables`].
    type Tables: PacketTables;
    /// See [`Env`].
    type Env: Env;

    /// See [`PacketTables`].
    fn tables(&self) -> &Self::Tables;
    /// See [`Env`].
    fn env(&self) -> &Self::Env;
    /// See [`Flows`].
    fn flows<'a>(&'a self, config: &'a Config) -> impl Flows + 'a;
    /// The memory that the stages of one packet share; nothing else uses it meanwhile.
    fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> Option<R>;
}

/// True for the protocols of most packets, which the ordinary stages treat.
#[inline(always)]
const fn is_ordinary(protocol: Protocol) -> bool {
    protocol.0 == Protocol::TCP.0 || protocol.0 == Protocol::UDP.0
}

/// True for the protocols the packet path translates.
#[inline(always)]
const fn is_translated(protocol: Protocol) -> bool {
    is_ordinary(protocol) || protocol.0 == Protocol::SCTP.0
}
