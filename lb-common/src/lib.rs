//! The core: *given these tables and this packet or socket, what happens?*
//!
//! `no_std`, one implementation for kernel and host. `addr` and `table` are the wire format that
//! crosses the kernel boundary; the rest is logic over the traits of [`env`]. Here lives every
//! load-balancing rule; here may not live anything that knows aya, Kubernetes or a BPF context.

#![cfg_attr(not(any(test, feature = "host")), no_std)]
#![forbid(unsafe_code)]
#![expect(
    clippy::inline_always,
    reason = "the core must melt into each BPF program: calls cost stack and verifier state"
)]

pub mod addr;
pub mod balance;
pub mod env;
pub mod feature;
pub mod flow;
pub mod hash;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod measure;
pub mod packet;
pub mod socket;
pub mod table;
pub mod verdict;
pub mod wire;
