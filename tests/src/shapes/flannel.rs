//! flannel with its vxlan backend: pods on a bridge, a tunnel to the other nodes, masquerading of
//! what crosses the border of the pod network.

use super::{Shape, reverse_path_filter};
use crate::stage::Stage;
use anyhow::{Context, Result};
use lb_lab::node::BRIDGE;
use lb_lab::topology::UPLINK;
use lb_lab::{Node, PodNetwork};
use std::fmt::Write as _;
use std::net::IpAddr;

/// The tunnel takes 50 bytes of every packet (70 with an IPv6 outside).
const MTU: u32 = 1430;

/// flannel: vxlan, both families.
pub const FLANNEL: Shape = Shape {
    name: "flannel",
    network: PodNetwork::Bridged,
    families: &[0, 1],
    flags: "",
    build,
};

fn build(stage: &Stage) -> Result<()> {
    for (number, node) in stage.lab.nodes().iter().enumerate() {
        reverse_path_filter(node, "1")?;
        let [v4, v6] = stage.lab.node_addresses(number);
        node.namespace().ip_batch(&format!(
            "link add flannel.1 type vxlan id 1 dstport 8472 local {v4} dev {UPLINK} nolearning\n\
             link add flannel-v6.1 type vxlan id 1 dstport 8472 local {v6} dev {UPLINK} nolearning\n\
             addr add {} dev flannel.1\n\
             addr add {} dev flannel-v6.1 nodad\n\
             link set flannel.1 mtu {MTU} up\n\
             link set flannel-v6.1 mtu {MTU} up\n\
             link set {BRIDGE} mtu {MTU}\n",
            tunnel_end(number, 0),
            tunnel_end(number, 1)
        ))?;
        node.namespace().nft(&rules(node))?;
    }
    for name in ["a", "b", "c"] {
        stage
            .pod(name)
            .namespace()
            .ip(&format!("link set eth0 mtu {MTU}"))?;
    }
    for (here, node) in stage.lab.nodes().iter().enumerate() {
        for (there, other) in stage.lab.nodes().iter().enumerate() {
            if here != there {
                let outside = stage.lab.node_addresses(there);
                connect(node, other, there, outside)?;
            }
        }
    }
    Ok(())
}

/// The address of a node's tunnel device: its pod network's first.
fn tunnel_end(number: usize, family: usize) -> String {
    if family == 0 {
        format!("10.244.{}.0/32", number + 1)
    } else {
        format!("fd00:244:{}::/128", number + 1)
    }
}

/// Routes, neighbours and forwarding entries of `node` towards another one.
fn connect(node: &Node, other: &Node, number: usize, outside: [IpAddr; 2]) -> Result<()> {
    let devices = ["flannel.1", "flannel-v6.1"];
    for (family, device) in devices.into_iter().enumerate() {
        let shown = other.namespace().ip(&format!("-o link show {device}"))?;
        let mut words = shown.split_whitespace();
        words.find(|word| *word == "link/ether");
        let mac = words.next().context("the tunnel device has no address")?;
        let end = tunnel_end(number, family);
        let end = end.split('/').next().unwrap_or_default();
        let (pods, outside) = (&other.pod_cidrs()[family], outside[family]);
        node.namespace().ip_batch(&format!(
            "route del {pods}\n\
             route add {pods} via {end} dev {device} onlink\n\
             neigh replace {end} lladdr {mac} dev {device} nud permanent\n"
        ))?;
        let entry = format!("fdb append {mac} dev {device} dst {outside}");
        node.namespace().bridge(&entry)?;
    }
    Ok(())
}

/// FLANNEL-POSTRTG and FLANNEL-FWD, as flanneld writes them for each family.
fn rules(node: &Node) -> String {
    let mut rules = String::new();
    let families = [("ip", "224.0.0.0/4"), ("ip6", "ff00::/8")];
    for (family, (name, multicast)) in families.into_iter().enumerate() {
        let all = super::PODS[family];
        let own = &node.pod_cidrs()[family];
        let _ = write!(
            rules,
            "table {name} nat {{
                chain POSTROUTING {{
                    type nat hook postrouting priority srcnat; policy accept;
                    jump FLANNEL-POSTRTG
                }}
                chain FLANNEL-POSTRTG {{
                    meta mark & 0x4000 == 0x4000 counter return
                    {name} saddr {own} {name} daddr {all} return
                    {name} saddr {all} {name} daddr {own} return
                    {name} saddr != {all} {name} daddr {own} return
                    {name} saddr {all} {name} daddr != {multicast} masquerade fully-random
                    {name} saddr != {all} {name} daddr {all} counter masquerade fully-random
                }}
            }}
            table {name} filter {{
                chain FORWARD {{
                    type filter hook forward priority filter; policy accept;
                    jump FLANNEL-FWD
                }}
                chain FLANNEL-FWD {{
                    {name} saddr {all} accept
                    {name} daddr {all} accept
                }}
            }}\n"
        );
    }
    rules
}
