//! Calico without a tunnel: a /32 and a veth for each pod, a gateway that is nobody's address and
//! is answered for by proxy ARP, strict reverse path filters, a firewall for each pod.

use super::{Shape, reverse_path_filter};
use crate::stage::Stage;
use anyhow::Result;
use lb_lab::{Node, PodNetwork};
use std::fmt::Write as _;

/// Calico: routed, with nat-outgoing, both families.
pub const CALICO: Shape = Shape {
    name: "Calico",
    network: PodNetwork::Routed,
    families: &[0, 1],
    flags: "",
    build,
};

fn build(stage: &Stage) -> Result<()> {
    for node in stage.lab.nodes() {
        reverse_path_filter(node, "1")?;
        // Who answers for an address must know a way to it: any machine has a default route.
        let gateways = "route add default via 10.77.0.1\nroute add default via fd77::1\n";
        node.namespace().ip_batch(gateways)?;
        node.namespace().nft(&rules(node))?;
    }
    for (name, node) in [("a", 0), ("b", 0), ("c", 1)] {
        let pod = stage.pod(name);
        // The gateway is found as a real pod finds it.
        pod.namespace().ip("neigh flush dev eth0 nud permanent")?;
        let device = pod.host_device();
        let node = stage.lab.node(node).namespace();
        for (key, value) in [
            (format!("ipv4/conf/{device}/proxy_arp"), "1"),
            (format!("ipv4/neigh/{device}/proxy_delay"), "0"),
            (format!("ipv4/conf/{device}/rp_filter"), "1"),
            (format!("ipv6/conf/{device}/proxy_ndp"), "1"),
        ] {
            node.sysctl(&format!("net/{key}"), value)?;
        }
    }
    Ok(())
}

/// What Felix writes: raw (reverse path of what comes from pods), filter (a dispatch to each pod's
/// chains, INVALID dropped, accepted packets marked), nat (outgoing).
fn rules(node: &Node) -> String {
    let mut rules = String::new();
    for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
        let pool = super::PODS[family];
        let own = &node.pod_cidrs()[family];
        let _ = write!(
            rules,
            "table {name} raw {{
                chain cali-PREROUTING {{
                    type filter hook prerouting priority raw; policy accept;
                    meta mark set meta mark & 0xfff1ffff
                    iifname \"pod*\" meta mark set meta mark | 0x40000
                    meta mark & 0x40000 == 0x40000 jump cali-rpf-skip
                    meta mark & 0x40000 == 0x40000 fib saddr . mark . iif oif 0 drop
                }}
                chain cali-rpf-skip {{
                }}
            }}
            table {name} filter {{
                chain FORWARD {{
                    type filter hook forward priority filter; policy accept;
                    jump cali-FORWARD
                }}
                chain cali-FORWARD {{
                    meta mark set meta mark & 0xfff1ffff
                    iifname \"pod*\" jump cali-from-wl
                    oifname \"pod*\" jump cali-to-wl
                    meta mark & 0x10000 == 0x10000 accept
                }}
                chain cali-from-wl {{
                    ct state related,established meta mark set meta mark | 0x10000
                    meta mark & 0x10000 == 0x10000 return
                    ct state invalid drop
                    udp dport 4789 drop
                    {name} saddr {own} meta mark set meta mark | 0x10000
                    meta mark & 0x10000 == 0x10000 return
                    drop
                }}
                chain cali-to-wl {{
                    ct state related,established accept
                    ct state invalid drop
                    {name} daddr {own} meta mark set meta mark | 0x10000
                    meta mark & 0x10000 == 0x10000 return
                    drop
                }}
            }}
            table {name} nat {{
                chain cali-POSTROUTING {{
                    type nat hook postrouting priority srcnat; policy accept;
                    {name} saddr {pool} {name} daddr != {pool} masquerade fully-random
                }}
            }}\n"
        );
    }
    rules
}
