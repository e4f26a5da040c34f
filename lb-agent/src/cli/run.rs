//! `lb-agent run`: wires source, model, datapath and listeners, and ends on a signal.

use crate::app::{self, Snapshot};
use crate::cli::args::{self, RunArgs};
use crate::cli::flags;
use crate::cli::presence::{self, Presence};
use crate::cli::troubles;
use crate::cli::values::{EndpointsApi, LogFormat};
use crate::config::{Settings, SourceSettings, watch as file_watch};
use crate::datapath::{Reader, StartError};
use crate::model::State;
use crate::model::node::NodeFacts;
use crate::net::limits::Machine;
use crate::serve::{
    Answers, BindError, NodeMetrics, PinnedTables, Served, serve_health, serve_metrics,
    serve_node_ports,
};
use crate::source::directory::{DirectorySource, Ranges};
use crate::source::kube::KubeSource;
use crate::source::kube::client::Servers;
use crate::source::kube::event::{self, About, Notice};
use crate::source::kube::requests::Requests;
use crate::source::{Change, Report};
use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Changes that may wait between source and model. Each holds a typed object, of some kilobytes: more
/// of them would only be more memory.
const CHANGES: usize = 256;
/// How often a taken metrics address is tried again while another agent may still leave.
const BIND_RETRY: Duration = Duration::from_millis(100);
/// How often a metrics address is tried again that somebody else has, where that is no reason to end.
const LATER: Duration = Duration::from_secs(5);
/// Events that may wait to be written.
const NOTICES: usize = 64;
/// How long the agent may take to stop; what is loaded needs no goodbye.
const STOP: Duration = Duration::from_secs(10);

/// Sets up the log: to standard error, chosen by `RUST_LOG`, by kube-proxy's verbosity
/// without it. aya's own messages
/// arrive through the `log` crate.
pub fn start_log(format: LogFormat, verbosity: i64) -> anyhow::Result<()> {
    let level = match verbosity {
        ..4 => "info",
        4..6 => "debug",
        6.. => "trace",
    };
    let filter = match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::try_new(&wanted)
            .with_context(|| format!("RUST_LOG={wanted} cannot be used"))?,
        // What these warn of is said by the source, in sentences and once.
        _ => EnvFilter::new(format!("{level},kube_client=error,kube_runtime=error")),
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => log.with_target(false).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("cannot start the log: {error}"))
}

/// Writes the machine's settings as kube-proxy does, and says what the privileges do not allow.
pub fn prepare_machine(settings: &Settings) {
    if settings.stands_in {
        let kube_proxy = &settings.kube_proxy;
        let troubles = Machine::default().apply(&kube_proxy.conntrack, kube_proxy.oom_score);
        for trouble in troubles {
            tracing::warn!("{trouble}");
        }
    }
}

/// Runs the agent until SIGTERM or SIGINT, or until it cannot go on or its configuration file
/// changes. The dataplane stays in place either way. `typed` is what `settings` were made from.
pub async fn run(settings: Settings, typed: RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    announce(&settings);
    prepare_machine(&settings);
    let file = settings.file.clone();
    let another_file = async move {
        match file {
            Some((file, text)) => file_watch::changed(file, text, typed).await,
            None => std::future::pending().await,
        }
    };

    let shutdown = CancellationToken::new();
    let (snapshot, snapshots) = watch::channel(Snapshot::default());
    let (counts, source_problems) = watch::channel(troubles::Counts::new());
    let (sentences, source_troubles) = watch::channel(Vec::new());
    let requests = Arc::<Requests>::default();
    let served = Served::new(NodeMetrics {
        tables: PinnedTables(settings.bpffs.clone()),
        snapshot: snapshots.clone(),
        source_problems,
        late: settings.late(),
        configuration: settings.configz(),
        healthz: Answers::default(),
        livez: Answers::default(),
        ping: Answers::default(),
        flags: flags::flags(args::as_called(std::env::args_os().collect())),
        requests: Arc::clone(&requests),
    });
    let metrics = bind_metrics(&settings, &served, &shutdown).await?;

    let (changes, changes_seen) = mpsc::channel(CHANGES);
    let (reports, reports_seen) = mpsc::channel(CHANGES);
    tokio::spawn(troubles::follow(reports_seen, counts, sentences));
    let notices = notify(&settings);
    let late = settings.late();
    let pause = settings.kube_proxy.min_sync_period.unwrap_or_default();
    let told = (changes, reports);
    start_source(&settings, told, notices.1, &requests, &shutdown).await?;
    let state = State::new(settings.model_options(), NodeFacts::named(&settings.node));
    let options = settings.datapath_options();
    let mut agent = tokio::spawn(app::run(
        options,
        state,
        changes_seen,
        snapshot,
        pause,
        shutdown.clone(),
    ));
    tokio::spawn(serve_node_ports(
        snapshots.clone(),
        late,
        notices.0,
        shutdown.clone(),
    ));
    let (failed, mut failures) = mpsc::channel(1);
    // The note for `lb-agent status` is left only by an agent that came to hold the lock.
    let note = tokio::spawn(leave_note(
        settings,
        metrics,
        served,
        snapshots,
        source_troubles,
        failed,
        shutdown.clone(),
    ));

    let mut error = None;
    let ended = tokio::select! {
        ended = &mut agent => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        file = another_file => {
            error = Some(anyhow::Error::from(file));
            None
        }
        Some(failure) = failures.recv() => {
            error = Some(failure.into());
            None
        }
    };
    shutdown.cancel();
    let ended = if let Some(ended) = ended {
        ended
    } else {
        tracing::info!("stopping; what is loaded goes on without the agent");
        let Ok(ended) = tokio::time::timeout(STOP, agent).await else {
            tracing::warn!("the agent did not come to rest in time; leaving");
            return error.map_or(Ok(()), Err);
        };
        ended
    };
    // Its file is removed at the end; a failure of that is nobody's concern.
    let _ = tokio::time::timeout(STOP, note).await;
    ended.context("the agent's loop broke")??;
    error.map_or(Ok(()), Err)
}

/// One line each: what runs where, and what is left to others.
fn announce(settings: &Settings) {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = settings.node,
        kernel = kernel.trim(),
        "starting"
    );
    tracing::info!(
        directory = %settings.bpffs.display(),
        cgroup = %settings.cgroup_root.as_ref().map_or("the root".into(), |root| root.to_string_lossy()),
        sockets = ?settings.socket_load_balancing,
        devices = ?settings.devices,
        attach = ?settings.tc_attach,
        "attaching"
    );
    for remark in &settings.remarks {
        tracing::warn!("{}", remark.sentence);
    }
}

/// The way to Events, with those that the start deserves under way.
fn notify(settings: &Settings) -> (mpsc::Sender<Notice>, mpsc::Receiver<Notice>) {
    let (notices, seen) = mpsc::channel(NOTICES);
    let start = Notice {
        about: About::Node,
        warning: false,
        reason: "Starting",
        action: "StartKubeProxy",
        note: String::new(),
    };
    let remarks = settings.remarks.iter().filter_map(|remark| {
        Some(Notice {
            about: About::Node,
            warning: true,
            reason: remark.event?,
            action: "Configure",
            note: remark.sentence.clone(),
        })
    });
    for notice in std::iter::once(start).chain(remarks) {
        // There is room for more than there can be.
        let _ = notices.try_send(notice);
    }
    (notices, seen)
}

/// Binds the metrics address. Taken by an agent that holds our directory: that is the sentence to
/// give. While such an agent may still leave (`--takeover-wait`), the address is tried again.
async fn bind_metrics(
    settings: &Settings,
    served: &Served<PinnedTables>,
    shutdown: &CancellationToken,
) -> anyhow::Result<SocketAddr> {
    let deadline = tokio::time::Instant::now() + settings.takeover_wait;
    loop {
        let error = match serve_metrics(settings.metrics, served.clone(), shutdown.clone()).await {
            Ok(address) => {
                tracing::info!(%address, "serving metrics");
                return Ok(address);
            }
            Err(error) => error,
        };
        let held = Reader::open(&settings.bpffs)
            .and_then(|reader| reader.status())
            .is_ok_and(|status| status.agent_running);
        if held && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(BIND_RETRY).await;
        } else if held {
            let directory = settings.bpffs.clone();
            return Err(StartError::Held { directory }.into());
        } else if settings.stands_in && !settings.kube_proxy.hard_fail {
            tracing::error!("{:#}; trying again every 5 s", anyhow::Error::from(error));
            tokio::spawn(serve_metrics_later(
                settings.metrics,
                served.clone(),
                shutdown.clone(),
            ));
            return Ok(settings.metrics);
        } else {
            return Err(error.into());
        }
    }
}

/// As kube-proxy without `bindAddressHardFail`: services do not depend on metrics.
async fn serve_metrics_later(
    address: SocketAddr,
    served: Served<PinnedTables>,
    shutdown: CancellationToken,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(LATER) => {}
            () = shutdown.cancelled() => return,
        }
        if serve_metrics(address, served.clone(), shutdown.clone())
            .await
            .is_ok()
        {
            tracing::info!(%address, "serving metrics");
            return;
        }
    }
}

/// Starts the source that was chosen. It runs until `shutdown`.
async fn start_source(
    settings: &Settings,
    (changes, reports): (mpsc::Sender<Change>, mpsc::Sender<Report>),
    notices: mpsc::Receiver<Notice>,
    requests: &Arc<Requests>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    match &settings.source {
        SourceSettings::Manifests(manifests) => {
            let source = DirectorySource {
                directory: manifests.directory.clone(),
                node: settings.node.clone(),
                ranges: Ranges {
                    cluster_ips: manifests.cluster_ip_ranges.clone(),
                    node_ports: settings.node_ports.first..=settings.node_ports.last,
                },
                state_directory: manifests.state_dir.clone(),
            };
            tokio::spawn(source.run(changes, reports, shutdown.clone()));
        }
        SourceSettings::Cluster(cluster) => {
            let kubeconfig = cluster.kubeconfig.as_deref();
            let servers = Servers::connect(kubeconfig, &cluster.apiservers, requests).await?;
            let node = settings.node.clone();
            tokio::spawn(event::post(
                servers.clone(),
                node,
                notices,
                shutdown.clone(),
            ));
            let source = KubeSource {
                servers,
                node: settings.node.clone(),
                use_endpoints: cluster.endpoints == EndpointsApi::Endpoints,
                watch_labels: settings.opt_out.is_some(),
            };
            tokio::spawn(source.run(changes, reports, shutdown.clone()));
        }
    }
    Ok(())
}

/// Serves health, and keeps the note for `lb-agent status` from the first complete sync on.
async fn leave_note(
    settings: Settings,
    metrics: SocketAddr,
    served: Served<PinnedTables>,
    mut snapshots: watch::Receiver<Snapshot>,
    source_troubles: watch::Receiver<Vec<String>>,
    failed: mpsc::Sender<BindError>,
    shutdown: CancellationToken,
) {
    let (bound, address) = oneshot::channel();
    if let Some(health) = settings.health {
        let (shutdown, insistent) = (shutdown.clone(), settings.kube_proxy.hard_fail);
        tokio::spawn(async move {
            let serving = serve_health(health, served, insistent, shutdown, |address| {
                tracing::info!(%address, "serving health");
                // Nobody waits for it once the agent stops.
                let _ = bound.send(address);
            });
            if let Err(error) = serving.await {
                // It ends for another reason already.
                let _ = failed.send(error).await;
            }
        });
    }
    let started = Timestamp::now().to_string();
    tokio::select! {
        synced = snapshots.wait_for(|snapshot| snapshot.synced) => if synced.is_err() { return },
        () = shutdown.cancelled() => return,
    }
    let health = tokio::time::timeout(Duration::from_secs(1), address).await;
    let note = Presence {
        pid: std::process::id(),
        node: settings.node.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        metrics: metrics.to_string(),
        health: health
            .ok()
            .and_then(Result::ok)
            .map_or_else(String::new, |address| address.to_string()),
        ..Presence::default()
    };
    presence::keep(
        note,
        presence::file_of(&settings.bpffs),
        snapshots,
        source_troubles,
        shutdown,
    )
    .await;
}
