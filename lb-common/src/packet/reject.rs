//! Refusing: the packet is turned into the answer to itself.

use super::{Headers, Next, Packet};

/// Refuses a packet.
#[inline(always)]
pub(super) fn answer<P: Packet>(_packet: &mut P, _headers: &Headers) -> Next {
    Next::Drop
}
