//! Addresses that are nobody's frontend, and sources that may not use one.

use super::*;
use crate::table::SourceRange;

#[test]
fn an_undefined_port_of_a_cluster_ip_is_refused_and_a_free_address_is_dropped() {
    let mut world = World::new();
    let net = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
    world.tables.config.set_service_cidrs(&[
        net("10.96.0.0", 16),
        net("10.98.0.0", 16),
        net("fd00:10:96::", 112),
    ]);
    for address in ["10.96.0.1", "172.20.0.1", "fd00:10:96::1"] {
        world.tables.add_any_port(addr(address));
    }
    let answer = |to: &str| unserved(&world.tables, &world.tables.config, &addr(to));
    for (to, expected) in [
        ("10.96.0.1", Some(Unserved::Port)),
        ("172.20.0.1", Some(Unserved::Port)),
        ("fd00:10:96::1", Some(Unserved::Port)),
        ("10.96.0.2", Some(Unserved::Address)),
        ("10.98.255.255", Some(Unserved::Address)),
        ("fd00:10:96::2", Some(Unserved::Address)),
        // Between two ranges, and beyond.
        ("10.97.0.1", None),
        ("10.99.0.1", None),
        ("172.20.0.2", None),
        ("fd00:10:97::1", None),
    ] {
        assert_eq!(answer(to), expected, "{to}");
        let may_be = may_be_unserved(
            &world.tables.filter(&world.tables.config).unwrap(),
            &world.tables.config,
            &addr(to),
        );
        assert!(may_be || expected.is_none(), "{to} is not even asked for");
    }
}

#[test]
fn what_the_node_has_itself_is_left_to_the_node() {
    let mut world = World::new();
    let cidr = Prefix::new("10.96.0.0".parse().unwrap(), 16);
    world.tables.config.set_service_cidrs(&[cidr]);
    world.tables.add_any_port(addr("10.96.0.10"));
    for address in ["10.96.0.10", "10.96.0.11"] {
        let answer =
            |world: &World| unserved(&world.tables, &world.tables.config, &addr(address)).is_some();
        assert!(answer(&world), "{address}");
        let local = LocalAddress::default();
        world.tables.local.insert(addr(address), local);
        assert!(!answer(&world), "{address} is an address of the node");
    }
}

#[test]
fn nothing_is_dropped_where_no_service_cidr_is_known() {
    let mut world = World::new();
    world.tables.config.set_service_cidrs(&[]);
    for address in ["10.96.0.1", "fd00::1", "0.0.0.0"] {
        let to = addr(address);
        assert_eq!(unserved(&world.tables, &world.tables.config, &to), None);
        assert!(!may_be_unserved(
            &world.tables.filter(&world.tables.config).unwrap(),
            &world.tables.config,
            &to
        ));
    }
}

#[test]
fn source_ranges_come_before_policy_and_endpoints() {
    let mut world = World::new();
    for (prefix, length) in [("203.0.113.0", 24), ("10.0.1.0", 24)] {
        let prefix = Prefix::new(prefix.parse().unwrap(), length);
        world.tables.ranges.push(SourceRange::new(SERVICE, &prefix));
    }
    let guarded = Frontend::new(SERVICE, FrontendKind::LoadBalancer).guarded();
    let decision = |world: &World, source: &str| {
        let source = addr(source);
        let origin = Origin::of_packet(&world.tables, &world.tables.config, &source, || {
            Some(DEVICE)
        });
        world.decide_for(guarded, origin, &source)
    };
    let forwards = |decision| matches!(decision, Decision::Forward(_));
    // Outside, a pod, the node: everybody is checked.
    assert!(forwards(decision(&world, "203.0.113.9")));
    assert!(forwards(decision(&world, "10.0.1.77")));
    for source in ["203.0.114.9", "10.0.2.1", "192.168.0.2", "::"] {
        assert_eq!(
            decision(&world, source),
            Decision::Forbid(SERVICE),
            "{source}"
        );
    }
    // The same addresses through another frontend of the service are not.
    let open = Frontend::new(SERVICE, FrontendKind::ExternalIp);
    assert!(forwards(world.decide_for(
        open,
        Origin::Other,
        &addr("203.0.114.9")
    )));
    // Without endpoints the disallowed get silence, the allowed a refusal.
    let empty = Window::empty(EmptyAction::Reject, 3).to_word();
    (world.service().cluster, world.service().local) = (empty, empty);
    assert_eq!(decision(&world, "203.0.114.9"), Decision::Forbid(SERVICE));
    assert_eq!(decision(&world, "203.0.113.9"), Decision::Reject(SERVICE));
}
