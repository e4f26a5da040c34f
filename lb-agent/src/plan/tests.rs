//! The plan against tables in memory: every prefix of every plan must leave a state that serves,
//! and every history must end in the state a fresh start would have made.

use super::{Fence, Held, Limits, Op, Plan, Planner};
use crate::model::desired::{
    Desired, DesiredEndpoint, DesiredFrontend, DesiredService, Family, FrontendAddress, ObjectName,
    ServicePortName,
};
use lb_common::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::table::{
    AddressBits, Backend, BackendState, EmptyAction, Frontend, FrontendKey, FrontendKind,
    Membership, Service, ServiceFlags, Slot, SourceRange, Window,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;

const LIMITS: Limits = Limits {
    services: 64,
    backends: 256,
    slots: 512,
    frontends: 128,
    ranges: 64,
};

fn keys() -> HashKeys {
    HashKeys::from_random([1, 2, 3, 4, 5, 6, 7, 8])
}

/// The tables, as plain memory.
#[derive(Clone)]
struct Memory {
    bits: Box<AddressBits>,
    names: BTreeMap<ServiceId, ServicePortName>,
    services: Vec<Service>,
    slots: Vec<Slot>,
    backends: Vec<Backend>,
    frontends: HashMap<FrontendKey, Frontend>,
    ranges: BTreeSet<SourceRange>,
}

impl Memory {
    fn new(limits: Limits) -> Self {
        Self {
            bits: Box::new(AddressBits::EMPTY),
            names: BTreeMap::new(),
            services: vec![Service::default(); limits.services as usize],
            slots: vec![Slot::default(); limits.slots as usize],
            backends: vec![Backend::default(); limits.backends as usize],
            frontends: HashMap::new(),
            ranges: BTreeSet::new(),
        }
    }

    fn write(&mut self, op: &Op) {
        match op {
            Op::Backend(id, backend) => self.backends[id.0 as usize] = *backend,
            Op::Bits { index, value } => self.bits.words[*index] = *value,
            Op::Slots { start, slots } => {
                self.slots[*start as usize..][..slots.len()].copy_from_slice(slots);
            }
            Op::Name(id, name) => {
                self.names.insert(*id, name.clone());
            }
            Op::RemoveName(id) => {
                self.names.remove(id);
            }
            Op::ResetCounters(_) => {}
            Op::Window {
                service,
                local,
                word,
            } => {
                let service = &mut self.services[service.0 as usize];
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
                let service = &mut self.services[service.0 as usize];
                service.flags = *flags;
                service.affinity_seconds = *affinity_seconds;
                service.algorithm = *algorithm;
            }
            Op::ClearService(id) => self.services[id.0 as usize] = Service::default(),
            Op::Frontend(key, value) => {
                self.frontends.insert(*key, *value);
            }
            Op::RemoveFrontend(key) => {
                self.frontends.remove(key);
            }
            Op::Range(range) => {
                self.ranges.insert(*range);
            }
            Op::RemoveRange(range) => {
                assert!(self.ranges.remove(range), "the kernel would fail");
            }
        }
    }

    fn held(&self) -> Held {
        Held {
            keys: keys(),
            bits: self.bits.clone(),
            names: self.names.iter().map(|(id, n)| (*id, n.clone())).collect(),
            services: self
                .names
                .keys()
                .map(|id| self.services[id.0 as usize])
                .collect(),
            backends: (0..)
                .map(BackendId)
                .zip(self.backends.iter().copied())
                .filter(|(_, backend)| backend.state != BackendState::Free as u8)
                .collect(),
            frontends: self.frontends.iter().map(|(k, v)| (*k, *v)).collect(),
            ranges: self.ranges.iter().copied().collect(),
        }
    }

    fn adopt(&self, limits: Limits) -> Planner {
        Planner::adopt(limits, self.held(), |index| {
            self.slots.get(index as usize).copied()
        })
    }

    /// What a client of a window gets: the endpoints, or what happens instead.
    fn window(&self, id: ServiceId, word: u64) -> Result<BTreeSet<SocketAddr>, bool> {
        let window = Window::from_word(word);
        if window.count == 0 {
            return Err(window.drops());
        }
        let slots = &self.slots[window.start as usize..][..usize::from(window.count)];
        Ok(slots
            .iter()
            .map(|slot| {
                assert_eq!(slot.service, id, "a slot of another service");
                assert_eq!(slot.generation, window.generation, "a torn window");
                let backend = &self.backends[slot.backend.0 as usize];
                assert_ne!(backend.state, BackendState::Free as u8, "a free backend");
                assert_eq!((backend.addr, backend.port), (slot.addr, slot.port));
                assert_eq!(backend.service, id);
                let bits =
                    AddressBits::of_backend(&keys(), &slot.addr, slot.port, backend.protocol);
                assert!(self.bits.has_all(bits), "replies would pass unseen");
                SocketAddr::new(slot.addr.into(), slot.port.number())
            })
            .collect())
    }

    /// What must hold at any moment, between any two writes.
    fn check(&self) {
        for (key, frontend) in &self.frontends {
            let bits = AddressBits::of_frontend(&keys(), key);
            assert!(self.bits.has_all(bits), "the filter hides it");
            if key.is_any_port() {
                assert_eq!(*frontend, Frontend::ANY_PORT.sealed(&keys(), key));
                let served = |(other, value): (&FrontendKey, &Frontend)| {
                    other.addr == key.addr && value.kind == FrontendKind::ClusterIp as u8
                };
                assert!(self.frontends.iter().any(served), "no ClusterIP any more");
                continue;
            }
            if frontend.is_guarded() {
                let own = |range: &&SourceRange| range.who.service == frontend.service;
                assert!(self.ranges.iter().any(|range| own(&range)), "closed to all");
            }
            let service = &self.services[frontend.service.0 as usize];
            assert_ne!(service.flags & ServiceFlags::LIVE, 0, "leads to nothing");
            assert!(self.names.contains_key(&frontend.service), "nameless");
            let _ = self.window(frontend.service, service.cluster);
            let _ = self.window(frontend.service, service.local);
        }
    }

    /// Everything a client can tell, by frontend.
    fn served(&self) -> BTreeMap<(String, u16), Seen> {
        self.frontends
            .iter()
            .filter(|(key, _)| !key.is_any_port())
            .map(|(key, frontend)| {
                let service = &self.services[frontend.service.0 as usize];
                let seen = Seen {
                    name: self.names[&frontend.service].clone(),
                    kind: frontend.kind,
                    cluster: self.window(frontend.service, service.cluster),
                    local: self.window(frontend.service, service.local),
                    flags: service.flags,
                    affinity_seconds: service.affinity_seconds,
                    members: self.members(frontend.service),
                    guarded: frontend.is_guarded(),
                    ranges: (self.ranges.iter())
                        .filter(|range| range.who.service == frontend.service)
                        .map(|range| (range.bits, range.who.source))
                        .collect(),
                    refuses_others: (self.frontends).contains_key(&FrontendKey::any_port(key.addr)),
                };
                let address = format!("{} {}", key.addr, key.family);
                ((address, key.port.number()), seen)
            })
            .collect()
    }

    fn members(&self, id: ServiceId) -> BTreeMap<SocketAddr, (u8, u8, u8)> {
        self.backends
            .iter()
            .filter(|backend| backend.service == id && backend.is_usable())
            .map(|b| {
                let end = SocketAddr::new(b.addr.into(), b.port.number());
                (end, (b.state, b.member, b.flags))
            })
            .collect()
    }
}

#[derive(Clone, Debug, Eq, PartialEq)]
struct Seen {
    name: ServicePortName,
    kind: u8,
    cluster: Result<BTreeSet<SocketAddr>, bool>,
    local: Result<BTreeSet<SocketAddr>, bool>,
    flags: u32,
    affinity_seconds: u32,
    members: BTreeMap<SocketAddr, (u8, u8, u8)>,
    guarded: bool,
    ranges: BTreeSet<(u32, [u32; 4])>,
    refuses_others: bool,
}

/// Writes a plan, checking after every write; waits for its grace period at once.
fn run(planner: &mut Planner, memory: &mut Memory, plan: &Plan) {
    for op in &plan.ops {
        memory.write(op);
        memory.check();
    }
    if let Some(fence) = plan.fence {
        let rest = planner.graced(fence);
        run(planner, memory, &rest);
    }
}

/// As if no flow were left.
fn collect(planner: &mut Planner, memory: &mut Memory) {
    let graced = planner.graced_fence();
    let plan = planner.collect(graced, |_| false);
    run(planner, memory, &plan);
    let plan = planner.rebuild_bits(graced, &AddressBits::EMPTY);
    run(planner, memory, &plan);
}

fn fresh(desired: &Desired) -> Memory {
    let mut memory = Memory::new(LIMITS);
    let mut planner = Planner::new(LIMITS, keys());
    let plan = planner.sync(desired);
    run(&mut planner, &mut memory, &plan);
    memory
}

fn name(text: &str) -> ServicePortName {
    ServicePortName {
        service: ObjectName {
            namespace: "default".into(),
            name: text.into(),
        },
        port: "http".to_owned(),
        protocol: Protocol::TCP,
        family: Family::V4,
    }
}

fn frontend(number: u8) -> DesiredFrontend {
    if number >= 6 {
        return DesiredFrontend {
            address: FrontendAddress::NodePort(Family::V4),
            port: 30000 + u16::from(number),
            kind: FrontendKind::NodePort,
        };
    }
    let exact = |address: [u8; 4], port, kind| DesiredFrontend {
        address: FrontendAddress::Exact(address.into()),
        port,
        kind,
    };
    match number {
        5 => exact([203, 0, 113, 5], 80, FrontendKind::LoadBalancer),
        // Two ports of one ClusterIP.
        4 => exact([10, 96, 0, 3], 81, FrontendKind::ClusterIp),
        _ => exact([10, 96, 0, number], 80, FrontendKind::ClusterIp),
    }
}

fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::new([10, 1, 0, number].into(), 8080)
}

fn range(length: u8) -> ipnet::IpNet {
    ipnet::IpNet::new_assert([10, 0, 0, 0].into(), length)
}

const READY: DesiredEndpoint = DesiredEndpoint {
    cluster: true,
    local: false,
    draining: false,
    on_this_node: false,
};

fn service(frontends: &[u8], endpoints: &[u8]) -> DesiredService {
    DesiredService {
        frontends: frontends.iter().map(|number| frontend(*number)).collect(),
        internal_local: false,
        external_local: false,
        source_ranges: Vec::new(),
        affinity_seconds: None,
        algorithm: 0,
        cluster_empty: EmptyAction::Reject,
        local_empty: EmptyAction::Reject,
        endpoints: endpoints.iter().map(|n| (endpoint(*n), READY)).collect(),
    }
}

/// A few services over a few addresses, so that histories meet: frontends move between services,
/// endpoints come back, services disappear.
fn any_desired() -> impl Strategy<Value = Desired> {
    let one_endpoint = (0..3_u8, any::<bool>(), any::<bool>());
    let one_service = (
        proptest::collection::btree_map(1..7_u8, one_endpoint, 0..6),
        any::<(bool, bool, bool)>(),
        proptest::option::of(1..3_u32),
        proptest::collection::btree_set(8..11_u8, 0..3),
    );
    let services = proptest::collection::btree_map("[a-e]", one_service, 0..5);
    // Which service each of eight frontends belongs to, if any.
    let owners = proptest::collection::vec(0..8_usize, 8);
    (services, owners).prop_map(|(services, owners)| {
        let mut desired: Desired = services
            .into_iter()
            .map(
                |(text, (endpoints, (internal, external, drops), affinity, ranges))| {
                    let mut one = service(&[], &[]);
                    one.internal_local = internal;
                    one.external_local = external;
                    one.affinity_seconds = affinity;
                    one.source_ranges = ranges.into_iter().map(range).collect();
                    if drops {
                        one.local_empty = EmptyAction::Drop;
                    }
                    for (number, (sets, draining, here)) in endpoints {
                        let wanted = DesiredEndpoint {
                            cluster: sets != 1,
                            local: sets != 0,
                            draining,
                            on_this_node: here,
                        };
                        one.endpoints.insert(endpoint(number), wanted);
                    }
                    (name(&text), one)
                },
            )
            .collect();
        let names: Vec<ServicePortName> = desired.keys().cloned().collect();
        for (number, owner) in (0_u8..).zip(owners) {
            if let Some(owner) = names.get(owner)
                && let Some(one) = desired.get_mut(owner)
            {
                one.frontends.push(frontend(number));
            }
        }
        desired
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_history_ends_as_a_fresh_start_would_and_every_prefix_of_it_serves(
        history in proptest::collection::vec((any_desired(), any::<bool>()), 1..8)
    ) {
        let mut memory = Memory::new(LIMITS);
        let mut planner = Planner::new(LIMITS, keys());
        let mut before = Desired::new();
        for (desired, whole) in &history {
            // As the loop does it: everything at once, or only what changed.
            let plan = if *whole {
                planner.sync(desired)
            } else {
                let names: BTreeSet<_> = before.keys().chain(desired.keys()).collect();
                let changed = names.into_iter().filter(|n| before.get(*n) != desired.get(*n));
                planner.update(changed.map(|name| (name, desired.get(name))))
            };
            run(&mut planner, &mut memory, &plan);
            prop_assert_eq!(memory.served(), fresh(desired).served());
            if *whole {
                collect(&mut planner, &mut memory);
            }
            before = desired.clone();
        }
        // Nothing changed, nothing to write.
        let plan = planner.sync(&before);
        prop_assert_eq!(plan.ops, vec![]);
        collect(&mut planner, &mut memory);
        prop_assert_eq!(&memory.bits, &fresh(&before).bits);
        let used = planner.used();
        let usable = memory.backends.iter().filter(|b| b.is_usable()).count();
        prop_assert_eq!((used.services, used.backends), (before.len(), usable));
        prop_assert_eq!((used.frontends, used.ranges), (memory.frontends.len(), memory.ranges.len()));
        let wanted: usize = before.values().map(|one| one.source_ranges.len()).sum();
        prop_assert_eq!(memory.ranges.len(), wanted);
    }

    #[test]
    fn a_kill_between_any_two_writes_is_mended_by_the_next_start(
        first in any_desired(), second in any_desired(), third in any_desired(),
    ) {
        let mut memory = fresh(&first);
        let mut planner = memory.adopt(LIMITS);
        prop_assert_eq!(planner.sync(&first).ops, vec![], "adopted as it was");
        let plan = planner.sync(&second);
        for op in &plan.ops {
            memory.write(op);
            let mut killed = memory.clone();
            let mut next = killed.adopt(LIMITS);
            // The world may have moved on while nobody looked.
            let plan = next.sync(&third);
            run(&mut next, &mut killed, &plan);
            prop_assert_eq!(killed.served(), fresh(&third).served());
            collect(&mut next, &mut killed);
            prop_assert_eq!(&killed.bits, &fresh(&third).bits);
            let names: BTreeSet<_> = killed.names.values().cloned().collect();
            prop_assert_eq!(names.len(), killed.names.len());
            prop_assert_eq!(names, third.keys().cloned().collect());
            prop_assert_eq!(killed.frontends.len(), fresh(&third).frontends.len());
            prop_assert_eq!(killed.ranges.len(), fresh(&third).ranges.len());
        }
    }
}

fn desired(services: &[(&str, DesiredService)]) -> Desired {
    services
        .iter()
        .map(|(text, service)| (name(text), service.clone()))
        .collect()
}

fn id_of(memory: &Memory, text: &str) -> ServiceId {
    let found = memory.names.iter().find(|(_, one)| **one == name(text));
    *found.expect("a service of this name").0
}

#[test]
fn a_service_recreated_under_another_name_gets_another_id_and_its_frontend_is_replaced() {
    let first = desired(&[("old", service(&[1], &[1, 2]))]);
    let second = desired(&[("new", service(&[1], &[1, 2]))]);
    let mut memory = fresh(&first);
    let old = id_of(&memory, "old");
    let mut planner = memory.adopt(LIMITS);
    let plan = planner.sync(&second);
    let mut keys = memory.frontends.keys().filter(|key| !key.is_any_port());
    let key = *keys.next().expect("one frontend");
    for op in &plan.ops {
        assert_ne!(
            *op,
            Op::RemoveFrontend(key),
            "there is never a moment without"
        );
        memory.write(op);
        memory.check();
    }
    assert_ne!(id_of(&memory, "new"), old);
    assert_eq!(memory.frontends[&key].service, id_of(&memory, "new"));
}

#[test]
fn ids_windows_and_backends_survive_a_restart() {
    let served = desired(&[("a", service(&[1], &[1, 2])), ("b", service(&[2], &[3]))]);
    let memory = fresh(&served);
    let mut planner = memory.adopt(LIMITS);
    assert_eq!(planner.sync(&served).ops, vec![]);
    let more = desired(&[("a", service(&[1], &[1, 2, 4])), ("b", service(&[2], &[3]))]);
    for op in planner.sync(&more).ops {
        if let Op::Backend(id, backend) = op {
            let old = &memory.backends[id.0 as usize];
            assert_eq!(old.state, BackendState::Free as u8, "{backend:?}");
        }
    }
}

#[test]
fn visible_slots_are_never_modified_before_the_grace_period_is_over() {
    let mut memory = Memory::new(LIMITS);
    let mut planner = Planner::new(LIMITS, keys());
    let mut published: Vec<(u32, u32)> = Vec::new();
    for round in 0..40_u8 {
        let plan = planner.sync(&desired(&[("a", service(&[1], &[1, 2, 3 + round % 5]))]));
        for op in &plan.ops {
            if let Op::Slots { start, slots } = op {
                let end = start + u32::try_from(slots.len()).expect("few slots");
                for (from, to) in &published {
                    assert!(end <= *from || *to <= *start, "still in a reader's hands");
                }
                published.push((*start, end));
            }
            memory.write(op);
            memory.check();
        }
        // No grace period ends, so nothing may come back.
        assert_eq!(planner.graced_fence(), Fence(0));
    }
}

#[test]
fn a_removed_backend_stays_while_flows_use_it_and_its_id_is_not_given_out() {
    let mut memory = fresh(&desired(&[("a", service(&[1], &[1, 2]))]));
    let mut planner = memory.adopt(LIMITS);
    let plan = planner.sync(&desired(&[("a", service(&[1], &[2]))]));
    run(&mut planner, &mut memory, &plan);
    let gone: Vec<BackendId> = planner.gone().collect();
    let [gone] = gone[..] else {
        panic!("one backend left: {gone:?}")
    };
    let record = memory.backends[gone.0 as usize];
    assert_eq!((record.state, record.member), (BackendState::Gone as u8, 0));
    let graced = planner.graced_fence();
    assert_eq!(planner.collect(graced, |id| id == gone).ops, vec![]);
    // It comes back: the same id, so that its flows and its clients' affinity find it again.
    let plan = planner.sync(&desired(&[("a", service(&[1], &[1, 2]))]));
    run(&mut planner, &mut memory, &plan);
    let record = memory.backends[gone.0 as usize];
    assert_eq!(record.state, BackendState::Active as u8);
    assert_eq!(record.member, Membership::CLUSTER);
    assert_eq!(
        (record.addr, record.port),
        (Addr::from(endpoint(1).ip()), Port::new(8080))
    );
}

#[test]
fn without_room_the_old_window_keeps_serving_and_the_service_is_reported() {
    let limits = Limits { slots: 4, ..LIMITS };
    let mut memory = Memory::new(limits);
    let mut planner = Planner::new(limits, keys());
    let plan = planner.sync(&desired(&[("a", service(&[1], &[1, 2, 3]))]));
    run(&mut planner, &mut memory, &plan);
    let before = memory.served();
    let larger = desired(&[("a", service(&[1], &[1, 2, 3, 4]))]);
    let plan = planner.sync(&larger);
    assert_eq!(plan.ops, vec![]);
    assert_eq!(memory.served(), before);
    let refused = planner.refused()[&name("a")];
    assert_eq!(refused.reason(), "slot_table_full");
    assert_eq!(planner.used().backends, 3, "nothing is left taken");
    // A smaller set fits beside the old one, and then there is room.
    let plan = planner.sync(&desired(&[("a", service(&[1], &[1]))]));
    run(&mut planner, &mut memory, &plan);
    let plan = planner.sync(&desired(&[("a", service(&[1], &[1, 2]))]));
    run(&mut planner, &mut memory, &plan);
    assert!(planner.refused().is_empty());
}

#[test]
fn full_tables_refuse_a_service_by_name_and_hurt_no_other() {
    let limits = Limits {
        services: 2,
        frontends: 4,
        ..LIMITS
    };
    let mut memory = Memory::new(limits);
    let mut planner = Planner::new(limits, keys());
    let plan = planner.sync(&desired(&[
        ("a", service(&[1], &[1])),
        ("b", service(&[2], &[2])),
    ]));
    run(&mut planner, &mut memory, &plan);
    assert_eq!(planner.refused()[&name("b")].reason(), "service_table_full");
    let plan = planner.sync(&desired(&[("a", service(&[1, 2, 3], &[1]))]));
    run(&mut planner, &mut memory, &plan);
    assert_eq!(
        planner.refused()[&name("a")].reason(),
        "frontend_table_full"
    );
    assert_eq!(memory.served().len(), 1);
}

#[test]
fn compaction_makes_room_that_was_scattered() {
    let limits = Limits {
        slots: 12,
        ..LIMITS
    };
    let mut memory = Memory::new(limits);
    let mut planner = Planner::new(limits, keys());
    let three = [
        ("a", service(&[1], &[1, 2, 3])),
        ("b", service(&[2], &[1, 2, 3])),
        ("c", service(&[3], &[1, 2, 3])),
    ];
    let plan = planner.sync(&desired(&three));
    run(&mut planner, &mut memory, &plan);
    // Holes of three before and behind b's window (and c's); six in one run are wanted.
    let holes = [
        ("b", three[1].1.clone()),
        ("d", service(&[4], &[1, 2, 3, 4, 5, 6, 7])),
    ];
    let plan = planner.sync(&desired(&holes));
    run(&mut planner, &mut memory, &plan);
    let wanted = desired(&holes);
    for _ in 0..3 {
        if planner.is_fragmented() {
            let plan = planner.compact(8);
            run(&mut planner, &mut memory, &plan);
        }
        let plan = planner.sync(&wanted);
        run(&mut planner, &mut memory, &plan);
    }
    assert!(planner.refused().is_empty(), "{:?}", planner.refused());
    assert_eq!(memory.served(), fresh(&wanted).served());
}

#[test]
fn equal_sets_share_one_window() {
    let mut one = service(&[1, 7], &[1, 2]);
    for endpoint in one.endpoints.values_mut() {
        endpoint.local = true;
    }
    let memory = fresh(&desired(&[("a", one)]));
    let record = &memory.services[id_of(&memory, "a").0 as usize];
    assert_eq!(record.cluster, record.local);
}

/// Addresses of the UDP backends that a plan says have left.
fn left(planner: &Planner, plan: &Plan) -> Vec<Addr> {
    let ends = plan.left.iter().map(|id| planner.gone_datagrams(*id));
    ends.map(|end| end.expect("what left is gone").addr)
        .collect()
}

#[test]
fn udp_backends_that_leave_are_named_and_no_others() {
    let of = |protocol, services: &[(&str, DesiredService)]| -> Desired {
        let named = |(text, service): &(&str, DesiredService)| {
            let protocol = ServicePortName {
                protocol,
                ..name(text)
            };
            (protocol, service.clone())
        };
        services.iter().map(named).collect()
    };
    let both = [("a", service(&[1], &[1, 2])), ("b", service(&[2], &[1, 2]))];
    let mut terminating = both.clone();
    let none = DesiredEndpoint {
        cluster: false,
        draining: true,
        ..READY
    };
    terminating[0].1.endpoints.insert(endpoint(1), none);
    let from_one = [both[1].clone(), ("a", service(&[1], &[2]))];

    let mut planner = Planner::new(LIMITS, keys());
    assert!(planner.sync(&of(Protocol::UDP, &both)).left.is_empty());
    let plan = planner.sync(&of(Protocol::UDP, &terminating));
    assert!(plan.left.is_empty(), "terminating is not gone");
    let plan = planner.sync(&of(Protocol::UDP, &from_one));
    assert_eq!(left(&planner, &plan), [Addr::from(endpoint(1).ip())]);
    let gone = plan.left[0];
    // It comes back under the same id, and is gone no longer.
    assert!(planner.sync(&of(Protocol::UDP, &both)).left.is_empty());
    assert_eq!(planner.gone_datagrams(gone), None);
    // A service that is deleted.
    let plan = planner.sync(&of(Protocol::UDP, &both[1..]));
    let all = [1, 2].map(|number| Addr::from(endpoint(number).ip()));
    assert_eq!(left(&planner, &plan), all);

    let mut planner = Planner::new(LIMITS, keys());
    planner.sync(&of(Protocol::TCP, &both));
    let plan = planner.sync(&of(Protocol::TCP, &from_one));
    assert!(plan.left.is_empty(), "TCP is left alone");
    assert_eq!(planner.gone_datagrams(gone), None);
}
