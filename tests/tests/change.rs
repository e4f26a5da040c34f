//! Endpoints that change under load: nobody is ever sent to an address that was removed before the
//! connection began, and nobody is refused while an endpoint lives.

use anyhow::{Context, Result, anyhow, bail, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use lb_agent::app::{self, Snapshot};
use lb_agent::datapath;
use lb_agent::model::State;
use lb_agent::model::node::NodeFacts;
use lb_agent::model::options::{Options as ModelOptions, PodDetection};
use lb_agent::source::{Change, Kind, Object};
use lb_common::table::SocketMode;
use lb_lab::{Place, PodNetwork, Process, client};
use lb_tests::stage::{CLUSTER_CIDRS, Stage, TARGET_PORT};
use serde_json::{Value, from_value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How often the endpoints change.
const CHANGES: usize = 1000;

/// An agent without a source of its own: the test says what changes and learns when it is written.
struct InProcessAgent {
    changes: mpsc::Sender<Change>,
    snapshot: watch::Receiver<Snapshot>,
    shutdown: CancellationToken,
    runtime: tokio::runtime::Runtime,
}

impl InProcessAgent {
    /// Starts the loop on threads inside `node`'s namespace.
    fn start(stage: &Stage, node: usize, mode: SocketMode) -> Result<Self> {
        let pods = CLUSTER_CIDRS
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let model = ModelOptions {
            pods: PodDetection::ClusterCidr(pods),
            ..ModelOptions::default()
        };
        let facts = NodeFacts {
            name: format!("node{node}"),
            ..NodeFacts::default()
        };
        let options = datapath::Options {
            directory: stage.lab.bpffs(&format!("node{node}"))?.join("lb"),
            cgroup_root: Some(stage.lab.node(node).cgroup_root().path().to_owned()),
            socket_mode: mode,
            ..datapath::Options::default()
        };
        let (changes, receiver) = mpsc::channel(64);
        let (sender, snapshot) = watch::channel(Snapshot::default());
        let shutdown = CancellationToken::new();
        let token = shutdown.clone();
        // Worker threads inherit the namespace of the thread that builds the runtime.
        let runtime = stage.lab.node(node).namespace().enter(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
        })??;
        runtime.spawn(async move {
            let model = State::new(model, facts);
            if let Err(error) = app::run(
                options,
                model,
                receiver,
                sender,
                std::time::Duration::ZERO,
                token,
            )
            .await
            {
                eprintln!("{:#}", anyhow!(error));
            }
        });
        Ok(Self {
            changes,
            snapshot,
            shutdown,
            runtime,
        })
    }

    fn send(&self, change: Change) -> Result<()> {
        self.changes
            .blocking_send(change)
            .context("the agent has ended")
    }

    /// Waits until a sync that began after this call's change is written.
    fn written(&mut self, after: u64) -> Result<u64> {
        self.runtime.block_on(async {
            loop {
                let syncs = self.snapshot.borrow_and_update().syncs;
                if syncs > after {
                    return Ok(syncs);
                }
                self.snapshot
                    .changed()
                    .await
                    .context("the agent has ended")?;
            }
        })
    }
}

impl Drop for InProcessAgent {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// `CLOCK_MONOTONIC`, which all processes of the machine share.
fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    let time = time.map_or(std::time::Duration::ZERO, std::time::Duration::from);
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Connects without pause until the file `stop` exists; one line a connection: start, end, answer.
fn connect_all_the_time(from: &Place, server: SocketAddr, stop: PathBuf) -> Result<Process> {
    from.spawn(move || {
        let mut lines = String::new();
        while !stop.exists() {
            let start = now();
            let outcome = match client::tcp(server) {
                Ok(answer) => answer.name,
                Err(error) => format!("error:{error:#}").replace(' ', "_"),
            };
            writeln!(lines, "{start} {} {outcome}", now())?;
        }
        Ok(lines)
    })
}

fn service() -> Result<Service> {
    Ok(from_value(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "lab"},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
                 "ipFamilies": ["IPv4"],
                 "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}
    }))?)
}

fn slice(stage: &Stage, names: &BTreeSet<&str>) -> Result<EndpointSlice> {
    let endpoints: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({"addresses": [stage.pod(name).v4()], "nodeName": "node0",
                   "conditions": {"ready": true}})
        })
        .collect();
    Ok(from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web", "namespace": "lab",
                     "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"name": "", "port": TARGET_PORT, "protocol": "TCP"}],
        "endpoints": endpoints
    }))?)
}

/// One published set: when its change was sent, when it was written, what it holds.
struct Era<'a> {
    sent: u64,
    written: u64,
    names: BTreeSet<&'a str>,
}

/// Which backends a connection that lasted from `start` to `end` may have met.
fn allowed<'a>(eras: &'a [Era<'a>], start: u64, end: u64) -> BTreeSet<&'a str> {
    let first = eras
        .iter()
        .rposition(|era| era.written < start)
        .unwrap_or(0);
    eras[first..]
        .iter()
        .take_while(|era| era.sent <= end)
        .flat_map(|era| era.names.iter().copied())
        .collect()
}

fn check(log: &str, eras: &[Era<'_>], who: &str) -> Result<usize> {
    let mut count = 0;
    for line in log.lines() {
        let mut words = line.split(' ');
        let (Some(start), Some(end), Some(name)) = (words.next(), words.next(), words.next())
        else {
            bail!("bad line {line:?}");
        };
        let (start, end) = (start.parse()?, end.parse()?);
        let allowed = allowed(eras, start, end);
        ensure!(
            allowed.contains(name),
            "{who}: {name} answered, only {allowed:?} were served"
        );
        count += 1;
    }
    Ok(count)
}

fn run(mode: SocketMode, stop: &Path) -> Result<()> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.add_pod(0, "d")?;
    let pool = ["b", "c", "d"];
    let mut agent = InProcessAgent::start(&stage, 0, mode)?;
    let mut names: BTreeSet<&str> = BTreeSet::from(["b"]);
    for kind in Kind::ALL {
        agent.send(Change::Restart(kind))?;
    }
    let node: Node = from_value(json!({"metadata": {"name": "node0"}}))?;
    agent.send(Change::Apply(Object::Node(Box::new(node))))?;
    agent.send(Change::Apply(Object::Service(Box::new(service()?))))?;
    agent.send(Change::Apply(Object::EndpointSlice(Box::new(slice(
        &stage, &names,
    )?))))?;
    for kind in Kind::ALL {
        agent.send(Change::Complete(kind))?;
    }
    let mut syncs = agent.runtime.block_on(async {
        agent
            .snapshot
            .clone()
            .wait_for(|snapshot| snapshot.synced)
            .await
            .map(|s| s.syncs)
    })?;
    let mut eras = vec![Era {
        sent: 0,
        written: now(),
        names: names.clone(),
    }];

    let pod = connect_all_the_time(
        stage.pod("a").place(),
        "10.96.0.10:80".parse()?,
        stop.to_owned(),
    )?;
    let outside = connect_all_the_time(
        stage.client.place(),
        stage.node_port(0, 30080)[0],
        stop.to_owned(),
    )?;
    let mut random = 0x2545_f491_u32;
    for _ in 0..CHANGES {
        random ^= random << 13;
        random ^= random >> 17;
        random ^= random << 5;
        let bits = random % 7 + 1;
        names = (0..3)
            .filter(|bit| bits & (1 << bit) != 0)
            .map(|bit| pool[bit])
            .collect();
        if names == eras[eras.len() - 1].names {
            continue;
        }
        let sent = now();
        agent.send(Change::Apply(Object::EndpointSlice(Box::new(slice(
            &stage, &names,
        )?))))?;
        syncs = agent.written(syncs)?;
        eras.push(Era {
            sent,
            written: now(),
            names: names.clone(),
        });
    }
    std::fs::write(stop, "")?;
    for (who, process) in [("pod to ClusterIP", pod), ("outside to node port", outside)] {
        let connections = check(&process.wait()?, &eras, who)?;
        ensure!(
            connections > 100,
            "{who}: only {connections} connections were tried"
        );
    }
    Ok(())
}

#[test]
fn under_continuous_connects_1000_endpoint_changes_send_nobody_to_a_removed_address() -> Result<()>
{
    for mode in [SocketMode::All, SocketMode::Off] {
        let dir = tempfile::tempdir()?;
        run(mode, &dir.path().join("stop")).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}
