//! Session affinity over time.

use super::answer::first_packet;
use super::world::{Node, World};
use super::{Outcome, read};
use crate::host_path::First;
use lb_agent::source::Kind;
use lb_common::addr::{Protocol, Tick};
use lb_common::host::HostEnv;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

/// The node's own address in these cases, where they say "node".
const NODE: &str = "192.0.2.200";
/// Histories tried: enough that a free choice shows itself as one.
const SEEDS: u64 = 64;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    services: Vec<Value>,
    ready_endpoints: Vec<IpAddr>,
    steps: Vec<Step>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Step {
    at: u32,
    connect: Option<Connect>,
    expect: Option<String>,
    /// Packets of open connections do not come by here: only new connections are decided.
    #[serde(rename = "keepBusyUntil")]
    _keep_busy_until: Option<u32>,
    remove_ready_endpoint: Option<String>,
    set_affinity: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Connect {
    from: IpAddr,
    to: String,
    port: u16,
}

/// Runs one case of `affinityCases`.
pub(super) fn run(case: &Value) -> Outcome {
    run_case(case).unwrap_or_else(|outcome| outcome)
}

fn run_case(case: &Value) -> Result<Outcome, Outcome> {
    let mut case: Case = read("the case", case)?;
    // The case says in words only that the external policy is Local.
    let says_local = case.steps.iter().any(|step| {
        step.expect
            .as_deref()
            .is_some_and(|e| e.starts_with("a local endpoint"))
    });
    if says_local {
        for service in &mut case.services {
            service["spec"]["externalTrafficPolicy"] = json!("Local");
        }
    }
    let mut free = BTreeMap::new();
    for seed in 0..SEEDS {
        History::new(&case, seed, &mut free)?.run()?;
    }
    // What is expected to be free must have come out in more than one way.
    for (step, chosen) in free {
        if chosen.len() < 2 && case.ready_endpoints.len() > 1 {
            return Ok(Outcome::Failed(format!(
                "step {step}: a free choice was expected, yet it was always {chosen:?}"
            )));
        }
    }
    for service in &case.services {
        let wanted =
            service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        if !timeouts(&case)?
            .iter()
            .all(|got| wanted.is_none_or(|w| w == u64::from(*got)))
        {
            return Ok(Outcome::Failed(format!(
                "the timeout should be {wanted:?} seconds"
            )));
        }
    }
    Ok(Outcome::Passed)
}

fn timeouts(case: &Case) -> Result<Vec<u32>, Outcome> {
    let world = world_of(case, &case.ready_endpoints)?;
    Ok(world
        .state
        .services()
        .map(|(_, service)| service.affinity_seconds)
        .collect())
}

fn world_of(case: &Case, ready: &[IpAddr]) -> Result<World, Outcome> {
    let node = Node {
        name: "here".to_owned(),
        local_ips: vec![
            NODE.parse()
                .unwrap_or_else(|_| unreachable!("a valid address")),
        ],
        ..Node::default()
    };
    let mut world = World::new(&node)?;
    world.upsert(Kind::Service, &case.services)?;
    fill(&mut world, case, ready)?;
    Ok(world)
}

/// The endpoints of every service: all ports on their own numbers, every second one on this node.
fn fill(world: &mut World, case: &Case, ready: &[IpAddr]) -> Result<(), Outcome> {
    for service in &case.services {
        let ports: Vec<Value> = service["spec"]["ports"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|port| json!({"name": port["name"], "port": port["port"], "protocol": port["protocol"]}))
            .collect();
        let endpoints: Vec<Value> = ready
            .iter()
            .map(|address| {
                let node = if is_local(case, *address) {
                    "here"
                } else {
                    "there"
                };
                json!({"addresses": [address], "nodeName": node, "conditions": {"ready": true}})
            })
            .collect();
        let name = &service["metadata"]["name"];
        world.upsert(
            Kind::EndpointSlice,
            &[json!({
                "metadata": {"namespace": service["metadata"]["namespace"], "name": "slice",
                    "labels": {"kubernetes.io/service-name": name}},
                "addressType": if ready.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" },
                "ports": ports,
                "endpoints": endpoints,
            })],
        )?;
    }
    Ok(())
}

fn is_local(case: &Case, address: IpAddr) -> bool {
    case.ready_endpoints
        .iter()
        .position(|one| *one == address)
        .is_some_and(|index| index % 2 == 0)
}

/// One run through the steps.
struct History<'a> {
    case: &'a Case,
    world: World,
    /// Every connection comes from a port of its own.
    next_port: u16,
    ready: Vec<IpAddr>,
    named: BTreeMap<String, IpAddr>,
    free: &'a mut BTreeMap<usize, BTreeSet<IpAddr>>,
}

impl<'a> History<'a> {
    fn new(
        case: &'a Case,
        seed: u64,
        free: &'a mut BTreeMap<usize, BTreeSet<IpAddr>>,
    ) -> Result<Self, Outcome> {
        let mut world = world_of(case, &case.ready_endpoints)?;
        // Spread out: neighbouring seeds begin alike.
        world.packets.env = HostEnv::new((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Ok(Self {
            case,
            world,
            next_port: 10_000,
            ready: case.ready_endpoints.clone(),
            named: BTreeMap::new(),
            free,
        })
    }

    fn run(mut self) -> Result<(), Outcome> {
        let start = self.world.packets.env.now.get();
        let case = self.case;
        for (index, step) in case.steps.iter().enumerate() {
            let now = Tick(start.0 + Tick::seconds(step.at));
            self.world.packets.env.now.set(now);
            if let Some(label) = &step.remove_ready_endpoint {
                let gone = self.named.get(label).copied();
                self.ready.retain(|one| Some(*one) != gone);
                fill(&mut self.world, case, &self.ready)?;
            }
            if let Some(mode) = &step.set_affinity {
                self.set_affinity(mode)?;
            }
            if let Some(connect) = &step.connect {
                let expect = step.expect.as_deref().unwrap_or("any");
                if !self.connect(index, connect, expect)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn set_affinity(&mut self, mode: &str) -> Result<(), Outcome> {
        let mut services = self.case.services.clone();
        for service in &mut services {
            service["spec"]["sessionAffinity"] = json!(mode);
        }
        self.world.upsert(Kind::Service, &services)
    }

    /// False if the history did not come out as the case supposes, so that it proves nothing.
    fn connect(&mut self, index: usize, connect: &Connect, expect: &str) -> Result<bool, Outcome> {
        let (rest, label) = match expect.split_once(" = ") {
            Some((rest, label)) => (rest, Some(label)),
            None => (expect, None),
        };
        let chosen = self.open(connect)?;
        let fail = |why: String| Err(Outcome::Failed(format!("step {index}: {why}")));
        if !self.ready.contains(&chosen) {
            return fail(format!("{chosen} is not ready"));
        }
        if let Some(label) = label {
            self.named.insert(label.to_owned(), chosen);
        }
        match rest {
            "any" | "any of the rest" => {
                self.free.entry(index).or_default().insert(chosen);
            }
            "spread" => {
                let mut seen = BTreeSet::from([chosen]);
                for _ in 0..SEEDS {
                    seen.insert(self.open(connect)?);
                }
                if seen.len() != self.ready.len() {
                    return fail(format!("connections went to {seen:?} only"));
                }
            }
            "a local endpoint, whatever A was" => {
                if !is_local(self.case, chosen) {
                    return fail(format!("{chosen} is not local"));
                }
            }
            other => {
                if let Some(label) = other.strip_prefix("same as ") {
                    let same = self.named.get(label);
                    if same != Some(&chosen) {
                        return fail(format!("{chosen} was chosen, {same:?} was expected"));
                    }
                } else if let Some(label) = other.strip_suffix(" (remote endpoint)") {
                    self.named.insert(label.to_owned(), chosen);
                    return Ok(!is_local(self.case, chosen));
                } else if other.len() == 1 {
                    self.named.insert(other.to_owned(), chosen);
                } else {
                    return Err(Outcome::Skipped(format!(
                        "the expectation {other} is not known"
                    )));
                }
            }
        }
        Ok(true)
    }

    fn open(&mut self, connect: &Connect) -> Result<IpAddr, Outcome> {
        let to = if connect.to == "node" {
            NODE
        } else {
            &connect.to
        };
        let to: IpAddr = to
            .parse()
            .map_err(|_| Outcome::Failed(format!("{to} is no address")))?;
        let to = SocketAddr::new(to, connect.port);
        let from = SocketAddr::new(connect.from, self.next_port);
        self.next_port += 1;
        match first_packet(&self.world, from, to, Protocol::TCP) {
            Ok(First::Backend(address, _)) => Ok(address.ip()),
            other => Err(Outcome::Failed(format!(
                "a connection from {from} to {to}: {other:?}"
            ))),
        }
    }
}
