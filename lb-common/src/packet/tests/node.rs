//! Packets that the node itself makes, and the replies to them.

use super::*;
use crate::host::craft::icmp_error;
use crate::table::{LocalAddress, ServiceFlags};

/// A client of the node.
fn own(s: &Scene) -> Endpoint {
    s.family.end(1, 1, 40_000)
}

#[test]
fn a_masqueraded_packet_of_the_node_gets_its_source_where_it_leaves() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (own(&s), s.backend_end(), s.node_port());
        let sent = s.is_sent_on(s.opening(&client, &frontend), &backend);
        assert_eq!(sent, client);
        // The other device asks once more, and finds nothing to do but the SNAT.
        let mut packet = s.opening(&client, &backend);
        assert_eq!(s.world.output(&mut packet, DEVICE), Verdict::Continue);
        let (snat, _) = ends(&packet);
        assert_eq!(snat.addr, family.addr(1, 1));
        assert_ne!(snat.port, client.port);

        s.is_delivered(s.data(&backend, &snat), &frontend, &client);
        assert_eq!(s.is_sent_on(s.data(&client, &frontend), &backend), client);
        s.leaves(s.data(&client, &backend), &snat, &backend);
    });
}

#[test]
fn a_packet_of_the_node_that_keeps_its_address_gets_another_port_at_once() {
    everywhere(|family, protocol| {
        // No local detector: a ClusterIP's clients keep their addresses.
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (own(&s), s.backend_end(), s.cluster_ip());
        let sent = s.is_sent_on(s.opening(&client, &frontend), &backend);
        assert_eq!(sent.addr, client.addr);
        assert_ne!(sent.port, client.port);
        s.leaves(s.opening(&sent, &backend), &sent, &backend);
        s.is_delivered(s.data(&backend, &sent), &frontend, &client);
        assert_eq!(s.is_sent_on(s.data(&client, &frontend), &backend), sent);
    });
}

#[test]
fn a_loopback_address_is_replaced_before_the_packet_is_sent_on() {
    for protocol in PROTOCOLS {
        let s = Scene::new(Family::V4, protocol);
        let client = Endpoint {
            addr: std::net::IpAddr::from([127, 0, 0, 1]).into(),
            port: Port::new(40_000),
        };
        let (backend, frontend) = (s.backend_end(), s.node_port());
        let sent = s.is_sent_on(s.opening(&client, &frontend), &backend);
        assert_eq!(sent.addr, s.family.addr(1, 1));
        s.leaves(s.opening(&sent, &backend), &sent, &backend);
        s.is_delivered(s.data(&backend, &sent), &frontend, &client);
        assert_eq!(s.is_sent_on(s.data(&client, &frontend), &backend), sent);
    }
}

#[test]
fn a_backend_of_the_node_answers_the_nodes_own_client() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let frontend = family.end(8, 2, 80);
        let service = s.world.tables.add_service(0, 0);
        let backend = family.end(1, 1, 8080);
        s.world
            .tables
            .add_backend(service, &backend, protocol, true);
        let kind = FrontendKind::ClusterIp;
        s.world
            .tables
            .add_frontend(service, &frontend, protocol, kind);
        let client = own(&s);
        assert_eq!(
            s.is_sent_on(s.opening(&client, &frontend), &backend),
            client
        );
        // It comes back in without having left: nobody has replaced its source.
        let mut reply = s.data(&backend, &client);
        assert_eq!(s.world.output(&mut reply, DEVICE), Verdict::Deliver);
        assert_ends(&reply, &frontend, &client);
    });
}

#[test]
fn the_node_is_the_node_wherever_its_packets_come_from() {
    everywhere(|family, protocol| {
        let s = Scene::with_flags(family, protocol, ServiceFlags::EXTERNAL_LOCAL);
        // An address that the table of the node's addresses does not have (yet).
        let client = family.end(1, 99, 40_000);
        s.is_sent_on(s.opening(&client, &s.node_port()), &s.backend_end());
        let snat = s.leaves_from(s.opening(&client, &s.backend_end()));
        assert_eq!(snat.addr, family.addr(1, 1));
    });
}

#[test]
fn nobody_serves_the_node_is_refused() {
    everywhere(|family, protocol| {
        let mut s = Scene::new(family, protocol);
        let frontend = family.end(8, 2, 80);
        let service = s.world.tables.add_service(0, 0);
        let kind = FrontendKind::ClusterIp;
        s.world
            .tables
            .add_frontend(service, &frontend, protocol, kind);
        let mut packet = s.opening(&own(&s), &frontend);
        assert_eq!(s.world.output(&mut packet, DEVICE), Verdict::Answer);
        assert_eq!(s.reason(Reason::RejectedNoEndpoint), 1);
    });
}

#[test]
fn an_error_about_a_packet_of_the_node_reaches_its_socket() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (client, backend, frontend) = (own(&s), s.backend_end(), s.node_port());
        s.is_sent_on(s.opening(&client, &frontend), &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        let (kind, code) = if family == Family::V4 { (3, 3) } else { (1, 4) };
        let quote = s.opening(&snat, &backend);
        let mut error = icmp_error(&backend.addr, &snat.addr, kind, code, &quote, quote.len());
        assert_eq!(s.world.ingress(&mut error, DEVICE), Verdict::Deliver);
        assert_eq!(flaw(&error), None);
        let quoted = if family == Family::V4 { 28 } else { 48 };
        assert_eq!(ends(&error[quoted..]), (client, frontend));
    });
}

#[test]
fn other_packets_of_the_node_are_left_alone() {
    everywhere(|family, protocol| {
        let s = Scene::new(family, protocol);
        let (a, b) = (own(&s), family.end(9, 2, 2));
        let mut packet = s.opening(&a, &b);
        let before = packet.clone();
        assert_eq!(s.world.output(&mut packet, DEVICE), Verdict::Continue);
        assert_eq!(packet, before);
    });
}

#[test]
fn a_packet_to_a_loopback_address_that_has_arrived_is_nobodys_request() {
    let mut s = Scene::new(Family::V4, Protocol::UDP);
    let loopback: Addr = std::net::IpAddr::from([127, 0, 0, 1]).into();
    let flags = LocalAddress::NODE_PORTS;
    s.world
        .tables
        .local
        .insert(loopback, LocalAddress { flags });
    let port = s.node_port().port;
    s.world
        .tables
        .add_node_port(s.service, &loopback, port, s.protocol);
    let to = Endpoint {
        addr: loopback,
        port,
    };
    let client = s.client();
    s.arrives(s.opening(&client, &to), &client, &to);
    s.is_sent_on(s.opening(&to, &to), &s.backend_end());
}
