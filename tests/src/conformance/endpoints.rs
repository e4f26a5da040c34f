//! What is read from EndpointSlices, and which endpoints are chosen.

use super::deviations::IDLE_UPDATE;
use super::world::{Node, World, change, family, object_name};
use super::{Outcome, read};
use lb_agent::model::desired::{Family, ObjectName, ServicePortName};
use lb_agent::source::{Change, Kind};
use lb_common::addr::Protocol;
use lb_common::table::EmptyAction;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// A protocol as the API writes it.
pub(super) fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::UDP => "UDP",
        Protocol::SCTP => "SCTP",
        _ => "TCP",
    }
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "the fields of the case files"
)]
#[derive(Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd)]
#[serde(deny_unknown_fields)]
struct Known {
    endpoint: SocketAddr,
    local: bool,
    ready: bool,
    serving: bool,
    terminating: bool,
}

type KnownByPort = BTreeMap<String, BTreeSet<Known>>;

fn known(world: &World, service: &str, family: Family) -> KnownByPort {
    let known = world
        .state
        .known_endpoints(&object_name(service), family)
        .into_iter();
    known
        .map(|((port, protocol), endpoints)| {
            let endpoints = endpoints.into_iter().map(|(address, endpoint)| Known {
                endpoint: address,
                local: endpoint.local,
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
            });
            (
                format!("{port}/{}", protocol_name(protocol)),
                endpoints.collect::<BTreeSet<Known>>(),
            )
        })
        .filter(|(_, endpoints)| !endpoints.is_empty())
        .collect()
}

fn compare(expected: &KnownByPort, got: &KnownByPort) -> Outcome {
    let filled = |known: &KnownByPort| {
        known
            .iter()
            .filter(|(_, endpoints)| !endpoints.is_empty())
            .map(|(port, endpoints)| format!("{port}: {endpoints:?}"))
            .collect::<Vec<_>>()
    };
    if filled(expected) == filled(got) {
        Outcome::Passed
    } else {
        Outcome::Failed(format!(
            "expected {:?}, got {:?}",
            filled(expected),
            filled(got)
        ))
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MapCase {
    family: String,
    node_name: String,
    service: String,
    endpoint_slices: Vec<Value>,
    expect: KnownByPort,
}

/// Runs one case of `endpointMapCases`.
pub(super) fn map(case: &Value) -> Outcome {
    let run = || -> Result<Outcome, Outcome> {
        let case: MapCase = read("the case", case)?;
        let mut world = node_named(case.node_name)?;
        world.upsert(Kind::EndpointSlice, &case.endpoint_slices)?;
        let got = known(&world, &case.service, family(&case.family)?);
        Ok(compare(&case.expect, &got))
    };
    run().unwrap_or_else(|outcome| outcome)
}

fn node_named(name: String) -> Result<World, Outcome> {
    World::new(&Node {
        name,
        ..Node::default()
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct EventCase {
    family: String,
    node_name: String,
    service: String,
    synced: Vec<Value>,
    event: Event,
    expect_changed: bool,
    /// Absent where nothing changes.
    expect: Option<KnownByPort>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Event {
    Upsert(Value),
    Remove(Value),
}

impl Event {
    fn slices(&self) -> std::slice::Iter<'_, Value> {
        let (Self::Upsert(slice) | Self::Remove(slice)) = self;
        std::slice::from_ref(slice).iter()
    }
}

/// A service's ports for all ports of these slices.
fn ports_of<'a>(slices: impl Iterator<Item = &'a Value>) -> Value {
    let ports: BTreeSet<(&str, &str)> = slices
        .flat_map(|slice| slice["ports"].as_array().into_iter().flatten())
        .filter_map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            Some((port["name"].as_str()?, protocol))
        })
        .collect();
    (1_u16..)
        .zip(ports)
        .map(|(number, (name, protocol))| {
            json!({"name": name, "protocol": protocol, "port": number})
        })
        .collect()
}

/// Runs one case of `endpointSliceEventCases`.
pub(super) fn event(case: &Value) -> Outcome {
    run_event(case).unwrap_or_else(|outcome| outcome)
}

fn run_event(case: &Value) -> Result<Outcome, Outcome> {
    let case: EventCase = read("the case", case)?;
    let mut world = node_named(case.node_name)?;
    let family = family(&case.family)?;
    // A change shows in a service that reads every port of the slices.
    let ports = ports_of(case.synced.iter().chain(case.event.slices()));
    let name = object_name(&case.service);
    let service = service_of(&name, family, &ports);
    world.upsert(Kind::Service, &[service])?;
    world.upsert(Kind::EndpointSlice, &case.synced)?;
    let before = known(&world, &case.service, family);
    let changed = match &case.event {
        Event::Upsert(slice) => world.apply(change(Kind::EndpointSlice, slice)?),
        Event::Remove(slice) => {
            let name = ObjectName {
                namespace: slice["metadata"]["namespace"]
                    .as_str()
                    .unwrap_or_default()
                    .into(),
                name: slice["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .into(),
            };
            world.apply(Change::Delete(Kind::EndpointSlice, name))
        }
    };
    let got = known(&world, &case.service, family);
    let outcome = compare(case.expect.as_ref().unwrap_or(&before), &got);
    if outcome != Outcome::Passed || changed == case.expect_changed {
        return Ok(outcome);
    }
    if case.expect_changed && got == before {
        return Ok(IDLE_UPDATE.skips("the endpoints are as expected, and nothing changed"));
    }
    Ok(Outcome::Failed(format!(
        "a change was expected to be seen: {}, was seen: {changed}",
        case.expect_changed
    )))
}

/// A ClusterIP service with these ports.
fn service_of(name: &ObjectName, family: Family, ports: &Value) -> Value {
    let address = match family {
        Family::V4 => "192.0.2.250",
        Family::V6 => "2001:db8:ffff::250",
    };
    json!({
        "metadata": {"namespace": &*name.namespace, "name": &*name.name},
        "spec": {"type": "ClusterIP", "clusterIP": address, "ports": ports},
    })
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SelectionCase {
    node_name: String,
    #[serde(default)]
    node_labels: BTreeMap<String, String>,
    service: SelectionService,
    endpoints: Vec<Value>,
    expect: SelectionExpect,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectionService {
    internal_traffic_policy: String,
    external_traffic_policy: String,
    has_external_frontend: bool,
    port: u16,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectionExpect {
    /// `None` where the set is not used; no client can tell it from an empty one.
    cluster_endpoints: Option<BTreeSet<SocketAddr>>,
    local_endpoints: Option<BTreeSet<SocketAddr>>,
    reachable: BTreeSet<SocketAddr>,
    has_any_endpoints: bool,
}

/// Runs one case of `endpointSelectionCases`.
pub(super) fn selection(case: &Value) -> Outcome {
    run_selection(case).unwrap_or_else(|outcome| outcome)
}

fn run_selection(case: &Value) -> Result<Outcome, Outcome> {
    let case: SelectionCase = read("the case", case)?;
    let mut world = World::new(&Node {
        name: case.node_name,
        labels: case.node_labels,
        ..Node::default()
    })?;
    let family = case
        .endpoints
        .iter()
        .find_map(|endpoint| endpoint["addresses"][0].as_str())
        .map_or(Family::V4, |address| {
            if address.contains(':') {
                Family::V6
            } else {
                Family::V4
            }
        });
    let name = object_name("ns/service");
    let port = case.service.port;
    let mut service = service_of(&name, family, &json!([{"name": "p", "port": port}]));
    service["spec"]["internalTrafficPolicy"] = json!(case.service.internal_traffic_policy);
    service["spec"]["externalTrafficPolicy"] = json!(case.service.external_traffic_policy);
    if case.service.has_external_frontend {
        service["spec"]["type"] = json!("NodePort");
        service["spec"]["ports"][0]["nodePort"] = json!(30_080);
    }
    let slice = json!({
        "metadata": {"namespace": "ns", "name": "slice",
            "labels": {"kubernetes.io/service-name": "service"}},
        "addressType": if family == Family::V4 { "IPv4" } else { "IPv6" },
        "ports": [{"name": "p", "port": port, "protocol": "TCP"}],
        "endpoints": case.endpoints,
    });
    world.upsert(Kind::Service, &[service])?;
    world.upsert(Kind::EndpointSlice, &[slice])?;
    let name = ServicePortName {
        service: name,
        port: "p".to_owned(),
        protocol: Protocol::TCP,
        family,
    };
    let desired = world
        .state
        .desired(&name)
        .ok_or_else(|| Outcome::Failed("the service is not known".to_owned()))?;
    let members = |wanted: fn(bool, bool) -> bool| -> BTreeSet<SocketAddr> {
        let all = desired.endpoints.iter();
        all.filter(|(_, endpoint)| wanted(endpoint.cluster, endpoint.local))
            .map(|(address, _)| *address)
            .collect()
    };
    let expect = case.expect;
    for (what, expected, got) in [
        (
            "clusterEndpoints",
            expect.cluster_endpoints.unwrap_or_default(),
            members(|cluster, _| cluster),
        ),
        (
            "localEndpoints",
            expect.local_endpoints.unwrap_or_default(),
            members(|_, local| local),
        ),
        ("reachable", expect.reachable, members(|_, _| true)),
    ] {
        if expected != got {
            return Ok(Outcome::Failed(format!(
                "{what}: expected {expected:?}, got {got:?}"
            )));
        }
    }
    let any = desired.local_empty == EmptyAction::Drop;
    if any != expect.has_any_endpoints {
        return Ok(Outcome::Failed(format!(
            "hasAnyEndpoints should be {}",
            !any
        )));
    }
    Ok(Outcome::Passed)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadyCase {
    endpoints_by_service_port: BTreeMap<String, Vec<ReadyEndpoint>>,
    expect_local_ready: BTreeMap<String, usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadyEndpoint {
    endpoint: SocketAddr,
    local: bool,
    ready: bool,
}

/// Runs one case of `localReadyCases`.
pub(super) fn local_ready(case: &Value) -> Outcome {
    run_local_ready(case).unwrap_or_else(|outcome| outcome)
}

fn run_local_ready(case: &Value) -> Result<Outcome, Outcome> {
    let case: ReadyCase = read("the case", case)?;
    let mut world = node_named("here".to_owned())?;
    let mut ports_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (index, (service_port, endpoints)) in case.endpoints_by_service_port.iter().enumerate() {
        let (service, port) = service_port.rsplit_once(':').unwrap_or((service_port, ""));
        ports_of.entry(service).or_default().insert(port);
        for (number, endpoint) in endpoints.iter().enumerate() {
            let name = object_name(service);
            world.upsert(
                Kind::EndpointSlice,
                &[json!({
                    "metadata": {"namespace": &*name.namespace, "name": format!("s{index}-{number}"),
                        "labels": {"kubernetes.io/service-name": &*name.name}},
                    "addressType": if endpoint.endpoint.is_ipv4() { "IPv4" } else { "IPv6" },
                    "ports": [{"name": port, "port": endpoint.endpoint.port(), "protocol": "TCP"}],
                    "endpoints": [{
                        "addresses": [endpoint.endpoint.ip()],
                        "nodeName": if endpoint.local { "here" } else { "there" },
                        "conditions": {"ready": endpoint.ready},
                    }],
                })],
            )?;
        }
    }
    for (index, (service, ports)) in (0_u8..).zip(&ports_of) {
        let name = object_name(service);
        let ports: Vec<Value> = (1_u16..)
            .zip(ports)
            .map(|(number, port)| json!({"name": port, "port": number}))
            .collect();
        world.upsert(Kind::Service, &[json!({
            "metadata": {"namespace": &*name.namespace, "name": &*name.name},
            "spec": {"clusterIPs": [format!("203.0.113.{index}"), format!("2001:db8:ffff::{index:x}")],
                "ports": ports},
        })])?;
    }
    let expected: BTreeMap<ObjectName, usize> = case
        .expect_local_ready
        .iter()
        .map(|(name, count)| (object_name(name), *count))
        .collect();
    let mut got = world.state.local_ready(Family::V4);
    got.extend(world.state.local_ready(Family::V6));
    Ok(if expected == got {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("expected {expected:?}, got {got:?}"))
    })
}
