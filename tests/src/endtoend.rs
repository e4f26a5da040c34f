//! CPU time per connection (connect, request, answer, close), end to end over namespaces.
//!
//! Client and server are pinned to one CPU and take turns in a closed loop: every packet is handled
//! while one of them runs, in its time. What both have used, divided by the number of connections, is
//! the CPU time of one, soft interrupts included (on kernels without `IRQ_TIME_ACCOUNTING`, which
//! would count those apart); other processes of the machine do not count. Three stages stand side by
//! side (nothing attached; us with 1 service; us with many), the rounds go over all of them in turn,
//! and ratios are taken within a round, so that the machine's drift hits both sides alike.

use crate::stage::{ServiceSpec, Stage, TARGET_PORT};
use anyhow::{Context, Result, bail};
use lb_lab::{Place, PodNetwork, Process};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::ClockId;
use nix::unistd::Pid;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

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
    /// CPU time per connection in each round, ns.
    pub nanoseconds: Vec<u64>,
    /// Against the direct pod address of the same pod with nothing attached: the median over the
    /// rounds.
    pub ratio: f64,
}

/// Port of the measuring server, beside the stage's own.
const PORT: u16 = TARGET_PORT + 7;

struct Subject {
    stage: Stage,
    attached: String,
    /// On the near pod and on the far one.
    servers: [Process; 2],
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
            let subject = &subjects[*number];
            let (from, to) = way.ends(&subject.stage);
            let server = &subject.servers[usize::from(way.is_far())];
            let time = measure(from, to, server, effort.connections)
                .with_context(|| format!("{}, services: {}", way.name(), subject.attached))?;
            times.push(time);
        }
    }
    let rows = samples.iter().map(|(number, way, times)| {
        let base = (samples.iter())
            .find(|(number, candidate, _)| *number == 0 && *candidate == way.baseline())
            .map_or(times, |(_, _, base)| base);
        Row {
            path: way.name(),
            attached: subjects[*number].attached.clone(),
            nanoseconds: times.clone(),
            ratio: median_ratio(times, base),
        }
    });
    Ok(rows.collect())
}

/// The median of the ratios of each round.
#[expect(
    clippy::cast_precision_loss,
    reason = "nanoseconds fit a double's mantissa"
)]
fn median_ratio(times: &[u64], base: &[u64]) -> f64 {
    let mut ratios: Vec<f64> = (times.iter().zip(base))
        .map(|(time, base)| *time as f64 / (*base).max(1) as f64)
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
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
    let serve_on = |name| Process::start(stage.pod(name).place(), serve);
    let servers = [serve_on("b")?, serve_on("c")?];
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
        servers,
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

    const fn is_far(self) -> bool {
        matches!(self, Self::DirectFar | Self::NodePortFar)
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

/// CPU time per connection in ns, of client and server together.
fn measure(from: &Place, to: SocketAddr, server: &Process, connections: u32) -> Result<u64> {
    let server = server.id().context("the server has ended")?;
    let server = ClockId::pid_cpu_clock_id(Pid::from_raw(i32::try_from(server)?))
        .context("no clock of the server")?;
    let text = from.call(|| {
        pin()?;
        once(to)?;
        let used = || -> Result<Duration> {
            let own = ClockId::CLOCK_PROCESS_CPUTIME_ID.now()?;
            Ok(Duration::from(own) + Duration::from(server.now()?))
        };
        let before = used()?;
        for _ in 0..connections {
            once(to)?;
        }
        let spent = used()?.saturating_sub(before);
        Ok((spent / connections).as_nanos().to_string())
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
