//! What both hooks do with a packet on its way from one stage to the next.

use super::{Headers, Next, World};
use crate::env::Tables;
use crate::verdict::Reason;

/// What an earlier stage has found out about the packet.
#[inline(always)]
pub(super) fn kept<W: World>(world: &W) -> Option<Headers> {
    world.with_scratch(|scratch| scratch.headers)
}

/// Leaves what is known about the packet to the next stage.
#[inline(always)]
pub(super) fn keep<W: World>(world: &W, headers: &Headers, next: Next) -> Next {
    match world.with_scratch(|scratch| scratch.headers = *headers) {
        Some(()) => next,
        None => Next::Continue,
    }
}

/// Gives up a packet that could not be rewritten: half of it may have been.
#[inline(always)]
pub(super) fn give_up<W: World>(world: &W) -> Next {
    world.tables().count(Reason::RewriteFailed);
    Next::Drop
}
