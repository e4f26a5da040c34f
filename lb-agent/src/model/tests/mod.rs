//! Tests of the model as a whole: objects in, desired service ports out.

mod bad_objects;
mod listing;
mod order;
mod serving;

use super::desired::{DesiredService, Family, ObjectName, ServicePortName};
use super::node::NodeFacts;
use super::{Options, State};
use crate::source::{Change, Kind, Object};
use lb_common::addr::Protocol;
use serde_json::{Value, json};

/// A state of the node `here` in zone `a`, complete and empty.
pub(super) fn state() -> State {
    state_with(Options::default())
}

pub(super) fn state_with(options: Options) -> State {
    let mut state = State::new(options, NodeFacts::named("here"));
    for kind in Kind::ALL {
        state.apply(Change::Restart(kind));
        if kind == Kind::Node {
            state.apply(node("a"));
        }
        state.apply(Change::Complete(kind));
    }
    assert!(state.is_complete());
    state
}

pub(super) fn node(zone: &str) -> Change {
    node_object(
        json!({"metadata": {"name": "here", "labels": {"topology.kubernetes.io/zone": zone}}}),
    )
}

pub(super) fn node_object(node: Value) -> Change {
    Change::Apply(Object::Node(Box::new(
        serde_json::from_value(node).expect("a Node"),
    )))
}

pub(super) fn named(name: &str) -> ObjectName {
    ObjectName {
        namespace: "ns".into(),
        name: name.into(),
    }
}

/// A Service `ns/name` with this spec; one TCP port 80 named `http` unless the spec says otherwise.
#[expect(
    clippy::needless_pass_by_value,
    reason = "callers write json!(…) in place"
)]
pub(super) fn service(name: &str, spec: Value) -> Change {
    service_object(json!({"metadata": {"namespace": "ns", "name": name}, "spec": spec}))
}

pub(super) fn service_object(mut object: Value) -> Change {
    if object["spec"]["ports"].is_null() {
        object["spec"]["ports"] = json!([{"name": "http", "port": 80}]);
    }
    Change::Apply(Object::Service(Box::new(
        serde_json::from_value(object).expect("a Service"),
    )))
}

/// A slice `ns/name` of `service` with port `http` 8080 and these endpoints.
#[expect(
    clippy::needless_pass_by_value,
    reason = "callers write json!(…) in place"
)]
pub(super) fn slice(name: &str, service: &str, endpoints: Value) -> Change {
    slice_object(json!({
        "metadata": {
            "namespace": "ns",
            "name": name,
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    }))
}

pub(super) fn slice_object(object: Value) -> Change {
    Change::Apply(Object::EndpointSlice(Box::new(
        serde_json::from_value(object).expect("an EndpointSlice"),
    )))
}

/// A ready endpoint on the node `on`.
pub(super) fn ready(address: &str, on: &str) -> Value {
    json!({"addresses": [address], "nodeName": on, "conditions": {"ready": true}})
}

/// A serving and terminating endpoint on the node `on`.
pub(super) fn terminating(address: &str, on: &str) -> Value {
    json!({
        "addresses": [address],
        "nodeName": on,
        "conditions": {"ready": false, "serving": true, "terminating": true},
    })
}

/// The service port `http` of `ns/name` in IPv4.
pub(super) fn http(name: &str) -> ServicePortName {
    ServicePortName {
        service: named(name),
        port: "http".into(),
        protocol: Protocol::TCP,
        family: Family::V4,
    }
}

pub(super) fn desired(state: &State, name: &str) -> DesiredService {
    state
        .desired(&http(name))
        .unwrap_or_else(|| panic!("ns/{name} should be known"))
}

/// The frontends as text, in their order.
pub(super) fn frontends(state: &State, name: &str) -> Vec<String> {
    desired(state, name)
        .frontends
        .iter()
        .map(|one| match super::index::exact(one.address) {
            Some(address) => format!("{:?} {address}:{}", one.kind, one.port),
            None => format!("{:?} {}", one.kind, one.port),
        })
        .collect()
}

/// The members of the Cluster set and of the Local set.
pub(super) fn sets(state: &State, name: &str) -> (Vec<String>, Vec<String>) {
    let endpoints = desired(state, name).endpoints;
    let of = |wanted: fn(&super::desired::DesiredEndpoint) -> bool| {
        endpoints
            .iter()
            .filter(|(_, endpoint)| wanted(endpoint))
            .map(|(address, _)| address.to_string())
            .collect()
    };
    (of(|e| e.cluster), of(|e| e.local))
}
