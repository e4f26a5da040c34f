//! Flows: where does the first packet of a connection go?

use super::answer::{Answer, answer, not_yet_served};
use super::world::{Node, World, family, object_name};
use super::{Outcome, read};
use lb_agent::model::desired::{Family, ObjectName};
use lb_agent::source::Kind;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    family: String,
    node: Node,
    #[serde(default)]
    services: Vec<Value>,
    #[serde(default)]
    endpoint_slices: Vec<Value>,
    #[serde(default)]
    flows: Vec<Flow>,
    expect_state: Option<ExpectState>,
    #[serde(default)]
    transitions: Vec<Transition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[derive(Default)]
struct Transition {
    #[serde(rename = "title")]
    title: String,
    #[serde(rename = "notes")]
    _notes: Value,
    delete_services: Vec<String>,
    delete_endpoint_slices: Vec<String>,
    upsert_services: Vec<Value>,
    upsert_endpoint_slices: Vec<Value>,
    set_node_labels: Option<BTreeMap<String, String>>,
    flows: Vec<Flow>,
    expect_state: Option<ExpectState>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ExpectState {
    no_local_endpoints: Option<NoLocal>,
    health_check_node_ports: Option<BTreeMap<String, u16>>,
    local_ready_endpoints: Option<BTreeMap<String, usize>>,
    #[serde(default, rename = "notes")]
    _notes: Value,
}

#[derive(Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
struct NoLocal {
    internal: usize,
    external: usize,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Flow {
    name: String,
    pub(super) protocol: String,
    #[serde(rename = "sourceIP")]
    pub(super) source: IpAddr,
    #[serde(rename = "destIP")]
    pub(super) destination: IpAddr,
    pub(super) dest_port: u16,
    source_interface: Option<String>,
    #[serde(default, rename = "tracerSkip")]
    _tracer_skip: Value,
    #[serde(default, rename = "byBackend")]
    _by_backend: Value,
    #[serde(default, rename = "notes")]
    _notes: Value,
    pub(super) expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) endpoints: Endpoints,
    #[serde(default)]
    masq: bool,
    #[serde(default, rename = "notes")]
    _notes: Value,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Endpoints {
    Word(String),
    List(BTreeSet<SocketAddr>),
}

/// Runs one case of `cases` or `hookCases`.
pub(super) fn run(case: &Value) -> Outcome {
    match run_case(case) {
        Ok(notes) => notes.outcome(),
        Err(outcome) => outcome,
    }
}

/// What was found on the way through a case.
#[derive(Default)]
struct Notes {
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Notes {
    fn outcome(self) -> Outcome {
        if !self.failed.is_empty() {
            Outcome::Failed(self.failed.join("; "))
        } else if self.skipped.is_empty() {
            Outcome::Passed
        } else {
            Outcome::Skipped(format!(
                "{} (its other {} checks passed)",
                self.skipped.join("; "),
                self.passed
            ))
        }
    }

    fn compare<T: PartialEq + fmt::Debug>(&mut self, what: &str, expected: &T, got: &T) {
        if expected == got {
            self.passed += 1;
        } else {
            self.failed
                .push(format!("{what}: expected {expected:?}, got {got:?}"));
        }
    }
}

fn run_case(case: &Value) -> Result<Notes, Outcome> {
    let Case {
        family: looked_at,
        mut node,
        services,
        endpoint_slices,
        flows,
        expect_state,
        transitions,
        ..
    } = read("the case", case)?;
    let looked_at = family(&looked_at)?;
    let mut world = World::new(&node)?;
    world.upsert(Kind::Service, &services)?;
    world.upsert(Kind::EndpointSlice, &endpoint_slices)?;
    let mut notes = Notes::default();
    check(
        &mut world,
        "",
        &flows,
        expect_state.as_ref(),
        looked_at,
        &mut notes,
    );
    for step in transitions {
        world.delete(Kind::Service, &step.delete_services);
        world.delete(Kind::EndpointSlice, &step.delete_endpoint_slices);
        world.upsert(Kind::Service, &step.upsert_services)?;
        world.upsert(Kind::EndpointSlice, &step.upsert_endpoint_slices)?;
        if let Some(labels) = step.set_node_labels {
            world.relabel(&mut node, labels)?;
        }
        let prefix = format!("after “{}”, ", step.title);
        let expected = step.expect_state.as_ref();
        check(
            &mut world,
            &prefix,
            &step.flows,
            expected,
            looked_at,
            &mut notes,
        );
    }
    Ok(notes)
}

fn check(
    world: &mut World,
    prefix: &str,
    flows: &[Flow],
    state: Option<&ExpectState>,
    family: Family,
    notes: &mut Notes,
) {
    for flow in flows {
        check_flow(world, prefix, flow, notes);
    }
    let Some(expected) = state else {
        return;
    };
    if let Some(gauges) = &expected.no_local_endpoints {
        let got = world.state.no_local_endpoints(family);
        let got = NoLocal {
            internal: got.internal,
            external: got.external,
        };
        notes.compare("noLocalEndpoints", gauges, &got);
    }
    let named = |(name, value): (&String, &u16)| (object_name(name), *value);
    let due = world.state.health_check_node_ports(family);
    if let Some(ports) = &expected.health_check_node_ports {
        let expected: BTreeMap<ObjectName, u16> = ports.iter().map(named).collect();
        notes.compare("healthCheckNodePorts", &expected, &due);
    }
    if let Some(counts) = &expected.local_ready_endpoints {
        // Only health ports report the count; an absent service counts as 0.
        let expected: BTreeMap<ObjectName, usize> = counts
            .iter()
            .map(|(name, count)| (object_name(name), *count))
            .filter(|(_, count)| *count != 0)
            .collect();
        notes.compare(
            "localReadyEndpoints",
            &expected,
            &world.state.local_ready(family),
        );
    }
}

fn check_flow(world: &mut World, prefix: &str, flow: &Flow, notes: &mut Notes) {
    let name = format!("{prefix}{}", flow.name);
    let Some(expected) = expected(&flow.expect) else {
        let unknown = format!("{name}: the expectation {:?} is not known", flow.expect);
        notes.skipped.push(unknown);
        return;
    };
    if flow.source_interface.is_some() {
        let reason = "pods are told by address, not by interface";
        notes.skipped.push(format!("{name}: {reason}"));
        return;
    }
    match answer(world, flow) {
        Ok(got) if got == expected => notes.passed += 1,
        Ok(got) => {
            if let Some(reason) = not_yet_served(flow) {
                notes.skipped.push(format!("{name}: {reason}"));
            } else {
                let wrong = format!("{name}: expected {expected}, got {got}");
                notes.failed.push(wrong);
            }
        }
        Err(problem) => notes.failed.push(format!("{name}: {problem}")),
    }
}

fn expected(expect: &Expect) -> Option<Answer> {
    Some(match &expect.endpoints {
        Endpoints::List(endpoints) => Answer::Forward {
            endpoints: endpoints.clone(),
            masquerade: expect.masq,
        },
        Endpoints::Word(word) => match word.as_str() {
            "drop" => Answer::Drop,
            "reject" => Answer::Reject,
            // We keep no firewall: what iptables mode lets through explicitly is left alone.
            "none" | "accept" => Answer::Untouched,
            _ => return None,
        },
    })
}
