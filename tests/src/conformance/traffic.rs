//! Flows: where does the first packet of a connection go? The cases are read and judged here,
//! whatever they are tried on.

use super::answer::{Answer, answer};
use super::deviations::Deviation;
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
pub(super) struct Case {
    family: String,
    pub(super) node: Node,
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

/// What the API server's objects become in one step.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Step<'a> {
    /// Services that go, `namespace/name`.
    pub(super) delete_services: &'a [String],
    /// EndpointSlices that go, likewise.
    pub(super) delete_endpoint_slices: &'a [String],
    /// Services as they are from now on.
    pub(super) services: &'a [Value],
    /// EndpointSlices as they are from now on.
    pub(super) endpoint_slices: &'a [Value],
    /// The node's labels from now on.
    pub(super) labels: Option<&'a BTreeMap<String, String>>,
}

impl Case {
    /// Every step, in order, with the flows that are looked at after it.
    pub(super) fn steps(&self) -> impl Iterator<Item = (Step<'_>, &[Flow])> {
        let first = Step {
            services: &self.services,
            endpoint_slices: &self.endpoint_slices,
            ..Step::default()
        };
        let later = self.transitions.iter();
        std::iter::once((first, &*self.flows))
            .chain(later.map(|change| (change.step(), &*change.flows)))
    }
}

impl Transition {
    fn step(&self) -> Step<'_> {
        Step {
            delete_services: &self.delete_services,
            delete_endpoint_slices: &self.delete_endpoint_slices,
            services: &self.upsert_services,
            endpoint_slices: &self.upsert_endpoint_slices,
            labels: self.set_node_labels.as_ref(),
        }
    }
}

/// What cases are tried on.
pub(super) trait Subject {
    /// Lets the objects become so, and returns once that is served.
    fn apply(&mut self, step: &Step<'_>) -> Result<(), Outcome>;
    /// What becomes of a new connection.
    fn answer(&mut self, flow: &Flow) -> Result<Answer, String>;
    /// The deviation, if any, because of which this subject need not answer as expected. Asked only
    /// where the answer differs: it may excuse nothing else.
    fn deviation(&self, flow: &Flow, expected: &Answer, got: &Answer)
    -> Option<&'static Deviation>;
    /// Looks at what the agent says of itself.
    fn check_state(&self, expected: &ExpectState, family: Family, notes: &mut Notes);
}

/// The model, the plan and the core on this host.
struct Host {
    world: World,
    node: Node,
}

impl Subject for Host {
    fn apply(&mut self, step: &Step<'_>) -> Result<(), Outcome> {
        let world = &mut self.world;
        world.delete(Kind::Service, step.delete_services);
        world.delete(Kind::EndpointSlice, step.delete_endpoint_slices);
        world.upsert(Kind::Service, step.services)?;
        world.upsert(Kind::EndpointSlice, step.endpoint_slices)?;
        match step.labels {
            Some(labels) => world.relabel(&mut self.node, labels.clone()),
            None => Ok(()),
        }
    }

    fn answer(&mut self, flow: &Flow) -> Result<Answer, String> {
        self.world.arrives_by(flow.source_interface.as_deref());
        answer(&mut self.world, flow)
    }

    fn deviation(&self, _: &Flow, _: &Answer, _: &Answer) -> Option<&'static Deviation> {
        None
    }

    fn check_state(&self, expected: &ExpectState, family: Family, notes: &mut Notes) {
        check_state(&self.world, expected, family, notes);
    }
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
pub(super) struct ExpectState {
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
    /// The deviation because of which the answer may differ from another project's.
    #[serde(default)]
    deviation: Option<String>,
    pub(super) expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Expect {
    pub(super) endpoints: Endpoints,
    #[serde(default)]
    pub(super) masq: bool,
    #[serde(default, rename = "notes")]
    _notes: Value,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Endpoints {
    Word(String),
    List(BTreeSet<SocketAddr>),
}

/// Runs one case of `cases` or `hookCases` on the host.
pub(super) fn run(case: &Value) -> Outcome {
    let run = || -> Result<Outcome, Outcome> {
        let case: Case = read("the case", case)?;
        let mut host = Host {
            world: World::new(&case.node)?,
            node: case.node.clone(),
        };
        try_on(&mut host, &case)
    };
    run().unwrap_or_else(|outcome| outcome)
}

/// What was found on the way through a case.
#[derive(Default)]
pub(super) struct Notes {
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

/// Takes a subject through a case.
pub(super) fn try_on(subject: &mut impl Subject, case: &Case) -> Result<Outcome, Outcome> {
    let looked_at = family(&case.family)?;
    let mut notes = Notes::default();
    let states = std::iter::once(("", case.expect_state.as_ref())).chain(
        (case.transitions.iter()).map(|change| (&*change.title, change.expect_state.as_ref())),
    );
    for ((step, flows), (title, state)) in case.steps().zip(states) {
        subject.apply(&step)?;
        let prefix = match title {
            "" => String::new(),
            title => format!("after “{title}”, "),
        };
        for flow in flows {
            check_flow(subject, &prefix, flow, &mut notes);
        }
        if let Some(expected) = state {
            subject.check_state(expected, looked_at, &mut notes);
        }
    }
    Ok(notes.outcome())
}

fn check_state(world: &World, expected: &ExpectState, family: Family, notes: &mut Notes) {
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

fn check_flow(subject: &mut impl Subject, prefix: &str, flow: &Flow, notes: &mut Notes) {
    let name = format!("{prefix}{}", flow.name);
    let Some(expected) = expected(&flow.expect) else {
        let unknown = format!("{name}: the expectation {:?} is not known", flow.expect);
        notes.skipped.push(unknown);
        return;
    };
    match subject.answer(flow) {
        Ok(got) if got == expected => notes.passed += 1,
        Ok(got) => {
            let theirs = flow.deviation.as_deref().and_then(Deviation::named);
            let deviation = theirs.or_else(|| subject.deviation(flow, &expected, &got));
            if let Some(deviation) = deviation {
                notes.skipped.push(deviation.met(&name));
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
