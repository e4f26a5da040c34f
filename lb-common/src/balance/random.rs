//! `random`: uniform per connection. The default, as in kube-proxy's iptables and nftables modes.

use crate::env::Env;

/// A slot out of `count` (> 0), by multiplication instead of division.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the product's upper half is below count"
)]
pub(super) fn choose(count: u16, env: &impl Env) -> u16 {
    ((u64::from(env.random()) * u64::from(count)) >> 32) as u16
}
