//! Health check node ports (section 11) and `/healthz` (section 12): the steps of a case become
//! objects and moments, and the agent's own answers are looked at.

use super::world::{Node, World, change, family, node_port_addresses, object_name};
use super::{Outcome, read};
use lb_agent::app::Snapshot;
use lb_agent::model::Options;
use lb_agent::model::desired::{Family, ObjectName};
use lb_agent::model::frontend::select_node_port_addresses;
use lb_agent::model::node::NodeFacts;
use lb_agent::serve::health::{Health, Question};
use lb_agent::serve::node_port::{Answer, listeners};
use lb_agent::source::{Change, Kind};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    kind: String,
    family: Option<String>,
    #[serde(default)]
    node_port_addresses: Vec<String>,
    health_timeout_seconds: Option<u64>,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", untagged)]
enum Step {
    Services(SyncServices),
    Endpoints(SyncEndpoints),
    Open(OpenPorts),
    Query(Query),
    Healthy(ProxyHealthy),
    Node(NodeStep),
    Get(Get),
    Advance(Advance),
    Queued(Queued),
    Updated(Updated),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SyncServices {
    sync_services: BTreeMap<String, u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SyncEndpoints {
    sync_endpoints: BTreeMap<String, u8>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OpenPorts {
    open_ports: BTreeSet<SocketAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Query {
    #[serde(rename = "query")]
    name: String,
    status: u16,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProxyHealthy {
    proxy_healthy: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeStep {
    node: NodeState,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeState {
    taints: Vec<String>,
    deleting: bool,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Get {
    #[serde(rename = "get")]
    path: String,
    status: u16,
    healthy: bool,
    #[serde(rename = "IPv4Healthy")]
    v4: Option<bool>,
    #[serde(rename = "IPv6Healthy")]
    v6: Option<bool>,
    node_eligible: Option<bool>,
    last_updated: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Advance {
    advance: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Queued {
    queued: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Updated {
    updated: Vec<String>,
}

/// Runs one case of `healthServerCases`.
pub(super) fn run(case: &Value) -> Outcome {
    let run = || -> Result<Outcome, Outcome> {
        let case: Case = read("the case", case)?;
        match case.kind.as_str() {
            "healthCheckNodePort" => node_ports(case),
            "proxyHealth" => proxy_health(case),
            other => Err(Outcome::Skipped(format!("the kind {other} is not known"))),
        }
    };
    run().unwrap_or_else(|outcome| outcome)
}

/// A healthy agent, but for the moments of changes.
fn healthy() -> Snapshot {
    Snapshot {
        synced: true,
        attached: true,
        node_eligible: true,
        probe: Some(Ok(())),
        ..Snapshot::default()
    }
}

fn node_ports(case: Case) -> Result<Outcome, Outcome> {
    let looked_at = family(case.family.as_deref().unwrap_or("IPv4"))?;
    let mut world = World::new(&Node::default())?;
    let mut due: BTreeMap<String, u16> = BTreeMap::new();
    let mut snapshot = healthy();
    let addresses = addresses(&case.node_port_addresses, looked_at)?;
    for (number, step) in case.steps.into_iter().enumerate() {
        let wrong = |what: String| Ok(Outcome::Failed(format!("step {number}: {what}")));
        match step {
            Step::Services(SyncServices { sync_services }) => {
                // kube-proxy counts endpoints of new ports with the next step only; here both are
                // one state, so until then there are none.
                for (name, port) in &due {
                    if sync_services.get(name) != Some(port) {
                        let name = object_name(name);
                        world.apply(Change::Delete(Kind::Service, name.clone()));
                        world.apply(Change::Delete(Kind::EndpointSlice, name));
                    }
                }
                for (name, port) in &sync_services {
                    world.apply(change(Kind::Service, &service(&object_name(name), *port))?);
                }
                due = sync_services;
            }
            Step::Endpoints(SyncEndpoints { sync_endpoints }) => {
                for name in due.keys() {
                    let count = sync_endpoints.get(name).copied().unwrap_or(0);
                    let slice = slice(&object_name(name), count);
                    world.apply(change(Kind::EndpointSlice, &slice)?);
                }
            }
            Step::Open(OpenPorts { open_ports }) => {
                let open = listeners(&world.state.health_checks(), &addresses);
                let open: BTreeSet<SocketAddr> = open.into_keys().collect();
                if open != open_ports {
                    return wrong(format!("expected {open_ports:?}, got {open:?}"));
                }
            }
            Step::Healthy(ProxyHealthy { proxy_healthy }) => {
                snapshot.probe = proxy_healthy.then_some(Ok(()));
            }
            Step::Query(query) => {
                let name = object_name(&query.name);
                let checks = world.state.health_checks();
                let check = checks.get(&(name.clone(), looked_at));
                let now = SystemTime::UNIX_EPOCH;
                let health = Health::of(Question::Livez, &snapshot, now, Duration::MAX);
                let answer = Answer::of(&name, check, health.healthy);
                let got = (answer.status(), answer.local_endpoints, health.healthy);
                let expected = (
                    query.status,
                    query.local_endpoints,
                    query.service_proxy_healthy,
                );
                if got != expected {
                    return wrong(format!("{name}: expected {expected:?}, got {got:?}"));
                }
            }
            other => return Err(Outcome::Skipped(format!("{other:?} is not known here"))),
        }
    }
    Ok(Outcome::Passed)
}

/// Where `nodePortAddresses` lets health check node ports be served, on a node that has loopback.
fn addresses(chosen: &[String], looked_at: Family) -> Result<Vec<IpAddr>, Outcome> {
    let options = Options {
        node_port_addresses: node_port_addresses(chosen)?,
        ..Options::default()
    };
    let own = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let selected = select_node_port_addresses(&options, &NodeFacts::named("n"), &own, looked_at);
    if !selected.match_all {
        return Ok(selected.addresses);
    }
    Ok(vec![match looked_at {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    }])
}

fn service(name: &ObjectName, port: u16) -> Value {
    // Any address of its own will do.
    let number: u16 = name.to_string().bytes().map(u16::from).sum();
    let [high, low] = number.to_be_bytes();
    json!({
        "metadata": {"namespace": &*name.namespace, "name": &*name.name},
        "spec": {"type": "LoadBalancer", "clusterIP": format!("172.30.{high}.{low}"),
            "externalTrafficPolicy": "Local", "healthCheckNodePort": port,
            "ports": [{"name": "p", "port": 80}]},
    })
}

fn slice(name: &ObjectName, count: u8) -> Value {
    let endpoints: Vec<Value> = (1..=count)
        .map(|number| json!({"addresses": [format!("10.0.0.{number}")], "nodeName": ""}))
        .collect();
    json!({
        "metadata": {"namespace": &*name.namespace, "name": &*name.name,
            "labels": {"kubernetes.io/service-name": &*name.name}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": 8080}], "endpoints": endpoints,
    })
}

fn proxy_health(case: Case) -> Result<Outcome, Outcome> {
    let late = Duration::from_secs(case.health_timeout_seconds.unwrap_or(60));
    let mut world = World::new(&Node::default())?;
    let mut snapshot = healthy();
    let mut now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let mut latest = None;
    for (number, step) in case.steps.into_iter().enumerate() {
        match step {
            Step::Node(NodeStep { node }) => {
                let taints: Vec<Value> =
                    node.taints.iter().map(|key| json!({"key": key})).collect();
                let deleted = node.deleting.then_some("2026-01-01T00:00:00Z");
                world.apply(change(
                    Kind::Node,
                    &json!({"metadata": {"name": "", "deletionTimestamp": deleted},
                        "spec": {"taints": taints}}),
                )?);
                snapshot.node_eligible = world.state.node().eligible;
            }
            Step::Queued(Queued { queued }) => {
                for name in queued {
                    snapshot.updates[family(&name)? as usize].queued(now);
                }
            }
            Step::Updated(Updated { updated }) => {
                for name in updated {
                    snapshot.updates[family(&name)? as usize].served(now);
                }
                latest = Some(now);
            }
            Step::Advance(Advance { advance }) => now += Duration::from_secs(advance),
            Step::Get(expected) => {
                let question = match expected.path.as_str() {
                    "/healthz" => Question::Healthz,
                    "/livez" => Question::Livez,
                    other => return Err(Outcome::Skipped(format!("{other} is not known"))),
                };
                let health = Health::of(question, &snapshot, now, late);
                if let Some(wrong) = differs(&expected, &health, latest) {
                    return Ok(Outcome::Failed(format!("step {number}: {wrong}")));
                }
            }
            other => return Err(Outcome::Skipped(format!("{other:?} is not known here"))),
        }
    }
    Ok(Outcome::Passed)
}

/// How an answer of `/healthz` or `/livez` differs from what is expected.
fn differs(expected: &Get, health: &Health, latest: Option<SystemTime>) -> Option<String> {
    let status = &health.status;
    let got = (health.status(), health.healthy, health.node_eligible);
    if got != (expected.status, expected.healthy, expected.node_eligible)
        || expected.v4.is_some_and(|v4| v4 != status.v4.healthy)
        || expected.v6.is_some_and(|v6| v6 != status.v6.healthy)
    {
        return Some(format!("expected {expected:?}, got {health:?}"));
    }
    let updated = match expected.last_updated.as_str() {
        "now" => Some(health.current_time.clone()),
        "latest of the families" => latest.and(
            [&status.v4, &status.v6]
                .iter()
                .filter_map(|family| family.last_updated.clone())
                .max(),
        ),
        other => return Some(format!("lastUpdated {other} is not known")),
    };
    (health.last_updated != updated).then(|| {
        format!(
            "lastUpdated is {:?}, expected {updated:?}",
            health.last_updated
        )
    })
}
