//! Which addresses of the node serve node ports.

use super::world::{family, node_port_addresses};
use super::{Outcome, read};
use ipnet::IpNet;
use lb_agent::model::Options;
use lb_agent::model::frontend::{NodePortSelection, select_node_port_addresses};
use lb_agent::model::node::NodeFacts;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct AddressCase {
    node_port_addresses: Vec<String>,
    interface_addresses: BTreeMap<String, Vec<IpNet>>,
    expect: BTreeMap<String, Selected>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Selected {
    match_all: bool,
    ips: BTreeSet<IpAddr>,
}

/// Runs one case of `nodePortAddressCases`.
pub(super) fn addresses(case: &Value) -> Outcome {
    run_addresses(case).unwrap_or_else(|outcome| outcome)
}

fn run_addresses(case: &Value) -> Result<Outcome, Outcome> {
    let case: AddressCase = read("the case", case)?;
    let options = Options {
        node_port_addresses: node_port_addresses(&case.node_port_addresses)?,
        ..Options::default()
    };
    let known: Vec<IpAddr> = case
        .interface_addresses
        .values()
        .flatten()
        .map(IpNet::addr)
        .collect();
    for (name, expected) in &case.expect {
        let NodePortSelection {
            match_all,
            addresses,
        } = select_node_port_addresses(&options, &NodeFacts::named("n"), &known, family(name)?);
        let addresses: BTreeSet<IpAddr> = addresses.into_iter().collect();
        if match_all != expected.match_all || addresses != expected.ips {
            return Ok(Outcome::Failed(format!(
                "{name}: expected {expected:?}, got {addresses:?}, all: {match_all}"
            )));
        }
    }
    Ok(Outcome::Passed)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LoopbackCase {
    node_port_addresses: Vec<String>,
    #[serde(rename = "expectContainsIPv4Loopback")]
    expect: bool,
}

/// Runs one case of `loopbackCases`.
pub(super) fn loopback(case: &Value) -> Outcome {
    let run = || -> Result<Outcome, Outcome> {
        let case: LoopbackCase = read("the case", case)?;
        let covers = node_port_addresses(&case.node_port_addresses)?.cover_ipv4_loopback();
        Ok(if covers == case.expect {
            Outcome::Passed
        } else {
            Outcome::Failed(format!("expected {}, got {covers}", case.expect))
        })
    };
    run().unwrap_or_else(|outcome| outcome)
}
