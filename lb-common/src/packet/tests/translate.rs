//! DNAT, un-DNAT, SNAT, un-SNAT, hairpins, two frontends of one backend.

use super::*;
use crate::table::{ConfigFlags, ServiceFlags};

#[test]
fn a_request_goes_to_the_backend_and_its_reply_comes_from_the_frontend() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        s.leaves(s.opening(&client, &backend), &client, &backend);
        s.arrives(s.data(&backend, &client), &backend, &client);
        s.leaves(s.data(&backend, &client), &frontend, &client);
        s.arrives(s.data(&client, &frontend), &client, &backend);
        assert_eq!(s.reason(Reason::Opened), 1);
    });
}

#[test]
fn a_node_port_request_is_masqueraded_at_egress_and_its_reply_undone_on_both_hooks() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        assert_eq!(snat.addr, family.addr(1, 1));
        assert!((61_000..=65_535).contains(&snat.port.number()));
        s.arrives(s.data(&backend, &snat), &backend, &client);
        s.leaves(s.data(&backend, &client), &frontend, &client);
        // The end is chosen once.
        s.arrives(s.data(&client, &frontend), &client, &backend);
        s.leaves(s.data(&client, &backend), &snat, &backend);
    });
}

#[test]
fn masquerade_keeps_the_clients_port_if_it_lies_in_the_range() {
    let s = Scene::new(Family::V4, Protocol::TCP);
    let client = s.family.end(9, 1, 62_345);
    s.arrives(
        s.opening(&client, &s.node_port()),
        &client,
        &s.backend_end(),
    );
    let snat = s.leaves_from(s.opening(&client, &s.backend_end()));
    assert_eq!(snat.port.number(), 62_345);
}

#[test]
fn clients_of_one_port_get_snat_ports_of_their_own() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let mut seen = std::collections::HashSet::new();
        for last in 1..=50 {
            let client = family.end(9, last, 62_345);
            s.arrives(
                s.opening(&client, &s.node_port()),
                &client,
                &s.backend_end(),
            );
            let snat = s.leaves_from(s.opening(&client, &s.backend_end()));
            assert!(
                seen.insert(snat.port.number()),
                "{} twice",
                snat.port.number()
            );
        }
    });
}

#[test]
fn a_node_without_an_address_for_snat_drops_and_says_why() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    s.world.tables.snat.clear();
    let (client, backend) = (s.client(), s.backend_end());
    s.arrives(s.opening(&client, &s.node_port()), &client, &backend);
    let mut packet = s.opening(&client, &backend);
    assert_eq!(s.world.egress(&mut packet, DEVICE), Verdict::Drop);
    assert_eq!(s.reason(Reason::SnatNoAddress), 1);
}

#[test]
fn a_device_with_addresses_of_its_own_gives_the_snat_address() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    let own = s.family.addr(1, 77);
    s.world.tables.snat_pool.push(own);
    let index = u32::try_from(s.world.tables.snat_pool.len() - 1).unwrap();
    let entry = crate::table::SnatAddresses { v4: index, v6: 0 };
    s.world.tables.snat.insert(DEVICE, entry);
    let (client, backend) = (s.client(), s.backend_end());
    s.arrives(s.opening(&client, &s.node_port()), &client, &backend);
    assert_eq!(s.leaves_from(s.opening(&client, &backend)).addr, own);
}

#[test]
fn a_backend_that_calls_itself_through_its_service_is_masqueraded() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (backend, frontend) = (s.backend_end(), s.cluster_ip());
        let client = family.end(2, 10, 45_000);
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        assert_eq!(snat.addr, family.addr(1, 1));
        s.arrives(s.data(&backend, &snat), &backend, &client);
        s.leaves(s.data(&backend, &client), &frontend, &client);
    });
}

#[test]
fn two_frontends_of_one_backend_asked_from_one_port_are_told_apart() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let second = family.end(8, 2, 80);
        let kind = FrontendKind::ClusterIp;
        s.world
            .tables
            .add_frontend(s.service, &second, protocol, kind);
        let (client, backend, first) = (s.client(), s.backend_end(), s.cluster_ip());

        s.arrives(s.opening(&client, &first), &client, &backend);
        let mut packet = s.opening(&client, &second);
        assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Continue);
        let (other, to) = ends(&packet);
        assert_eq!((other.addr, to), (client.addr, backend));
        assert_ne!(other.port, client.port);
        assert_eq!(flaw(&packet), None);
        // At egress nothing is left to be done for it.
        s.leaves(packet, &other, &backend);

        s.arrives(s.data(&backend, &other), &backend, &other);
        s.leaves(s.data(&backend, &other), &second, &client);
        s.leaves(s.data(&backend, &client), &first, &client);
        s.arrives(s.data(&client, &second), &other, &backend);
        s.arrives(s.data(&client, &first), &client, &backend);
    });
}

#[test]
fn hooks_that_a_packet_meets_twice_change_it_once() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        let mut packet = s.opening(&client, &frontend);
        for _ in 0..2 {
            assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Continue);
            assert_ends(&packet, &client, &backend);
        }
        assert_eq!(s.world.egress(&mut packet, DEVICE), Verdict::Continue);
        let snat = ends(&packet).0;
        assert_eq!(s.world.egress(&mut packet, DEVICE), Verdict::Continue);
        assert_ends(&packet, &snat, &backend);

        let mut reply = s.data(&backend, &snat);
        for _ in 0..2 {
            assert_eq!(s.world.ingress(&mut reply, DEVICE), Verdict::Continue);
            assert_ends(&reply, &backend, &client);
        }
        for _ in 0..2 {
            assert_eq!(s.world.egress(&mut reply, DEVICE), Verdict::Continue);
            assert_ends(&reply, &frontend, &client);
        }
    });
}

#[test]
fn masquerade_all_masquerades_cluster_ip_clients() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    s.world.tables.config.flags |= ConfigFlags::MASQUERADE_ALL;
    let (client, backend) = (s.client(), s.backend_end());
    s.arrives(s.opening(&client, &s.cluster_ip()), &client, &backend);
    assert_eq!(
        s.leaves_from(s.opening(&client, &backend)).addr,
        s.family.addr(1, 1)
    );
}

#[test]
fn external_local_keeps_the_clients_address() {
    everywhere(|family, protocol| {
        let s = Scene::with_flags(family, protocol, ServiceFlags::EXTERNAL_LOCAL);
        let (client, backend) = (s.client(), s.backend_end());
        s.arrives(s.opening(&client, &s.node_port()), &client, &backend);
        s.leaves(s.opening(&client, &backend), &client, &backend);
        s.leaves(s.data(&backend, &client), &s.node_port(), &client);
    });
}

#[test]
fn packets_that_are_not_ours_are_left_alone() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (a, b) = (family.end(9, 1, 1), family.end(9, 2, 2));
        s.arrives(s.opening(&a, &b), &a, &b);
        s.leaves(s.opening(&a, &b), &a, &b);
        // A pod's own conversations too.
        s.arrives(s.data(&s.backend_end(), &b), &s.backend_end(), &b);
        s.leaves(s.data(&s.backend_end(), &b), &s.backend_end(), &b);
    });
}

#[test]
fn packets_and_bytes_are_counted_for_the_service() {
    let s = Scene::new(Family::V4, Protocol::TCP);
    let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    s.arrives(s.data(&client, &frontend), &client, &backend);
    s.leaves(s.data(&backend, &client), &frontend, &client);
    let counters = s.world.tables.counters.borrow()[&s.service];
    assert_eq!(
        (counters.tc_opened, counters.packets_in, counters.bytes_in),
        (1, 2, 86)
    );
    assert_eq!((counters.packets_out, counters.bytes_out), (1, 43));
}
