//! What the agent counts of its own work, by IP family and with kube-proxy's meanings
//! (`SERVICE-SEMANTICS` 14).

use crate::durations::Durations;
use crate::model::Dirty;
use crate::model::desired::{DesiredService, Family, ServicePortName};
use crate::model::report::NoLocalEndpoints;
use crate::source::{Change, Kind, Object};
use lb_common::table::{EmptyAction, FrontendKind};
use std::collections::BTreeMap;
use std::time::SystemTime;

/// The families in the order of every array by family.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Where a family stands in an array by family.
pub const fn index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

/// The syncs of one family. A sync that touches both counts for each.
#[derive(Clone, Debug)]
pub struct FamilyWork {
    /// How long each took, from the first change taken to the last write.
    pub syncs: Durations,
    /// Those of them that looked at everything: the first.
    pub full: Durations,
    /// Those that looked at what changed.
    pub partial: Durations,
    /// From the moment an endpoint changed, as its slice's annotation tells, to the last write.
    pub programming: Durations,
    /// When something last asked for a sync.
    pub queued: Option<SystemTime>,
    /// Service ports that are silent here because of a Local policy.
    pub no_local: NoLocalEndpoints,
}

impl Default for FamilyWork {
    fn default() -> Self {
        Self {
            syncs: Durations::of_syncs(),
            full: Durations::of_syncs(),
            partial: Durations::of_syncs(),
            programming: Durations::of_programming(),
            queued: None,
            no_local: NoLocalEndpoints::default(),
        }
    }
}

/// Changes of one kind of object.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Seen so far.
    pub seen: u64,
    /// Not yet served.
    pub pending: u64,
}

impl Changes {
    fn one(&mut self) {
        self.seen += 1;
        self.pending += 1;
    }

    /// Adds those of a batch.
    pub(super) fn add(&mut self, batch: Self) {
        self.seen += batch.seen;
        self.pending += batch.pending;
    }
}

/// The changes of a batch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Batch {
    pub(super) services: Changes,
    pub(super) endpoints: Changes,
}

impl Batch {
    pub(super) fn count(&mut self, change: &Change) {
        let kind = match change {
            Change::Apply(Object::Service(_)) => Kind::Service,
            Change::Apply(Object::EndpointSlice(_)) => Kind::EndpointSlice,
            Change::Delete(kind, _) => *kind,
            _ => return,
        };
        match kind {
            Kind::Service => self.services.one(),
            Kind::EndpointSlice => self.endpoints.one(),
            Kind::Node | Kind::ServiceCidr | Kind::Pod | Kind::Namespace => {}
        }
    }
}

/// Which families these service ports are of.
pub(super) fn families_of(names: &Dirty) -> [bool; 2] {
    FAMILIES.map(|family| names.iter().any(|name| name.family == family))
}

/// The service ports that are silent here because of a Local policy, kept in step with what is
/// served, so that a change costs what it touches.
#[derive(Debug, Default)]
pub(super) struct LocalGaps(BTreeMap<ServicePortName, NoLocalEndpoints>);

impl LocalGaps {
    /// A service port is to be served so from now on, or not at all.
    pub(super) fn update(&mut self, name: &ServicePortName, desired: Option<&DesiredService>) {
        match desired
            .map(gap)
            .filter(|gap| gap.internal + gap.external > 0)
        {
            Some(gap) => {
                self.0.insert(name.clone(), gap);
            }
            None => {
                self.0.remove(name);
            }
        }
    }

    /// How many there are by family.
    pub(super) fn count(&self) -> [NoLocalEndpoints; 2] {
        let mut counts = [NoLocalEndpoints::default(); 2];
        for (name, gap) in &self.0 {
            let count = &mut counts[index(name.family)];
            count.internal += gap.internal;
            count.external += gap.external;
        }
        counts
    }
}

/// Endpoints exist, but none on this node.
fn gap(desired: &DesiredService) -> NoLocalEndpoints {
    let silent = desired.local_empty == EmptyAction::Drop
        && !desired.endpoints.values().any(|endpoint| endpoint.local);
    let mut frontends = desired.frontends.iter();
    let external = frontends.any(|frontend| frontend.kind != FrontendKind::ClusterIp);
    NoLocalEndpoints {
        internal: usize::from(silent && desired.internal_local),
        external: usize::from(silent && desired.external_local && external),
    }
}
