//! Table-driven tests of the decision: who gets which set, and is the source replaced?

mod edges;

use super::*;
use crate::addr::{Port, Prefix};
use crate::hash::HashKeys;
use crate::host::{HostEnv, HostTables};
use crate::table::{AddressBits, BackendState, EmptyAction, FrontendKind, LocalAddress, Slot};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

const SERVICE: ServiceId = ServiceId(7);
const DEVICE: u32 = 9;
const TIMEOUT: u32 = 10;

fn addr(text: &str) -> Addr {
    text.parse::<core::net::IpAddr>().unwrap().into()
}

fn endpoint(text: &str, port: u16) -> Endpoint {
    Endpoint {
        addr: addr(text),
        port: Port::new(port),
    }
}

/// One service with three backends: 1 and 2 in the Cluster set, 2 and 3 in the Local set.
struct World {
    tables: HostTables,
    env: HostEnv,
}

impl World {
    fn new() -> Self {
        let backend = |last: u8, member| Backend {
            addr: addr(&format!("10.0.1.{last}")),
            port: Port::new(8080),
            state: BackendState::Active as u8,
            member,
            service: SERVICE,
            protocol: Protocol::TCP,
            flags: if last == 3 { 0 } else { Backend::LOCAL },
            reserved: [0; 6],
        };
        let backends = vec![
            Backend::default(),
            backend(1, Membership::CLUSTER),
            backend(2, Membership::CLUSTER | Membership::LOCAL),
            backend(3, Membership::LOCAL),
        ];
        let slot = |id: u32, generation| Slot {
            addr: backends[id as usize].addr,
            backend: BackendId(id),
            service: SERVICE,
            port: Port::new(8080),
            generation,
            reserved: [0; 4],
        };
        let slots = vec![slot(1, 1), slot(2, 1), slot(2, 2), slot(3, 2)];
        let mut services = vec![Service::default(); 8];
        services[7] = Service {
            cluster: Window {
                start: 0,
                count: 2,
                generation: 1,
            }
            .to_word(),
            local: Window {
                start: 2,
                count: 2,
                generation: 2,
            }
            .to_word(),
            flags: ServiceFlags::LIVE,
            ..Service::default()
        };
        let config = Config {
            flags: ConfigFlags::DETECT_PODS_V4,
            snat_port_first: 1,
            snat_port_last: 2,
            hash_keys: HashKeys::from_random([1, 2, 3, 4, 5, 6, 7, 8]),
            pods_v4: Prefix::new("10.0.0.0".parse().unwrap(), 8),
            ..HostTables::of_node().config
        };
        let tables = HostTables {
            services,
            slots,
            backends,
            local: HashMap::from([(
                addr("192.168.0.2"),
                LocalAddress {
                    flags: LocalAddress::NODE_PORTS,
                },
            )]),
            ..HostTables::new(config)
        };
        Self {
            tables,
            env: HostEnv::new(42),
        }
    }

    fn service(&mut self) -> &mut Service {
        &mut self.tables.services[7]
    }

    fn add_frontend(&mut self, key: FrontendKey, kind: FrontendKind) {
        let keys = self.tables.config.hash_keys;
        Arc::make_mut(&mut self.tables.bits).add(AddressBits::of_frontend(&keys, &key));
        self.tables
            .frontends
            .insert(key, Frontend::new(SERVICE, kind).sealed(&keys, &key));
    }

    fn decide(&self, kind: FrontendKind, source: &str) -> Decision {
        let source = addr(source);
        let config = self.tables.config;
        let origin = Origin::of_packet(&self.tables, &config, &source, || Some(DEVICE));
        let frontend = Frontend::new(SERVICE, kind);
        self.decide_for(frontend, origin, &source)
    }

    fn decide_for(&self, frontend: Frontend, origin: Origin, source: &Addr) -> Decision {
        let asker = Asker {
            origin,
            client: Some(Client::Address(*source)),
            source: *source,
        };
        let config = &self.tables.config;
        decide(&self.tables, &self.env, config, &frontend, &asker, source)
    }

    /// The last octets of every backend that is ever chosen, and whether the source is replaced.
    fn reachable(&self, kind: FrontendKind, source: &str) -> (BTreeSet<u32>, bool) {
        let mut seen = BTreeSet::new();
        let mut masquerade = BTreeSet::new();
        for _ in 0..64 {
            match self.decide(kind, source) {
                Decision::Forward(choice) => {
                    seen.insert(choice.backend.0);
                    masquerade.insert(choice.masquerade);
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(
            masquerade.len(),
            1,
            "the SNAT policy may not depend on the backend"
        );
        (seen, masquerade.contains(&true))
    }
}

const POD: &str = "10.0.0.9";
const NODE: &str = "192.168.0.2";
const OUTSIDE: &str = "203.0.113.2";

#[test]
fn the_policy_table_of_service_semantics_section_7() {
    let cluster = BTreeSet::from([1, 2]);
    let local = BTreeSet::from([2, 3]);
    let (int_local, ext_local) = (ServiceFlags::INTERNAL_LOCAL, ServiceFlags::EXTERNAL_LOCAL);
    let cluster_ip = FrontendKind::ClusterIp;
    for (name, flags, kind, source, set, masquerade) in [
        ("pod, ClusterIP", 0, cluster_ip, POD, &cluster, false),
        ("node, ClusterIP", 0, cluster_ip, NODE, &cluster, true),
        ("outside, ClusterIP", 0, cluster_ip, OUTSIDE, &cluster, true),
        ("internal Local", int_local, cluster_ip, POD, &local, false),
        (
            "external Local is not for ClusterIPs",
            ext_local,
            cluster_ip,
            POD,
            &cluster,
            false,
        ),
        (
            "internal Local is not for VIPs",
            int_local,
            FrontendKind::LoadBalancer,
            POD,
            &cluster,
            true,
        ),
        (
            "external Cluster",
            0,
            FrontendKind::NodePort,
            OUTSIDE,
            &cluster,
            true,
        ),
        (
            "external Cluster, pods included",
            0,
            FrontendKind::ExternalIp,
            POD,
            &cluster,
            true,
        ),
        (
            "external Local, pod: short circuit",
            ext_local,
            FrontendKind::LoadBalancer,
            POD,
            &cluster,
            false,
        ),
        (
            "external Local, node: short circuit",
            ext_local,
            FrontendKind::NodePort,
            NODE,
            &cluster,
            true,
        ),
        (
            "external Local, outside",
            ext_local,
            FrontendKind::NodePort,
            OUTSIDE,
            &local,
            false,
        ),
    ] {
        let mut world = World::new();
        world.service().flags |= flags;
        assert_eq!(
            world.reachable(kind, source),
            (set.clone(), masquerade),
            "{name}"
        );
    }
}

#[test]
fn without_a_local_detector_cluster_ips_are_not_masqueraded_and_pods_are_outside() {
    let mut world = World::new();
    world.tables.config.flags = 0;
    assert_eq!(
        world.reachable(FrontendKind::ClusterIp, OUTSIDE),
        (BTreeSet::from([1, 2]), false)
    );
    world.service().flags |= ServiceFlags::EXTERNAL_LOCAL;
    assert_eq!(
        world.reachable(FrontendKind::NodePort, POD),
        (BTreeSet::from([2, 3]), false)
    );
}

#[test]
fn pods_may_be_told_by_the_device_that_their_packets_come_in_by() {
    let mut world = World::new();
    world.tables.config.flags |= ConfigFlags::PODS_BY_DEVICE;
    // As the agent writes it: any address will do.
    world.tables.config.pods_v4 = Prefix::new("0.0.0.0".parse().unwrap(), 0);
    let cluster_ip = FrontendKind::ClusterIp;
    assert!(
        world.reachable(cluster_ip, POD).1,
        "by no device of pods it is masqueraded"
    );
    world.service().flags |= ServiceFlags::EXTERNAL_LOCAL;
    let local = (BTreeSet::from([2, 3]), false);
    assert_eq!(world.reachable(FrontendKind::NodePort, POD), local);
    world.tables.pod_devices.insert(DEVICE);
    for source in [POD, OUTSIDE, NODE] {
        let cluster = (BTreeSet::from([1, 2]), false);
        assert_eq!(world.reachable(cluster_ip, source), cluster, "{source}");
        let got = world.reachable(FrontendKind::NodePort, source);
        assert_eq!(got, cluster, "{source}: short circuit");
    }
    // What the node makes has come in by no device.
    let of = |device| Origin::of_packet(&world.tables, &world.tables.config, &addr(POD), || device);
    assert_eq!(of(Some(DEVICE)), Origin::Pod);
    assert_eq!(of(None), Origin::Other);
}

#[test]
fn masquerade_all_replaces_the_source_of_pods_too() {
    let mut world = World::new();
    world.tables.config.flags |= ConfigFlags::MASQUERADE_ALL;
    assert!(world.reachable(FrontendKind::ClusterIp, POD).1);
}

#[test]
fn an_empty_window_refuses_or_is_silent_as_it_says() {
    for (action, expected) in [
        (EmptyAction::Reject, Decision::Reject(SERVICE)),
        (EmptyAction::Drop, Decision::Drop(SERVICE)),
    ] {
        let mut world = World::new();
        world.service().cluster = Window::empty(action, 9).to_word();
        assert_eq!(world.decide(FrontendKind::ClusterIp, POD), expected);
    }
}

#[test]
fn a_slot_of_another_generation_or_service_is_never_used() {
    let mut world = World::new();
    world.tables.slots[0].generation = 5;
    world.tables.slots[1].service = ServiceId(6);
    assert_eq!(
        world.decide(FrontendKind::ClusterIp, POD),
        Decision::Unstable
    );
}

fn chosen(decision: Decision) -> BackendId {
    match decision {
        Decision::Forward(choice) => choice.backend,
        other => panic!("{other:?}"),
    }
}

#[test]
fn affinity_holds_over_frontends_slides_and_expires() {
    let mut world = World::new();
    world.service().affinity_seconds = TIMEOUT;
    let first = chosen(world.decide(FrontendKind::ClusterIp, OUTSIDE));
    let step = Tick::seconds(TIMEOUT) - 1;
    for kind in [
        FrontendKind::NodePort,
        FrontendKind::LoadBalancer,
        FrontendKind::ClusterIp,
    ] {
        for _ in 0..8 {
            let now = world.env.now.get();
            world.env.now.set(Tick(now.0 + step));
            assert_eq!(
                chosen(world.decide(kind, OUTSIDE)),
                first,
                "each use restarts the clock"
            );
        }
    }
    let mut seen = BTreeSet::new();
    for _ in 0..64 {
        let now = world.env.now.get();
        world.env.now.set(Tick(now.0 + step + 1));
        seen.insert(chosen(world.decide(FrontendKind::ClusterIp, OUTSIDE)));
    }
    assert_eq!(seen.len(), 2, "an expired memory leaves the choice free");
}

#[test]
fn a_remembered_backend_outside_the_set_of_the_path_is_not_used() {
    let mut world = World::new();
    world.service().affinity_seconds = TIMEOUT;
    world.service().flags |= ServiceFlags::EXTERNAL_LOCAL;
    let key = AffinityKey::for_address(SERVICE, addr(OUTSIDE));
    let last_use = world.env.now();
    world.tables.remember(
        &key,
        Affinity {
            backend: BackendId(1),
            last_use,
        },
    );
    assert_ne!(
        chosen(world.decide(FrontendKind::NodePort, OUTSIDE)),
        BackendId(1)
    );
    for spoil in [
        |backend: &mut Backend| backend.state = BackendState::Gone as u8,
        |backend: &mut Backend| backend.service = ServiceId(6),
        |backend: &mut Backend| backend.member = 0,
    ] {
        let mut world = World::new();
        world.service().affinity_seconds = TIMEOUT;
        world.tables.remember(
            &key,
            Affinity {
                backend: BackendId(1),
                last_use,
            },
        );
        spoil(&mut world.tables.backends[1]);
        world.service().cluster = Window {
            start: 1,
            count: 1,
            generation: 1,
        }
        .to_word();
        assert_eq!(
            chosen(world.decide(FrontendKind::ClusterIp, OUTSIDE)),
            BackendId(2)
        );
    }
}

#[test]
fn a_node_port_answers_on_addresses_that_serve_node_ports_only() {
    let mut world = World::new();
    let port = Port::new(30080);
    world.add_frontend(
        FrontendKey::node_port(&addr(NODE), port, Protocol::TCP),
        FrontendKind::NodePort,
    );
    world
        .tables
        .local
        .insert(addr("192.168.0.3"), LocalAddress { flags: 0 });
    world.tables.local.insert(
        addr("fd00::2"),
        LocalAddress {
            flags: LocalAddress::NODE_PORTS,
        },
    );
    let find = |to: &str, protocol| {
        find_frontend(
            &world.tables,
            &world.tables.config,
            &endpoint(to, 30080),
            protocol,
        )
    };
    assert!(find(NODE, Protocol::TCP).is_some());
    assert!(find(NODE, Protocol::UDP).is_none(), "another protocol");
    assert!(
        find("192.168.0.3", Protocol::TCP).is_none(),
        "not selected for node ports"
    );
    assert!(
        find("192.168.0.4", Protocol::TCP).is_none(),
        "not an address of this node"
    );
    assert!(find("fd00::2", Protocol::TCP).is_none(), "the other family");
}

#[test]
fn the_filter_is_asked_first() {
    let mut world = World::new();
    let key = FrontendKey::exact(addr("10.96.0.1"), Port::new(443), Protocol::TCP);
    world.add_frontend(key, FrontendKind::ClusterIp);
    let to = endpoint("10.96.0.1", 443);
    assert!(find_frontend(&world.tables, &world.tables.config, &to, Protocol::TCP).is_some());
    world.tables.bits = Arc::new(AddressBits::EMPTY);
    assert!(find_frontend(&world.tables, &world.tables.config, &to, Protocol::TCP).is_none());
}

#[test]
fn a_value_of_another_frontend_is_not_believed() {
    let mut world = World::new();
    let kind = FrontendKind::ClusterIp;
    let key = |last: u8| {
        let addr = addr(&std::format!("10.96.0.{last}"));
        FrontendKey::exact(addr, Port::new(443), Protocol::TCP)
    };
    world.add_frontend(key(1), kind);
    world.add_frontend(key(2), kind);
    let to = endpoint("10.96.0.1", 443);
    let find = |world: &World| {
        let config = &world.tables.config;
        find_frontend(&world.tables, config, &to, Protocol::TCP)
    };
    let (ours, other) = (
        world.tables.frontends[&key(1)],
        world.tables.frontends[&key(2)],
    );
    assert_eq!(find(&world), Some(ours));
    // The element was recycled for the other frontend, or is just being written for it.
    let half_written = Frontend {
        service: ServiceId(other.service.0 + 1),
        ..ours
    };
    for recycled in [other, half_written] {
        world.tables.frontends.insert(key(1), recycled);
        assert_eq!(find(&world), None);
    }
}

#[test]
fn wildcards_of_the_two_families_have_seals_of_their_own() {
    let keys = World::new().tables.config.hash_keys;
    let of = |node: &str| FrontendKey::node_port(&addr(node), Port::new(30080), Protocol::TCP);
    let frontend = Frontend::new(SERVICE, FrontendKind::NodePort).sealed(&keys, &of("10.0.0.1"));
    assert!(frontend.is_of(&keys, &of("10.0.0.1")));
    assert!(!frontend.is_of(&keys, &of("fd00::1")));
}

#[test]
fn a_hairpin_is_a_local_endpoint_that_calls_itself() {
    let world = World::new();
    let backends = &world.tables.backends;
    assert!(is_hairpin(&backends[1], &addr("10.0.1.1")));
    assert!(!is_hairpin(&backends[1], &addr("10.0.1.2")));
    assert!(
        !is_hairpin(&backends[3], &addr("10.0.1.3")),
        "not on this node"
    );
}
