//! The metrics page: made anew at each scrape from the live tables and the agent's snapshot.
//! Nothing is cached and nothing is copied while nobody asks.

use crate::app::Snapshot;
use crate::datapath::{Fill, ReadError, Reader, ServiceView};
use crate::serve::catalog::{self, Metric};
use crate::serve::page::{Sample, Value, write};
use crate::serve::process::ProcessFacts;
use crate::serve::work::write_work;
use crate::source::kube::requests::{Counts, Requests};
use lb_common::addr::Protocol;
use lb_common::table::{BackendState, LAYOUT_VERSION};
use lb_common::verdict::Reason;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;

/// One reading of the tables.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Every service port.
    pub services: Vec<ServiceView>,
    /// How often each reason was counted.
    pub reasons: Vec<(Reason, u64)>,
    /// How full the tables are.
    pub fill: Vec<Fill>,
}

/// The tables as the metrics page reads them.
pub trait TableView: fmt::Debug + Send + Sync + 'static {
    /// Reads them now.
    fn read(&self) -> Result<Reading, ReadError>;
}

/// The pinned tables of a directory, opened anew at each scrape: they may be replaced meanwhile.
#[derive(Debug)]
pub struct PinnedTables(pub PathBuf);

impl TableView for PinnedTables {
    fn read(&self) -> Result<Reading, ReadError> {
        let reader = Reader::open(&self.0)?;
        Ok(Reading {
            services: reader.services()?,
            reasons: reader.reasons()?,
            fill: reader.fill()?,
        })
    }
}

/// How often a health path was answered, by status.
#[derive(Debug, Default)]
pub struct Answers {
    ok: AtomicU64,
    unavailable: AtomicU64,
    /// Whether the last one was 200.
    good: AtomicBool,
}

impl Answers {
    /// Counts one answer.
    pub(crate) fn count(&self, status: u16) {
        self.good.store(status == 200, Ordering::Relaxed);
        let counter = if status == 200 {
            &self.ok
        } else {
            &self.unavailable
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The last answer, if there was one, and how often it was good or bad.
    pub(super) fn results(&self) -> (Option<bool>, [(&'static str, u64); 2]) {
        let counts = [("success", &self.ok), ("error", &self.unavailable)]
            .map(|(status, counter)| (status, counter.load(Ordering::Relaxed)));
        let asked = counts.iter().any(|(_, count)| *count > 0);
        (asked.then(|| self.good.load(Ordering::Relaxed)), counts)
    }

    fn samples(&self) -> [Sample<'static>; 2] {
        [("200", &self.ok), ("503", &self.unavailable)].map(|(code, counter)| Sample {
            labels: vec![Cow::Borrowed(code)],
            value: Value::Count(counter.load(Ordering::Relaxed)),
        })
    }
}

/// Everything the metrics page of a node is made of.
#[derive(Debug)]
pub struct NodeMetrics<T> {
    /// The tables.
    pub tables: T,
    /// What the agent last said about itself.
    pub snapshot: watch::Receiver<Snapshot>,
    /// What the source cannot take now, by kind of problem.
    pub source_problems: watch::Receiver<BTreeMap<&'static str, u64>>,
    /// How long a change may wait before the node is unhealthy.
    pub late: Duration,
    /// The configuration in force, as `/configz` shows it.
    pub configuration: serde_json::Value,
    /// Answers of `/healthz`.
    pub healthz: Answers,
    /// Answers of `/livez`.
    pub livez: Answers,
    /// Answers of `/healthz` on the metrics address: that there is one is all it says.
    pub ping: Answers,
    /// The flags in force, as `/flagz` shows them.
    pub flags: BTreeMap<String, String>,
    /// What was asked of the API server.
    pub requests: Arc<Requests>,
}

impl<T: TableView> Collector for NodeMetrics<T> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let encoder = &mut encoder;
        let tables = self.tables.read();
        let readable = u64::from(tables.is_ok());
        match tables {
            Ok(reading) => {
                write_services(encoder, &reading.services)?;
                write_tables(encoder, &reading.reasons, &reading.fill)?;
            }
            Err(error) => {
                tracing::warn!(error = %format!("{:#}", anyhow::Error::from(error)), "tables not readable for metrics");
            }
        }
        write(
            encoder,
            &catalog::TABLES_READABLE,
            [Sample::plain(Value::Count(readable))],
        )?;
        write_snapshot(encoder, &self.snapshot.borrow())?;
        self.write_agent(encoder)?;
        write_process(encoder, &ProcessFacts::read())
    }
}

impl<T> NodeMetrics<T> {
    /// What the agent knows without tables and snapshot.
    fn write_agent(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let problems = self.source_problems.borrow().clone();
        write(
            encoder,
            &catalog::SOURCE_PROBLEMS,
            problems
                .iter()
                .map(|(problem, count)| Sample::labelled([*problem], Value::Count(*count))),
        )?;
        write(encoder, &catalog::HEALTHZ, self.healthz.samples())?;
        write(encoder, &catalog::LIVEZ, self.livez.samples())?;
        write_requests(encoder, &self.requests.counts())?;
        let layout = LAYOUT_VERSION.to_string();
        write(
            encoder,
            &catalog::BUILD,
            [Sample::labelled(
                [env!("CARGO_PKG_VERSION"), &layout],
                Value::Count(1),
            )],
        )
    }
}

fn write_requests(encoder: &mut DescriptorEncoder<'_>, counts: &Counts) -> fmt::Result {
    let answers = counts.answers.iter().map(|(labels, count)| {
        Sample::labelled(labels.iter().map(String::as_str), Value::Count(*count))
    });
    write(encoder, &catalog::REQUESTS, answers)?;
    let durations = counts.durations.iter().map(|(labels, durations)| {
        Sample::labelled(labels.iter().map(String::as_str), Value::from(durations))
    });
    write(encoder, &catalog::REQUEST_DURATION, durations)
}

/// The values of the labels that name a service port; `more` follow.
fn service_labels(
    service: &ServiceView,
    more: impl IntoIterator<Item = &'static str>,
) -> Vec<Cow<'_, str>> {
    let name = &service.name;
    [
        Cow::Borrowed(&*name.service.namespace),
        Cow::Borrowed(&*name.service.name),
        Cow::Borrowed(name.port.as_str()),
        protocol_name(name.protocol),
        Cow::Borrowed(name.family.name()),
    ]
    .into_iter()
    .chain(
        more.into_iter()
            .map(|label: &'static str| Cow::Borrowed(label)),
    )
    .collect()
}

/// As Kubernetes writes it; a number where it has no name there.
pub(crate) fn protocol_name(protocol: Protocol) -> Cow<'static, str> {
    match protocol {
        Protocol::TCP => Cow::Borrowed("TCP"),
        Protocol::UDP => Cow::Borrowed("UDP"),
        Protocol::SCTP => Cow::Borrowed("SCTP"),
        other => Cow::Owned(other.0.to_string()),
    }
}

/// Writes one per-service metric: `values` gives the labels behind the service's own, and the
/// value, of each series.
fn write_per_service<const N: usize, const L: usize>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    services: &[ServiceView],
    values: impl Fn(&ServiceView) -> [([&'static str; L], u64); N],
) -> fmt::Result {
    let samples = services.iter().flat_map(|service| {
        values(service).map(|(more, value)| Sample {
            labels: service_labels(service, more),
            value: Value::Count(value),
        })
    });
    write(encoder, metric, samples)
}

fn write_services(encoder: &mut DescriptorEncoder<'_>, services: &[ServiceView]) -> fmt::Result {
    write_per_service(encoder, &catalog::CONNECTIONS, services, |service| {
        [
            (["socket"], service.counters.socket_opened),
            (["tc"], service.counters.tc_opened),
        ]
    })?;
    write_per_service(encoder, &catalog::ACTIVE, services, |service| {
        let counters = &service.counters;
        let socket = counters
            .socket_opened
            .saturating_sub(counters.socket_closed);
        let tc = service.endpoints.iter().map(|e| e.active_tc).sum();
        [(["socket"], socket), (["tc"], tc)]
    })?;
    write_per_service(encoder, &catalog::REJECTS, services, |service| {
        [
            (["socket"], service.counters.socket_rejected),
            (["tc"], service.counters.tc_rejected),
        ]
    })?;
    write_per_service(encoder, &catalog::DROPS, services, |service| {
        [(["tc"], service.counters.tc_dropped)]
    })?;
    write_per_service(encoder, &catalog::PACKETS, services, |service| {
        [
            (["tc", "in"], service.counters.packets_in),
            (["tc", "out"], service.counters.packets_out),
        ]
    })?;
    write_per_service(encoder, &catalog::BYTES, services, |service| {
        [
            (["tc", "in"], service.counters.bytes_in),
            (["tc", "out"], service.counters.bytes_out),
        ]
    })?;
    write_per_service(encoder, &catalog::ENDPOINTS, services, |service| {
        let in_state = |state| {
            service
                .endpoints
                .iter()
                .filter(|e| e.state == state)
                .count() as u64
        };
        [
            (["active"], in_state(BackendState::Active)),
            (["draining"], in_state(BackendState::Draining)),
        ]
    })
}

fn write_tables(
    encoder: &mut DescriptorEncoder<'_>,
    reasons: &[(Reason, u64)],
    fill: &[Fill],
) -> fmt::Result {
    let counted = reasons
        .iter()
        .filter(|(reason, _)| *reason != Reason::NotOurs);
    write(
        encoder,
        &catalog::REASONS,
        counted.map(|(reason, count)| Sample::labelled([reason.name()], Value::Count(*count))),
    )?;
    for (metric, of) in [
        (&catalog::TABLE_USED, (|fill| fill.used) as fn(&Fill) -> u64),
        (&catalog::TABLE_CAPACITY, |fill| fill.capacity),
    ] {
        write(
            encoder,
            metric,
            fill.iter()
                .map(|fill| Sample::labelled([fill.table], Value::Count(of(fill)))),
        )?;
    }
    Ok(())
}

fn write_snapshot(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let probe = snapshot
        .probe
        .as_ref()
        .map(|answer| u64::from(answer.is_ok()));
    write(
        encoder,
        &catalog::SYNCED,
        [Sample::plain(Value::Count(snapshot.synced.into()))],
    )?;
    write(
        encoder,
        &catalog::PROBE,
        probe.map(|value| Sample::plain(Value::Count(value))),
    )?;
    write_work(encoder, snapshot)?;
    for (metric, value) in [
        (&catalog::WRITES, snapshot.writes),
        (&catalog::WRITE_FAILURES, snapshot.write_failures),
        (&catalog::MENDED, snapshot.mended),
        (&catalog::SERVICES, snapshot.services as u64),
        (&catalog::ALL_ENDPOINTS, snapshot.endpoints as u64),
        (&catalog::DEVICES, snapshot.devices.len() as u64),
    ] {
        write(encoder, metric, [Sample::plain(Value::Count(value))])?;
    }
    write_closed(encoder, snapshot)?;
    let mut refusals: BTreeMap<&str, u64> = BTreeMap::new();
    for refusal in &snapshot.refusals {
        *refusals.entry(&refusal.reason).or_default() += 1;
    }
    write(
        encoder,
        &catalog::REFUSALS,
        refusals
            .iter()
            .map(|(reason, count)| Sample::labelled([*reason], Value::Count(*count))),
    )
}

fn write_closed(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let all = [
        ("host", Some(snapshot.closed_host_sockets)),
        ("pod", snapshot.closed_pod_sockets),
    ];
    let samples = all.into_iter().flat_map(|(place, closed)| {
        let outcomes = closed.map(|closed| {
            [
                ("closed", closed.closed),
                ("ended", closed.ended),
                ("unsupported", closed.unsupported),
                ("failed", closed.failed),
            ]
        });
        let of = move |(outcome, count)| Sample::labelled([place, outcome], Value::Count(count));
        outcomes.into_iter().flatten().map(of)
    });
    write(encoder, &catalog::SOCKETS_CLOSED, samples)
}

fn write_process(encoder: &mut DescriptorEncoder<'_>, facts: &ProcessFacts) -> fmt::Result {
    for (metric, value) in [
        (&catalog::PROCESS_CPU, facts.cpu_seconds.map(Value::Number)),
        (
            &catalog::PROCESS_RESIDENT,
            facts.resident_bytes.map(Value::Count),
        ),
        (
            &catalog::PROCESS_VIRTUAL,
            facts.virtual_bytes.map(Value::Count),
        ),
        (&catalog::PROCESS_FDS, facts.open_fds.map(Value::Count)),
        (
            &catalog::PROCESS_START,
            facts.start_seconds.map(Value::Number),
        ),
    ] {
        write(encoder, metric, value.map(Sample::plain))?;
    }
    Ok(())
}
