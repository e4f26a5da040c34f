//! Replies to what the node itself has made.
//!
//! The node's own packets are translated as they leave: they pass no ingress. Replies to them arrive
//! like any other, but no egress follows, so that both ends are translated where they arrive. They
//! are known by the SNAT end that every flow of the node has: what arrives for others needs no
//! look at the flow table to be told apart.

use super::egress::{note_reply, replace_source};
use super::pass::give_up;
use super::{Headers, Next, Packet, World, nat};
use crate::addr::Addr;
use crate::flow::{Flow, FlowState, Flows};
use crate::table::Config;

/// How the source of a flow that the node itself begins is to be replaced, if its state is to be
/// `state` otherwise. One that would keep its source gets another port. A loopback address is
/// replaced before the packet is sent on: neighbours would not even answer who asks in its name.
#[inline(always)]
pub(super) const fn state_of_own(state: u16, source: &Addr) -> u16 {
    let mut own = state | FlowState::OF_NODE;
    if state & FlowState::WANTS_SNAT == 0 || source.is_loopback() {
        own |= FlowState::WANTS_SNAT | FlowState::SNAT_PORT_ONLY;
    }
    own
}

/// Translates a reply to the node's own client.
#[inline(always)]
pub(super) fn returned<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
) -> Next {
    let flow =
        world
            .flows(config)
            .by_alias(&headers.destination, &headers.source, headers.protocol);
    let Some(flow) = flow else {
        return Next::Continue;
    };
    note_reply(packet, world, config, headers, &flow);
    if nat::replace_destination(packet, headers, &flow.client).is_err() {
        return give_up(world);
    }
    match replace_source(packet, world, headers, &flow.frontend) {
        Next::Continue => Next::Deliver,
        next => next,
    }
}

/// What becomes of a translated ICMP error that belongs to this flow.
#[inline(always)]
pub(super) const fn after_error(flow: &Flow, to_client: bool) -> Next {
    if flow.state & FlowState::OF_NODE == 0 {
        Next::Continue
    } else if to_client {
        Next::Deliver
    } else {
        Next::Route
    }
}
