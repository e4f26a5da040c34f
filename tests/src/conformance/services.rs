//! What is read from a Service object.

use super::world::{Node, World, family, object_name};
use super::{Outcome, read};
use lb_agent::model::desired::Family;
use lb_agent::model::service::Service;
use lb_agent::source::Kind;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::IpAddr;

#[derive(Debug, Deserialize)]
struct Case {
    family: String,
    service: Value,
    expect: Vec<Value>,
}

/// Runs one case of `serviceMapCases`.
pub(super) fn run(case: &Value) -> Outcome {
    run_case(case).unwrap_or_else(|outcome| outcome)
}

fn run_case(case: &Value) -> Result<Outcome, Outcome> {
    let case: Case = read("the case", case)?;
    let family = family(&case.family)?;
    let mut world = World::new(&Node::default())?;
    world.upsert(Kind::Service, std::slice::from_ref(&case.service))?;
    let metadata = &case.service["metadata"];
    let name = format!(
        "{}/{}",
        metadata["namespace"].as_str().unwrap_or_default(),
        metadata["name"].as_str().unwrap_or_default()
    );
    let name = object_name(&name);
    let got: Vec<Value> = world
        .state
        .services()
        .filter(|(known, _)| **known == name)
        .flat_map(|(_, service)| ports(service, family))
        .collect();
    for expected in &case.expect {
        let port = got.iter().find(|port| {
            port["port"] == expected["port"] && port["protocol"] == expected["protocol"]
        });
        let Some(port) = port else {
            return Ok(Outcome::Failed(format!(
                "the port {} {} is missing",
                expected["port"], expected["protocol"]
            )));
        };
        for (field, value) in expected.as_object().into_iter().flatten() {
            if sorted(&port[field]) != sorted(value) {
                return Ok(Outcome::Failed(format!(
                    "port {}: {field} should be {value}, is {}",
                    expected["port"], port[field]
                )));
            }
        }
    }
    if got.len() != case.expect.len() {
        return Ok(Outcome::Failed(format!(
            "{} ports expected, {} found",
            case.expect.len(),
            got.len()
        )));
    }
    Ok(Outcome::Passed)
}

fn ports(service: &Service, family: Family) -> Vec<Value> {
    let Some(cluster_ip) = service.cluster_ip(family) else {
        return Vec::new();
    };
    service
        .ports
        .iter()
        .map(|port| {
            json!({
                "port": port.name,
                "protocol": super::endpoints::protocol_name(port.protocol),
                "clusterIP": cluster_ip,
                "servicePort": port.number,
                "nodePort": port.node_port,
                "externalIPs": service.external_ips(family).collect::<Vec<IpAddr>>(),
                "loadBalancerVIPs": service.load_balancer_ips(family).collect::<Vec<IpAddr>>(),
                "sourceRanges": service
                    .source_ranges(family)
                    .map(|range| range.to_string())
                    .collect::<Vec<_>>(),
                "healthCheckNodePort": service.health_check_node_port,
                "internalPolicyLocal": service.internal_local,
                "externalPolicyLocal": service.external_local,
                "affinitySeconds": service.affinity_seconds,
            })
        })
        .collect()
}

/// Lists are sets in these cases.
fn sorted(value: &Value) -> Value {
    let Some(list) = value.as_array() else {
        return value.clone();
    };
    let mut list = list.clone();
    list.sort_by_key(ToString::to_string);
    Value::Array(list)
}
