//! The plan against tables in memory: every prefix of every plan must leave a state that serves,
//! and every history must end in the state a fresh start would have made.

use super::{Fence, Limits, Op, Plan, Planner, memory};
use crate::model::desired::{
    Desired, DesiredEndpoint, DesiredFrontend, DesiredService, Family, FrontendAddress, ObjectName,
    ServicePortName,
};
use lb_common::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use lb_common::hash::HashKeys;
use lb_common::host::HostTables;
use lb_common::table::{
    AddressBits, BackendState, EmptyAction, FrontendKey, FrontendKind, Membership, ServiceFlags,
};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

const LIMITS: Limits = Limits {
    services: 64,
    backends: 256,
    slots: 512,
    frontends: 128,
    ranges: 64,
};

fn keys() -> HashKeys {
    HostTables::of_node().config.hash_keys
}

/// The tables, and whose the ids in them are.
#[derive(Clone)]
struct Memory {
    tables: HostTables,
    names: memory::Names,
}

impl Memory {
    fn new(limits: Limits) -> Self {
        let mut tables = HostTables::of_node();
        memory::allocate(&mut tables, &limits);
        Self {
            tables,
            names: memory::Names::new(),
        }
    }

    fn write(&mut self, op: &Op) {
        if let Op::RemoveRange(range) = op {
            assert!(self.tables.ranges.contains(range), "removed twice");
        }
        memory::write(&mut self.tables, &mut self.names, op);
    }

    fn adopt(&self, limits: Limits) -> Planner {
        memory::adopt(&self.tables, &self.names, limits)
    }

    fn check(&self) {
        memory::check(&self.tables, &self.names);
    }

    fn served(&self) -> BTreeMap<(String, u16), memory::Served> {
        memory::served(&self.tables, &self.names)
    }
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
        prop_assert_eq!(&memory.tables.bits, &fresh(&before).tables.bits);
        let used = planner.used();
        let usable = memory.tables.backends.iter().filter(|b| b.is_usable()).count();
        prop_assert_eq!((used.services, used.backends), (before.len(), usable));
        prop_assert_eq!((used.frontends, used.ranges), (memory.tables.frontends.len(), memory.tables.ranges.len()));
        let wanted: usize = before.values().map(|one| one.source_ranges.len()).sum();
        prop_assert_eq!(memory.tables.ranges.len(), wanted);
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
            prop_assert_eq!(&killed.tables.bits, &fresh(&third).tables.bits);
            let names: BTreeSet<_> = killed.names.values().cloned().collect();
            prop_assert_eq!(names.len(), killed.names.len());
            prop_assert_eq!(names, third.keys().cloned().collect());
            prop_assert_eq!(killed.tables.frontends.len(), fresh(&third).tables.frontends.len());
            prop_assert_eq!(killed.tables.ranges.len(), fresh(&third).tables.ranges.len());
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
    let mut keys = memory
        .tables
        .frontends
        .keys()
        .filter(|key| !key.is_any_port());
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
    assert_eq!(memory.tables.frontends[&key].service, id_of(&memory, "new"));
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
            let old = &memory.tables.backends[id.0 as usize];
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
    let record = memory.tables.backends[gone.0 as usize];
    assert_eq!((record.state, record.member), (BackendState::Gone as u8, 0));
    let graced = planner.graced_fence();
    assert_eq!(planner.collect(graced, |id| id == gone).ops, vec![]);
    // It comes back: the same id, so that its flows and its clients' affinity find it again.
    let plan = planner.sync(&desired(&[("a", service(&[1], &[1, 2]))]));
    run(&mut planner, &mut memory, &plan);
    let record = memory.tables.backends[gone.0 as usize];
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
fn a_service_made_anew_before_an_end_leads_nobody_into_slots_of_others() {
    let mut memory = fresh(&desired(&[("a", service(&[1], &[1, 2]))]));
    let mut planner = memory.adopt(LIMITS);
    // The end comes when two ids have the name, and clients are led to the second.
    for wanted in [&[][..], &[("a", service(&[1], &[3, 4]))]] {
        for op in &planner.sync(&desired(wanted)).ops {
            memory.write(op);
        }
    }
    let mut next = memory.adopt(LIMITS);
    let more = [("a", service(&[1], &[3, 4])), ("b", service(&[2], &[5, 6]))];
    let plan = next.sync(&desired(&more));
    run(&mut next, &mut memory, &plan);
    let backends = memory.tables.backends.iter();
    let usable = backends.filter(|backend| backend.is_usable()).count();
    assert_eq!(usable, 4, "flows of the second's backends would not move");
    collect(&mut next, &mut memory);
    assert_eq!(memory.served(), fresh(&desired(&more)).served());
    assert_eq!(next.used().slots, 4, "nothing is left of the second");
}

#[test]
fn a_bit_that_only_a_flow_needs_goes_when_the_flow_has_gone() {
    let mut memory = fresh(&desired(&[("a", service(&[1, 7], &[1]))]));
    let mut planner = memory.adopt(LIMITS);
    let wanted = desired(&[("a", service(&[1], &[1]))]);
    let plan = planner.sync(&wanted);
    run(&mut planner, &mut memory, &plan);
    // Of the node port that was removed; its backend stays.
    let mut live = AddressBits::EMPTY;
    let key = FrontendKey::node_port(
        &Addr::from(endpoint(1).ip()),
        Port::new(30_007),
        Protocol::TCP,
    );
    live.add(AddressBits::of_frontend(&keys(), &key));
    let graced = planner.graced_fence();
    let plan = planner.rebuild_bits(graced, &live);
    run(&mut planner, &mut memory, &plan);
    assert_ne!(memory.tables.bits, fresh(&wanted).tables.bits);
    assert!(planner.bits_stale(), "and nobody would look again");
    collect(&mut planner, &mut memory);
    assert_eq!(memory.tables.bits, fresh(&wanted).tables.bits);
    assert!(!planner.bits_stale());
}

#[test]
fn a_policy_that_turns_finds_somebody_at_every_moment() {
    // The Cluster set is wanted by one policy, the Local set by the other.
    let policy = |local: bool| {
        let mut one = service(&[1], &[1, 2]);
        one.internal_local = local;
        for endpoint in one.endpoints.values_mut() {
            (endpoint.cluster, endpoint.local) = (!local, local);
        }
        desired(&[("a", one)])
    };
    for local in [false, true] {
        let mut memory = fresh(&policy(local));
        let mut planner = memory.adopt(LIMITS);
        for op in &planner.sync(&policy(!local)).ops {
            memory.write(op);
            for seen in memory.served().values() {
                let set = if seen.flags & ServiceFlags::INTERNAL_LOCAL == 0 {
                    &seen.cluster
                } else {
                    &seen.local
                };
                assert!(set.is_ok(), "refused after {op:?}");
            }
        }
    }
}

#[test]
fn equal_sets_share_one_window() {
    let mut one = service(&[1, 7], &[1, 2]);
    for endpoint in one.endpoints.values_mut() {
        endpoint.local = true;
    }
    let memory = fresh(&desired(&[("a", one)]));
    let record = &memory.tables.services[id_of(&memory, "a").0 as usize];
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
