//! The agent's state and the loop around it.

mod machine;
mod report;
mod sockets;

use super::account::{Batch, FamilyWork, families_of, index};
use super::reconciler::{Planned, Reconciler};
use super::{AppError, Refusal, Snapshot};
use crate::datapath::{Closed, Datapath, DeviceProblem, PodCgroups, memory};
use crate::model::State;
use crate::model::desired::Family;
use crate::model::node::NodeFacts;
use crate::net::Facts;
use crate::plan::{Fence, Planner};
use crate::source::Change;
use ipnet::IpNet;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

/// Changes taken together at most: enough for a listing, little enough to stay responsive.
const COALESCED: usize = 4096;
/// A failed write is tried again after this time, doubled at each failure.
const RETRY_FIRST: Duration = Duration::from_millis(100);
/// The longest pause between two tries.
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// How often the flow table is looked at.
const SWEEP: Duration = Duration::from_secs(10);
/// How often the loaded programs are asked a question with a known answer.
const PROBE: Duration = Duration::from_secs(5);

/// A grace period under way.
type Waiting = Pin<Box<dyn Future<Output = (Fence, io::Result<()>)> + Send>>;

/// Everything the loop owns.
pub(super) struct Agent {
    datapath: Datapath,
    reconciler: Reconciler,
    facts: Facts,
    node: NodeFacts,
    /// The ranges of ClusterIPs that are written.
    service_cidrs: Vec<IpNet>,
    /// When the oldest change behind the writes waiting came.
    since: Option<Instant>,
    /// When the endpoints behind the writes waiting changed, as far as their slices tell.
    triggers: Vec<(Family, Timestamp)>,
    /// The least time between the end of a sync and the start of the next.
    pause: Duration,
    /// When the last sync ended.
    ended: Option<Instant>,
    /// When the oldest of the changes came that wait for the pause to end.
    held: Option<Instant>,
    /// When changes that wait for the pause to end are planned.
    resume: Option<Instant>,
    /// The families that the writes waiting are of.
    families: [bool; 2],
    /// The writes waiting are those of the first sync.
    full: bool,
    /// What happened before is not this process's latency.
    started: Timestamp,
    waiting: Option<Waiting>,
    retry: Option<(Instant, Duration)>,
    flows: (u64, u64),
    told: BTreeSet<Refusal>,
    device_problems: Vec<DeviceProblem>,
    /// The cgroups of pods whose sockets are not balanced.
    pods: PodCgroups,
    closing: sockets::Closing,
    snapshot: watch::Sender<Snapshot>,
}

impl Agent {
    pub(super) fn new(
        datapath: Datapath,
        planner: Planner,
        state: State,
        snapshot: watch::Sender<Snapshot>,
        pause: Duration,
    ) -> Self {
        if datapath.options().pod_namespaces.is_some() {
            snapshot.send_modify(|snapshot| snapshot.closed_pod_sockets = Some(Closed::default()));
        }
        Self {
            node: state.node().clone(),
            service_cidrs: state.options().service_cidrs.clone(),
            pods: PodCgroups::below(datapath.cgroup()),
            datapath,
            reconciler: Reconciler::new(state, planner),
            facts: Facts::default(),
            since: None,
            triggers: Vec::new(),
            pause,
            ended: None,
            held: None,
            resume: None,
            families: [false; 2],
            full: false,
            started: Timestamp::now(),
            waiting: None,
            retry: None,
            flows: (0, 0),
            told: BTreeSet::new(),
            device_problems: Vec::new(),
            closing: sockets::Closing::default(),
            snapshot,
        }
    }

    pub(super) async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        mut facts: mpsc::Receiver<Facts>,
        shutdown: CancellationToken,
    ) -> Result<(), AppError> {
        let mut sweep = every(SWEEP);
        let mut probe = every(PROBE);
        loop {
            let retry = self.retry.map(|(at, _)| at);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(facts) = facts.recv() => self.take_facts(facts),
                (fence, waited) = wait(&mut self.waiting) => self.take_grace(fence, waited),
                look = sockets::looked(&mut self.closing) => self.take_look(look),
                () = sleep_until(retry) => {
                    self.retry = self.retry.map(|(_, pause)| (Instant::now(), pause));
                    self.write();
                }
                () = sleep_until(self.resume) => self.sync(Instant::now()),
                change = changes.recv() => {
                    let Some(change) = change else { return Err(AppError::SourceEnded) };
                    self.take_changes(change, &mut changes);
                }
                _ = probe.tick() => self.probe(),
                () = sleep_until(self.pods.due()) => self.look_for_pods(),
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Applies this change and whatever else has arrived, and writes what follows from them.
    fn take_changes(&mut self, first: Change, changes: &mut mpsc::Receiver<Change>) {
        let arrived = Instant::now();
        let mut batch = Batch::default();
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(change) = next {
            batch.count(&change);
            self.reconciler.take(change);
            taken += 1;
            next = (taken < COALESCED)
                .then(|| changes.try_recv().ok())
                .flatten();
        }
        self.note_changes(batch);
        self.follow_pods();
        if !self.reconciler.may_plan() {
            return;
        }
        let may_begin = self.ended.map(|ended| ended + self.pause);
        match may_begin.filter(|begin| *begin > Instant::now()) {
            Some(begin) if self.reconciler.has_planned() => {
                self.held.get_or_insert(arrived);
                self.resume = Some(begin);
            }
            _ => self.sync(arrived),
        }
    }

    /// Counts what came, without waking those who wait for news.
    fn note_changes(&self, batch: Batch) {
        let (now, families) = (SystemTime::now(), families_of(self.reconciler.dirty()));
        self.snapshot.send_if_modified(|snapshot| {
            snapshot.service_changes.add(batch.services);
            snapshot.endpoint_changes.add(batch.endpoints);
            for (work, _) in touched(&mut snapshot.work, families) {
                work.queued = Some(now);
            }
            false
        });
    }

    /// Plans and writes what the changes since the last sync come to.
    fn sync(&mut self, arrived: Instant) {
        self.resume = None;
        let arrived = self.held.take().unwrap_or(arrived);
        let triggers = self.reconciler.take_trigger_times(self.started);
        for ((_, family), times) in triggers {
            self.triggers
                .extend(times.into_iter().map(|at| (family, at)));
        }
        let state = self.reconciler.state();
        if *state.node() != self.node || state.options().service_cidrs != self.service_cidrs {
            self.node = state.node().clone();
            self.service_cidrs
                .clone_from(&state.options().service_cidrs);
            self.configure();
        }
        let families = families_of(self.reconciler.dirty());
        match self.reconciler.plan() {
            Planned::Nothing => return self.nothing_to_do(),
            Planned::Changes => {
                for (family, touched) in self.families.iter_mut().zip(families) {
                    *family |= touched;
                }
            }
            Planned::Everything => (self.full, self.families) = (true, [true; 2]),
        }
        self.since.get_or_insert(arrived);
        self.write();
    }

    /// What changed, changes nothing that is served.
    fn nothing_to_do(&mut self) {
        if self.reconciler.writes().is_empty() {
            self.snapshot.send_if_modified(|snapshot| {
                snapshot.service_changes.pending = 0;
                snapshot.endpoint_changes.pending = 0;
                false
            });
        }
        self.report();
    }

    /// Writes what is waiting. Failures leave it waiting and set the time of the next try.
    fn write(&mut self) {
        if self.retry.is_some_and(|(at, _)| at > Instant::now()) {
            return;
        }
        let ops = self.reconciler.writes();
        let before = ops.len();
        let begun = Instant::now();
        let written = self.datapath.write(ops);
        let writing = begun.elapsed();
        let done = (before - ops.len()) as u64;
        match written {
            Ok(_) => {
                self.retry = None;
                self.written(done, writing);
            }
            Err(error) => {
                let pause = self
                    .retry
                    .map_or(RETRY_FIRST, |(_, pause)| (pause * 2).min(RETRY_LONGEST));
                self.retry = Some((Instant::now() + pause, pause));
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::error!(error, ?pause, "a write failed; it will be tried again");
                let waited = self.since.map_or(Duration::ZERO, |since| since.elapsed());
                let since = SystemTime::now().checked_sub(waited);
                self.snapshot.send_modify(|snapshot| {
                    for updates in &mut snapshot.updates {
                        updates.queued(since.unwrap_or(SystemTime::UNIX_EPOCH));
                    }
                    snapshot.writes += done;
                    snapshot.write_failures += 1;
                    snapshot.last_error = Some(error);
                });
            }
        }
    }

    /// Everything that was waiting is in the tables.
    fn written(&mut self, done: u64, writing: Duration) {
        self.close_left();
        if let Some(fence) = self.reconciler.written() {
            self.wait_for(fence);
        }
        let took = self.since.take().map(|since| since.elapsed());
        let triggers = std::mem::take(&mut self.triggers);
        let now = SystemTime::now();
        let health_checks = took.map(|_| Arc::new(self.reconciler.state().health_checks()));
        let families = std::mem::take(&mut self.families);
        let full = std::mem::take(&mut self.full);
        let gaps = self.reconciler.local_gaps();
        self.snapshot.send_modify(|snapshot| {
            snapshot.writes += done;
            snapshot.last_error = None;
            if let Some(checks) = health_checks {
                snapshot.health_checks = checks;
            }
            if let Some(took) = took {
                snapshot.last_sync = Some(now);
                snapshot.syncs += 1;
                snapshot.service_changes.pending = 0;
                snapshot.endpoint_changes.pending = 0;
                for updates in &mut snapshot.updates {
                    updates.served(now);
                }
                for (work, at) in touched(&mut snapshot.work, families) {
                    work.syncs.observe(took);
                    let of_kind = if full {
                        &mut work.full
                    } else {
                        &mut work.partial
                    };
                    of_kind.observe(took);
                    work.no_local = gaps[at];
                }
                for (family, at) in triggers {
                    // A clock set back in between makes no negative latency.
                    let moment = SystemTime::from(at);
                    let latency = now.duration_since(moment).unwrap_or_default();
                    snapshot.work[index(family)].programming.observe(latency);
                }
            }
        });
        if took.is_some() {
            self.ended = Some(Instant::now());
            if !self.snapshot.borrow().synced {
                tracing::info!(writes = done, ?writing, ?took, "first sync complete");
                self.snapshot.send_modify(|snapshot| snapshot.synced = true);
                memory::give_back();
                self.take_over();
                self.probe();
            }
            self.report();
        }
    }

    fn wait_for(&mut self, fence: Fence) {
        self.waiting = Some(match self.datapath.grace() {
            Ok(grace) => Box::pin(async move {
                let waited = tokio::task::spawn_blocking(move || grace.wait()).await;
                (
                    fence,
                    waited.unwrap_or_else(|broken| Err(io::Error::other(broken))),
                )
            }),
            Err(error) => Box::pin(std::future::ready((fence, Err(error)))),
        });
    }

    fn take_grace(&mut self, fence: Fence, waited: io::Result<()>) {
        self.waiting = None;
        match waited {
            Ok(()) => {
                self.reconciler.graced(fence);
                self.close_graced(fence);
            }
            Err(error) => {
                // Without it nothing is reused; the next plan or sweep tries again.
                tracing::warn!(%error, "a grace period could not be waited for");
                self.reconciler.not_graced(fence);
                return;
            }
        }
        self.write();
    }

    /// Frees what no flow needs any more.
    fn sweep(&mut self) {
        if !self.device_problems.is_empty() {
            self.update_machine();
        }
        let graced = self.reconciler.planner().graced_fence();
        let (flows, capacity) = match self.datapath.flows() {
            Ok(flows) => flows,
            Err(error) => {
                tracing::warn!(%error, "the flow table cannot be read");
                return;
            }
        };
        self.flows = (flows.used, capacity);
        let open: Vec<_> = (self.reconciler.planner().gone())
            .filter(|id| self.datapath.has_open_sockets(*id).unwrap_or(true))
            .collect();
        self.close_open(&open);
        let in_use = |id| flows.by_backend.contains_key(&id) || open.contains(&id);
        self.reconciler.sweep(graced, in_use, &flows.bits);
        self.write();
        self.report();
    }
}

/// The work of these families, and where it stands.
fn touched(
    work: &mut [FamilyWork; 2],
    families: [bool; 2],
) -> impl Iterator<Item = (&mut FamilyWork, usize)> {
    let all = work.iter_mut().zip(0..);
    all.filter(move |(_, at)| families[*at])
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// The end of the grace period under way; never, if there is none.
async fn wait(waiting: &mut Option<Waiting>) -> (Fence, io::Result<()>) {
    match waiting {
        Some(waiting) => waiting.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
