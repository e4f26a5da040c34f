//! What real networks make of a node: devices, routes and netfilter rules of well-known CNI plugins
//! and site firewalls, put on a [`Stage`] before an agent starts.
//!
//! The rules are those that the plugins write (with iptables or nft), in nft's words: the same hooks,
//! priorities, matches and order. What may not live here: expectations.

mod aws;
mod bridge;
mod calico;
mod firewall;
mod flannel;

pub use aws::{AWS, AWS_AS_IT_IS};
pub use bridge::{BRIDGE, BRIDGE_THAT_DROPS_INVALID, BRIDGE_WITH_NETFILTER};
pub use calico::CALICO;
pub use firewall::{FORWARD_DROP, FORWARD_DROP_BUT_MARKED};
pub use flannel::FLANNEL;

use crate::paths;
use crate::stage::Stage;
use anyhow::{Context, Result};
use lb_lab::{Node, PodNetwork};

/// The pod networks of all nodes, IPv4 and IPv6.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:244::/32"];

/// A kind of network.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// How its pods are connected.
    pub network: PodNetwork,
    /// The families it has: 0 is IPv4, 1 is IPv6.
    pub families: &'static [usize],
    /// What an agent needs to be told on it.
    pub flags: &'static str,
    /// Makes it of a plain stage.
    pub build: fn(&Stage) -> Result<()>,
}

impl Shape {
    /// A stage of this shape with the services of [`paths`]. No agent yet.
    pub fn stage(&self) -> Result<Stage> {
        let stage = Stage::new(self.network)?;
        (self.build)(&stage).with_context(|| format!("cannot build the shape {}", self.name))?;
        for service in paths::services() {
            stage.apply(&service)?;
        }
        Ok(stage)
    }

    /// The same with an agent on every node.
    pub fn with_agents(&self, flags: &str) -> Result<Stage> {
        let mut stage = self.stage()?;
        stage.start_agents(&format!("{} {flags}", self.flags))?;
        Ok(stage)
    }
}

/// Sets `rp_filter` on every device of a node, and on those to come.
fn reverse_path_filter(node: &Node, value: &str) -> Result<()> {
    for scope in ["all", "default"] {
        node.namespace()
            .sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), value)?;
    }
    Ok(())
}
