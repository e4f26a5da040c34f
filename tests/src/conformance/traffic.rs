//! Flows: where does the first packet of a connection go?

use super::world::{Node, World, family, object_name};
use super::{Outcome, read};
use lb_agent::model::desired::{Family, ObjectName};
use lb_agent::source::Kind;
use lb_common::addr::{Addr, Endpoint, Port, Protocol};
use lb_common::balance::{Client, Decision, Origin, decide, find_frontend, is_hairpin};
use lb_common::env::Tables;
use lb_common::host::HostEnv;
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    #[serde(rename = "id")]
    _id: Option<String>,
    #[serde(default, rename = "title")]
    _title: Value,
    #[serde(default, rename = "origin")]
    _origin: Value,
    #[serde(default, rename = "derivedFrom")]
    _derived_from: Value,
    #[serde(default, rename = "notes")]
    _notes: Value,
    #[serde(default, rename = "tracerSkip")]
    _tracer_skip: Value,
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
struct Flow {
    name: String,
    protocol: String,
    #[serde(rename = "sourceIP")]
    source: IpAddr,
    #[serde(rename = "destIP")]
    destination: IpAddr,
    dest_port: u16,
    source_interface: Option<String>,
    #[serde(default, rename = "tracerSkip")]
    _tracer_skip: Value,
    #[serde(default, rename = "byBackend")]
    _by_backend: Value,
    #[serde(default, rename = "notes")]
    _notes: Value,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    endpoints: Endpoints,
    #[serde(default)]
    masq: bool,
    #[serde(default, rename = "notes")]
    _notes: Value,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Endpoints {
    Word(String),
    List(BTreeSet<SocketAddr>),
}

/// What happens to the first packet.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Answer {
    Forward {
        endpoints: BTreeSet<SocketAddr>,
        masquerade: bool,
    },
    Drop,
    Reject,
    Untouched,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward {
                endpoints,
                masquerade,
            } => {
                let with = if *masquerade { "with" } else { "without" };
                let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "one of [{}] {with} SNAT", endpoints.join(", "))
            }
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Untouched => f.write_str("untouched"),
        }
    }
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
        &world,
        "",
        &flows,
        expect_state.as_ref(),
        looked_at,
        &mut notes,
    )?;
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
            &world,
            &prefix,
            &step.flows,
            expected,
            looked_at,
            &mut notes,
        )?;
    }
    Ok(notes)
}

fn check(
    world: &World,
    prefix: &str,
    flows: &[Flow],
    state: Option<&ExpectState>,
    family: Family,
    notes: &mut Notes,
) -> Result<(), Outcome> {
    for flow in flows {
        check_flow(world, prefix, flow, notes)?;
    }
    let Some(expected) = state else {
        return Ok(());
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
    Ok(())
}

fn check_flow(world: &World, prefix: &str, flow: &Flow, notes: &mut Notes) -> Result<(), Outcome> {
    let name = format!("{prefix}{}", flow.name);
    let expected = match &flow.expect.endpoints {
        Endpoints::List(endpoints) => Answer::Forward {
            endpoints: endpoints.clone(),
            masquerade: flow.expect.masq,
        },
        Endpoints::Word(word) => match word.as_str() {
            "drop" => Answer::Drop,
            "reject" => Answer::Reject,
            // We keep no firewall: what iptables mode lets through explicitly is left alone.
            "none" | "accept" => Answer::Untouched,
            other => {
                notes
                    .skipped
                    .push(format!("{name}: the expectation {other} is not known"));
                return Ok(());
            }
        },
    };
    if flow.source_interface.is_some() {
        notes.skipped.push(format!(
            "{name}: pods are told by address, not by interface"
        ));
        return Ok(());
    }
    let got = match answer(world, flow) {
        Ok(answer) => answer,
        Err(problem) => {
            notes.failed.push(format!("{name}: {problem}"));
            return Ok(());
        }
    };
    if got == expected {
        notes.passed += 1;
    } else if let Some(reason) = not_yet_served(world, flow, &expected) {
        notes.skipped.push(format!("{name}: {reason}"));
    } else {
        notes
            .failed
            .push(format!("{name}: expected {expected}, got {got}"));
    }
    Ok(())
}

/// A protocol as cases write it.
pub(super) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        _ => Err(format!("{text} is no protocol")),
    }
}

/// How often each endpoint is to be drawn on average.
const DRAWS: u32 = 100;

/// Asks the core, as often as it takes to see every endpoint it may choose.
fn answer(world: &World, flow: &Flow) -> Result<Answer, String> {
    let protocol = protocol(&flow.protocol)?;
    if protocol == Protocol::SCTP {
        // The packet path leaves SCTP alone until ports can be rewritten under CRC32c.
        return Ok(Answer::Untouched);
    }
    let env = HostEnv::new(0x5eed);
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut masquerade = None;
    let draws = match &flow.expect.endpoints {
        Endpoints::List(list) => DRAWS * u32::try_from(list.len().max(1)).unwrap_or(1),
        Endpoints::Word(_) => 1,
    };
    for _ in 0..draws {
        // Each draw is another client as far as affinity is concerned.
        world.tables.affinity.borrow_mut().clear();
        match first_packet(
            world,
            &env,
            flow.source,
            (flow.destination, flow.dest_port),
            protocol,
        ) {
            First::Backend(address, with) => {
                *seen.entry(address).or_default() += 1;
                if *masquerade.get_or_insert(with) != with
                    // A client that is itself an endpoint: only its own choice is a hairpin.
                    && !seen.keys().any(|at| at.ip() == flow.source)
                {
                    return Err("SNAT differs between draws".to_owned());
                }
            }
            First::Drop => return Ok(Answer::Drop),
            First::Reject => return Ok(Answer::Reject),
            First::Untouched => return Ok(Answer::Untouched),
            First::Unstable => return Err("the tables do not fit together".to_owned()),
        }
    }
    let average = draws / u32::try_from(seen.len()).unwrap_or(1).max(1);
    if let Some((address, count)) = seen
        .iter()
        .find(|(_, count)| **count * 2 < average || **count > average * 2)
    {
        return Err(format!(
            "{address} was chosen {count} times of {draws}: not about equal"
        ));
    }
    Ok(Answer::Forward {
        endpoints: seen.into_keys().collect(),
        masquerade: masquerade.unwrap_or(false),
    })
}

/// The fate of one first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum First {
    Backend(SocketAddr, bool),
    Drop,
    Reject,
    Untouched,
    Unstable,
}

/// Asks the core about one new connection.
pub(super) fn first_packet(
    world: &World,
    env: &HostEnv,
    source: IpAddr,
    to: (IpAddr, u16),
    protocol: Protocol,
) -> First {
    let tables = &world.tables;
    let config = &tables.config;
    let client = Addr::from(source);
    let to = Endpoint {
        addr: to.0.into(),
        port: Port::new(to.1),
    };
    let Some(frontend) = find_frontend(tables, config, &to, protocol) else {
        return First::Untouched;
    };
    let origin = Origin::of_packet(tables, config, &client);
    let who = Some(Client::Address(client));
    match decide(tables, env, config, &frontend, origin, who, &client) {
        Decision::Forward(choice) => {
            let hairpin = tables
                .backend(choice.backend)
                .is_some_and(|backend| is_hairpin(backend, &client));
            let endpoint =
                SocketAddr::new(choice.endpoint.addr.into(), choice.endpoint.port.number());
            First::Backend(endpoint, choice.masquerade || hairpin)
        }
        Decision::Reject(_) => First::Reject,
        Decision::Drop(_) => First::Drop,
        Decision::Unstable => First::Unstable,
    }
}

/// Why a flow's expectation lies outside of what this version serves, if so. Asked only where the
/// answer differs: it may excuse nothing else.
fn not_yet_served(world: &World, flow: &Flow, expected: &Answer) -> Option<&'static str> {
    if flow.protocol == "SCTP" {
        return Some("SCTP is not yet served");
    }
    let family = Family::of(flow.destination);
    let mut services = world.state.services().map(|(_, service)| service);
    if services.any(|service| {
        service.is_guarded(family)
            && service
                .load_balancer_ips(family)
                .any(|ip| ip == flow.destination)
    }) {
        return Some("loadBalancerSourceRanges (section 6) is not yet served");
    }
    let mut services = world.state.services().map(|(_, service)| service);
    let is_cluster_ip =
        services.any(|service| service.cluster_ip(family) == Some(flow.destination));
    if is_cluster_ip && *expected == Answer::Reject && !is_frontend(world, flow) {
        return Some("refusing an undefined port of a ClusterIP (section 5.2) is not yet served");
    }
    let ranges = &world.state.options().service_cidrs;
    if !is_cluster_ip
        && *expected == Answer::Drop
        && ranges.iter().any(|range| range.contains(&flow.destination))
    {
        return Some(
            "dropping for a free address of a ServiceCIDR (section 5.2) is not yet served",
        );
    }
    None
}

fn is_frontend(world: &World, flow: &Flow) -> bool {
    let to = Endpoint {
        addr: flow.destination.into(),
        port: Port::new(flow.dest_port),
    };
    protocol(&flow.protocol).is_ok_and(|protocol| {
        find_frontend(&world.tables, &world.tables.config, &to, protocol).is_some()
    })
}
