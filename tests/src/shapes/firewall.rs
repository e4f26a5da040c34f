//! A node whose FORWARD policy is DROP, as Docker and many site firewalls set it.

use super::{Shape, reverse_path_filter};
use crate::stage::Stage;
use anyhow::Result;
use lb_lab::PodNetwork;
use std::fmt::Write as _;

/// Pod networks are accepted, as CNI plugins that know of such policies do.
pub const FORWARD_DROP: Shape = Shape {
    name: "FORWARD policy DROP, pod networks accepted",
    network: PodNetwork::Routed,
    families: &[0, 1],
    flags: "",
    build: |stage| {
        build(stage, |name, pods| {
            format!("{name} saddr {pods} accept\n{name} daddr {pods} accept")
        })
    },
};

/// What kube-proxy masquerades is accepted by its mark, pods' own connections, and whatever answers.
pub const FORWARD_DROP_BUT_MARKED: Shape = Shape {
    name: "FORWARD policy DROP, marked packets accepted",
    network: PodNetwork::Routed,
    families: &[0, 1],
    flags: "",
    build: |stage| {
        build(stage, |name, pods| {
            format!("meta mark & 0x4000 == 0x4000 accept\n{name} saddr {pods} accept")
        })
    },
};

fn build(stage: &Stage, accepted: fn(&str, &str) -> String) -> Result<()> {
    for node in stage.lab.nodes() {
        reverse_path_filter(node, "1")?;
        let mut rules = String::new();
        for (family, name) in ["ip", "ip6"].into_iter().enumerate() {
            let accepted = accepted(name, super::PODS[family]);
            let _ = write!(
                rules,
                "table {name} filter {{
                    chain FORWARD {{
                        type filter hook forward priority filter; policy drop;
                        ct state invalid drop
                        {accepted}
                        ct state related,established accept
                    }}
                }}\n"
            );
        }
        node.namespace().nft(&rules)?;
    }
    Ok(())
}
