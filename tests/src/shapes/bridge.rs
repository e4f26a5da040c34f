//! The bridge plugin: all pods of a node on one bridge, an ip-masq-agent for what leaves the pod
//! networks, and netfilter that may or may not see what the bridge switches.

use super::{Shape, reverse_path_filter};
use crate::stage::Stage;
use anyhow::{Context, Result};
use lb_lab::PodNetwork;
use std::fmt::Write as _;

/// Bridged packets pass netfilter's IP hooks unseen.
pub const BRIDGE: Shape = Shape {
    name: "bridge",
    network: PodNetwork::Bridged,
    families: &[0, 1],
    flags: "",
    build: |stage| build(stage, "0", ""),
};

/// The same with a firewall that drops what connection tracking calls invalid: it sees only one
/// direction of what is switched on the bridge.
pub const BRIDGE_THAT_DROPS_INVALID: Shape = Shape {
    name: "bridge, INVALID dropped",
    build: |stage| build(stage, "0", DROP_INVALID),
    ..BRIDGE
};

/// Bridged packets pass netfilter's IP hooks (`br_netfilter`), as kube-proxy asks for.
pub const BRIDGE_WITH_NETFILTER: Shape = Shape {
    name: "bridge with br_netfilter",
    network: PodNetwork::Bridged,
    families: &[0, 1],
    flags: "",
    build: |stage| build(stage, "1", DROP_INVALID),
};

const DROP_INVALID: &str = "ct state invalid drop";

fn build(stage: &Stage, netfilter: &str, rule: &str) -> Result<()> {
    for node in stage.lab.nodes() {
        reverse_path_filter(node, "1")?;
        for family in ["iptables", "ip6tables"] {
            let key = format!("net/bridge/bridge-nf-call-{family}");
            let set = node.namespace().sysctl(&key, netfilter);
            // Without the module nothing that is bridged passes netfilter anyway.
            if netfilter == "1" {
                set.context("br_netfilter is not in this kernel")?;
            }
        }
        let mut rules = String::new();
        for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
            let pods = super::PODS[family];
            let _ = write!(
                rules,
                "table {name} nat {{
                    chain POSTROUTING {{
                        type nat hook postrouting priority srcnat; policy accept;
                        fib daddr type != local jump IP-MASQ-AGENT
                    }}
                    chain IP-MASQ-AGENT {{
                        {name} daddr {pods} return
                        masquerade
                    }}
                }}
                table {name} filter {{
                    chain FORWARD {{
                        type filter hook forward priority filter; policy accept;
                        {rule}
                    }}
                }}\n"
            );
        }
        node.namespace().nft(&rules)?;
    }
    Ok(())
}
