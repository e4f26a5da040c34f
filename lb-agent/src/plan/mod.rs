//! The plan: *given what should be served and what the tables hold, which writes, in which order?*
//!
//! Pure: here may live no I/O, no clock and no system call. The [`Planner`] remembers what the
//! tables hold once the writes it gave out are done; a restarted agent gets it by
//! [`Planner::adopt`] from the tables themselves, so that a start is the same difference as any
//! other change.
//!
//! Writes are idempotent and ordered so that a stop between any two of them leaves a state that
//! serves: filter bits, backends, slots, the service's name, its window words and flags,
//! frontends; then, the other way round, frontends away, backends faded. What running programs may
//! still be looking at (windows, the records of removed services) is retired and comes back by
//! [`Planner::graced`], after a grace period; backends that flows still use, by
//! [`Planner::collect`].

mod adopt;
mod any_port;
mod bits;
mod compact;
mod extents;
mod flow_use;
mod ids;
pub mod memory;
mod op;
mod range;
mod record;
mod service;
pub mod sockets;
#[cfg(test)]
mod tests;

pub use adopt::Held;
pub use flow_use::FlowUse;
pub use op::{Op, Plan, Refused, Resource};

use crate::model::desired::{Desired, DesiredService, ServicePortName};
use extents::Extents;
use ids::Ids;
use lb_common::addr::{Addr, BackendId, Endpoint, Port, Protocol, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::table::{AddressBits, Backend, Frontend, FrontendKey, SourceRange, Window};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

/// How many entries the tables have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `lb_services`; entry 0 is never used.
    pub services: u32,
    /// `lb_backends`; entry 0 is never used.
    pub backends: u32,
    /// `lb_slots`.
    pub slots: u32,
    /// `lb_frontends`.
    pub frontends: u32,
    /// `lb_ranges`.
    pub ranges: u32,
}

/// How many entries are in use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Used {
    /// Service ports, those included that wait for their last flows.
    pub services: usize,
    /// Backends, likewise.
    pub backends: usize,
    /// Slots, those included that wait for their grace period.
    pub slots: u32,
    /// Frontends.
    pub frontends: usize,
    /// Source ranges.
    pub ranges: usize,
}

/// Names a moment in the order of plans: everything retired up to it may be used again once every
/// program that ran before has ended.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Fence(pub u64);

/// One endpoint as the backend table holds it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Member {
    addr: Addr,
    port: Port,
    id: BackendId,
    /// `Membership` bits.
    sets: u8,
    draining: bool,
    on_this_node: bool,
}

/// One service port as the tables hold it.
#[derive(Debug)]
struct Served {
    id: ServiceId,
    protocol: Protocol,
    flags: u32,
    affinity_seconds: u32,
    algorithm: u32,
    frontends: Vec<FrontendKey>,
    /// Sorted.
    ranges: Vec<SourceRange>,
    /// In the order of the desired endpoints, which is the order of the slots.
    members: Vec<Member>,
    cluster: Window,
    local: Window,
    /// The last generation given to a window of this service.
    generation: u16,
    /// The windows were found not to fit the members: publish anew whatever the difference.
    torn: bool,
}

/// A backend that is in no window any more.
#[derive(Clone, Copy, Debug)]
struct Gone {
    service: ServiceId,
    addr: Addr,
    port: Port,
    protocol: Protocol,
    since: Fence,
}

/// What waits for running programs to end.
#[derive(Debug)]
enum Retired {
    Slots { start: u32, count: u32 },
    Service(ServiceId),
}

/// Turns what should be served into writes. See the module.
#[derive(Debug)]
pub struct Planner {
    keys: HashKeys,
    limits: Limits,
    services: HashMap<ServicePortName, Served>,
    service_ids: Ids,
    backend_ids: Ids,
    slots: Extents,
    /// What the frontend table holds.
    frontends: HashMap<FrontendKey, Frontend>,
    /// What the table of source ranges holds.
    ranges: BTreeSet<SourceRange>,
    /// How many frontends each ClusterIP has.
    cluster_ips: HashMap<Addr, usize>,
    /// ClusterIPs that came or went in this plan: whether the table refuses their undefined ports.
    moved_cluster_ips: HashMap<Addr, bool>,
    gone: HashMap<BackendId, Gone>,
    /// To find a backend again that comes back while old flows still use it.
    gone_by_end: HashMap<(ServiceId, Addr, Port), BackendId>,
    /// How many gone backends each service still has.
    gone_count: HashMap<ServiceId, usize>,
    /// Services removed whose id waits for the grace period (`false`) or for gone backends.
    ending: HashMap<ServiceId, bool>,
    retired: VecDeque<(Fence, Retired)>,
    fence: Fence,
    graced: Fence,
    bits: Box<AddressBits>,
    /// Something was removed since the bits were rebuilt.
    bits_stale: bool,
    /// Bits of removed frontends that running programs may still begin flows for.
    fading_bits: Vec<(Fence, (usize, u64))>,
    /// Frontends found in the table whose service has no name; removed by the first full sync.
    orphans: Vec<FrontendKey>,
    /// Service ids found in use without a name of their own; retired by the first full sync.
    leftover: Vec<ServiceId>,
    /// The slots of their windows, which clients may still be led to.
    leftover_slots: Vec<(u32, u32)>,
    /// Their backends that are not gone yet.
    leftover_backends: Vec<(BackendId, Backend)>,
    /// Service ids whose counters may hold somebody else's counts.
    used_before: HashSet<ServiceId>,
    refused: BTreeMap<ServicePortName, Refused>,
}

impl Planner {
    /// The planner of empty tables.
    pub fn new(limits: Limits, keys: HashKeys) -> Self {
        Self {
            keys,
            limits,
            services: HashMap::new(),
            service_ids: Ids::new(limits.services),
            backend_ids: Ids::new(limits.backends),
            slots: Extents::new(limits.slots),
            frontends: HashMap::new(),
            ranges: BTreeSet::new(),
            cluster_ips: HashMap::new(),
            moved_cluster_ips: HashMap::new(),
            gone: HashMap::new(),
            gone_by_end: HashMap::new(),
            gone_count: HashMap::new(),
            ending: HashMap::new(),
            retired: VecDeque::new(),
            fence: Fence(0),
            graced: Fence(0),
            bits: Box::new(AddressBits::EMPTY),
            bits_stale: false,
            fading_bits: Vec::new(),
            orphans: Vec::new(),
            leftover: Vec::new(),
            leftover_slots: Vec::new(),
            leftover_backends: Vec::new(),
            used_before: HashSet::new(),
            refused: BTreeMap::new(),
        }
    }

    /// Everything that should be served: what is not in `desired` goes.
    pub fn sync(&mut self, desired: &Desired) -> Plan {
        self.fence.0 += 1;
        let mut steps = op::Steps::default();
        for id in std::mem::take(&mut self.leftover) {
            self.retire(Retired::Service(id));
        }
        for (start, count) in std::mem::take(&mut self.leftover_slots) {
            self.retire(Retired::Slots { start, count });
        }
        for (id, backend) in std::mem::take(&mut self.leftover_backends) {
            self.leave(id, backend, &mut steps);
        }
        // In order, as everything is: the same history makes the same plan.
        let stale: BTreeSet<ServicePortName> = self
            .services
            .keys()
            .filter(|name| !desired.contains_key(*name))
            .cloned()
            .collect();
        self.refused.retain(|name, _| desired.contains_key(name));
        for (name, service) in desired {
            self.apply(name, Some(service), &mut steps);
        }
        for name in &stale {
            self.apply(name, None, &mut steps);
        }
        let served: HashSet<ServiceId> = self.services.values().map(|s| s.id).collect();
        for key in std::mem::take(&mut self.orphans) {
            if !key.is_any_port()
                && (self.frontends.get(&key)).is_some_and(|f| !served.contains(&f.service))
            {
                self.take_frontend(&key);
                self.fade_frontend_bit(&key);
                steps.removed.push(Op::RemoveFrontend(key));
            }
        }
        self.remove_ranges_of_nobody(&served, &mut steps);
        self.plan(steps)
    }

    /// Service ports that changed: `None` for those that go. The others stay as they are.
    pub fn update<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a ServicePortName, Option<&'a DesiredService>)>,
    ) -> Plan {
        self.fence.0 += 1;
        let mut steps = op::Steps::default();
        for (name, desired) in changes {
            self.apply(name, desired, &mut steps);
        }
        self.plan(steps)
    }

    fn apply(
        &mut self,
        name: &ServicePortName,
        desired: Option<&DesiredService>,
        steps: &mut op::Steps,
    ) {
        let refused = if let Some(desired) = desired {
            self.serve(name, desired, steps).err()
        } else {
            self.forget(name, steps);
            None
        };
        match refused {
            Some(refused) => {
                self.refused.insert(name.clone(), refused);
            }
            None => {
                self.refused.remove(name);
            }
        }
    }

    /// Puts in a frontend that is nobody's and stays whatever is synced.
    pub fn reserve(&mut self, key: FrontendKey, frontend: Frontend) -> Plan {
        let frontend = frontend.sealed(&self.keys, &key);
        let mut steps = op::Steps::default();
        self.orphans.retain(|orphan| *orphan != key);
        self.set_frontend_bit(&key, &mut steps);
        if self.frontends.insert(key, frontend) != Some(frontend) {
            steps.frontends.push(Op::Frontend(key, frontend));
        }
        Plan {
            ops: steps.in_order(),
            ..Plan::default()
        }
    }

    /// The grace period of `fence` is over: what waited for it may be used again.
    pub fn graced(&mut self, fence: Fence) -> Plan {
        self.graced = self.graced.max(fence);
        let mut ops = Vec::new();
        while let Some((since, _)) = self.retired.front()
            && *since <= fence
            && let Some((_, retired)) = self.retired.pop_front()
        {
            match retired {
                Retired::Slots { start, count } => self.slots.give(start, count),
                Retired::Service(id) => {
                    ops.push(Op::ClearService(id));
                    ops.push(Op::RemoveName(id));
                    self.ending.insert(id, true);
                    self.end_if_done(id);
                }
            }
        }
        Plan {
            ops,
            ..Plan::default()
        }
    }

    /// Frees the gone backends that nothing uses any more. `graced` is the fence that was over
    /// when the look at the flows began: younger ones may have flows it did not see.
    pub fn collect(&mut self, graced: Fence, in_use: impl Fn(BackendId) -> bool) -> Plan {
        let free: BTreeSet<BackendId> = self
            .gone
            .iter()
            .filter(|(id, gone)| gone.since <= graced && !in_use(**id))
            .map(|(id, _)| *id)
            .collect();
        let mut ops = Vec::with_capacity(free.len());
        for id in free {
            if let Some(gone) = self.not_gone(id) {
                self.backend_ids.release(id.0);
                ops.push(Op::Backend(id, Backend::default()));
                self.end_if_done(gone.service);
            }
        }
        Plan {
            ops,
            ..Plan::default()
        }
    }

    /// The gone backends that wait for flows or sockets to end.
    pub fn gone(&self) -> impl Iterator<Item = BackendId> {
        self.gone.keys().copied()
    }

    /// Where a UDP backend was that is gone and waits for its sockets to end; `None` if it is not
    /// gone, or no longer.
    pub fn gone_datagrams(&self, id: BackendId) -> Option<Endpoint> {
        let gone = self.gone.get(&id)?;
        (gone.protocol == Protocol::UDP).then_some(Endpoint {
            addr: gone.addr,
            port: gone.port,
        })
    }

    /// The last fence whose grace period is over.
    pub fn graced_fence(&self) -> Fence {
        self.graced
    }

    /// What could not be served as desired, and why. It is tried again when asked for again.
    pub fn refused(&self) -> &BTreeMap<ServicePortName, Refused> {
        &self.refused
    }

    /// How many entries are in use.
    pub fn used(&self) -> Used {
        Used {
            services: self.service_ids.used(),
            backends: self.backend_ids.used(),
            slots: self.slots.used(),
            frontends: self.frontends.len(),
            ranges: self.ranges.len(),
        }
    }

    /// How many service ports are served, and with how many endpoints.
    pub fn served(&self) -> (usize, usize) {
        let in_a_set = |served: &Served| served.members.iter().filter(|m| m.sets != 0).count();
        let endpoints = self.services.values().map(in_a_set).sum();
        (self.services.len(), endpoints)
    }

    fn end_if_done(&mut self, id: ServiceId) {
        if self.ending.get(&id) == Some(&true) && !self.gone_count.contains_key(&id) {
            self.ending.remove(&id);
            self.service_ids.release(id.0);
        }
    }

    fn add_gone(&mut self, id: BackendId, gone: Gone) {
        self.gone_by_end
            .insert((gone.service, gone.addr, gone.port), id);
        *self.gone_count.entry(gone.service).or_default() += 1;
        self.gone.insert(id, gone);
    }

    fn not_gone(&mut self, id: BackendId) -> Option<Gone> {
        let gone = self.gone.remove(&id)?;
        self.gone_by_end
            .remove(&(gone.service, gone.addr, gone.port));
        if let Some(count) = self.gone_count.get_mut(&gone.service) {
            *count -= 1;
            if *count == 0 {
                self.gone_count.remove(&gone.service);
            }
        }
        Some(gone)
    }

    fn retire(&mut self, retired: Retired) {
        self.retired.push_back((self.fence, retired));
    }

    fn plan(&mut self, mut steps: op::Steps) -> Plan {
        self.settle_any_ports(&mut steps);
        // A frontend that one service gives up and another takes over is replaced, never removed.
        steps.removed.retain(|op| match op {
            Op::RemoveFrontend(key) => !self.frontends.contains_key(key),
            _ => true,
        });
        let waiting = self.retired.back().is_some_and(|(f, _)| *f == self.fence)
            || !steps.removed.is_empty()
            || !steps.any_ports_removed.is_empty()
            || !steps.faded.is_empty();
        Plan {
            left: std::mem::take(&mut steps.left),
            ops: steps.in_order(),
            fence: waiting.then_some(self.fence),
        }
    }
}
