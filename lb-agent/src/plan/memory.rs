//! The plan's writes into tables in memory, and a look at what they come to: for the tests of the
//! plan, the case runner and the simulation. Nothing of the running agent may ask here.

use super::{Held, Limits, Op, Planner};
use crate::model::desired::ServicePortName;
use lb_common::addr::{BackendId, ServiceId};
use lb_common::host::HostTables;
use lb_common::table::{
    AddressBits, Backend, BackendState, Frontend, FrontendKey, FrontendKind, Service, ServiceFlags,
    Slot, SourceRange, Window,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

/// Whose the service ids are.
pub type Names = BTreeMap<ServiceId, ServicePortName>;

/// Gives the tables that are arrays as many entries as the kernel's have.
pub fn allocate(tables: &mut HostTables, limits: &Limits) {
    tables
        .services
        .resize(limits.services as usize, Service::default());
    tables
        .backends
        .resize(limits.backends as usize, Backend::default());
    tables.slots.resize(limits.slots as usize, Slot::default());
}

/// Does one write.
///
/// # Panics
/// Where the kernel's map would refuse it: an index that the tables do not have.
pub fn write(tables: &mut HostTables, names: &mut Names, op: &Op) {
    match op {
        Op::Backend(id, backend) => tables.backends[id.0 as usize] = *backend,
        Op::Bits { index, value } => Arc::make_mut(&mut tables.bits).words[*index] = *value,
        Op::Slots { start, slots } => {
            tables.slots[*start as usize..][..slots.len()].copy_from_slice(slots);
        }
        Op::Name(id, name) => {
            names.insert(*id, name.clone());
        }
        Op::RemoveName(id) => {
            names.remove(id);
        }
        Op::ResetCounters(id) => {
            tables.counters.borrow_mut().remove(id);
        }
        Op::Window {
            service,
            local,
            word,
        } => {
            let service = &mut tables.services[service.0 as usize];
            if *local {
                service.local = *word;
            } else {
                service.cluster = *word;
            }
        }
        Op::Policy {
            service,
            flags,
            affinity_seconds,
            algorithm,
        } => {
            let service = &mut tables.services[service.0 as usize];
            service.flags = *flags;
            service.affinity_seconds = *affinity_seconds;
            service.algorithm = *algorithm;
        }
        Op::ClearService(id) => tables.services[id.0 as usize] = Service::default(),
        Op::Frontend(key, frontend) => {
            tables.frontends.insert(*key, *frontend);
        }
        Op::RemoveFrontend(key) => {
            tables.frontends.remove(key);
        }
        Op::Range(range) => {
            if !tables.ranges.contains(range) {
                tables.ranges.push(*range);
            }
        }
        Op::RemoveRange(range) => tables.ranges.retain(|other| other != range),
    }
}

/// What the next life of an agent finds in these tables.
pub fn held(tables: &HostTables, names: &Names) -> Held {
    let services = names.keys().map(|id| tables.services[id.0 as usize]);
    let backends = (0..).map(BackendId).zip(tables.backends.iter().copied());
    Held {
        keys: tables.config.hash_keys,
        bits: Box::new(*tables.bits),
        names: names.iter().map(|(id, name)| (*id, name.clone())).collect(),
        services: services.collect(),
        backends: backends
            .filter(|(_, backend)| backend.state != BackendState::Free as u8)
            .collect(),
        frontends: tables.frontends.iter().map(|(k, v)| (*k, *v)).collect(),
        ranges: tables.ranges.clone(),
    }
}

/// The planner of these tables, perhaps of an earlier life.
pub fn adopt(tables: &HostTables, names: &Names, limits: Limits) -> Planner {
    Planner::adopt(limits, held(tables, names), |index| {
        tables.slots.get(index as usize).copied()
    })
}

/// What a client of a window gets: the endpoints, or what happens instead (true: silence).
pub type Reach = Result<BTreeSet<SocketAddr>, bool>;

/// Everything that a client of a frontend can tell.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Served {
    /// The service port.
    pub name: ServicePortName,
    /// A [`FrontendKind`].
    pub kind: u8,
    /// The Cluster set.
    pub cluster: Reach,
    /// The Local set.
    pub local: Reach,
    /// [`ServiceFlags`].
    pub flags: u32,
    /// Affinity timeout, 0 = none.
    pub affinity_seconds: u32,
    /// State, membership and flags of the backends.
    pub members: BTreeMap<SocketAddr, (u8, u8, u8)>,
    /// Whether only some sources may use it.
    pub guarded: bool,
    /// Which.
    pub ranges: BTreeSet<(u32, [u32; 4])>,
    /// Whether other ports of its address are refused.
    pub refuses_others: bool,
}

/// Looks whether the tables fit together, as they must at any moment, between any two writes.
///
/// # Panics
/// If they do not.
pub fn check(tables: &HostTables, names: &Names) {
    let keys = &tables.config.hash_keys;
    for (key, frontend) in &tables.frontends {
        let bits = AddressBits::of_frontend(keys, key);
        assert!(tables.bits.has_all(bits), "the filter hides it");
        if key.is_any_port() {
            assert_eq!(*frontend, Frontend::ANY_PORT.sealed(keys, key));
            let served = |(other, value): (&FrontendKey, &Frontend)| {
                other.addr == key.addr && value.kind == FrontendKind::ClusterIp as u8
            };
            assert!(tables.frontends.iter().any(served), "no ClusterIP any more");
            continue;
        }
        let id = frontend.service;
        if frontend.is_guarded() {
            let own = |range: &SourceRange| range.who.service == id;
            assert!(tables.ranges.iter().any(own), "closed to all");
        }
        let service = &tables.services[id.0 as usize];
        assert_ne!(service.flags & ServiceFlags::LIVE, 0, "leads to nothing");
        assert!(names.contains_key(&id), "nameless");
        let _ = (
            reach(tables, id, service.cluster),
            reach(tables, id, service.local),
        );
    }
}

/// Everything a client can tell, by address, protocol and port.
///
/// # Panics
/// If the tables do not fit together: see [`check`].
pub fn served(tables: &HostTables, names: &Names) -> BTreeMap<(String, u16), Served> {
    let frontends = tables.frontends.iter();
    frontends
        .filter(|(key, _)| !key.is_any_port())
        .map(|(key, frontend)| {
            let id = frontend.service;
            let service = &tables.services[id.0 as usize];
            let ranges = tables.ranges.iter().filter(|range| range.who.service == id);
            let served = Served {
                name: names[&id].clone(),
                kind: frontend.kind,
                cluster: reach(tables, id, service.cluster),
                local: reach(tables, id, service.local),
                flags: service.flags,
                affinity_seconds: service.affinity_seconds,
                members: members(tables, id),
                guarded: frontend.is_guarded(),
                ranges: ranges.map(|range| (range.bits, range.who.source)).collect(),
                refuses_others: (tables.frontends).contains_key(&FrontendKey::any_port(key.addr)),
            };
            let address = format!("{} {} {:?}", key.addr, key.family, key.protocol);
            ((address, key.port.number()), served)
        })
        .collect()
}

fn reach(tables: &HostTables, id: ServiceId, word: u64) -> Reach {
    let window = Window::from_word(word);
    if window.count == 0 {
        return Err(window.drops());
    }
    let slots = &tables.slots[window.start as usize..][..usize::from(window.count)];
    let ends = slots.iter().map(|slot| {
        assert_eq!(slot.service, id, "a slot of another service");
        assert_eq!(slot.generation, window.generation, "a torn window");
        let backend = &tables.backends[slot.backend.0 as usize];
        assert_ne!(backend.state, BackendState::Free as u8, "a free backend");
        assert_eq!((backend.addr, backend.port), (slot.addr, slot.port));
        assert_eq!(backend.service, id);
        let keys = &tables.config.hash_keys;
        let bits = AddressBits::of_backend(keys, &slot.addr, slot.port, backend.protocol);
        assert!(tables.bits.has_all(bits), "replies would pass unseen");
        SocketAddr::new(slot.addr.into(), slot.port.number())
    });
    Ok(ends.collect())
}

fn members(tables: &HostTables, id: ServiceId) -> BTreeMap<SocketAddr, (u8, u8, u8)> {
    let backends = tables.backends.iter();
    backends
        .filter(|backend| backend.service == id && backend.is_usable())
        .map(|backend| {
            let end = SocketAddr::new(backend.addr.into(), backend.port.number());
            (end, (backend.state, backend.member, backend.flags))
        })
        .collect()
}
