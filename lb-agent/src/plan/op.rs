//! One write each, and the order they are done in.

use super::Fence;
use crate::model::desired::ServicePortName;
use lb_common::addr::{BackendId, ServiceId};
use lb_common::table::{Backend, Frontend, FrontendKey, Slot, SourceRange};

/// One write. Doing it twice is as good as once.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Store a backend's record; what programs check (state, membership, service) comes last and in
    /// one word.
    Backend(BackendId, Backend),
    /// Store word `index` of the address filter.
    Bits {
        /// Word index.
        index: usize,
        /// The whole word.
        value: u64,
    },
    /// Store slots that no published window covers.
    Slots {
        /// The first of them.
        start: u32,
        /// Their values.
        slots: Vec<Slot>,
    },
    /// Remember whose an id is.
    Name(ServiceId, ServicePortName),
    /// Set a service id's counters to zero.
    ResetCounters(ServiceId),
    /// Publish a window: one atomic store.
    Window {
        /// The service.
        service: ServiceId,
        /// The Local set's, else the Cluster set's.
        local: bool,
        /// `lb_common::table::Window` as a word.
        word: u64,
    },
    /// Store what stands beside the windows.
    Policy {
        /// The service.
        service: ServiceId,
        /// `lb_common::table::ServiceFlags`.
        flags: u32,
        /// Affinity timeout, 0 = none.
        affinity_seconds: u32,
        /// Number of the algorithm.
        algorithm: u32,
    },
    /// Let these sources use a service's guarded frontends.
    Range(SourceRange),
    /// Let them no longer.
    RemoveRange(SourceRange),
    /// Insert or replace a frontend.
    Frontend(FrontendKey, Frontend),
    /// Remove a frontend.
    RemoveFrontend(FrontendKey),
    /// Zero a service's record.
    ClearService(ServiceId),
    /// Forget whose an id was.
    RemoveName(ServiceId),
}

/// Writes in order, and what to do after them.
#[derive(Debug, Default)]
pub struct Plan {
    /// The writes.
    pub ops: Vec<Op>,
    /// Once the writes are done, a grace period is to be waited for and reported by
    /// [`super::Planner::graced`].
    pub fence: Option<Fence>,
    /// UDP backends that no service port has any more with this plan: sockets that are connected
    /// to them wait for answers in vain.
    pub left: Vec<BackendId>,
}

/// What has run out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Resource {
    /// No service id is free.
    Services,
    /// Not enough backend ids are free.
    Backends,
    /// No run of free slots is long enough.
    Slots,
    /// The frontend table is full.
    Frontends,
    /// The table of source ranges is full.
    Ranges,
    /// A set has more endpoints than a window can hold (65535).
    WindowSize,
    /// Namespace, name and port name are too long to be kept.
    Name,
}

/// Why a service port is not served as desired. What was served before still is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refused {
    /// What has run out.
    pub resource: Resource,
    /// How many entries it would take.
    pub wanted: u32,
}

impl Refused {
    /// So many entries are too many.
    pub(super) fn new(resource: Resource, wanted: usize) -> Self {
        Self {
            resource,
            wanted: u32::try_from(wanted).unwrap_or(u32::MAX),
        }
    }

    /// A short name, for metrics.
    pub const fn reason(self) -> &'static str {
        match self.resource {
            Resource::Services => "service_table_full",
            Resource::Backends => "backend_table_full",
            Resource::Slots => "slot_table_full",
            Resource::Frontends => "frontend_table_full",
            Resource::Ranges => "source_range_table_full",
            Resource::WindowSize => "too_many_endpoints",
            Resource::Name => "name_too_long",
        }
    }

    /// A sentence for people.
    pub fn message(self) -> String {
        let table = match self.resource {
            Resource::Services => "services",
            Resource::Backends => "backends",
            Resource::Slots => "slots",
            Resource::Frontends => "frontends",
            Resource::Ranges => "source ranges",
            Resource::WindowSize => {
                return format!(
                    "{} endpoints in one set are more than 65535: the set served before stays",
                    self.wanted
                );
            }
            Resource::Name => {
                return "namespace, name and port name together are too long to be kept".to_owned();
            }
        };
        format!(
            "the table of {table} has no room for {} more entries: what was served before stays, \
             and it is tried again when there is room",
            self.wanted
        )
    }
}

/// The phases of a plan, each filled as services are looked at, and put in order at the end.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) backends: Vec<Op>,
    pub(super) bits: Vec<Op>,
    pub(super) slots: Vec<Op>,
    pub(super) services: Vec<Op>,
    pub(super) ranges: Vec<Op>,
    pub(super) frontends: Vec<Op>,
    /// What refuses the undefined ports of ClusterIPs: after those that are defined.
    pub(super) any_ports: Vec<Op>,
    /// And before those that are no longer.
    pub(super) any_ports_removed: Vec<Op>,
    pub(super) removed: Vec<Op>,
    pub(super) ranges_removed: Vec<Op>,
    pub(super) faded: Vec<Op>,
    /// UDP backends that leave.
    pub(super) left: Vec<BackendId>,
}

impl Steps {
    pub(super) fn in_order(self) -> Vec<Op> {
        // Bits before backends: a backend that is there is never hidden, also not from the next
        // life of an agent that was killed in between and takes it for written.
        let mut ops = self.bits;
        ops.extend(self.backends);
        ops.extend(self.slots);
        ops.extend(self.services);
        // A guarded frontend finds its ranges, before it is guarded and until it is not.
        ops.extend(self.ranges);
        ops.extend(self.frontends);
        ops.extend(self.any_ports);
        ops.extend(self.any_ports_removed);
        ops.extend(self.removed);
        ops.extend(self.ranges_removed);
        ops.extend(self.faded);
        ops
    }
}
