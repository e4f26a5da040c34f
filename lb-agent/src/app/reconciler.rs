//! The half of the loop that touches nothing: what is known, what is to be written, and what has to
//! be waited for. Who drives it does the writes and the waiting, and says how they went. So the
//! same decisions run over the kernel's tables and, in a simulation, over tables in memory.
//!
//! What may not live here: maps, sockets, clocks, logs.

use super::account::LocalGaps;
use crate::model::desired::{Family, ObjectName, ServicePortName};
use crate::model::report::NoLocalEndpoints;
use crate::model::{Dirty, PodUid, State};
use crate::plan::{Fence, Op, Plan, Planner};
use crate::source::Change;
use k8s_openapi::jiff::Timestamp;
use lb_common::addr::BackendId;
use lb_common::table::AddressBits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

/// Windows moved in one round of compaction.
const MOVES: usize = 256;

/// What a look at the changes came to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Planned {
    /// Nothing that is served changes.
    Nothing,
    /// What changed since the last time.
    Changes,
    /// Everything: the first time.
    Everything,
}

/// Everything the loop knows and intends. See the module.
#[derive(Debug)]
pub struct Reconciler {
    state: State,
    planner: Planner,
    /// Writes not yet done, in order.
    ops: VecDeque<Op>,
    /// Service ports whose change is not planned yet.
    dirty: Dirty,
    /// The first full sync has been planned.
    planned: bool,
    /// What is to be waited for once `ops` is empty.
    fence: Option<Fence>,
    /// A grace period is being waited for.
    waiting: bool,
    /// UDP backends that leave with writes that are not done yet, each with the moment up to which
    /// a program may have chosen it.
    left: Vec<(Option<Fence>, BackendId)>,
    gaps: LocalGaps,
}

impl Reconciler {
    /// With a model that knows nothing yet, and the planner of what the tables hold.
    pub fn new(state: State, planner: Planner) -> Self {
        Self {
            state,
            planner,
            ops: VecDeque::new(),
            dirty: Dirty::new(),
            planned: false,
            fence: None,
            waiting: false,
            left: Vec::new(),
            gaps: LocalGaps::default(),
        }
    }

    /// What is known of the cluster. It is changed by the methods here only, which note what each
    /// change touches.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What the tables hold once everything is written.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// Takes a change; nothing follows from it before [`plan`](Self::plan).
    pub fn take(&mut self, change: Change) {
        let mut dirty = self.state.apply(change);
        self.dirty.append(&mut dirty);
    }

    /// The service ports whose change is not planned yet.
    pub fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// See [`State::take_trigger_times`].
    pub(super) fn take_trigger_times(
        &mut self,
        since: Timestamp,
    ) -> BTreeMap<(ObjectName, Family), Vec<Timestamp>> {
        self.state.take_trigger_times(since)
    }

    /// See [`State::take_opted_out`].
    pub(super) fn take_opted_out(&mut self) -> Option<BTreeSet<PodUid>> {
        self.state.take_opted_out()
    }

    /// False as long as something is not completely known: nothing is believed until then, and so
    /// nothing removed.
    pub fn may_plan(&self) -> bool {
        self.state.is_complete()
    }

    /// The first full sync has been planned.
    pub fn has_planned(&self) -> bool {
        self.planned
    }

    /// Plans what the changes since the last time come to.
    pub fn plan(&mut self) -> Planned {
        let dirty = std::mem::take(&mut self.dirty);
        if !self.planned {
            self.planned = true;
            let desired = self.state.desired_all();
            for (name, service) in &desired {
                self.gaps.update(name, Some(service));
            }
            let plan = self.planner.sync(&desired);
            self.enqueue(plan);
            return Planned::Everything;
        }
        if dirty.is_empty() {
            return Planned::Nothing;
        }
        self.plan_for(&dirty);
        Planned::Changes
    }

    /// The addresses of this node that frontends must not take. True if there is something to write.
    pub fn set_host_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let dirty = self.state.set_host_addresses(addresses);
        // The first sync looks at everything.
        let follows = self.planned && !dirty.is_empty();
        if follows {
            self.plan_for(&dirty);
        }
        follows
    }

    fn plan_for(&mut self, names: &BTreeSet<ServicePortName>) {
        let desired: Vec<_> = names
            .iter()
            .map(|name| (name, self.state.desired(name)))
            .collect();
        for (name, service) in &desired {
            self.gaps.update(name, service.as_ref());
        }
        let changes = desired.iter();
        let plan = (self.planner).update(changes.map(|(name, service)| (*name, service.as_ref())));
        self.enqueue(plan);
    }

    fn enqueue(&mut self, plan: Plan) {
        if self.ops.is_empty() {
            // What the first sync has taken is given back, not kept for a change of ten writes.
            self.ops = plan.ops.into();
        } else {
            self.ops.extend(plan.ops);
        }
        self.fence = self.fence.max(plan.fence);
        let left = plan.left.into_iter().map(|id| (plan.fence, id));
        self.left.extend(left);
    }

    /// The writes that are waiting, in order. Whoever does one takes it from the front; what fails
    /// stays, to be tried again.
    pub fn writes(&mut self) -> &mut VecDeque<Op> {
        &mut self.ops
    }

    /// Every write is done. Returns what is to be waited for, if there is something and nothing is
    /// being waited for: the end of it is told by [`graced`](Self::graced).
    pub fn written(&mut self) -> Option<Fence> {
        debug_assert!(self.ops.is_empty(), "not everything is written");
        self.ops = VecDeque::new();
        if self.waiting {
            return None;
        }
        let fence = self.fence.take();
        self.waiting = fence.is_some();
        fence
    }

    /// The UDP backends that have left with what is written, each with the moment after which no
    /// program chooses it any more.
    pub(super) fn take_left(&mut self) -> Vec<(Option<Fence>, BackendId)> {
        std::mem::take(&mut self.left)
    }

    /// Every program that ran when [`written`](Self::written) returned `fence` has ended.
    pub fn graced(&mut self, fence: Fence) {
        self.waiting = false;
        let plan = self.planner.graced(fence);
        self.enqueue(plan);
        self.retry_refused();
    }

    /// The wait for `fence` failed: nothing is reused, and it is waited for again after the next
    /// writes.
    pub fn not_graced(&mut self, fence: Fence) {
        self.waiting = false;
        self.fence = self.fence.max(Some(fence));
    }

    /// Frees what no flow and no socket needs any more. `graced` is [`Planner::graced_fence`] at
    /// the moment the look at the flows began, `in_use` says which backends they need, and `live`
    /// which bits of the address filter.
    pub fn sweep(&mut self, graced: Fence, in_use: impl Fn(BackendId) -> bool, live: &AddressBits) {
        let plan = self.planner.collect(graced, in_use);
        self.enqueue(plan);
        if self.planner.bits_stale() {
            let plan = self.planner.rebuild_bits(graced, live);
            self.enqueue(plan);
        }
        self.retry_refused();
    }

    /// What was refused for want of room is tried again when room was made.
    fn retry_refused(&mut self) {
        if !self.planned || self.planner.refused().is_empty() {
            return;
        }
        let names: Dirty = self.planner.refused().keys().cloned().collect();
        self.plan_for(&names);
        if self.planner.is_fragmented() {
            let plan = self.planner.compact(MOVES);
            self.enqueue(plan);
        }
    }

    /// Service ports that are silent here because of a Local policy, by family.
    pub(super) fn local_gaps(&self) -> [NoLocalEndpoints; 2] {
        self.gaps.count()
    }
}
