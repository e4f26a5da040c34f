//! The end: nothing may be left of what was, and a fresh start must come to the same.

use super::beliefs::Beliefs;
use super::cluster::Cluster;
use super::life::{Life, Stored};
use super::node::empty_tables;
use super::world::{Next, World};
use fastrand::Rng;
use lb_agent::model::desired::{Desired, Family, ServicePortName};
use lb_agent::plan::{Limits, Used, memory};
use lb_common::addr::ServiceId;
use lb_common::host::{HostTables, PacketWorld};
use lb_common::table::Window;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Time after which no flow is left, milliseconds.
const FORGOTTEN: u64 = 90_000_000;

impl World {
    /// Everything has been heard and written. Once nobody talks any more, nothing may be left of
    /// what was.
    pub(super) fn end(&mut self) -> Result<(), String> {
        self.clients.hang_up();
        // A grace period that is being waited for ends.
        let graces = std::mem::take(&mut self.queue);
        for Reverse((_, _, next)) in graces.into_sorted_vec().into_iter().rev() {
            if let (Next::Grace(life, fence), Some(alive)) = (next, &mut self.life)
                && life == self.number
            {
                alive.graced(fence, &mut self.beliefs);
            }
        }
        self.set_clock(self.now + FORGOTTEN);
        for _ in 0..6 {
            let Some(life) = &mut self.life else {
                return Err("no agent lives in the end".to_owned());
            };
            life.sweep(&self.packets, &mut self.beliefs);
            loop {
                match life.store(&mut self.packets, &mut self.names, || false) {
                    Stored::More => {}
                    Stored::Failed => return Err("a write failed in the end".to_owned()),
                    Stored::Last(None) => break,
                    Stored::Last(Some(fence)) => life.graced(fence, &mut self.beliefs),
                }
            }
            self.beliefs.settle(life.reconciler.planner().refused());
        }
        self.outcome.clients = self.clients.seen;
        self.compare()
    }

    /// Compares with what an agent makes that begins now, on empty tables.
    fn compare(&mut self) -> Result<(), String> {
        let Some(life) = &mut self.life else {
            return Err("no agent lives in the end".to_owned());
        };
        let fresh = Fresh::start(&self.cluster, self.limits)?;
        let desired = life.reconciler.state().desired_all();
        let wanted = fresh.life.reconciler.state().desired_all();
        if desired != wanted {
            return Err(format!(
                "the model is not what a fresh start makes of the cluster: {desired:#?} instead \
                 of {wanted:#?}"
            ));
        }
        check_truth(&self.cluster, &desired)?;
        let (planner, other) = (life.reconciler.planner(), fresh.life.reconciler.planner());
        if !planner.refused().is_empty() || !other.refused().is_empty() {
            // Who is refused depends on who came first.
            return Ok(());
        }
        let served = memory::served(&self.packets.tables, &self.names);
        let expected = memory::served(&fresh.tables, &fresh.names);
        if served != expected {
            return Err(format!("{served:#?} is served instead of {expected:#?}"));
        }
        // Equal sets share a window if they are published together: history decides about slots.
        let used = planner.used();
        let slots = used_slots(&self.packets.tables, &self.names);
        let expected = Used {
            slots,
            ..other.used()
        };
        if used != expected {
            return Err(format!("{used:?} is in use instead of {expected:?}"));
        }
        if self.packets.tables.bits != fresh.tables.bits {
            let words = self
                .packets
                .tables
                .bits
                .words
                .iter()
                .zip(&fresh.tables.bits.words);
            let differ: Vec<_> = words
                .enumerate()
                .filter(|(_, (is, due))| is != due)
                .collect();
            return Err(format!(
                "the filter should be another, {}stale: {differ:x?}",
                if planner.bits_stale() { "" } else { "not " }
            ));
        }
        if self.names.len() != fresh.names.len() {
            return Err(format!("{:?} are the names that are left", self.names));
        }
        Ok(())
    }
}

/// Compares what should be served with what the cluster is.
fn check_truth(cluster: &Cluster, desired: &Desired) -> Result<(), String> {
    let usable = cluster.usable();
    let name = |name: &ServicePortName| (name.to_string(), name.family == Family::V6);
    let names: BTreeSet<_> = desired.keys().map(name).collect();
    if !names.iter().eq(usable.keys()) {
        return Err(format!("{names:?} are to be served, of {usable:?}"));
    }
    for (port, service) in desired {
        let members = service.endpoints.iter();
        let members = members.filter(|(_, member)| member.cluster);
        let ends: BTreeSet<_> = members.map(|(end, _)| *end).collect();
        // Where every client asks for endpoints on this node, nobody else is wanted.
        let wanted = !service.internal_local || !ends.is_empty();
        if wanted && ends != usable[&name(port)] {
            return Err(format!(
                "{ends:?} are to serve {port}, and not {:?}",
                usable[&name(port)]
            ));
        }
    }
    Ok(())
}

/// How many slots the windows of all services take.
fn used_slots(tables: &HostTables, names: &memory::Names) -> u32 {
    let of = |id: &ServiceId| {
        let service = &tables.services[id.0 as usize];
        let windows = [service.cluster, service.local].map(Window::from_word);
        let taken = windows.iter().filter(|window| window.count > 0);
        let windows: BTreeMap<u32, u16> =
            taken.map(|window| (window.start, window.count)).collect();
        windows.into_values().map(u32::from).sum::<u32>()
    };
    names.keys().map(of).sum()
}

/// An agent that has begun on empty tables when everything was over.
struct Fresh {
    life: Life,
    tables: HostTables,
    names: memory::Names,
}

impl Fresh {
    /// Hears everything, and writes it.
    fn start(cluster: &Cluster, limits: Limits) -> Result<Self, String> {
        let mut packets = PacketWorld::new(empty_tables(&limits), 1);
        let mut names = memory::Names::new();
        let mut life = Life::begin(&packets, &names, limits);
        let (mut rng, mut beliefs) = (Rng::with_seed(0), Beliefs::default());
        for _ in 0..10_000 {
            life.hear(cluster, &mut rng, true);
            life.plan(&mut beliefs);
            while life.writing {
                if let Stored::Last(Some(fence)) = life.store(&mut packets, &mut names, || false) {
                    life.graced(fence, &mut beliefs);
                }
            }
            if life.is_idle(cluster) {
                let tables = packets.tables;
                return Ok(Self {
                    life,
                    tables,
                    names,
                });
            }
        }
        Err("a fresh agent does not come to an end".to_owned())
    }
}
