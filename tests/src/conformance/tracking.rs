//! Sections about time and state beside the flows of traffic.

use super::world::{Node, World, change, object_name};
use super::{Outcome, read};
use k8s_openapi::jiff::Timestamp;
use lb_agent::model::desired::ObjectName;
use lb_agent::source::{Change, Kind};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

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
            name: format!("{}-slice", service.name),
        };
        match event.op.as_str() {
            "remove" => {
                world.apply(Change::Delete(Kind::EndpointSlice, slice));
            }
            "upsert" => {
                let mut object = json!({
                    "metadata": {"namespace": slice.namespace, "name": slice.name,
                        "labels": {"kubernetes.io/service-name": service.name}},
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
    let got = world.state.take_trigger_times(time(&case.tracker_start)?);
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

/// `conntrackCases`: the flows of services are our own, not nf_conntrack's.
pub(super) fn conntrack(_case: &Value) -> Outcome {
    Outcome::Skipped(
        "it is about entries of nf_conntrack (section 10.1), which service traffic does not depend on here; UDP flows of a removed backend move with their next packet".to_owned(),
    )
}
