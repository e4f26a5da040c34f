//! Sections about time and state beside the flows of traffic.

use super::deviations::UDP_LAST_ENDPOINT;
use super::world::{Node, World, change, object_name};
use super::{Outcome, read};
use crate::host_path::{self, send};
use k8s_openapi::jiff::Timestamp;
use lb_agent::model::desired::ObjectName;
use lb_agent::source::{Change, Kind};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct TriggerCase {
    tracker_start: String,
    events: Vec<TriggerEvent>,
    expect: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct TriggerEvent {
    op: String,
    service: String,
    port: u16,
    last_change_trigger_time: Option<String>,
}

/// Runs one case of `triggerTimeCases`.
pub(super) fn trigger_times(case: &Value) -> Outcome {
    run_trigger_times(case).unwrap_or_else(|outcome| outcome)
}

fn run_trigger_times(case: &Value) -> Result<Outcome, Outcome> {
    let case: TriggerCase = read("the case", case)?;
    let mut world = World::new(&Node::default())?;
    for event in &case.events {
        let service = object_name(&event.service);
        let slice = ObjectName {
            namespace: service.namespace.clone(),
            name: format!("{}-slice", service.name).into(),
        };
        match event.op.as_str() {
            "remove" => {
                world.apply(Change::Delete(Kind::EndpointSlice, slice));
            }
            "upsert" => {
                let mut object = json!({
                    "metadata": {"namespace": &*slice.namespace, "name": &*slice.name,
                        "labels": {"kubernetes.io/service-name": &*service.name}},
                    "addressType": "IPv4",
                    "ports": [{"name": "p", "port": event.port}],
                    "endpoints": [{"addresses": ["192.0.2.1"]}],
                });
                if let Some(time) = &event.last_change_trigger_time {
                    object["metadata"]["annotations"] =
                        json!({"endpoints.kubernetes.io/last-change-trigger-time": time});
                }
                world.apply(change(Kind::EndpointSlice, &object)?);
            }
            other => return Ok(Outcome::Skipped(format!("the event {other} is not known"))),
        }
    }
    let mut expected: BTreeMap<ObjectName, Vec<Timestamp>> = BTreeMap::new();
    for (service, times) in &case.expect {
        let times = times
            .iter()
            .map(|text| time(text))
            .collect::<Result<_, _>>()?;
        expected.insert(object_name(service), times);
    }
    let mut got: BTreeMap<ObjectName, Vec<Timestamp>> = BTreeMap::new();
    for ((service, _), times) in (world.state).take_trigger_times(time(&case.tracker_start)?) {
        got.entry(service).or_default().extend(times);
    }
    Ok(if got == expected {
        Outcome::Passed
    } else {
        Outcome::Failed(format!("expected {expected:?}, got {got:?}"))
    })
}

fn time(text: &str) -> Result<Timestamp, Outcome> {
    text.parse()
        .map_err(|error| Outcome::Failed(format!("{text} is no time: {error}")))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConntrackCase {
    services: Vec<Value>,
    endpoint_slices: Vec<Value>,
    entries: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    protocol: String,
    orig_dst: IpAddr,
    orig_dport: u16,
    reply_src: IpAddr,
    reply_sport: u16,
    expect: String,
}

/// Runs one case of `conntrackCases`. The flows of services are our own, not `nf_conntrack`'s: what
/// kube-proxy deletes moves with its next datagram, what it keeps goes on.
pub(super) fn conntrack(case: &Value) -> Outcome {
    run_conntrack(case).unwrap_or_else(|outcome| outcome)
}

fn run_conntrack(case: &Value) -> Result<Outcome, Outcome> {
    let case: ConntrackCase = read("the case", case)?;
    let node = super::world::node_pods("10.0.0.0/8");
    let mut world = World::new(&node)?;
    world.upsert(Kind::Service, &case.services)?;
    world.upsert(Kind::EndpointSlice, &case.endpoint_slices)?;
    let now = world.state.desired_all();
    let nobody = now.values().all(|service| service.endpoints.is_empty());
    if nobody && case.entries.iter().any(|entry| entry.expect == "keep") {
        return Err(UDP_LAST_ENDPOINT.skips("a flow that is to be kept"));
    }
    for entry in &case.entries {
        if entry.protocol != "UDP" {
            return Err(Outcome::Skipped(format!(
                "an entry of {} is not known here",
                entry.protocol
            )));
        }
        let moved = moves(&node, &case, entry)?;
        if moved != (entry.expect == "delete") {
            return Ok(Outcome::Failed(format!(
                "{entry:?}: the flow {}",
                if moved { "moved" } else { "stayed" }
            )));
        }
    }
    Ok(Outcome::Passed)
}

/// Begins the flow of an entry while its endpoint is ready, lets the case's slices come, and tells
/// whether the next datagram goes elsewhere.
fn moves(node: &Node, case: &ConntrackCase, entry: &Entry) -> Result<bool, Outcome> {
    let mut world = World::new(node)?;
    world.upsert(Kind::Service, &case.services)?;
    let mut earlier = case.endpoint_slices.clone();
    for slice in &mut earlier {
        let port = slice["ports"][0]["port"].as_u64();
        if port != Some(u64::from(entry.reply_sport)) {
            return Err(Outcome::Skipped(
                "an entry of another endpoint port is not known here".to_owned(),
            ));
        }
        slice["endpoints"] =
            json!([{"addresses": [entry.reply_src], "conditions": {"ready": true}}]);
    }
    world.upsert(Kind::EndpointSlice, &earlier)?;
    let client = SocketAddr::new([10, 0, 0, 9].into(), 40_000);
    let to = SocketAddr::new(entry.orig_dst, entry.orig_dport);
    let goes = |world: &World| {
        send(&world.packets, client, to, host_path::Kind::Datagram)
            .map(|(first, _)| first)
            .map_err(Outcome::Failed)
    };
    let before = goes(&world)?;
    world.upsert(Kind::EndpointSlice, &case.endpoint_slices)?;
    Ok(goes(&world)? != before)
}
