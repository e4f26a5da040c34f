//! The socket path in the real kernel: UDP. The stage is that of `socket_path.rs`: what is not
//! translated at the socket reaches nobody.

use anyhow::Result;
use lb_common::addr::{Endpoint, Port, Protocol, Tick};
use lb_common::socket::IDLE_SECONDS;
use lb_common::table::{BackendState, CONVERSATIONS, Service};
use lb_common::verdict::Reason;
use lb_lab::process::open_private;
use lb_lab::{Answer, Place, Process};
use lb_tests::socket_world::{TARGET, World, v4, v6};
use lb_tests::{raw, ring};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;

/// What is served, and what a client asks to get there.
const ADDRESSES: [(&str, &str); 3] = [
    ("10.96.0.1:80", "10.96.0.1:80"),
    ("[fd00:10:96::1]:80", "[fd00:10:96::1]:80"),
    ("10.96.0.2:80", "[::ffff:10.96.0.2]:80"),
];

fn addresses() -> [(SocketAddr, SocketAddr); 3] {
    ADDRESSES.map(|(served, asked)| (served.parse().unwrap(), asked.parse().unwrap()))
}

/// The address as a socket of `like`'s family names it.
fn as_seen(address: SocketAddr, like: SocketAddr) -> SocketAddr {
    match (address, like) {
        (SocketAddr::V4(v4), SocketAddr::V6(_)) => (v4.ip().to_ipv6_mapped(), v4.port()).into(),
        _ => address,
    }
}

/// Waits for a datagram: what it says, and from whom it seems to come.
fn receive(socket: &OwnedFd, flags: i32) -> Result<(String, SocketAddr)> {
    raw::wait_readable(socket)?;
    let (data, from) = raw::receive_from(socket, flags)?;
    Ok((String::from_utf8_lossy(&data).into_owned(), from))
}

/// Asks over an unconnected socket: who answered, and from where it seemed to come.
fn ask(socket: &OwnedFd, asked: SocketAddr) -> Result<(String, SocketAddr)> {
    raw::send_to(socket, b"who", asked, 0)?;
    let (text, from) = receive(socket, 0)?;
    Ok((text.parse::<Answer>()?.name, from))
}

/// An unbound UDP socket of the client pod.
fn socket(world: &World, like: SocketAddr) -> OwnedFd {
    world.socket(|| Ok(raw::udp(like)?))
}

fn kind(result: std::io::Result<usize>) -> ErrorKind {
    result.unwrap_err().kind()
}

#[test]
fn connected_and_unconnected_blocking_and_not_every_datagram_is_answered_by_the_address_asked() {
    let mut world = World::new(&["a"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a"]);
        let mut sockets = 0;
        for connected in [false, true] {
            for nonblocking in [false, true] {
                for flags in [0, libc::MSG_DONTWAIT] {
                    let socket = socket(&world, asked);
                    sockets += 1;
                    if nonblocking {
                        raw::set_nonblocking(&socket).unwrap();
                    }
                    if connected {
                        raw::connect(&socket, asked).unwrap();
                        raw::send(&socket, b"who", flags).unwrap();
                    } else {
                        raw::send_to(&socket, b"who", asked, flags).unwrap();
                    }
                    let (text, from) = receive(&socket, flags).unwrap();
                    assert_eq!(from, asked, "{connected} {nonblocking} {flags}");
                    assert_eq!(text.parse::<Answer>().unwrap().name, "a");
                    if connected {
                        assert_eq!(raw::peer(&socket).unwrap(), asked);
                    }
                    if nonblocking || flags != 0 {
                        let nothing = raw::receive_from(&socket, flags).unwrap_err();
                        assert_eq!(nothing.kind(), ErrorKind::WouldBlock);
                    }
                }
            }
        }
        world.await_connections(id, (sockets, sockets));
    }
}

#[test]
fn a_connected_socket_that_names_its_service_again_stays_with_its_backend() {
    let mut world = World::new(&["a", "b", "c"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a", "b", "c"]);
        let socket = socket(&world, asked);
        raw::connect(&socket, asked).unwrap();
        // Its peer alone is heard: an answer proves that the peer was asked.
        for _ in 0..20 {
            assert_eq!(ask(&socket, asked).unwrap().1, asked);
        }
        drop(socket);
        world.await_connections(id, (1, 1));
    }
}

#[test]
fn sendmsg_and_recvmsg_by_io_uring_are_translated() {
    let mut world = World::new(&["a"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a"]);
        let socket = socket(&world, asked);
        match ring::send_to(&socket, b"who", asked) {
            Err(error) if raw::is_missing(&error) => {
                eprintln!("skipped: this kernel has no io_uring");
                return;
            }
            sent => assert_eq!(sent.unwrap(), 3),
        }
        raw::wait_readable(&socket).unwrap();
        let (data, from) = ring::receive_from(&socket).unwrap();
        assert_eq!(from, asked);
        let answer: Answer = String::from_utf8(data).unwrap().parse().unwrap();
        assert_eq!(answer.name, "a");
        world.await_connections(id, (1, 0));
    }
}

#[test]
fn connect_twice_to_two_services_leaves_the_second_and_counts_each_once() {
    let mut world = World::new(&["a", "b"]);
    for (first, second) in [
        (v4("10.96.0.1", 80), v4("10.96.0.2", 80)),
        (v6("fd00:10:96::1", 80), v6("fd00:10:96::2", 80)),
    ] {
        let one = world.serve(first, Protocol::UDP, &["a"]);
        let two = world.serve(second, Protocol::UDP, &["b"]);
        let socket = socket(&world, first);
        for (asked, name) in [(first, "a"), (second, "b"), (second, "b"), (first, "a")] {
            raw::connect(&socket, asked).unwrap();
            assert_eq!(raw::peer(&socket).unwrap(), asked);
            raw::send(&socket, b"who", 0).unwrap();
            let (text, from) = receive(&socket, 0).unwrap();
            assert_eq!(
                (text.parse::<Answer>().unwrap().name.as_str(), from),
                (name, asked)
            );
        }
        world.await_connections(one, (2, 1));
        world.await_connections(two, (2, 2));
        drop(socket);
        world.await_connections(one, (2, 2));
    }
}

#[test]
fn a_connect_that_is_refused_leaves_the_socket_with_the_service_it_had() {
    let mut world = World::new(&["a"]);
    for (first, second) in [
        (v4("10.96.0.1", 80), v4("10.96.0.2", 80)),
        (v6("fd00:10:96::1", 80), v6("fd00:10:96::2", 80)),
    ] {
        let one = world.serve(first, Protocol::UDP, &["a"]);
        world.serve(second, Protocol::UDP, &[]);
        let socket = socket(&world, first);
        raw::connect(&socket, first).unwrap();
        let error = raw::connect(&socket, second).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        // To the kernel it is connected as before, so it must look like that.
        assert_eq!(raw::peer(&socket).unwrap(), first);
        raw::send(&socket, b"who", 0).unwrap();
        assert_eq!(receive(&socket, 0).unwrap().1, first);
        world.await_connections(one, (1, 0));
        drop(socket);
        world.await_connections(one, (1, 1));
    }
}

#[test]
fn a_disconnected_socket_can_be_used_again_for_the_same_another_and_no_service() {
    let mut world = World::new(&["a"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a"]);
        let direct = (world.pods["a"].address_like(served.ip()), TARGET).into();
        let direct = as_seen(direct, asked);
        let other: SocketAddr = (served.ip(), 81).into();
        let another = world.serve(other, Protocol::UDP, &["a"]);
        let other = as_seen(other, asked);
        let socket = socket(&world, asked);
        raw::connect(&socket, asked).unwrap();
        raw::disconnect(&socket).unwrap();
        assert_eq!(
            raw::peer(&socket).unwrap_err().raw_os_error(),
            Some(libc::ENOTCONN)
        );
        // An IPv6 socket still hears nobody but the address it was connected to: the kernel forgets
        // only the port. So all of this is one pod's.
        // The backend itself, which the ended connection must not speak for.
        assert_eq!(ask(&socket, direct).unwrap(), ("a".to_owned(), direct));
        assert_eq!(ask(&socket, other).unwrap(), ("a".to_owned(), other));
        raw::connect(&socket, direct).unwrap();
        assert_eq!(raw::peer(&socket).unwrap(), direct);
        raw::disconnect(&socket).unwrap();
        raw::connect(&socket, asked).unwrap();
        assert_eq!(raw::peer(&socket).unwrap(), asked);
        raw::send(&socket, b"who", 0).unwrap();
        assert_eq!(receive(&socket, 0).unwrap().1, asked);
        drop(socket);
        world.await_connections(id, (2, 2));
        world.await_connections(another, (1, 1));
    }
}

/// Answers on each of `ports` of `place` with the number of the port.
fn responders(place: &Place, ports: std::ops::Range<u16>) -> Process {
    Process::start(place, |ready| {
        let sockets: Vec<UdpSocket> = ports
            .map(|port| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))
            .collect::<std::io::Result<_>>()?;
        ready.tell()?;
        std::thread::scope(|scope| {
            for socket in &sockets {
                scope.spawn(move || -> Result<()> {
                    let text = socket.local_addr()?.port().to_string();
                    let mut buffer = [0; 100];
                    loop {
                        let (_, from) = socket.recv_from(&mut buffer)?;
                        socket.send_to(text.as_bytes(), from)?;
                    }
                });
            }
        });
        Ok(String::new())
    })
    .unwrap()
}

/// `count` services, four on each address, with a port of pod `a` each: what to ask for which port.
fn many_services(world: &mut World, count: u16, v6_too: bool) -> Vec<(SocketAddr, u16)> {
    (0..count)
        .map(|number| {
            let port = 1000 + number % 4;
            let host = number / 4;
            let asked: SocketAddr = if v6_too && number % 2 == 1 {
                (Ipv6Addr::new(0xfd00, 0x10, 0x96, 1, 0, 0, 0, host), port).into()
            } else {
                (Ipv4Addr::from(0x0a60_0100 + u32::from(host)), port).into()
            };
            let mut endpoint = world.endpoint("a", asked);
            endpoint.port = Port::new(9000 + number);
            world.serve_endpoints(asked, Protocol::UDP, &[endpoint]);
            (asked, 9000 + number)
        })
        .collect()
}

#[test]
fn one_unconnected_socket_that_talks_to_100_services_gets_each_answer_from_the_right_one() {
    let mut world = World::new(&["a"]);
    let _responders = responders(world.pods["a"].place(), 9000..9100);
    let services = many_services(&mut world, 100, true);
    // An IPv6 socket asks both families: IPv4 services by their mapped addresses.
    let like = v6("::", 0);
    let socket = socket(&world, like);
    for round in 0..3 {
        let mut expected: BTreeMap<SocketAddr, String> = BTreeMap::new();
        let mut order: Vec<_> = services.clone();
        if round == 1 {
            order.reverse();
        }
        for (asked, port) in order {
            let asked = as_seen(asked, like);
            raw::send_to(&socket, b"who", asked, 0).unwrap();
            expected.insert(asked, port.to_string());
        }
        while !expected.is_empty() {
            let (text, from) = receive(&socket, 0).unwrap();
            assert_eq!(expected.remove(&from), Some(text), "answer from {from}");
        }
    }
    assert_eq!(world.reason(Reason::Opened), 100);
}

#[test]
fn two_services_on_one_backend_are_told_apart_or_left_to_the_packet_path_counted() {
    let mut world = World::new(&["a", "b"]);
    for (first, second) in [
        (v4("10.96.0.1", 80), v4("10.96.0.2", 80)),
        (v6("fd00:10:96::1", 80), v6("fd00:10:96::2", 80)),
    ] {
        let before = world.reason(Reason::SocketAmbiguous);
        let one = world.serve(first, Protocol::UDP, &["a"]);
        let two = world.serve(second, Protocol::UDP, &["a", "b"]);
        let three = world.serve(SocketAddr::new(second.ip(), 81), Protocol::UDP, &["a"]);
        let socket = socket(&world, first);
        for _ in 0..5 {
            assert_eq!(ask(&socket, first).unwrap(), ("a".to_owned(), first));
            // The other pod, so that its answers are its own.
            assert_eq!(ask(&socket, second).unwrap(), ("b".to_owned(), second));
        }
        let last = SocketAddr::new(second.ip(), 81);
        raw::send_to(&socket, b"who", last, 0).unwrap();
        assert_eq!(world.reason(Reason::SocketAmbiguous), before + 1);
        world.await_connections(three, (0, 0));
        assert_eq!(ask(&socket, first).unwrap(), ("a".to_owned(), first));
        drop(socket);
        world.await_connections(one, (1, 1));
        world.await_connections(two, (1, 1));
    }
}

#[test]
fn more_conversations_than_a_socket_s_store_has_go_untranslated_counted() {
    let mut world = World::new(&["a"]);
    let held = u16::try_from(CONVERSATIONS).unwrap();
    let _responders = responders(world.pods["a"].place(), 9000..9000 + held + 3);
    let services = many_services(&mut world, held + 3, false);
    let socket = socket(&world, services[0].0);
    for (asked, port) in &services[..CONVERSATIONS] {
        raw::send_to(&socket, b"who", *asked, 0).unwrap();
        assert_eq!(receive(&socket, 0).unwrap(), (port.to_string(), *asked));
    }
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 0);
    for (asked, _) in &services[CONVERSATIONS..] {
        raw::send_to(&socket, b"who", *asked, 0).unwrap();
    }
    assert_eq!(world.reason(Reason::SocketStorageExhausted), 3);
    assert_eq!(world.reason(Reason::Opened), u64::from(held));
    // Those that have a place keep it.
    for (asked, port) in &services[..CONVERSATIONS] {
        raw::send_to(&socket, b"who", *asked, 0).unwrap();
        assert_eq!(receive(&socket, 0).unwrap(), (port.to_string(), *asked));
    }
    assert_eq!(world.reason(Reason::Opened), u64::from(held));
}

#[test]
fn where_the_kernel_gives_a_socket_no_store_everything_goes_untranslated_counted() {
    let mut world = World::new(&["a"]);
    let namespace = world.client.namespace();
    if namespace.sysctl("net/core/optmem_max", "64").is_err() {
        eprintln!("skipped: optmem_max is the machine's, not the namespace's (6.8)");
        return;
    }
    let mut untranslated = 0;
    for (served, asked) in addresses() {
        let udp = world.serve(served, Protocol::UDP, &["a"]);
        let tcp = world.serve(served, Protocol::TCP, &["a"]);
        let socket = socket(&world, asked);
        raw::send_to(&socket, b"who", asked, 0).unwrap();
        raw::connect(&socket, asked).unwrap();
        let stream = world.socket(|| Ok(raw::tcp(asked)?));
        raw::set_nonblocking(&stream).unwrap();
        let error = raw::connect(&stream, asked).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
        untranslated += 3;
        assert_eq!(world.reason(Reason::SocketStorageExhausted), untranslated);
        assert_eq!(
            (world.connections(udp), world.connections(tcp)),
            ((0, 0), (0, 0))
        );
    }
}

#[test]
fn an_unconnected_socket_keeps_its_backend_of_each_service_until_it_is_idle() {
    let names = ["a", "b", "c"];
    let mut world = World::new(&names);
    for (served, asked) in addresses() {
        world.serve(served, Protocol::UDP, &names);
        let socket = socket(&world, asked);
        let mut storage = world.kernel.conversations().unwrap();
        let (first, _) = ask(&socket, asked).unwrap();
        for _ in 0..20 {
            // One second less than idle, each time since the last datagram.
            age(&mut storage, &socket, IDLE_SECONDS - 1);
            assert_eq!(ask(&socket, asked).unwrap(), (first.clone(), asked));
        }
        let mut others = BTreeSet::new();
        for _ in 0..60 {
            age(&mut storage, &socket, IDLE_SECONDS + 1);
            others.insert(ask(&socket, asked).unwrap().0);
        }
        assert_eq!(
            others.len(),
            names.len(),
            "an idle conversation chooses anew"
        );
    }
}

/// Makes it so long ago that the socket was used.
fn age(storage: &mut lb_tests::kernel::Conversations, socket: &OwnedFd, seconds: u32) {
    const BPF_F_LOCK: u64 = 4;
    let mut record = storage.get(socket, BPF_F_LOCK).unwrap();
    for entry in &mut record.0.table.entries {
        entry.last_use = Tick(entry.last_use.0.wrapping_sub(Tick::seconds(seconds)));
    }
    storage.insert(socket, record, BPF_F_LOCK).unwrap();
}

#[test]
fn an_unconnected_socket_moves_to_a_live_backend_when_its_own_goes() {
    let names = ["a", "b", "c"];
    let mut world = World::new(&names);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &names);
        let endpoints = names.map(|name| world.endpoint(name, served));
        let mut live: BTreeMap<&str, Endpoint> = names.into_iter().zip(endpoints).collect();
        let mut backends = world.backends_of(id);
        let socket = socket(&world, asked);
        for moves in 0..3 {
            let (now, from) = ask(&socket, asked).unwrap();
            assert!(live.remove(now.as_str()).is_some(), "{now} is gone");
            assert_eq!(from, asked);
            for _ in 0..10 {
                assert_eq!(ask(&socket, asked).unwrap(), (now.clone(), asked));
            }
            world.await_connections(id, (moves + 1, moves));
            for backend in backends.drain(..) {
                world.set_backend(backend, BackendState::Gone);
            }
            let endpoints: Vec<Endpoint> = live.values().copied().collect();
            backends = world.publish(id, Protocol::UDP, &endpoints, Service::default());
        }
        drop(socket);
        world.await_connections(id, (3, 3));
    }
}

#[test]
fn a_datagram_to_a_service_without_endpoints_is_refused_at_once() {
    let mut world = World::new(&["a"]);
    if !lb_tests::kernel::KernelObject::refuses() {
        eprintln!("skipped: this kernel cannot set the errno (6.1)");
        return;
    }
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a"]);
        let backend = world.last_backend();
        let socket = socket(&world, asked);
        ask(&socket, asked).unwrap();
        world.set_backend(backend, BackendState::Gone);
        world.publish(id, Protocol::UDP, &[], Service::default());
        for flags in [0, libc::MSG_DONTWAIT] {
            let result = raw::send_to(&socket, b"who", asked, flags);
            assert_eq!(kind(result), ErrorKind::ConnectionRefused);
        }
        let error = raw::connect(&socket, asked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(world.refusals(id), 3);
        match ring::send_to(&socket, b"who", asked) {
            Err(error) if raw::is_missing(&error) => {}
            result => assert_eq!(kind(result), ErrorKind::ConnectionRefused),
        }
        // And served again by the same socket once somebody is there.
        let endpoint = world.endpoint("a", served);
        world.publish(id, Protocol::UDP, &[endpoint], Service::default());
        assert_eq!(ask(&socket, asked).unwrap(), ("a".to_owned(), asked));
    }
}

#[test]
fn a_kernel_that_cannot_refuse_leaves_the_datagram_to_the_packet_path_and_never_says_eperm() {
    use lb_common::feature::Feature;
    use lb_tests::kernel::{KernelObject, running_features};
    let object = KernelObject::load_with(running_features() & !Feature::SET_RETVAL).unwrap();
    let mut world = World::with_kernel(&[], object);
    for (served, asked) in addresses() {
        world.serve(served, Protocol::UDP, &[]);
        let socket = socket(&world, asked);
        raw::send_to(&socket, b"who", asked, 0).unwrap();
    }
    assert_eq!(world.reason(Reason::SocketRejectLeftToPacketPath), 3);
}

#[test]
fn a_conversation_counts_once_when_it_begins_and_once_when_the_last_descriptor_is_closed() {
    let mut world = World::new(&["a"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a"]);
        let backend = world.last_backend();
        let socket = socket(&world, asked);
        for _ in 0..5 {
            ask(&socket, asked).unwrap();
        }
        let copy = open_private(|| Ok(socket.try_clone()?)).unwrap();
        drop(socket);
        assert_eq!(world.connections(id), (1, 0));
        assert_eq!(world.backend_connections(backend), (1, 0));
        drop(copy);
        world.await_connections(id, (1, 1));
        assert_eq!(world.backend_connections(backend), (1, 1));
    }
}

#[test]
fn threads_that_send_on_one_socket_share_one_conversation() {
    let mut world = World::new(&["a", "b", "c"]);
    for (served, asked) in addresses() {
        let id = world.serve(served, Protocol::UDP, &["a", "b", "c"]);
        let socket = socket(&world, asked);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        raw::send_to(&socket, b"who", asked, 0).unwrap();
                    }
                });
            }
        });
        let (opened, closed) = world.connections(id);
        assert_eq!(opened - closed, 1, "{opened} begun, {closed} ended");
        drop(socket);
        world.await_connections(id, (opened, opened));
    }
}

#[test]
fn what_no_service_sent_seems_to_come_from_where_it_came_from() {
    let mut world = World::new(&["a", "b"]);
    for (served, asked) in addresses() {
        world.serve(served, Protocol::UDP, &["a"]);
        let socket = socket(&world, asked);
        ask(&socket, asked).unwrap();
        let direct = (world.pods["b"].address_like(served.ip()), TARGET).into();
        let direct = as_seen(direct, asked);
        assert_eq!(ask(&socket, direct).unwrap(), ("b".to_owned(), direct));
        assert_eq!(ask(&socket, asked).unwrap(), ("a".to_owned(), asked));
    }
}
