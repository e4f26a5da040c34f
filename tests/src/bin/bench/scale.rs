//! The agent with many services: time of the first writes, of one endpoint's change, memory.

use crate::report::{Figure, Goal, Section};
use anyhow::{Context, Result, bail};
use lb_lab::{Agent, AgentOptions, Lab, Node, PodNetwork};
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bucket of the agent's histogram that a change may fall into.
const CHANGE_LIMIT: &str = "0.005";
const DURATION: &str = "kubeproxy_sync_proxy_rules_duration_seconds";
const PATIENCE: Duration = Duration::from_secs(60);

/// How much is measured.
pub(crate) struct Effort {
    /// Services, of ten endpoints each.
    pub(crate) services: u32,
    /// Changes of one endpoint.
    pub(crate) changes: u32,
}

/// Starts an agent on a directory of many services and changes one endpoint again and again.
pub(crate) fn measure(effort: &Effort) -> Result<Section> {
    let lab = Lab::new(&[PodNetwork::Routed])?;
    let manifests = lab.dir().join("manifests");
    std::fs::create_dir_all(&manifests)?;
    let mut text = String::new();
    for number in 0..effort.services {
        text.push_str(&manifest(number, 0));
    }
    std::fs::write(manifests.join("crowd.yaml"), text)?;
    let one = effort.services;
    write_one(&manifests, &manifest(one, 0))?;
    let node = lab.node(0);
    let agent = Agent::start(&lab, node, &AgentOptions::manifests(&manifests))?;
    let log = agent.log();
    let first = first_sync(&log).with_context(|| format!("no first sync in the log:\n{log}"))?;

    let begun = Histogram::of(&agent.metrics(node)?)?;
    for change in 1..=effort.changes {
        write_one(&manifests, &manifest(one, change))?;
        wait_for(&agent, node, begun.count + u64::from(change))?;
    }
    let ended = Histogram::of(&agent.metrics(node)?)?;
    report(effort, &first, &begun, &ended, &memory(&agent)?)
}

fn report(
    effort: &Effort,
    first: &[(&'static str, f64)],
    begun: &Histogram,
    ended: &Histogram,
    memory: &[(&'static str, f64)],
) -> Result<Section> {
    let mut section = Section::new("scale", "agent with many services: ms, MB", "value");
    let mut figure = |name: &str, value: f64| {
        let name = format!("{} services: {name}", effort.services);
        section.figures.push(Figure::new(&name, vec![value], 0.0));
    };
    for (name, value) in first.iter().chain(memory) {
        figure(name, *value);
    }
    let p50 = ended.percentile(begun, 0.5)?;
    let p99 = ended.percentile(begun, 0.99)?;
    figure("one endpoint's change, p50, at most (bucket), ms", p50);
    figure("one endpoint's change, p99, at most (bucket), ms", p99);
    let value = |wanted: &str| {
        let all = first.iter().chain(memory);
        all.clone()
            .find(|(name, _)| *name == wanted)
            .map_or(f64::NAN, |(_, value)| *value)
    };
    section.goals = vec![
        Goal::new("first table writes", value(WRITES), 100.0, "ms"),
        Goal::new(
            "one endpoint's change inside the agent, p99",
            p99,
            5.0,
            "ms",
        ),
        Goal::new("memory of the agent (RSS)", value(RESIDENT), 100.0, "MB"),
    ];
    Ok(section)
}

const WRITES: &str = "table writes of the first sync, ms";
const RESIDENT: &str = "resident memory, MB";

/// A service and its ten endpoints, one of which depends on `change`.
fn manifest(number: u32, change: u32) -> String {
    let cluster_ip = Ipv4Addr::from(0x0a61_0000 + number);
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: crowd{number}, namespace: lab}}\n\
         spec: {{clusterIP: {cluster_ip}, ports: [{{port: 80}}]}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: crowd{number}, \
         namespace: lab, labels: {{kubernetes.io/service-name: crowd{number}}}}}\n\
         addressType: IPv4\nports: [{{name: \"\", port: 8080, protocol: TCP}}]\nendpoints:\n"
    );
    for endpoint in 0..10 {
        let shift = if endpoint == 0 { change } else { 0 };
        let address = Ipv4Addr::from(0x0a90_0000 + number * 10 + endpoint + (shift << 18));
        let _ = writeln!(text, "- {{addresses: [\"{address}\"]}}");
    }
    text
}

fn write_one(manifests: &Path, text: &str) -> Result<()> {
    let fresh = manifests.join(".one.new");
    std::fs::write(&fresh, text)?;
    std::fs::rename(&fresh, manifests.join("one.yaml")).context("cannot write the manifest")
}

/// What the agent says of its first sync.
fn first_sync(log: &str) -> Option<Vec<(&'static str, f64)>> {
    let line = log
        .lines()
        .find(|line| line.contains("first sync complete"))?;
    let field = |name: &str| {
        let (_, rest) = line.split_once(name)?;
        let end = rest.find([' ', '}', ',']).unwrap_or(rest.len());
        milliseconds(
            rest[..end]
                .trim_start_matches("Some(")
                .trim_end_matches(')'),
        )
    };
    Some(vec![
        (WRITES, field("writing=")?),
        (
            "first sync from the first object to the last write, ms",
            field("took=")?,
        ),
    ])
}

/// A duration as `Duration`'s debug format writes it.
fn milliseconds(text: &str) -> Option<f64> {
    let at = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
    let number: f64 = text[..at].parse().ok()?;
    match &text[at..] {
        "s" => Some(number * 1e3),
        "ms" => Some(number),
        "µs" => Some(number / 1e3),
        "ns" => Some(number / 1e6),
        _ => None,
    }
}

/// How long syncs took: the agent's own histogram.
struct Histogram {
    count: u64,
    /// Upper bound in seconds as written, and how many took at most so long.
    buckets: Vec<(String, u64)>,
}

impl Histogram {
    fn of(metrics: &str) -> Result<Self> {
        let mut histogram = Self {
            count: 0,
            buckets: Vec::new(),
        };
        for line in metrics.lines() {
            let Some((series, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let Some(rest) = series.strip_prefix(DURATION) else {
                continue;
            };
            // The services are IPv4's alone.
            if !rest.contains("ip_family=\"IPv4\"") {
                continue;
            }
            if rest.starts_with("_count") {
                histogram.count = value.parse()?;
            } else if let Some((_, bound)) = rest.split_once("le=\"")
                && let Some((bound, _)) = bound.split_once('"')
            {
                histogram.buckets.push((bound.to_owned(), value.parse()?));
            }
        }
        if histogram
            .buckets
            .iter()
            .all(|(bound, _)| bound != CHANGE_LIMIT)
        {
            bail!("the agent's metrics have no bucket {CHANGE_LIMIT} of {DURATION}");
        }
        Ok(histogram)
    }

    /// The upper bound of the bucket, in ms, that so much of what came after `before` fits into.
    fn percentile(&self, before: &Self, share: f64) -> Result<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred observations")]
        let reached =
            |now: u64, then: u64| (now - then) as f64 >= share * (self.count - before.count) as f64;
        (self.buckets.iter().zip(&before.buckets))
            .find(|((_, now), (_, then))| reached(*now, *then))
            .and_then(|((bound, _), _)| bound.parse::<f64>().ok())
            .map(|bound| bound * 1e3)
            .context("the histogram of the agent has no such percentile")
    }
}

fn wait_for(agent: &Agent, node: &Node, count: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while Histogram::of(&agent.metrics(node)?)?.count < count {
        if Instant::now() > end {
            bail!(
                "a change was not written within {PATIENCE:?}; the agent's log:\n{}",
                agent.log()
            );
        }
        // The agent tells nobody that it has written; asking is all there is.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Memory of the agent's process: all of it, what is its own, and its peak. The flow table and the
/// other mapped tables are the kernel's memory and counted in the first only as far as they are
/// touched.
fn memory(agent: &Agent) -> Result<Vec<(&'static str, f64)>> {
    let path = format!("/proc/{}/status", agent.id());
    let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = |name: &str| -> Option<f64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kilobytes: f64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some(kilobytes * 1024.0 / 1e6)
    };
    [
        (RESIDENT, "VmRSS:"),
        ("of it neither files nor mapped tables, MB", "RssAnon:"),
        ("highest resident memory, MB", "VmHWM:"),
    ]
    .into_iter()
    .map(|(name, key)| {
        Ok((
            name,
            field(key).with_context(|| format!("no {key} in {path}"))?,
        ))
    })
    .collect()
}
