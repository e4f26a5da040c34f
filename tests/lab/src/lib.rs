//! The stage for the demo and for every lab test: namespaces as nodes, pods and clients, processes
//! in cgroups of their own, small servers and clients, counters, captures, and the agent itself.
//!
//! What may not live here: anything that knows how the load balancer works. A lab shows the agent
//! a machine and asks real sockets what happened.
//!
//! Everything a lab makes carries one unique name and is removed when its guard is dropped; a
//! [janitor] removes what a killed test could not.

pub mod agent;
pub mod bpffs;
pub mod capture;
pub mod cgroup;
pub mod client;
pub mod command;
pub mod control_plane;
mod daemon;
pub mod dns;
pub mod janitor;
pub mod namespace;
pub mod node;
pub mod offload;
pub mod place;
pub mod process;
pub mod server;
pub mod snmp;
pub mod topology;

pub use agent::{Agent, AgentOptions};
pub use capture::Capture;
pub use cgroup::Cgroup;
pub use client::Answer;
pub use control_plane::ControlPlane;
pub use namespace::Namespace;
pub use node::{Node, Pod, PodNetwork, PodSubnet};
pub use offload::Offload;
pub use place::Place;
pub use process::Process;
pub use server::Server;
pub use topology::Lab;

/// Fails the calling test with a sentence unless it runs as root: a kernel test that did not run
/// must never look like one that passed.
pub fn require_root() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test builds network namespaces and loads eBPF programs: run it as root (`sudo -E \
         cargo xtask test`), or run `cargo xtask test --host` for the part that needs no root"
    );
}
