//! From what the tables hold to the planner that wrote it, perhaps in an earlier life.
//!
//! The earlier life may have ended between any two writes. Whatever does not fit together is
//! marked, so that the next full sync mends it; nothing is written here.

use super::record::ranges;
use super::{Fence, Gone, Limits, Member, Planner, Served};
use crate::model::desired::ServicePortName;
use lb_common::addr::{BackendId, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::table::{
    AddressBits, Backend, BackendState, Frontend, FrontendKey, Membership, Service, Slot,
    SourceRange, Window,
};
use std::collections::{BTreeMap, HashMap};
use zerocopy::IntoBytes;

/// What was found in the tables.
#[derive(Debug)]
pub struct Held {
    /// The hash keys in use.
    pub keys: HashKeys,
    /// The address filter.
    pub bits: Box<AddressBits>,
    /// Whose the ids are.
    pub names: Vec<(ServiceId, ServicePortName)>,
    /// The records of these ids, in the same order.
    pub services: Vec<Service>,
    /// Every backend whose state is not free.
    pub backends: Vec<(BackendId, Backend)>,
    /// Every frontend.
    pub frontends: Vec<(FrontendKey, Frontend)>,
    /// Every source range.
    pub ranges: Vec<SourceRange>,
}

impl Planner {
    /// The planner of these tables. `slot` reads one slot.
    pub fn adopt(limits: Limits, held: Held, slot: impl Fn(u32) -> Option<Slot>) -> Self {
        let mut planner = Self::new(limits, held.keys);
        planner.bits = held.bits;
        planner.bits_stale = true;
        let mut by_service: BTreeMap<ServiceId, Vec<(BackendId, Backend)>> = BTreeMap::new();
        for (id, backend) in held.backends {
            if planner.backend_ids.adopt(id.0) {
                by_service
                    .entry(backend.service)
                    .or_default()
                    .push((id, backend));
            }
        }
        let mut doubles = Vec::new();
        for ((id, name), service) in held.names.into_iter().zip(held.services) {
            // Two ids with one name: a service was removed and made again, and the end came
            // before the first one's record was cleared. The one left over ends now.
            if planner.service_ids.adopt(id.0) && !planner.services.contains_key(&name) {
                let backends = by_service.remove(&id).unwrap_or_default();
                planner.adopt_service(id, name, &service, backends, &slot);
            } else {
                planner.leftover.push(id);
                doubles.push(service);
            }
        }
        for service in &doubles {
            planner.adopt_leftover_slots(service);
        }
        for (id, backends) in by_service {
            if planner.service_ids.adopt(id.0) {
                planner.leftover.push(id);
            }
            for (backend_id, backend) in backends {
                if backend.is_usable() {
                    planner.leftover_backends.push((backend_id, backend));
                } else {
                    planner.adopt_gone(backend_id, &backend);
                }
            }
        }
        for id in &planner.leftover {
            planner.ending.insert(*id, false);
        }
        for (key, frontend) in held.frontends {
            planner.frontends.insert(key, frontend);
            planner.orphans.push(key);
        }
        (planner.orphans).sort_unstable_by(|one, other| one.as_bytes().cmp(other.as_bytes()));
        planner.ranges = held.ranges.into_iter().collect();
        let mut owned: HashMap<ServiceId, Vec<FrontendKey>> = HashMap::new();
        for key in &planner.orphans {
            let service = planner.frontends[key].service;
            owned.entry(service).or_default().push(*key);
        }
        for served in planner.services.values_mut() {
            served.frontends = owned.remove(&served.id).unwrap_or_default();
            served.ranges = (planner.ranges.iter())
                .filter(|range| range.who.service == served.id)
                .copied()
                .collect();
            served.ranges.sort_unstable();
        }
        planner.adopt_any_ports();
        // An id that was never seen may still have counted in an earlier life.
        planner.used_before = (0..limits.services).map(ServiceId).collect();
        planner
    }

    fn adopt_service(
        &mut self,
        id: ServiceId,
        name: ServicePortName,
        service: &Service,
        backends: Vec<(BackendId, Backend)>,
        slot: &impl Fn(u32) -> Option<Slot>,
    ) {
        let mut members = Vec::with_capacity(backends.len());
        for (backend_id, backend) in backends {
            if backend.is_usable() {
                members.push(Member {
                    addr: backend.addr,
                    port: backend.port,
                    id: backend_id,
                    sets: backend.member,
                    draining: backend.state == BackendState::Draining as u8,
                    on_this_node: backend.flags & Backend::LOCAL != 0,
                });
            } else {
                self.adopt_gone(backend_id, &backend);
            }
        }
        // The order of the desired endpoints, which the slots were written in.
        members.sort_by_key(|member| {
            std::net::SocketAddr::new(member.addr.into(), member.port.number())
        });
        let (cluster, local) = (
            Window::from_word(service.cluster),
            Window::from_word(service.local),
        );
        let mut served = Served {
            id,
            protocol: name.protocol,
            flags: service.flags,
            affinity_seconds: service.affinity_seconds,
            algorithm: service.algorithm,
            frontends: Vec::new(),
            ranges: Vec::new(),
            members,
            cluster,
            local,
            generation: cluster.generation.max(local.generation),
            torn: false,
        };
        served.torn = !fits(&served, cluster, Membership::CLUSTER, slot)
            || !fits(&served, local, Membership::LOCAL, slot);
        let mut adopted = ranges(&served);
        let mut lost = Vec::new();
        adopted.retain(|&(start, count)| {
            let taken = self.slots.adopt(start, count);
            if !taken {
                lost.push((start, count));
            }
            taken
        });
        for (start, _) in lost {
            served.torn = true;
            for window in [&mut served.cluster, &mut served.local] {
                if window.start == start {
                    window.count = 0;
                }
            }
        }
        self.services.insert(name, served);
    }

    /// Frontends may lead to a service that ends until the first plan is written.
    fn adopt_leftover_slots(&mut self, service: &Service) {
        for window in [service.cluster, service.local].map(Window::from_word) {
            let (start, count) = (window.start, u32::from(window.count));
            if count > 0 && self.slots.adopt(start, count) {
                self.leftover_slots.push((start, count));
            }
        }
    }

    fn adopt_gone(&mut self, id: BackendId, backend: &Backend) {
        self.add_gone(
            id,
            Gone {
                service: backend.service,
                addr: backend.addr,
                port: backend.port,
                protocol: backend.protocol,
                since: Fence(0),
            },
        );
    }
}

/// True if the published window holds exactly the members of its set.
fn fits(served: &Served, window: Window, set: u8, slot: &impl Fn(u32) -> Option<Slot>) -> bool {
    let expected = served.members.iter().filter(|m| m.sets & set != 0);
    if expected.clone().count() != usize::from(window.count) {
        return false;
    }
    expected.zip(window.start..).all(|(member, index)| {
        slot(index).is_some_and(|slot| {
            slot.backend == member.id
                && slot.addr == member.addr
                && slot.port == member.port
                && slot.service == served.id
                && slot.generation == window.generation
        })
    })
}
