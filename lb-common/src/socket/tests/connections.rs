//! `connect`, `getpeername`, release.

use super::*;
use crate::feature::Feature;
use crate::socket::{getpeername, release};
use crate::table::{
    ConfigFlags, EmptyAction, LocalAddress, ServiceFlags, SocketMode, UnconnectedSocket, Window,
};
use zerocopy::FromZeros;

#[test]
fn a_connection_is_translated_counted_and_shows_the_frontend() {
    for asked in family(8, 1, 80) {
        for protocol in [TCP, UDP] {
            let mut world = World::new();
            let served = world.serve(asked, protocol, 1);
            let (backend, to) = served.backends[0];
            let socket = world.socket(POD);
            assert_eq!(sent(socket.connect(asked, protocol)), to);
            assert_eq!(getpeername(&socket, &to), Some(asked));
            assert_eq!(world.counts(served.service), (1, 0, 0));
            assert_eq!(world.backend_counts(backend), (1, 0));
            release(&world.tables, &socket);
            assert_eq!(world.counts(served.service), (1, 1, 0));
            assert_eq!(world.backend_counts(backend), (1, 1));
        }
    }
}

#[test]
fn a_peer_that_is_not_the_record_s_backend_is_shown_as_it_is() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, TCP, 1);
    let (_, to) = served.backends[0];
    let socket = world.socket(POD);
    assert_eq!(getpeername(&socket, &to), None);
    let _ = socket.connect(asked, TCP);
    let other_port = Endpoint {
        port: Port::new(81),
        ..to
    };
    assert_eq!(getpeername(&socket, &other_port), None);
    assert_eq!(getpeername(&socket, &end("10.0.1.2", 8080)), None);
    // The backend itself, asked for by its own address.
    assert_eq!(socket.connect(to, TCP), SocketVerdict::Untouched);
    assert_eq!(getpeername(&socket, &to), None);
    assert_eq!(world.counts(served.service), (1, 1, 0));
}

#[test]
fn connecting_again_ends_the_earlier_connection_and_begins_another() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let [other, _] = family(8, 2, 80);
    let (one, two) = (world.serve(asked, UDP, 1), world.serve(other, UDP, 2));
    let socket = world.socket(POD);
    let _ = sent(socket.connect(asked, UDP));
    socket.connected.set(true);
    let to = sent(socket.connect(other, UDP));
    assert_eq!(getpeername(&socket, &to), Some(other));
    assert_eq!(world.counts(one.service), (1, 1, 0));
    assert_eq!(world.counts(two.service), (1, 0, 0));
    let _ = sent(socket.connect(other, UDP));
    assert_eq!(world.counts(two.service), (2, 1, 0));
}

#[test]
fn a_refused_connect_ends_the_earlier_connection_only_where_the_kernel_did() {
    for connected in [true, false] {
        let mut world = World::new();
        let [asked, _] = family(8, 1, 80);
        let [empty, _] = family(8, 2, 80);
        let one = world.serve(asked, UDP, 1);
        let none = world.serve(empty, UDP, 0);
        let socket = world.socket(POD);
        let to = sent(socket.connect(asked, UDP));
        socket.connected.set(connected);
        assert_eq!(socket.connect(empty, UDP), SocketVerdict::Refuse);
        assert_eq!(getpeername(&socket, &to), connected.then_some(asked));
        let closed = u64::from(!connected);
        assert_eq!(world.counts(one.service), (1, closed, 0));
        assert_eq!(world.counts(none.service), (0, 0, 1));
        assert_eq!(world.reason(Reason::RejectedNoEndpoint), 1);
    }
}

#[test]
fn a_kernel_without_the_helper_leaves_the_refusal_to_the_packet_path() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, TCP, 0);
    let socket = world.socket(POD);
    socket.features.set(Feature::NETNS_COOKIE_IN_SOCKOPS);
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketRejectLeftToPacketPath), 1);
    assert_eq!(world.counts(served.service), (0, 0, 0));
}

#[test]
fn a_drop_is_left_to_the_packet_path() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, TCP, 0);
    let record = &mut world.tables.services[served.service.0 as usize];
    record.cluster = Window::empty(EmptyAction::Drop, 1).to_word();
    let verdict = world.socket(POD).connect(asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketDropLeftToPacketPath), 1);
}

#[test]
fn tables_that_change_too_fast_translate_nothing() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    world.serve(asked, TCP, 2);
    for slot in &mut world.tables.slots {
        slot.generation = 99;
    }
    let verdict = world.socket(POD).connect(asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::WindowUnstable), 1);
}

#[test]
fn a_frontend_whose_service_is_not_there_is_counted() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let nobody = ServiceId(99);
    world
        .tables
        .add_frontend(nobody, &asked, TCP, FrontendKind::ClusterIp);
    let verdict = world.socket(POD).connect(asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::TableInconsistent), 1);
}

#[test]
fn a_socket_without_room_for_a_record_goes_untranslated_counted() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, TCP, 1);
    let socket = world.socket(POD);
    socket.room.set(false);
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 1);
    assert_eq!(world.counts(served.service), (0, 0, 0));
    release(&world.tables, &socket);
}

#[test]
fn an_undefined_port_of_a_service_address_is_refused_and_a_free_address_left_to_the_packet_path() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    world.serve(asked, TCP, 1);
    world.tables.add_any_port(asked.addr);
    let cidr = crate::addr::Prefix::new("10.0.8.0".parse().unwrap(), 24);
    world.tables.config.set_service_cidrs(&[cidr]);
    let other = end("10.0.8.1", 81);
    let free = end("10.0.8.9", 80);
    let socket = world.socket(POD);
    assert_eq!(socket.connect(other, TCP), SocketVerdict::Refuse);
    assert_eq!(socket.send(other), SocketVerdict::Refuse);
    assert_eq!(world.reason(Reason::RejectedUndefinedPort), 2);
    assert_eq!(socket.connect(free, TCP), SocketVerdict::Untouched);
    assert_eq!(socket.send(free), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketDropLeftToPacketPath), 2);
    socket.features.set(0);
    assert_eq!(socket.connect(other, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketRejectLeftToPacketPath), 1);
}

#[test]
fn source_ranges_are_asked_of_a_known_source_and_else_the_packet_path_decides() {
    let mut world = World::new();
    let service = world.tables.add_service(0, 0);
    let to = end("10.0.1.1", 8080);
    world.tables.add_backend(service, &to, TCP, true);
    let asked = end("203.0.113.9", 80);
    let allowed = crate::addr::Prefix::new("10.0.1.0".parse().unwrap(), 24);
    world
        .tables
        .add_guarded_frontend(service, &asked, TCP, &[allowed]);
    let socket = world.socket(POD);
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketClientUnknown), 1);
    let known = |v4| crate::table::NamespaceAddresses {
        v4: addr(v4),
        v6: Addr::UNSPECIFIED,
    };
    let learn = |v4| world.tables.namespaces.borrow_mut().insert(POD, known(v4));
    learn("10.0.1.5");
    assert_eq!(sent(socket.connect(asked, TCP)), to);
    learn("10.0.2.5");
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketDropLeftToPacketPath), 1);
}

#[test]
fn only_tcp_and_udp_are_balanced() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    for protocol in [Protocol(0), Protocol(132)] {
        world.serve(asked, protocol, 1);
        let verdict = world.socket(POD).connect(asked, protocol);
        assert_eq!(verdict, SocketVerdict::Untouched);
    }
    world.serve(asked, TCP, 1);
    let _ = sent(world.socket(POD).connect(asked, TCP));
    let verdict = world.socket(POD).connect(asked, UDP);
    assert_eq!(verdict, SocketVerdict::Untouched, "another protocol");
}

#[test]
fn a_process_that_is_opted_out_is_left_to_the_packet_path() {
    for (flag, opted_out, served) in [
        (ConfigFlags::OPT_OUT, true, false),
        (ConfigFlags::OPT_OUT, false, true),
        (0, true, true),
    ] {
        let mut world = World::new();
        world.tables.config.flags |= flag;
        let [asked, _] = family(8, 1, 80);
        world.serve(asked, TCP, 1);
        let socket = world.socket(POD);
        socket.opted_out.set(opted_out);
        let translated = matches!(socket.connect(asked, TCP), SocketVerdict::Translate(_));
        assert_eq!(translated, served, "{flag} {opted_out}");
    }
}

#[test]
fn the_modes_choose_whose_sockets_are_balanced() {
    for (mode, pod, host) in [
        (SocketMode::All, true, true),
        (SocketMode::HostOnly, false, true),
        (SocketMode::Off, false, false),
    ] {
        // The host as the kernel's first namespace, and as another one.
        for (namespace, first) in [(HOST, 0), (42, 42)] {
            let mut world = World::new();
            world.tables.config.socket_mode = mode as u32;
            world.tables.config.host_namespace = first;
            let [asked, _] = family(8, 1, 80);
            world.serve(asked, TCP, 1);
            for (namespace, served) in [(POD, pod), (namespace, host)] {
                let verdict = world.socket(namespace).connect(asked, TCP);
                let translated = matches!(verdict, SocketVerdict::Translate(_));
                assert_eq!(translated, served, "{mode:?} {namespace}");
            }
        }
    }
}

#[test]
fn node_ports_are_those_of_this_node_s_addresses_and_of_loopback_for_the_host() {
    let mut world = World::new();
    let service = world.tables.add_service(0, 0);
    for (of, backend) in family(8, 1, 80).into_iter().zip(family(1, 1, 8080)) {
        world.tables.add_backend(service, &backend, TCP, true);
        let port = Port::new(30_080);
        world.tables.add_node_port(service, &of.addr, port, TCP);
    }
    world.tables.add_node_address("10.0.0.1".parse().unwrap());
    world.tables.add_node_address("fd00::1".parse().unwrap());
    let chosen_out = LocalAddress { flags: 0 };
    world.tables.local.insert(addr("10.0.0.2"), chosen_out);
    let served = |world: &World, namespace, text: &str| {
        let verdict = world.socket(namespace).connect(end(text, 30_080), TCP);
        matches!(verdict, SocketVerdict::Translate(_))
    };
    for (text, pod, host, host_on_loopback) in [
        ("10.0.0.1", true, true, true),
        ("fd00::1", true, true, true),
        ("10.0.0.2", false, false, false),
        ("10.0.0.3", false, false, false),
        ("127.0.0.1", false, false, true),
        ("127.3.2.1", false, false, true),
        ("0.0.0.0", false, false, true),
        ("::1", false, false, false),
        ("::", false, false, false),
    ] {
        world.tables.config.flags = 0;
        assert_eq!(served(&world, POD, text), pod, "a pod asks {text}");
        assert_eq!(served(&world, HOST, text), host, "the host asks {text}");
        world.tables.config.flags = ConfigFlags::LOCALHOST_NODE_PORTS;
        assert_eq!(served(&world, POD, text), pod, "a pod asks {text}");
        assert_eq!(served(&world, HOST, text), host_on_loopback, "{text}");
    }
}

#[test]
fn external_local_gives_pods_the_cluster_set_and_sockets_of_elsewhere_the_local_one() {
    use crate::addr::Prefix;
    let mut world = World::new();
    let service = world.tables.add_service(ServiceFlags::EXTERNAL_LOCAL, 0);
    let far = end("10.0.3.1", 8080);
    world.tables.add_backend(service, &far, TCP, false);
    let asked = end("198.51.100.7", 80);
    world
        .tables
        .add_frontend(service, &asked, TCP, FrontendKind::ExternalIp);
    let pods = Prefix::new("10.0.1.0".parse().unwrap(), 24);
    world.tables.config.pods_v4 = pods;
    // Without a local detector nobody is a pod, and nobody is here: silence, which tc gives.
    let verdict = world.socket(POD).connect(asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    world.tables.config.flags = ConfigFlags::DETECT_PODS_V4;
    assert_eq!(sent(world.socket(POD).connect(asked, TCP)), far);
    assert_eq!(sent(world.socket(HOST).connect(asked, TCP)), far);
    let socket = world.socket(POD);
    socket.source.set(addr("10.0.1.5"));
    assert_eq!(sent(socket.connect(asked, TCP)), far);
    // Bound to an address that is no pod's, or in a namespace known by one.
    socket.source.set(addr("192.0.2.1"));
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    let known = crate::table::NamespaceAddresses {
        v4: addr("192.0.2.1"),
        v6: Addr::UNSPECIFIED,
    };
    world.tables.namespaces.borrow_mut().insert(POD, known);
    let verdict = world.socket(POD).connect(asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketDropLeftToPacketPath), 3);
}

#[test]
fn release_ends_every_conversation_once_and_nothing_that_never_was() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, UDP, 1);
    let socket = world.socket(POD);
    let mut table = Box::new(UnconnectedSocket::new_zeroed());
    table.used = 3;
    table.entries[1].service = served.service;
    table.entries[1].backend = served.backends[0].0;
    // At and above `used` is what an earlier life of the memory left.
    table.entries[3] = table.entries[1];
    *socket.conversations.borrow_mut() = Some(table);
    release(&world.tables, &socket);
    assert_eq!(world.counts(served.service), (0, 1, 0));
}

#[test]
fn a_pod_s_connected_udp_to_a_port_of_the_packet_path_is_left_to_it() {
    for network in [8, 9] {
        let mut world = World::new();
        let [v4, v6] = family(network, 1, 53);
        for asked in [v4, v6] {
            for protocol in [TCP, UDP] {
                world.serve(asked, protocol, 1);
            }
            world.tables.config.set_packet_path_udp_ports(&[5353, 53]);
            let of_pod = world.socket(POD);
            assert_eq!(of_pod.connect(asked, UDP), SocketVerdict::Untouched);
            // What it then sends by name goes where it is connected to.
            of_pod.connected.set(true);
            assert_eq!(of_pod.send(asked), SocketVerdict::Untouched);
            assert!(of_pod.conversations.borrow().is_none());
            // Everybody else is served as ever.
            sent(world.socket(POD).connect(asked, TCP));
            sent(world.socket(POD).send(asked));
            sent(world.socket(HOST).connect(asked, UDP));
        }
        assert_eq!(world.reason(Reason::SocketUdpLeftToPacketPath), 2);
    }
}

#[test]
fn no_port_is_left_to_the_packet_path_unless_it_is_named() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 53);
    world.serve(asked, UDP, 1);
    sent(world.socket(POD).connect(asked, UDP));
    world.tables.config.set_packet_path_udp_ports(&[5353]);
    let socket = world.socket(POD);
    let to = sent(socket.connect(asked, UDP));
    let record = *socket.record.borrow();
    // One that was translated before its port was named goes on.
    world.tables.config.set_packet_path_udp_ports(&[53]);
    let again = world.socket(POD);
    *again.record.borrow_mut() = record;
    again.connected.set(true);
    assert_eq!(sent(again.send(asked)), to);
}

#[test]
fn a_udp_socket_is_entered_under_its_cookie_while_its_record_speaks_for_it() {
    for number in 0..2 {
        let mut world = World::new();
        let asked = family(8, 1, 80)[number];
        let (udp, tcp) = (world.serve(asked, UDP, 1), world.serve(asked, TCP, 1));
        let socket = world.socket(POD);
        sent(socket.connect(asked, UDP));
        assert_eq!(socket.peer.get(), Some(udp.backends[0].0));
        // To an address that is nobody's: what is entered would speak for another connection.
        let _ = socket.connect(udp.backends[0].1, UDP);
        assert_eq!(socket.peer.get(), None);
        sent(socket.connect(asked, UDP));
        assert!(socket.peer.get().is_some());
        release(&world.tables, &socket);
        assert_eq!(socket.peer.get(), None);
        // TCP sockets are never closed by us.
        let socket = world.socket(POD);
        sent(socket.connect(asked, TCP));
        assert_eq!(socket.peer.get(), None);
        assert_eq!(world.counts(tcp.service), (1, 0, 0));
    }
}

#[test]
fn without_room_for_its_entry_a_udp_socket_is_left_to_the_packet_path() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, UDP, 1);
    let socket = world.socket(POD);
    sent(socket.connect(asked, UDP));
    socket.room_for_peer.set(false);
    assert_eq!(socket.connect(asked, UDP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 1);
    // The earlier connection has ended.
    assert_eq!(world.counts(served.service), (1, 1, 0));
    assert_eq!(socket.peer.get(), None);
    // Nor is an entry left where the record has no room.
    let socket = world.socket(POD);
    socket.room.set(false);
    assert_eq!(socket.connect(asked, UDP), SocketVerdict::Untouched);
    assert_eq!(socket.peer.get(), None);
}
