//! ICMP errors follow the flow of the packet they quote.

use super::{Headers, Next, Packet, World};
use crate::table::Config;

/// Treats an ICMP packet that has arrived.
#[inline(always)]
pub(super) fn ingress<P: Packet, W: World>(
    _packet: &mut P,
    _world: &W,
    _headers: &Headers,
) -> Next {
    Next::Continue
}

/// Treats an ICMP packet that is about to leave.
#[inline(always)]
pub(super) fn egress<P: Packet, W: World>(
    _packet: &mut P,
    _world: &W,
    _config: &Config,
    _headers: &Headers,
) -> Next {
    Next::Continue
}
