//! The reconcile loop: changes come in, coalesced; the model says what should be served; the plan
//! says which writes; the datapath writes. What happened is published as a [`Snapshot`].

pub mod account;
mod agent;
mod reconciler;
mod updates;

pub use reconciler::{Planned, Reconciler};
pub use updates::Updates;

use crate::datapath::{Closed, Datapath, Fill, Options, StartError};
use crate::model::State;
use crate::model::report::HealthChecks;
use crate::net;
use crate::source::Change;
use account::{Changes, FamilyWork};
use agent::Agent;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What is not served, or not as it should be, and why.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Refusal {
    /// The object (`namespace/name`, or a table).
    pub object: String,
    /// A short name of the reason, for metrics.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
}

/// What the agent knows about itself, for metrics and health.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Every source was complete once and everything was written: ready.
    pub synced: bool,
    /// When the tables were last brought in line.
    pub last_sync: Option<SystemTime>,
    /// How often the tables were brought in line.
    pub syncs: u64,
    /// The syncs by family, IPv4 first.
    pub work: [FamilyWork; 2],
    /// Changes of Services.
    pub service_changes: Changes,
    /// Changes of EndpointSlices.
    pub endpoint_changes: Changes,
    /// Writes done so far.
    pub writes: u64,
    /// Writes that failed so far; each was tried again.
    pub write_failures: u64,
    /// When changes of IPv4 and IPv6 came and were served, for health.
    pub updates: [Updates; 2],
    /// The packet path is on the node's devices, as far as they are known.
    pub attached: bool,
    /// The Node object has nothing against new connections to this node.
    pub node_eligible: bool,
    /// The health check node ports that are due, and what they answer.
    pub health_checks: Arc<HealthChecks>,
    /// Where they are served; unspecified: on every address of the family.
    pub health_addresses: Vec<IpAddr>,
    /// The last failure, until a write succeeds.
    pub last_error: Option<String>,
    /// What is refused now.
    pub refusals: Vec<Refusal>,
    /// Service ports served now.
    pub services: usize,
    /// Endpoints served now.
    pub endpoints: usize,
    /// Devices that carry the packet path.
    pub devices: Vec<String>,
    /// How full the tables are.
    pub fill: Vec<Fill>,
    /// The answer of the loaded programs to a synthetic packet: `None` before the first, else
    /// what was wrong if anything was.
    pub probe: Option<Result<(), String>>,
    /// UDP sockets of removed endpoints, in the host's network namespace.
    pub closed_host_sockets: Closed,
    /// The same in those of pods; `None` if they are left alone.
    pub closed_pod_sockets: Option<Closed>,
    /// How often something was found detached and was attached again.
    pub mended: u64,
}

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The datapath could not be started; nothing was changed unless the message says so.
    #[error("cannot start the datapath")]
    Start(#[from] StartError),
    /// The machine's devices and addresses cannot be followed.
    #[error("cannot follow the machine's devices and addresses by netlink")]
    Netlink(#[source] io::Error),
    /// A task of ours broke.
    #[error("the start of the datapath broke off")]
    Broken(#[source] tokio::task::JoinError),
    /// The source ended, which it never should.
    #[error("the source of objects ended; the tables stay as they are")]
    SourceEnded,
}

/// Runs the agent with a model that knows nothing yet (`state`), until `shutdown` (the dataplane
/// then stays in place) or until it cannot go on. Between the end of a sync and the start of the
/// next lies at least `pause`.
///
/// Blocks on the kernel now and then, so give it a worker of its own (`tokio::spawn` on the
/// multi-thread runtime is fine).
pub async fn run(
    options: Options,
    state: State,
    changes: mpsc::Receiver<Change>,
    snapshot: watch::Sender<Snapshot>,
    pause: Duration,
    shutdown: CancellationToken,
) -> Result<(), AppError> {
    let facts = net::follow().map_err(AppError::Netlink)?;
    let (model, node) = (state.options().clone(), state.node().clone());
    let starting = tokio::task::spawn_blocking(move || Datapath::start(&options, &model, &node));
    let (datapath, planner) = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        started = starting => started.map_err(AppError::Broken)??,
    };
    Agent::new(datapath, planner, state, snapshot, pause)
        .run(changes, facts, shutdown)
        .await
}
