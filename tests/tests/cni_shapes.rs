//! The shapes of real networks with their real rules: every path works.

use anyhow::{Context, Result, ensure};
use lb_tests::paths;
use lb_tests::shapes::{self, Shape};

/// Walks every path of a shape with `socketLoadBalancing` `all` and `off`.
fn every_path_works_on(shape: &Shape) -> Result<()> {
    for mode in ["all", "off"] {
        let stage = shape.with_agents(&format!("--socket-load-balancing {mode}"))?;
        paths::walk(&stage, shape.families, mode == "all")
            .with_context(|| format!("{}, socketLoadBalancing {mode}", shape.name))?;
    }
    Ok(())
}

#[test]
fn every_path_works_on_flannel() -> Result<()> {
    every_path_works_on(&shapes::FLANNEL)
}

#[test]
fn every_path_works_on_calico() -> Result<()> {
    every_path_works_on(&shapes::CALICO)
}

#[test]
fn every_path_works_on_a_bridge() -> Result<()> {
    every_path_works_on(&shapes::BRIDGE)
}

#[test]
fn every_path_works_on_a_bridge_that_passes_netfilter() -> Result<()> {
    every_path_works_on(&shapes::BRIDGE_WITH_NETFILTER)
}

#[test]
fn every_path_works_on_an_aws_like_network() -> Result<()> {
    every_path_works_on(&shapes::AWS)
}

#[test]
fn a_node_port_passes_a_forward_policy_that_accepts_what_is_marked_for_masquerading() -> Result<()>
{
    let stage = shapes::FORWARD_DROP_BUT_MARKED.with_agents("--socket-load-balancing off")?;
    for server in stage.node_port(0, paths::NEAR) {
        stage.client.place().ask_tcp(server)?;
        stage.client.place().ask_udp(server, 64)?;
    }
    Ok(())
}

#[test]
fn flannel_leaves_alone_what_we_masquerade() -> Result<()> {
    let stage = shapes::FLANNEL.with_agents("")?;
    paths::walk(&stage, &[0, 1], true)?;
    for family in ["ip", "ip6"] {
        let rules = stage
            .lab
            .node(0)
            .namespace()
            .nft_list(family, "nat", "FLANNEL-POSTRTG")?;
        let packets = |verdict: &str| {
            let line = rules
                .lines()
                .find(|line| line.contains("counter") && line.contains(verdict));
            let words: Vec<&str> = line.unwrap_or_default().split_whitespace().collect();
            let at = words.iter().position(|word| *word == "packets")?;
            words.get(at + 1)?.parse::<u64>().ok()
        };
        ensure!(
            packets("return").is_some_and(|packets| packets > 0),
            "no packet carried the mark:\n{rules}"
        );
        ensure!(
            packets("masquerade") == Some(0),
            "flannel masqueraded what came from outside, too:\n{rules}"
        );
    }
    Ok(())
}

#[test]
fn every_path_works_where_the_forward_policy_is_drop() -> Result<()> {
    every_path_works_on(&shapes::FORWARD_DROP)
}
