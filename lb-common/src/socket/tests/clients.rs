//! Who asks: affinity and what is learnt of namespaces.

use super::*;
use crate::feature::Feature;
use crate::socket::source_chosen;
use crate::table::{Affinity, AffinityKey, ConnectedSocket, NamespaceAddresses};

const TIMEOUT: u32 = 100;

/// A service with affinity and eight backends, and the pod's address.
fn sticky(asked: Endpoint, protocol: Protocol) -> (World, Served, Addr) {
    let mut world = World::new();
    let served = world.serve(asked, protocol, 8);
    world.tables.services[served.service.0 as usize].affinity_seconds = TIMEOUT;
    let like = usize::from(!asked.addr.is_v4());
    (world, served, family(1, 99, 0)[like].addr)
}

fn remembered(world: &World, key: AffinityKey) -> Option<BackendId> {
    let affinity = world.tables.affinity.borrow();
    affinity.get(&key).map(|entry| entry.backend)
}

/// The kernel chooses a source and sends the SYN.
fn choose(world: &World, socket: &HostSocket<'_>, source: Addr) {
    source_chosen(&world.tables, &world.env, socket, &source, || POD);
}

#[test]
fn before_its_address_is_known_a_namespace_is_one_client() {
    for asked in family(8, 1, 80) {
        let (world, served, _) = sticky(asked, TCP);
        let to = sent(world.socket(POD).connect(asked, TCP));
        for _ in 0..20 {
            assert_eq!(sent(world.socket(POD).connect(asked, TCP)), to);
        }
        let key = AffinityKey::for_namespace(served.service, POD);
        assert!(remembered(&world, key).is_some());
        let others = (0..20).map(|other| sent(world.socket(100 + other).connect(asked, TCP)));
        assert!(others.into_iter().any(|other| other != to));
    }
}

#[test]
fn the_address_adopts_the_choice_when_the_kernel_has_chosen_it() {
    for asked in family(8, 1, 80) {
        let (world, served, address) = sticky(asked, TCP);
        let socket = world.socket(POD);
        let to = sent(socket.connect(asked, TCP));
        choose(&world, &socket, address);
        let key = AffinityKey::for_address(served.service, address);
        let backend = remembered(&world, key).unwrap();
        assert_eq!(world.tables.backends[backend.0 as usize].addr, to.addr);
        let known = world.tables.namespaces.borrow()[&POD];
        assert_eq!(known.of_family(&address), address);
        // From here on it is the address's: the packet path may change it.
        for (backend, end) in &served.backends {
            let entry = Affinity {
                backend: *backend,
                last_use: world.env.now.get(),
            };
            world.pass(1);
            let younger = Affinity {
                last_use: world.env.now.get(),
                ..entry
            };
            world.tables.affinity.borrow_mut().insert(key, younger);
            assert_eq!(sent(world.socket(POD).connect(asked, TCP)), *end);
        }
    }
}

#[test]
fn both_families_of_a_namespace_are_learnt_side_by_side() {
    let (mut world, served, v4) = sticky(family(8, 1, 80)[0], TCP);
    let asked = family(8, 1, 80)[1];
    let six = world.serve(asked, TCP, 2);
    world.tables.services[six.service.0 as usize].affinity_seconds = TIMEOUT;
    let v6 = family(1, 99, 0)[1].addr;
    for (asked, source) in [(served.asked, v4), (six.asked, v6)] {
        let socket = world.socket(POD);
        let _ = sent(socket.connect(asked, TCP));
        choose(&world, &socket, source);
    }
    let expected = NamespaceAddresses { v4, v6 };
    assert_eq!(world.tables.namespaces.borrow()[&POD], expected);
}

#[test]
fn only_a_choice_for_the_namespace_teaches_its_address() {
    let (world, served, address) = sticky(family(8, 1, 80)[0], TCP);
    let asked = served.asked;
    let unknown = |world: &World| world.tables.namespaces.borrow().is_empty();
    let socket = world.socket(POD);
    choose(&world, &socket, address);
    assert!(unknown(&world), "nothing was asked");
    for source in [Addr::UNSPECIFIED, addr("127.0.0.1"), addr("::1")] {
        let _ = sent(socket.connect(asked, TCP));
        choose(&world, &socket, source);
        assert!(unknown(&world), "{source:?}");
    }
    // A bound socket's choice was its address's from the start.
    socket.source.set(address);
    let _ = sent(socket.connect(asked, TCP));
    choose(&world, &socket, address);
    assert!(unknown(&world));
    let ended = ConnectedSocket {
        backend: BackendId(0),
        flags: ConnectedSocket::CHOSEN_FOR_NAMESPACE,
        ..ConnectedSocket::default()
    };
    *socket.record.borrow_mut() = Some(ended);
    choose(&world, &socket, address);
    assert!(unknown(&world), "a connection that ended");
}

#[test]
fn connected_udp_teaches_the_address_with_the_first_answer() {
    let (world, served, address) = sticky(family(8, 1, 80)[0], UDP);
    let socket = world.socket(POD);
    let to = sent(socket.connect(served.asked, UDP));
    socket.connected.set(true);
    socket.source.set(address);
    assert_eq!(socket.receive(to), served.asked);
    let key = AffinityKey::for_address(served.service, address);
    assert!(remembered(&world, key).is_some());
}

#[test]
fn a_known_namespace_inherits_what_it_chose_unless_its_address_chose_later() {
    for (own_age, inherits) in [(None, true), (Some(20), true), (Some(5), false)] {
        let (world, served, address) = sticky(family(8, 1, 80)[0], TCP);
        let now = world.env.now.get();
        let entry = |backend: usize, age: u32| Affinity {
            backend: served.backends[backend].0,
            last_use: crate::addr::Tick(now.0 - age),
        };
        {
            let mut affinity = world.tables.affinity.borrow_mut();
            affinity.insert(
                AffinityKey::for_namespace(served.service, POD),
                entry(1, 10),
            );
            if let Some(age) = own_age {
                affinity.insert(
                    AffinityKey::for_address(served.service, address),
                    entry(2, age),
                );
            }
        }
        let known = NamespaceAddresses {
            v4: address,
            v6: Addr::UNSPECIFIED,
        };
        world.tables.namespaces.borrow_mut().insert(POD, known);
        let to = sent(world.socket(POD).connect(served.asked, TCP));
        let expected = served.backends[if inherits { 1 } else { 2 }].1;
        assert_eq!(to, expected, "{own_age:?}");
    }
}

#[test]
fn a_socket_bound_to_an_address_or_a_datagram_with_a_source_is_that_client() {
    let (world, served, address) = sticky(family(8, 1, 80)[0], UDP);
    let other = addr("10.0.1.98");
    for (index, client) in [address, other].into_iter().enumerate() {
        let key = AffinityKey::for_address(served.service, client);
        let entry = Affinity {
            backend: served.backends[index].0,
            last_use: world.env.now.get(),
        };
        world.tables.affinity.borrow_mut().insert(key, entry);
    }
    let socket = world.socket(POD);
    socket.source.set(address);
    assert_eq!(
        sent(socket.connect(served.asked, UDP)),
        served.backends[0].1
    );
    // IP_PKTINFO names another source than the socket's.
    let verdict = world.socket(POD).send_from(other, served.asked);
    assert_eq!(sent(verdict), served.backends[1].1);
    let key = AffinityKey::for_namespace(served.service, POD);
    assert_eq!(remembered(&world, key), None);
}

#[test]
fn where_the_address_can_never_be_learnt_the_packet_path_decides() {
    let (world, served, address) = sticky(family(8, 1, 80)[0], TCP);
    let socket = world.socket(POD);
    socket.features.set(Feature::SET_RETVAL);
    let verdict = socket.connect(served.asked, TCP);
    assert_eq!(verdict, SocketVerdict::Untouched);
    let verdict = socket.send(served.asked);
    assert_eq!(verdict, SocketVerdict::Untouched, "no UDP here");
    assert_eq!(world.reason(Reason::SocketClientUnknown), 1);
    socket.source.set(address);
    let _ = sent(socket.connect(served.asked, TCP));
}

#[test]
fn a_source_on_loopback_reaches_backends_on_loopback_only() {
    let mut world = World::new();
    let [asked, _] = family(8, 1, 80);
    world.serve(asked, TCP, 1);
    let here = end("10.0.8.2", 80);
    let service = world.tables.add_service(0, 0);
    let to = end("127.0.0.1", 8080);
    world.tables.add_backend(service, &to, TCP, true);
    world
        .tables
        .add_frontend(service, &here, TCP, FrontendKind::ClusterIp);
    let socket = world.socket(HOST);
    socket.source.set(addr("127.0.0.1"));
    assert_eq!(socket.connect(asked, TCP), SocketVerdict::Untouched);
    assert_eq!(world.reason(Reason::SocketLoopbackSource), 1);
    assert_eq!(sent(socket.connect(here, TCP)), to);
}
