//! The AWS VPC plugin: pods have addresses of the VPC on a secondary interface, rules route what
//! comes from a pod by that interface, and a connection mark brings answers to node ports back to the
//! primary one. The VPC forwards only what an interface may send.

use super::Shape;
use crate::stage::Stage;
use anyhow::{Context, Result};
use lb_lab::PodNetwork;

/// The VPC plugin with pods on a secondary interface, IPv4 (with IPv6, pods are on the primary one),
/// and the one rule it needs beside us: what we mark goes by the main table.
pub const AWS: Shape = Shape {
    name: "AWS VPC",
    flags: "--mark-replies",
    build: |stage| {
        build(stage)?;
        let rule = "rule add priority 1023 fwmark 0x4000/0x4000 lookup main";
        let mut nodes = stage.lab.nodes().iter();
        nodes.try_for_each(|node| node.namespace().ip(rule).map(drop))
    },
    ..AWS_AS_IT_IS
};

/// The VPC plugin as it comes. Its connection mark is set for packets that are addressed to the node
/// when netfilter first sees them, which they no longer are.
pub const AWS_AS_IT_IS: Shape = Shape {
    name: "AWS VPC as it is",
    network: PodNetwork::Routed,
    families: &[0],
    flags: "",
    build,
};

/// The VPC's router.
const ROUTER: &str = "10.77.0.1";
/// Last number of the secondary interface's address, after that of the node.
const SECONDARY: usize = 110;

fn build(stage: &Stage) -> Result<()> {
    let lab = &stage.lab;
    let wire = lab.wire().name().context("the wire has no name")?;
    lab.wire()
        .ip_batch(&format!("addr add {ROUTER}/24 dev wire\n"))?;
    lab.wire().sysctl("net/ipv4/ip_forward", "1")?;
    for (number, node) in lab.nodes().iter().enumerate() {
        let [pods, _] = node.pod_cidrs();
        let address = format!("10.77.0.{}", SECONDARY + number);
        node.namespace().ip_batch(&format!(
            "link add eth1 type veth peer name eni{number} netns {wire}\n\
             addr add {address}/32 dev eth1\n\
             link set eth1 up\n"
        ))?;
        lab.wire().ip_batch(&format!(
            "link set eni{number} master wire\nlink set eni{number} up\n\
             route add {pods} via {address} dev wire onlink\n"
        ))?;
        node.namespace().ip_batch(&format!(
            "route add {ROUTER} dev eth1 scope link table 2\n\
             route add default via {ROUTER} dev eth1 table 2\n\
             rule add priority 512 to {pods} lookup main\n\
             rule add priority 1024 fwmark 0x80/0x80 lookup main\n\
             rule add priority 1536 from {pods} lookup 2\n"
        ))?;
        // An interface sends with its own addresses only.
        lab.wire().nft(&format!(
            "table bridge vpc {{
                chain {name} {{
                    type filter hook prerouting priority -300; policy accept;
                    iifname \"eni{number}\" ip saddr != {{ {address}, {pods} }} drop
                    iifname \"{name}\" ip saddr != {own} drop
                }}
            }}\n",
            name = node.name(),
            own = lab.node_addresses(number)[0],
        ))?;
        // Strict filters drop what answers by another way than it came.
        for scope in ["all", "default", "eth0", "eth1"] {
            node.namespace()
                .sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "2")?;
        }
        let own = lab.node_addresses(number)[0];
        node.namespace()
            .nft(&RULES.replace("OWN", &own.to_string()))?;
    }
    for (here, node) in lab.nodes().iter().enumerate() {
        for (there, other) in lab.nodes().iter().enumerate() {
            if here != there {
                let [pods, _] = other.pod_cidrs();
                node.namespace()
                    .ip(&format!("route replace {pods} via {ROUTER}"))?;
            }
        }
    }
    Ok(())
}

/// "AWS, primary ENI" and the SNAT chain, as the plugin writes them.
const RULES: &str = "
table ip mangle {
    chain PREROUTING {
        type filter hook prerouting priority mangle; policy accept;
        iifname \"eth0\" fib daddr . iif type local ct mark set ct mark | 0x80
        iifname \"pod*\" ct mark & 0x80 == 0x80 meta mark set meta mark | 0x80
        iifname \"pod*\" ct mark & 0x80 == 0 meta mark set meta mark & 0xffffff7f
    }
}
table ip nat {
    chain POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        jump AWS-SNAT-CHAIN-0
    }
    chain AWS-SNAT-CHAIN-0 {
        ip daddr { 10.77.0.0/24, 10.244.0.0/16 } return
        oifname != \"vlan*\" fib daddr type != local snat to OWN fully-random
    }
}
";
