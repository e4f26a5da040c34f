//! The socket path in the real kernel: who asks. Session affinity, namespaces whose address is
//! learnt, sockets bound to an address, the modes.

use lb_common::addr::{Addr, BackendId, Endpoint, Protocol, ServiceId, Tick};
use lb_common::feature::Feature;
use lb_common::table::{
    Affinity, AffinityKey, BackendState, FrontendKind, NamespaceAddresses, Service, SocketMode,
};
use lb_common::verdict::Reason;
use lb_lab::{Answer, Place, client};
use lb_tests::kernel::{KernelObject, frontend_key, running_features};
use lb_tests::raw;
use lb_tests::socket_world::{World, namespace_cookie, v4, v6};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

const NAMES: [&str; 3] = ["a", "b", "c"];
const TIMEOUT: u32 = 600;
/// Choices of three that would all be the same by chance once in 3^39.
const MANY: usize = 40;

fn asked() -> [SocketAddr; 2] {
    [v4("10.96.0.1", 80), v6("fd00:10:96::1", 80)]
}

/// The stage on a kernel that learns the addresses of namespaces.
fn learning() -> Option<World> {
    if running_features() & Feature::NETNS_COOKIE_IN_SOCKOPS == 0 {
        eprintln!("skipped: this kernel does not tell the namespace of a connection (5.15)");
        return None;
    }
    Some(World::new(&NAMES))
}

/// The cookie of the client pod's namespace.
fn client_cookie(world: &World) -> u64 {
    let cookie = world.client.place().enter(namespace_cookie).unwrap();
    cookie.expect("a kernel that learns namespaces tells them")
}

/// A service with affinity and three backends.
fn sticky(world: &mut World, asked: SocketAddr, protocol: Protocol) -> (ServiceId, Vec<BackendId>) {
    let id = world.serve(asked, protocol, &[]);
    let endpoints = NAMES.map(|name| world.endpoint(name, asked));
    (id, publish(world, id, protocol, &endpoints))
}

fn publish(
    world: &mut World,
    id: ServiceId,
    protocol: Protocol,
    endpoints: &[Endpoint],
) -> Vec<BackendId> {
    let like = Service {
        affinity_seconds: TIMEOUT,
        ..Service::default()
    };
    world.publish(id, protocol, endpoints, like)
}

/// The client pod's address in the family of `like`.
fn client_address(world: &World, like: SocketAddr) -> Addr {
    world.client.address_like(like.ip()).into()
}

fn remembered(world: &mut World, id: ServiceId, client: Addr) -> Option<Affinity> {
    let key = AffinityKey::for_address(id, client);
    world.kernel.affinity(key).unwrap()
}

/// Who answers a new connection from `place`.
fn tcp(place: &Place, asked: SocketAddr) -> String {
    match place.ask_tcp(asked) {
        Ok(answer) => answer.name,
        Err(error) => panic!("{asked}: {error:#}"),
    }
}

/// Who answers a new socket of the client pod: TCP, connected UDP, unconnected UDP.
fn any_way(world: &World, asked: SocketAddr, protocol: Protocol, way: usize) -> String {
    let place = world.client.place();
    if protocol == Protocol::TCP {
        return tcp(place, asked);
    }
    let answer = if way.is_multiple_of(2) {
        place.ask_udp(asked, 9)
    } else {
        place.ask_udp_unconnected(asked, 9)
    };
    answer.unwrap().name
}

#[test]
fn with_affinity_all_sockets_of_a_client_get_one_backend_of_each_service_port() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            sticky(&mut world, asked, protocol);
            let first = any_way(&world, asked, protocol, 0);
            for way in 1..MANY {
                assert_eq!(any_way(&world, asked, protocol, way), first, "{asked}");
            }
        }
    }
}

#[test]
fn affinity_holds_over_all_frontends_of_a_service_port_and_not_over_its_other_ports() {
    let Some(mut world) = learning() else {
        return;
    };
    for (asked, external) in asked()
        .into_iter()
        .zip([v4("198.51.100.7", 80), v6("2001:db8::7", 80)])
    {
        let (id, _) = sticky(&mut world, asked, Protocol::TCP);
        let key = frontend_key(external, Protocol::TCP);
        world.frontend(key, id, FrontendKind::ExternalIp);
        let first = tcp(world.client.place(), asked);
        for _ in 0..MANY {
            assert_eq!(tcp(world.client.place(), external), first);
        }
        // Thirty other ports: not all of them choose the same.
        let others: BTreeSet<String> = (0..30)
            .map(|number| {
                let other = SocketAddr::new(asked.ip(), 8000 + number);
                sticky(&mut world, other, Protocol::TCP);
                tcp(world.client.place(), other)
            })
            .collect();
        assert!(others.len() > 1);
    }
}

#[test]
fn the_first_choice_of_a_new_namespace_is_adopted_by_its_address_once_that_is_known() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        let (id, backends) = sticky(&mut world, asked, Protocol::TCP);
        let address = client_address(&world, asked);
        assert_eq!(remembered(&mut world, id, address), None);
        let first = tcp(world.client.place(), asked);
        let chosen = backends[NAMES.iter().position(|name| *name == first).unwrap()];
        assert_eq!(
            remembered(&mut world, id, address).map(|entry| entry.backend),
            Some(chosen)
        );
        let cookie = client_cookie(&world);
        let known = world.kernel.namespace(cookie).unwrap().unwrap();
        assert_eq!(known.of_family(&address), address);
    }
}

#[test]
fn a_namespace_that_only_ever_speaks_connected_udp_is_known_by_its_address_after_an_answer() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        let (id, _) = sticky(&mut world, asked, Protocol::UDP);
        let address = client_address(&world, asked);
        world.client.place().ask_udp(asked, 9).unwrap();
        // The socket's own source is looked at when it receives with an address.
        world.client(|| {
            let socket = client::udp_socket(asked)?;
            socket.connect(asked)?;
            socket.send(b"who")?;
            assert_eq!(socket.recv_from(&mut [0; 500])?.1, asked);
            Ok(())
        });
        assert!(remembered(&mut world, id, address).is_some());
    }
}

#[test]
fn what_the_packet_path_chose_for_an_address_holds_at_its_sockets() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        let (id, backends) = sticky(&mut world, asked, Protocol::TCP);
        let address = client_address(&world, asked);
        let cookie = client_cookie(&world);
        let mut known = NamespaceAddresses::default();
        *(if address.is_v4() {
            &mut known.v4
        } else {
            &mut known.v6
        }) = address;
        world.kernel.learn_namespace(cookie, known).unwrap();
        // A choice that is not yet a minute old, of an address's packets.
        tcp(world.client.place(), asked);
        for (name, backend) in NAMES.into_iter().zip(backends) {
            let now = remembered(&mut world, id, address).unwrap().last_use;
            let entry = Affinity {
                backend,
                last_use: now,
            };
            let key = AffinityKey::for_address(id, address);
            world.kernel.remember(key, entry).unwrap();
            for _ in 0..5 {
                assert_eq!(tcp(world.client.place(), asked), name);
            }
        }
    }
}

#[test]
fn a_bound_socket_is_the_client_of_the_address_it_is_bound_to() {
    let mut world = World::new(&NAMES);
    let second: [IpAddr; 2] = [
        "10.244.1.200".parse().unwrap(),
        "fd00:244:1::200".parse().unwrap(),
    ];
    for (asked, second) in asked().into_iter().zip(second) {
        let prefix = if second.is_ipv4() { 32 } else { 128 };
        let (pod, node) = (world.client.namespace(), world.lab.node(0).namespace());
        let nodad = if second.is_ipv4() { "" } else { " nodad" };
        pod.ip(&format!("addr add {second}/{prefix} dev eth0{nodad}"))
            .unwrap();
        let device = world.client.host_device();
        node.ip(&format!("route add {second} dev {device}"))
            .unwrap();
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let (id, _) = sticky(&mut world, asked, protocol);
            world.client(|| {
                if protocol == Protocol::TCP {
                    let socket = raw::tcp(asked)?;
                    raw::bind(&socket, (second, 0).into())?;
                    raw::connect(&socket, asked)?;
                    let answer = client::ask(&TcpStream::from(socket))?;
                    assert_eq!(answer.peer.ip(), second);
                } else {
                    let socket = UdpSocket::bind((second, 0))?;
                    socket.set_read_timeout(Some(client::PATIENCE))?;
                    assert_eq!(client::ask_datagram(&socket, asked, 9)?.peer.ip(), second);
                }
                Ok(())
            });
            assert!(remembered(&mut world, id, second.into()).is_some());
            let own = client_address(&world, asked);
            assert_eq!(remembered(&mut world, id, own), None);
        }
    }
}

#[test]
fn affinity_ends_after_its_timeout_without_a_new_connection() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        let (id, _) = sticky(&mut world, asked, Protocol::TCP);
        let address = client_address(&world, asked);
        let first = tcp(world.client.place(), asked);
        let cookie = client_cookie(&world);
        let keys = [
            AffinityKey::for_address(id, address),
            AffinityKey::for_namespace(id, cookie),
        ];
        let age = |world: &mut World, seconds| {
            for key in keys {
                let mut entry = world.kernel.affinity(key).unwrap().unwrap();
                entry.last_use = Tick(entry.last_use.0.wrapping_sub(Tick::seconds(seconds)));
                world.kernel.remember(key, entry).unwrap();
            }
        };
        for _ in 0..10 {
            // Half a minute before the end, which each new connection puts off.
            age(&mut world, TIMEOUT - 30);
            assert_eq!(tcp(world.client.place(), asked), first);
        }
        let mut names = BTreeSet::new();
        for _ in 0..MANY {
            age(&mut world, TIMEOUT + 1);
            names.insert(tcp(world.client.place(), asked));
        }
        assert_eq!(names.len(), NAMES.len());
    }
}

#[test]
fn affinity_to_a_backend_that_is_gone_is_forgotten() {
    let Some(mut world) = learning() else {
        return;
    };
    for asked in asked() {
        let (id, backends) = sticky(&mut world, asked, Protocol::TCP);
        let first = tcp(world.client.place(), asked);
        for (name, backend) in NAMES.into_iter().zip(backends) {
            if name == first {
                world.set_backend(backend, BackendState::Gone);
            }
        }
        let left = NAMES.into_iter().filter(|name| *name != first);
        let endpoints: Vec<Endpoint> = left.map(|name| world.endpoint(name, asked)).collect();
        publish(&mut world, id, Protocol::TCP, &endpoints);
        let second = tcp(world.client.place(), asked);
        assert_ne!(second, first);
        for _ in 0..MANY {
            assert_eq!(tcp(world.client.place(), asked), second);
        }
    }
}

#[test]
fn a_kernel_that_cannot_tell_the_address_leaves_affinity_of_unbound_sockets_to_the_packet_path() {
    let features = running_features() & !Feature::NETNS_COOKIE_IN_SOCKOPS;
    let mut world = World::with_kernel(&NAMES, KernelObject::load_with(features).unwrap());
    for asked in asked() {
        let before = world.reason(Reason::SocketClientUnknown);
        sticky(&mut world, asked, Protocol::TCP);
        let socket = world.socket(|| Ok(raw::tcp(asked)?));
        raw::set_nonblocking(&socket).unwrap();
        let error = raw::connect(&socket, asked).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        assert_eq!(world.reason(Reason::SocketClientUnknown), before + 1);
        let own = world.client.address_like(asked.ip());
        let bound = world.socket(|| {
            let socket = raw::tcp(asked)?;
            raw::bind(&socket, (own, 0).into())?;
            Ok(socket)
        });
        raw::connect(&bound, asked).unwrap();
        assert_eq!(raw::peer(&bound).unwrap(), asked);
    }
}

#[test]
fn a_socket_bound_to_loopback_is_left_to_the_packet_path_counted() {
    let mut world = World::new(&["a"]);
    for (asked, loopback) in asked().into_iter().zip(["127.0.0.1:0", "[::1]:0"]) {
        let before = world.reason(Reason::SocketLoopbackSource);
        let tcp = world.serve(asked, Protocol::TCP, &["a"]);
        let udp = world.serve(asked, Protocol::UDP, &["a"]);
        let loopback: SocketAddr = loopback.parse().unwrap();
        let stream = world.socket(|| Ok(raw::tcp(asked)?));
        raw::bind(&stream, loopback).unwrap();
        raw::set_nonblocking(&stream).unwrap();
        let _ = raw::connect(&stream, asked);
        let socket = world.socket(|| Ok(UdpSocket::bind(loopback)?.into()));
        let _ = raw::send_to(&socket, b"who", asked, 0);
        assert_eq!(world.reason(Reason::SocketLoopbackSource), before + 2);
        assert_eq!(world.connections(tcp), (0, 0));
        assert_eq!(world.connections(udp), (0, 0));
    }
}

#[test]
fn host_only_serves_sockets_of_the_host_and_off_serves_none() {
    if namespace_cookie().is_none() {
        eprintln!("skipped: this kernel does not tell namespaces (5.14)");
        return;
    }
    let mut world = World::new(&["a"]);
    for asked in asked() {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            world.serve(asked, protocol, &["a"]);
        }
        for (mode, pod, host) in [
            (SocketMode::HostOnly, 0, 3),
            (SocketMode::Off, 0, 0),
            (SocketMode::All, 3, 3),
        ] {
            world.configure(|config| config.socket_mode = mode as u32);
            for (place, opened) in [
                (world.client.place(), pod),
                (world.lab.node(0).place(), host),
            ] {
                let before = world.reason(Reason::Opened);
                let stream = World::socket_of(place, || Ok(raw::tcp(asked)?));
                raw::set_nonblocking(&stream).unwrap();
                let _ = raw::connect(&stream, asked);
                let socket = World::socket_of(place, || Ok(raw::udp(asked)?));
                let _ = raw::send_to(&socket, b"who", asked, 0);
                let _ = raw::connect(&socket, asked);
                assert_eq!(world.reason(Reason::Opened) - before, opened, "{mode:?}");
            }
        }
    }
}

#[test]
fn the_answer_names_the_client_s_own_address() {
    let mut world = World::new(&["a"]);
    for asked in asked() {
        world.serve(asked, Protocol::TCP, &["a"]);
        let answer: Answer = world.client.place().ask_tcp(asked).unwrap();
        assert_eq!(answer.peer.ip(), world.client.address_like(asked.ip()));
    }
}
