//! One life of an agent: what it hears, intends, and has written so far. It does what the real one
//! does, in the same order, with the same reconciler; only its maps are memory and its clock is not
//! the world's.

use super::beliefs::Beliefs;
use super::cluster::{Cluster, NODES};
use super::feed::Feed;
use super::node::options;
use super::stores::stores;
use fastrand::Rng;
use lb_agent::app::{Planned, Reconciler};
use lb_agent::model::State;
use lb_agent::model::desired::ServicePortName;
use lb_agent::model::node::NodeFacts;
use lb_agent::plan::{Fence, FlowUse, Limits, Op, memory};
use lb_agent::source::kube::{OwnNode, Services, Slices};
use lb_common::flow::{Buckets, read};
use lb_common::host::PacketWorld;
use std::collections::VecDeque;

/// A living agent.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) reconciler: Reconciler,
    services: Feed<Services>,
    slices: Feed<Slices>,
    node: Feed<OwnNode>,
    /// What is left of the write under way.
    stores: VecDeque<Op>,
    /// Something went wrong; nothing is written before this moment.
    pub(super) retry: Option<u64>,
    /// Changes came that nothing was planned for yet.
    heard: bool,
    /// The tables are being written: nothing else is done meanwhile.
    pub(super) writing: bool,
}

/// How a store ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stored {
    /// There is more.
    More,
    /// It failed.
    Failed,
    /// It was the last. What is to be waited for, if there is something.
    Last(Option<Fence>),
}

impl Life {
    /// It finds the tables as somebody left them.
    pub(super) fn begin(packets: &PacketWorld, names: &memory::Names, limits: Limits) -> Self {
        let planner = memory::adopt(&packets.tables, names, limits);
        let state = State::new(options(), NodeFacts::named(NODES[0]));
        Self {
            reconciler: Reconciler::new(state, planner),
            services: Feed::new(Services),
            slices: Feed::new(Slices),
            node: Feed::new(OwnNode {
                name: NODES[0].to_owned(),
            }),
            stores: VecDeque::new(),
            retry: None,
            heard: false,
            writing: false,
        }
    }

    /// Hears what one of the watches has to tell.
    pub(super) fn hear(&mut self, cluster: &Cluster, rng: &mut Rng, smooth: bool) {
        let changes = match rng.u8(..5) {
            0 | 1 => self.services.next(&cluster.service_log, rng, smooth),
            2 | 3 => self.slices.next(&cluster.slice_log, rng, smooth),
            _ => self.node.next(&cluster.node_log, rng, smooth),
        };
        self.heard |= !changes.is_empty();
        for change in changes {
            self.reconciler.take(change);
        }
    }

    /// Everything there is has been heard, planned and written.
    pub(super) fn is_idle(&mut self, cluster: &Cluster) -> bool {
        self.services.is_done(&cluster.service_log)
            && self.slices.is_done(&cluster.slice_log)
            && self.node.is_done(&cluster.node_log)
            && !self.heard
            && !self.writing
            && self.reconciler.writes().is_empty()
    }

    /// Plans what was heard, and begins to write.
    pub(super) fn plan(&mut self, beliefs: &mut Beliefs) -> Option<Planned> {
        if self.writing || !self.heard || !self.reconciler.may_plan() {
            return None;
        }
        self.heard = false;
        let first = !self.reconciler.has_planned();
        let touched: Vec<ServicePortName> = self.reconciler.dirty().iter().cloned().collect();
        let planned = self.reconciler.plan();
        let desired = self.reconciler.state();
        if first {
            let all = desired.desired_all();
            let gone: Vec<_> = beliefs
                .names()
                .filter(|name| !all.contains_key(*name))
                .cloned()
                .collect();
            for name in gone {
                beliefs.intend(&name, None);
            }
            for (name, service) in all {
                beliefs.intend(&name, Some(service));
            }
        } else {
            for name in &touched {
                beliefs.intend(name, desired.desired(name));
            }
        }
        self.writing = self.retry.is_none();
        Some(planned)
    }

    /// What was refused for want of room may have been planned again.
    fn reconsider(&mut self, beliefs: &mut Beliefs, refused: Vec<ServicePortName>) {
        for name in refused {
            beliefs.intend(&name, self.reconciler.state().desired(&name));
        }
        self.writing = self.retry.is_none();
    }

    fn refused(&self) -> Vec<ServicePortName> {
        let refused = self.reconciler.planner().refused();
        refused.keys().cloned().collect()
    }

    /// A grace period is over.
    pub(super) fn graced(&mut self, fence: Fence, beliefs: &mut Beliefs) {
        let refused = self.refused();
        self.reconciler.graced(fence);
        self.reconsider(beliefs, refused);
    }

    /// Looks at the flows.
    pub(super) fn sweep(&mut self, packets: &PacketWorld, beliefs: &mut Beliefs) {
        let graced = self.reconciler.planner().graced_fence();
        let mut used = FlowUse::nothing();
        let (now, keys) = (packets.env.now.get(), &packets.tables.config.hash_keys);
        for bucket in 0..packets.buckets.len() {
            let index = u32::try_from(bucket).unwrap_or(u32::MAX);
            let entry = read(index, |word| packets.buckets.load(bucket, word));
            used.add(&entry, now, keys, |id| {
                packets.tables.backends.get(id.0 as usize).copied()
            });
        }
        let refused = self.refused();
        let in_use = |id| used.by_backend.contains_key(&id);
        self.reconciler.sweep(graced, in_use, &used.bits);
        self.reconsider(beliefs, refused);
    }

    /// The next few stores, as they would be done now.
    pub(super) fn coming(&mut self, packets: &PacketWorld, count: usize) -> Vec<Op> {
        let mut coming: Vec<Op> = self.stores.iter().take(count).cloned().collect();
        let begun = usize::from(!self.stores.is_empty());
        for op in self.reconciler.writes().iter().skip(begun) {
            if coming.len() >= count {
                break;
            }
            coming.extend(stores(op, &packets.tables));
        }
        coming.truncate(count);
        coming
    }

    /// Does one store. `fails` is asked once for each write.
    pub(super) fn store(
        &mut self,
        packets: &mut PacketWorld,
        names: &mut memory::Names,
        fails: impl FnOnce() -> bool,
    ) -> Stored {
        if self.stores.is_empty() {
            let Some(op) = self.reconciler.writes().front() else {
                self.writing = false;
                return Stored::Last(self.reconciler.written());
            };
            self.stores = stores(op, &packets.tables).into();
        }
        if let Some(store) = self.stores.pop_front() {
            // A failure may come before the store, or be told although it was done.
            let failed = fails();
            if !failed || self.stores.len().is_multiple_of(2) {
                memory::write(&mut packets.tables, names, &store);
            }
            if failed {
                self.stores.clear();
                self.writing = false;
                return Stored::Failed;
            }
        }
        if self.stores.is_empty() {
            self.reconciler.writes().pop_front();
        }
        Stored::More
    }
}
