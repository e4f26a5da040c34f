//! The shapes of real networks with their real rules: every path works.

use anyhow::{Context, Result};
use lb_tests::paths;
use lb_tests::shapes::{self, Shape};

/// Walks every path of a shape with `socketLoadBalancing` `all` and `off`.
fn every_path_works_on(shape: &Shape) -> Result<()> {
    for mode in ["all", "off"] {
        let stage = shape.with_agents(&format!("--socket-load-balancing {mode}"))?;
        // Packets made on the node meet no hook without socket load balancing.
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
fn every_path_works_where_the_forward_policy_is_drop() -> Result<()> {
    every_path_works_on(&shapes::FORWARD_DROP)
}
