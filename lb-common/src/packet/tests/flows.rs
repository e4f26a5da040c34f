//! When a flow begins, stays, moves and ends.

use super::*;

/// A scene whose service has got a second backend, on another node; returns its end.
fn with_second_backend(s: &mut Scene) -> Endpoint {
    let end = s.family.end(3, 10, 8080);
    let (service, protocol) = (s.service, s.protocol);
    s.world.tables.add_backend(service, &end, protocol, false);
    end
}

#[test]
fn a_segment_in_mid_flow_without_a_record_is_left_to_the_stack() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::TCP);
        for flags in [
            TcpFlags::ACK,
            TcpFlags::SYN | TcpFlags::ACK,
            TcpFlags::RST,
            TcpFlags::FIN | TcpFlags::ACK,
        ] {
            let packet = s.segment(&s.client(), &s.cluster_ip(), flags);
            s.arrives(packet, &s.client(), &s.cluster_ip());
        }
        assert_eq!(s.reason(Reason::MidFlowWithoutRecord), 4);
        assert_eq!(s.reason(Reason::Opened), 0);
    }
}

#[test]
fn an_established_connection_stays_with_a_backend_that_is_gone() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    s.leaves(s.data(&backend, &client), &frontend, &client);
    with_second_backend(&mut s);
    s.world.tables.remove_backend(s.backend);
    s.arrives(s.data(&client, &frontend), &client, &backend);
    s.leaves(s.data(&backend, &client), &frontend, &client);
}

#[test]
fn a_udp_conversation_moves_at_once_from_a_backend_that_is_gone() {
    for family in FAMILIES {
        let mut s = Scene::new(family, Protocol::UDP);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        s.leaves(s.data(&backend, &client), &frontend, &client);
        let second = with_second_backend(&mut s);
        s.world.tables.remove_backend(s.backend);
        s.arrives(s.data(&client, &frontend), &client, &second);
        assert_eq!(s.reason(Reason::MovedFromGoneBackend), 1);
    }
}

#[test]
fn a_client_hears_the_backend_itself_from_the_port_of_a_conversation_that_is_over() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::TCP);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        s.leaves(s.data(&backend, &client), &frontend, &client);
        let end = TcpFlags::FIN | TcpFlags::ACK;
        s.arrives(s.segment(&client, &frontend, end), &client, &backend);
        s.leaves(s.segment(&backend, &client, end), &frontend, &client);
        // As a socket does whose destination is translated before there is a packet.
        s.leaves(s.opening(&client, &backend), &client, &backend);
        s.leaves(s.data(&backend, &client), &backend, &client);
    }
}

#[test]
fn a_retransmitted_syn_keeps_its_backend() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    for _ in 0..20 {
        with_second_backend(&mut s);
    }
    for seconds in [1, 2] {
        s.seconds_pass(seconds);
        s.arrives(s.opening(&client, &frontend), &client, &backend);
    }
    assert_eq!(s.reason(Reason::Rebalanced), 0);
}

#[test]
fn a_syn_on_a_flow_that_was_never_answered_is_balanced_afresh() {
    let mut s = Scene::new(Family::V4, Protocol::TCP);
    let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    // Retransmissions do not make the attempt younger.
    s.seconds_pass(3);
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    with_second_backend(&mut s);
    let second = s.family.end(3, 10, 8080);
    let mut moved = false;
    for _ in 0..20 {
        s.seconds_pass(5);
        let mut packet = s.opening(&client, &frontend);
        assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Continue);
        moved |= ends(&packet).1 == second;
    }
    assert!(moved, "twenty attempts met the first backend");
    assert_eq!(s.reason(Reason::Rebalanced), 20);
}

#[test]
fn a_syn_on_a_flow_whose_backend_is_gone_is_balanced_afresh() {
    let mut s = Scene::new(Family::V6, Protocol::TCP);
    let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
    s.arrives(s.opening(&client, &frontend), &client, &backend);
    let second = with_second_backend(&mut s);
    s.world.tables.remove_backend(s.backend);
    s.arrives(s.opening(&client, &frontend), &client, &second);
    assert_eq!(s.reason(Reason::Rebalanced), 1);
}

#[test]
fn a_client_that_talks_to_the_backend_itself_is_not_masqueraded() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::TCP);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.node_port());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        assert_ne!(snat, client);
        let reset = s.segment(&backend, &snat, TcpFlags::RST);
        s.arrives(reset, &backend, &client);
        let reset = s.segment(&backend, &client, TcpFlags::RST);
        s.leaves(reset, &frontend, &client);
        s.leaves(s.opening(&client, &backend), &client, &backend);
    }
}

#[test]
fn a_syn_on_a_closing_flow_is_balanced_afresh() {
    for flags in [TcpFlags::FIN | TcpFlags::ACK, TcpFlags::RST] {
        let s = Scene::new(Family::V4, Protocol::TCP);
        let (client, backend, frontend) = (s.client(), s.backend_end(), s.cluster_ip());
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        s.leaves(s.data(&backend, &client), &frontend, &client);
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        assert_eq!(s.reason(Reason::Rebalanced), 0);
        s.leaves(s.segment(&backend, &client, flags), &frontend, &client);
        s.arrives(s.opening(&client, &frontend), &client, &backend);
        assert_eq!(s.reason(Reason::Rebalanced), 1);
    }
}

#[test]
fn udp_to_a_node_port_that_belongs_to_a_host_socket_is_left_alone() {
    for family in FAMILIES {
        let s = Scene::new(family, Protocol::UDP);
        let node_port = s.node_port();
        let end = (node_port.addr.into(), node_port.port.number());
        s.world.host_sockets.borrow_mut().insert(end);
        s.arrives(s.opening(&s.client(), &node_port), &s.client(), &node_port);
        assert_eq!(s.reason(Reason::HostSocket), 1);
    }
}

#[test]
fn a_local_policy_without_a_local_endpoint_is_silent() {
    let mut s = Scene::with_flags(
        Family::V4,
        Protocol::TCP,
        crate::table::ServiceFlags::EXTERNAL_LOCAL,
    );
    with_second_backend(&mut s);
    s.world.tables.remove_backend(s.backend);
    let mut packet = s.opening(&s.client(), &s.node_port());
    assert_eq!(s.world.ingress(&mut packet, DEVICE), Verdict::Drop);
    assert_eq!(s.reason(Reason::DroppedNoLocalEndpoint), 1);
    assert_eq!(s.world.tables.counters.borrow()[&s.service].tc_dropped, 1);
}

#[test]
fn a_client_s_port_is_free_for_another_frontend_once_its_conversation_is_over() {
    for family in FAMILIES {
        let mut s = Scene::new(family, Protocol::TCP);
        let (client, backend, node_port) = (s.client(), s.backend_end(), s.node_port());
        let external = family.end(8, 9, 80);
        let kind = FrontendKind::ExternalIp;
        (s.world.tables).add_frontend(s.service, &external, Protocol::TCP, kind);
        s.arrives(s.opening(&client, &node_port), &client, &backend);
        let snat = s.leaves_from(s.opening(&client, &backend));
        s.leaves(s.data(&backend, &client), &node_port, &client);
        let refused = |s: &Scene| {
            let mut packet = s.opening(&client, &external);
            s.world.ingress(&mut packet, DEVICE) == Verdict::Drop
        };
        assert!(refused(&s), "two live conversations are alike at egress");
        let fin = TcpFlags::FIN | TcpFlags::ACK;
        s.arrives(s.segment(&client, &node_port, fin), &client, &backend);
        assert!(refused(&s), "the backend may still have something to say");
        s.leaves(s.segment(&backend, &client, fin), &node_port, &client);
        s.arrives(s.opening(&client, &external), &client, &backend);
        s.leaves_from(s.opening(&client, &backend));
        s.leaves(s.data(&backend, &client), &external, &client);
        assert_ne!(snat, client);
    }
}
