//! What the running kernel can do, as the agent found out before it loaded the programs.
//!
//! The agent writes the word into the programs' frozen read-only data ([`GLOBAL`]); the verifier
//! then prunes every branch that asks for a feature which is not there.

/// The symbol of the word in the object.
pub const GLOBAL: &str = "LB_FEATURES";

/// Bits of the word.
pub struct Feature;

impl Feature {
    /// `bpf_ktime_get_coarse_ns` (5.11): 3 ns instead of 30.
    pub const COARSE_CLOCK: u32 = 1;
    /// `bpf_set_retval` in sock_addr hooks (6.1): a refusal is `ECONNREFUSED`, never `EPERM`.
    pub const SET_RETVAL: u32 = 1 << 1;
    /// `bpf_get_netns_cookie` in sock_ops programs (5.15): addresses of namespaces can be learnt.
    pub const NETNS_COOKIE_IN_SOCKOPS: u32 = 1 << 2;
}
