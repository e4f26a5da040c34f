//! CPU time per connection (connect, request, answer, close), end to end over namespaces.
//!
//! Client and server are pinned to one CPU and take turns in a closed loop, so that CPU is busy all
//! the time and the wall clock per connection *is* the CPU time per connection, soft interrupts
//! included. Three stages stand side by side (nothing attached; us with 1 service; us with many)
//! and the rounds go over all of them in turn, so the machine's drift hits every row alike.

use crate::stage::{ServiceSpec, Stage, TARGET_PORT};
use anyhow::{Context, Result, bail};
use lb_lab::{Place, PodNetwork, Process};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Connections of one row in one round.
    pub connections: u32,
    /// Rounds over all rows.
    pub rounds: u32,
    /// Services of the large stage.
    pub services: u32,
}

/// One way to reach a pod.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What is asked: `direct`, `clusterIP`, `nodePort near`, `nodePort far`, …
    pub path: &'static str,
    /// `none` or the number of services we serve beside.
    pub attached: String,
    /// CPU time per connection, ns: the lower quartile over the rounds.
    pub nanoseconds: u64,
    /// Against the direct pod address of the same pod with nothing attached.
    pub ratio: f64,
}

/// Port of the measuring server, beside the stage's own.
const PORT: u16 = TARGET_PORT + 7;

struct Subject {
    stage: Stage,
    attached: String,
    _servers: Vec<Process>,
}

/// Measures everything and returns the rows, direct ones first.
///
/// # Errors
/// When a stage cannot be built or a connection fails: a bench that loses connections measures
/// nothing.
pub fn run(effort: Effort) -> Result<Vec<Row>> {
    let subjects = [None, Some(1), Some(effort.services)]
        .into_iter()
        .map(subject)
        .collect::<Result<Vec<_>>>()?;
    let mut samples: Vec<(usize, Way, Vec<u64>)> = Vec::new();
    for (number, subject) in subjects.iter().enumerate() {
        for way in Way::ALL {
            if way.is_direct() || subject.attached != "none" {
                samples.push((number, way, Vec::new()));
            }
        }
    }
    for _ in 0..effort.rounds {
        for (number, way, times) in &mut samples {
            let (from, server) = way.ends(&subjects[*number].stage);
            times.push(measure(from, server, effort.connections)?);
        }
    }
    let quartile = |times: &Vec<u64>| {
        let mut times = times.clone();
        times.sort_unstable();
        times[times.len() / 4]
    };
    let base = |way: Way| {
        samples
            .iter()
            .find(|(number, candidate, _)| *number == 0 && *candidate == way.baseline())
            .map_or(0, |(_, _, times)| quartile(times))
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "nanoseconds fit a double's mantissa"
    )]
    let ratio = |nanoseconds: u64, base: u64| nanoseconds as f64 / base.max(1) as f64;
    Ok(samples
        .iter()
        .map(|(number, way, times)| Row {
            path: way.name(),
            attached: subjects[*number].attached.clone(),
            nanoseconds: quartile(times),
            ratio: ratio(quartile(times), base(*way)),
        })
        .collect())
}

fn subject(services: Option<u32>) -> Result<Subject> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    for (node, way) in [(0, "10.77.0.10"), (1, "10.77.0.11")] {
        let [cidr, _] = stage.lab.node(node).pod_cidrs();
        stage
            .client
            .place()
            .namespace()
            .ip(&format!("route add {cidr} via {way}"))?;
    }
    let servers = ["b", "c"]
        .into_iter()
        .map(|name| Process::start(stage.pod(name).place(), serve))
        .collect::<Result<Vec<_>>>()?;
    if let Some(count) = services {
        for (name, number, node_port) in [("b", 10, 30080), ("c", 11, 30081)] {
            let service = ServiceSpec::new(name, number, &[name]).node_port(node_port);
            stage.apply_to_port(&service, PORT)?;
        }
        write_crowd(&stage, count.saturating_sub(2))?;
        stage.start_agents("")?;
    }
    let attached = services.map_or_else(|| "none".to_owned(), |count| count.to_string());
    Ok(Subject {
        stage,
        attached,
        _servers: servers,
    })
}

/// `count` further services with ten endpoints each, in one file.
fn write_crowd(stage: &Stage, count: u32) -> Result<()> {
    let mut text = String::new();
    for number in 0..count {
        let cluster_ip = Ipv4Addr::from(0x0a61_0000 + number);
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: crowd{number}, namespace: lab}}\n\
             spec: {{clusterIP: {cluster_ip}, ports: [{{port: 80}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: crowd{number}, \
             namespace: lab, labels: {{kubernetes.io/service-name: crowd{number}}}}}\n\
             addressType: IPv4\nports: [{{name: \"\", port: 8080, protocol: TCP}}]\nendpoints:\n"
        );
        for endpoint in 0..10 {
            let address = Ipv4Addr::from(0x0a90_0000 + number * 10 + endpoint);
            let _ = writeln!(text, "- {{addresses: [\"{address}\"]}}");
        }
    }
    let path = stage.manifests().join("crowd.yaml");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The rows of one stage.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    DirectFromPod,
    DirectNear,
    DirectFar,
    ClusterIp,
    NodePortNear,
    NodePortFar,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::DirectFromPod,
        Self::DirectNear,
        Self::DirectFar,
        Self::ClusterIp,
        Self::NodePortNear,
        Self::NodePortFar,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::DirectFromPod => "pod to pod, direct",
            Self::DirectNear => "outside to near pod, direct",
            Self::DirectFar => "outside to far pod, direct",
            Self::ClusterIp => "pod to ClusterIP",
            Self::NodePortNear => "outside to node port, backend here",
            Self::NodePortFar => "outside to node port, backend on another node",
        }
    }

    const fn is_direct(self) -> bool {
        matches!(
            self,
            Self::DirectFromPod | Self::DirectNear | Self::DirectFar
        )
    }

    /// The direct row of the same pod and client.
    const fn baseline(self) -> Self {
        match self {
            Self::DirectFromPod | Self::ClusterIp => Self::DirectFromPod,
            Self::DirectNear | Self::NodePortNear => Self::DirectNear,
            Self::DirectFar | Self::NodePortFar => Self::DirectFar,
        }
    }

    fn ends(self, stage: &Stage) -> (&Place, SocketAddr) {
        let (pod, outside) = (stage.pod("a").place(), stage.client.place());
        match self {
            Self::DirectFromPod => (pod, (stage.pod("b").v4(), PORT).into()),
            Self::DirectNear => (outside, (stage.pod("b").v4(), PORT).into()),
            Self::DirectFar => (outside, (stage.pod("c").v4(), PORT).into()),
            Self::ClusterIp => (pod, (Ipv4Addr::new(10, 96, 0, 10), 80).into()),
            Self::NodePortNear => (outside, stage.node_port(0, 30080)[0]),
            Self::NodePortFar => (outside, stage.node_port(0, 30081)[0]),
        }
    }
}

/// The last CPU: the first is where interrupts and everybody else's work tend to be.
fn pin() -> Result<()> {
    let last = std::thread::available_parallelism()?.get() - 1;
    let mut cpus = CpuSet::new();
    cpus.set(last).context("no such CPU")?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("cannot pin to one CPU")
}

const REQUEST: &[u8; 64] = &[b'q'; 64];

fn serve(ready: lb_lab::process::Ready) -> Result<String> {
    pin()?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
    ready.tell()?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; REQUEST.len()];
        if stream.read_exact(&mut request).is_ok() {
            let _ = stream.write_all(&request);
        }
    }
    Ok(String::new())
}

/// CPU time per connection in ns.
fn measure(from: &Place, server: SocketAddr, connections: u32) -> Result<u64> {
    let text = from.call(|| {
        pin()?;
        once(server)?;
        let start = Instant::now();
        for _ in 0..connections {
            once(server)?;
        }
        Ok((start.elapsed() / connections).as_nanos().to_string())
    })?;
    text.parse().with_context(|| format!("bad figure {text:?}"))
}

fn once(server: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5))
        .with_context(|| format!("cannot connect to {server}"))?;
    stream.write_all(REQUEST)?;
    let mut answer = Vec::with_capacity(REQUEST.len());
    stream.read_to_end(&mut answer)?;
    if answer != REQUEST {
        bail!("{server} answered {} bytes", answer.len());
    }
    Ok(())
}
