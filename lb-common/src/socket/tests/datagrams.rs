//! `sendmsg` and `recvmsg`.

use super::*;
use crate::addr::Tick;
use crate::feature::Feature;
use crate::socket::{IDLE_SECONDS, release};
use crate::table::{BackendState, CONVERSATIONS, Conversation, Membership, ServiceFlags};
use std::collections::BTreeSet;

const NODE_PORT: u16 = 30_080;

#[test]
fn a_datagram_is_translated_and_its_answer_shows_the_frontend() {
    for asked in family(8, 1, 80) {
        let mut world = World::new();
        let served = world.serve(asked, UDP, 1);
        let socket = world.socket(POD);
        let to = sent(socket.send(asked));
        assert_eq!(to, served.backends[0].1);
        assert_eq!(socket.receive(to), asked);
        let other_port = Endpoint {
            port: Port::new(81),
            ..to
        };
        assert_eq!(socket.receive(other_port), other_port);
        let stranger = end("192.0.2.1", 8080);
        assert_eq!(socket.receive(stranger), stranger);
        assert_eq!(world.counts(served.service), (1, 0, 0));
        release(&world.tables, &socket);
        assert_eq!(world.counts(served.service), (1, 1, 0));
        assert_eq!(world.backend_counts(served.backends[0].0), (1, 1));
    }
}

#[test]
fn a_conversation_keeps_its_backend_while_datagrams_go_either_way() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, UDP, 5);
    let socket = world.socket(POD);
    let to = sent(socket.send(asked));
    let almost = Tick::seconds(IDLE_SECONDS) - 1;
    for _ in 0..30 {
        world.pass(almost);
        assert_eq!(sent(socket.send(asked)), to);
        world.pass(almost);
        assert_eq!(socket.receive(to), asked);
    }
    assert_eq!(world.counts(served.service), (1, 0, 0));
    let mut others = BTreeSet::new();
    for _ in 0..100 {
        world.pass(almost + 1);
        others.insert(sent(socket.send(asked)).addr.0);
    }
    assert_eq!(others.len(), 5);
    assert_eq!(world.counts(served.service), (101, 100, 0));
}

#[test]
fn a_conversation_moves_when_its_backend_may_no_longer_serve_it() {
    type Change = fn(&mut HostTables, BackendId);
    let changes: [(&str, Change); 5] = [
        ("gone", |tables, id| tables.remove_backend(id)),
        ("another service's", |tables, id| {
            tables.backends[id.0 as usize].service = ServiceId(77);
        }),
        ("out of the set", |tables, id| {
            tables.backends[id.0 as usize].member = Membership::LOCAL;
        }),
        ("another address", |tables, id| {
            tables.backends[id.0 as usize].addr = addr("10.0.1.99");
        }),
        ("another port", |tables, id| {
            tables.backends[id.0 as usize].port = Port::new(99);
        }),
    ];
    for (what, change) in changes {
        let mut world = World::new();
        let [asked, _] = family(8, 1, 80);
        let served = world.serve(asked, UDP, 3);
        let (conversations, earlier) = {
            let socket = world.socket(POD);
            let to = sent(socket.send(asked));
            (socket.conversations.take(), to)
        };
        let used = served.backends.iter().find(|(_, end)| *end == earlier);
        change(&mut world.tables, used.unwrap().0);
        let socket = world.socket(POD);
        *socket.conversations.borrow_mut() = conversations;
        for _ in 0..20 {
            let _ = socket.send(asked);
        }
        assert_ne!(world.counts(served.service), (1, 0, 0), "{what}");
    }
}

#[test]
fn a_draining_backend_keeps_its_conversations() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, UDP, 3);
    for backend in &mut world.tables.backends {
        backend.state = BackendState::Draining as u8;
    }
    let socket = world.socket(POD);
    let to = sent(socket.send(asked));
    for _ in 0..20 {
        assert_eq!(sent(socket.send(asked)), to);
    }
    assert_eq!(world.counts(served.service), (1, 0, 0));
}

#[test]
fn a_local_policy_keeps_conversations_in_the_local_set() {
    let mut world = World::new();
    let service = world.tables.add_service(ServiceFlags::INTERNAL_LOCAL, 0);
    let near = end("10.0.1.1", 8080);
    let asked = end("10.0.8.1", 80);
    world.tables.add_backend(service, &near, UDP, true);
    world
        .tables
        .add_backend(service, &end("10.0.3.1", 8080), UDP, false);
    world
        .tables
        .add_frontend(service, &asked, UDP, FrontendKind::ClusterIp);
    let socket = world.socket(POD);
    for _ in 0..20 {
        assert_eq!(sent(socket.send(asked)), near);
    }
    assert_eq!(world.counts(service), (1, 0, 0));
}

#[test]
fn services_on_the_same_backends_are_told_apart_by_other_backends() {
    let mut world = World::new();
    let asked: Vec<_> = (1..=4).map(|number| family(8, number, 80)[0]).collect();
    for one in &asked {
        world.serve(*one, UDP, 4);
    }
    let socket = world.socket(POD);
    let used: BTreeSet<_> = asked
        .iter()
        .map(|one| {
            let to = sent(socket.send(*one));
            assert_eq!(socket.receive(to), *one);
            to.addr.0
        })
        .collect();
    assert_eq!(used.len(), 4);
}

#[test]
fn a_service_that_cannot_be_told_apart_is_left_to_the_packet_path_until_the_other_is_idle() {
    let mut world = World::new();
    let ([one, _], [two, _]) = (family(8, 1, 80), family(8, 2, 80));
    let (first, second) = (world.serve(one, UDP, 1), world.serve(two, UDP, 1));
    let socket = world.socket(POD);
    let to = sent(socket.send(one));
    world.pass(Tick::seconds(IDLE_SECONDS) - 1);
    assert_eq!(socket.send(two), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketAmbiguous), 1);
    assert_eq!(world.counts(second.service), (0, 0, 0));
    world.pass(1);
    assert_eq!(sent(socket.send(two)), to);
    assert_eq!(socket.receive(to), two);
    assert_eq!(world.counts(first.service), (1, 1, 0));
    assert_eq!(world.counts(second.service), (1, 0, 0));
}

#[test]
fn affinity_forbids_another_backend_than_the_client_s() {
    let mut world = World::new();
    let [one, _] = family(8, 1, 80);
    let [two, _] = family(8, 2, 80);
    world.serve(one, UDP, 1);
    let second = world.serve(two, UDP, 4);
    world.tables.services[second.service.0 as usize].affinity_seconds = 100;
    let client = addr("10.0.1.77");
    let key = crate::table::AffinityKey::for_address(second.service, client);
    let mine = crate::table::Affinity {
        backend: second.backends[0].0,
        last_use: world.env.now.get(),
    };
    world.tables.affinity.borrow_mut().insert(key, mine);
    let socket = world.socket(POD);
    let _ = sent(socket.send(one));
    for _ in 0..10 {
        let verdict = socket.send_from(client, two);
        assert_eq!(verdict, SocketVerdict::Untouched);
    }
    assert_eq!(world.reason(Reason::SocketAmbiguous), 10);
}

#[test]
fn a_full_store_takes_the_place_of_an_idle_conversation_and_else_leaves_to_the_packet_path() {
    let mut world = World::new();
    let port = |number: usize| u16::try_from(1000 + number).unwrap();
    let mut services = Vec::new();
    for number in 0..=CONVERSATIONS {
        let asked = end("10.0.8.1", port(number));
        let service = world.tables.add_service(0, 0);
        let backend = end("10.0.1.1", port(number));
        world.tables.add_backend(service, &backend, UDP, true);
        let kind = FrontendKind::ClusterIp;
        world.tables.add_frontend(service, &asked, UDP, kind);
        services.push((asked, backend, service));
    }
    let socket = world.socket(POD);
    let (extra, all) = services.split_last().unwrap();
    for (asked, backend, _) in all {
        assert_eq!(sent(socket.send(*asked)), *backend);
    }
    for (asked, backend, _) in all {
        assert_eq!(socket.receive(*backend), *asked);
    }
    assert_eq!(socket.send(extra.0), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 1);
    world.pass(Tick::seconds(IDLE_SECONDS));
    for (asked, backend, _) in &all[1..] {
        assert_eq!(socket.receive(*backend), *asked);
    }
    assert_eq!(sent(socket.send(extra.0)), extra.1);
    assert_eq!(world.counts(all[0].2), (1, 1, 0), "the idle one ended");
    release(&world.tables, &socket);
    for (_, _, service) in &services {
        assert_eq!(world.counts(*service), (1, 1, 0));
    }
}

#[test]
fn a_socket_without_room_for_conversations_sends_untranslated_counted() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    world.serve(asked, UDP, 1);
    let socket = world.socket(POD);
    socket.room.set(false);
    assert_eq!(socket.send(asked), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 1);
}

#[test]
fn a_datagram_to_a_service_without_endpoints_is_refused() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    let served = world.serve(asked, UDP, 0);
    let socket = world.socket(POD);
    assert_eq!(socket.send(asked), SocketVerdict::Refuse);
    assert_eq!(world.counts(served.service), (0, 0, 1));
    socket.features.set(Feature::NETNS_COOKIE_IN_SOCKOPS);
    assert_eq!(socket.send(asked), SocketVerdict::Untouched);
}

#[test]
fn a_connected_socket_that_names_its_service_stays_with_its_peer() {
    let mut world = World::new();
    let ([asked, _], [other, _]) = (family(8, 1, 80), family(8, 2, 80));
    let another_port = Endpoint {
        port: Port::new(81),
        ..asked
    };
    let served = world.serve(asked, UDP, 6);
    world.serve(other, UDP, 6);
    world.serve(another_port, UDP, 6);
    let socket = world.socket(POD);
    let to = sent(socket.connect(asked, UDP));
    socket.connected.set(true);
    for _ in 0..20 {
        assert_eq!(sent(socket.send(asked)), to);
    }
    assert_eq!(world.counts(served.service), (1, 0, 0));
    assert_eq!(socket.receive(to), asked);
    // Disconnected without a hook: the record speaks for nobody.
    socket.connected.set(false);
    assert_eq!(socket.receive(to), to);
    socket.connected.set(true);
    for different in [other, another_port] {
        let _ = sent(socket.send(different));
    }
    assert_eq!(
        world.reason(Reason::Opened),
        3,
        "conversations of their own"
    );
    socket.connected.set(false);
    let _ = socket.send(asked);
    assert_eq!(world.reason(Reason::Opened), 4);
}

/// A service on [`NODE_PORT`] for UDP and TCP, here and on loopback.
fn with_node_port() -> (World, Endpoint) {
    let mut world = World::new();
    let asked = end("10.0.0.1", NODE_PORT);
    let service = world.tables.add_service(0, 0);
    let backend = end("10.0.1.1", 8080);
    world.tables.add_backend(service, &backend, UDP, true);
    world
        .tables
        .add_node_port(service, &asked.addr, asked.port, UDP);
    world.tables.add_node_address("10.0.0.1".parse().unwrap());
    (world, asked)
}

#[test]
fn an_answer_to_a_host_socket_on_the_node_port_is_no_request() {
    let (world, asker) = with_node_port();
    for namespace in [POD, HOST] {
        let socket = world.socket(namespace);
        assert_eq!(socket.receive(asker), asker);
        assert_eq!(socket.send(asker), SocketVerdict::Untouched);
        // Its next question is shown as it is as well.
        assert_eq!(socket.receive(asker), asker);
        release(&world.tables, &socket);
    }
    assert_eq!(world.reason(Reason::HostSocket), 2);
    assert_eq!(world.reason(Reason::Opened), 0);
    assert_eq!(world.counts(ServiceId(0)), (0, 0, 0));
    assert!(world.tables.backend_counters.borrow().is_empty());
}

#[test]
fn a_host_socket_that_has_not_asked_for_long_is_a_node_port_again() {
    let (world, asker) = with_node_port();
    let socket = world.socket(POD);
    assert_eq!(socket.receive(asker), asker);
    world.pass(Tick::seconds(IDLE_SECONDS));
    let to = sent(socket.send(asker));
    assert_eq!(socket.receive(to), asker);
    assert_eq!(sent(socket.send(asker)), to);
}

#[test]
fn only_what_is_a_node_port_is_remembered_to_have_asked() {
    let (mut world, asker) = with_node_port();
    let cluster_ip = end("10.0.8.1", NODE_PORT);
    world.serve(cluster_ip, UDP, 1);
    let remembers = |world: &World, source, connected| {
        let socket = world.socket(POD);
        socket.connected.set(connected);
        assert_eq!(socket.receive(source), source);
        let found = socket
            .conversations
            .borrow()
            .as_ref()
            .map(|table| table.entries[0]);
        found.is_some_and(|entry: Conversation| entry.backend == Conversation::OTHER_ASKED)
    };
    assert!(remembers(&world, asker, false));
    assert!(!remembers(&world, asker, true), "it hears its peer only");
    assert!(!remembers(&world, cluster_ip, false));
    assert!(!remembers(&world, end("10.0.0.2", NODE_PORT), false));
    assert!(!remembers(&world, end("10.0.0.1", NODE_PORT + 1), false));
    for (first, last, inside) in [
        (NODE_PORT, NODE_PORT, true),
        (NODE_PORT + 1, NODE_PORT + 2, false),
        (NODE_PORT - 2, NODE_PORT - 1, false),
    ] {
        world.tables.config.node_port_first = first;
        world.tables.config.node_port_last = last;
        assert_eq!(remembers(&world, asker, false), inside);
    }
}
