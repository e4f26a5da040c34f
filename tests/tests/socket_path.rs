//! The socket path in the real kernel: real sockets in a pod's cgroup and namespace, tables written
//! by hand, no packet path. What is not translated at the socket reaches nobody, since no route
//! leads to a service address: an answer proves the translation.
//!
//! Here: connections. Datagrams are in `socket_datagrams.rs`, node ports in `socket_node_ports.rs`,
//! who asks in `socket_clients.rs`.

use lb_common::addr::Protocol;
use lb_common::table::{FrontendKind, Service, Window};
use lb_common::verdict::Reason;
use lb_lab::client;
use lb_tests::kernel::{KernelObject, frontend_key, running_features};
use lb_tests::raw;
use lb_tests::ring;
use lb_tests::socket_world::{World, v4, v6};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

const ASKED: [&str; 2] = ["10.96.0.1:80", "[fd00:10:96::1]:80"];

fn asked() -> [SocketAddr; 2] {
    ASKED.map(|address| address.parse().unwrap())
}

#[test]
fn tcp_to_a_cluster_ip_reaches_a_backend_and_getpeername_shows_the_frontend() {
    let mut world = World::new(&["a"]);
    for asked in asked() {
        world.serve(asked, Protocol::TCP, &["a"]);
        world.client(|| {
            let stream = TcpStream::connect(asked)?;
            assert_eq!(stream.peer_addr()?, asked);
            assert_eq!(client::ask(&stream)?.name, "a");
            Ok(())
        });
    }
}

#[test]
fn external_ips_and_load_balancer_addresses_are_served_like_cluster_ips() {
    let mut world = World::new(&["a"]);
    for (asked, external, balancer) in [
        (
            v4("10.96.0.1", 80),
            v4("198.51.100.7", 80),
            v4("203.0.113.9", 80),
        ),
        (
            v6("fd00:10:96::1", 80),
            v6("2001:db8::7", 80),
            v6("2001:db8::9", 80),
        ),
    ] {
        let id = world.serve(asked, Protocol::TCP, &["a"]);
        for (other, kind) in [
            (external, FrontendKind::ExternalIp),
            (balancer, FrontendKind::LoadBalancer),
        ] {
            world.frontend(frontend_key(other, Protocol::TCP), id, kind);
            world.client(|| {
                let stream = TcpStream::connect(other)?;
                assert_eq!(stream.peer_addr()?, other);
                assert_eq!(client::ask(&stream)?.name, "a");
                Ok(())
            });
        }
    }
}

#[test]
fn what_is_no_service_is_left_alone() {
    let mut world = World::new(&["a"]);
    world.serve(asked()[0], Protocol::TCP, &["a"]);
    let direct = v4(&world.pods["a"].v4().to_string(), 8080);
    world.client(|| {
        let stream = TcpStream::connect(direct)?;
        assert_eq!(stream.peer_addr()?, direct);
        client::ask(&stream)?;
        Ok(())
    });
    assert_eq!(world.reason(Reason::Opened), 0);
}

#[test]
fn ipv4_mapped_ipv6_sockets_are_served_and_see_mapped_addresses() {
    let mut world = World::new(&["a"]);
    let asked = v4("10.96.0.1", 80);
    world.serve(asked, Protocol::TCP, &["a"]);
    world.serve(asked, Protocol::UDP, &["a"]);
    let mapped: SocketAddr = "[::ffff:10.96.0.1]:80".parse().unwrap();
    world.client(|| {
        let stream = TcpStream::connect(mapped)?;
        assert_eq!(stream.peer_addr()?, mapped);
        assert_eq!(client::ask(&stream)?.name, "a");
        let socket = UdpSocket::bind("[::]:0")?;
        socket.set_read_timeout(Some(client::PATIENCE))?;
        assert_eq!(client::ask_datagram(&socket, mapped, 10)?.name, "a");
        socket.connect(mapped)?;
        assert_eq!(socket.peer_addr()?, mapped);
        socket.send(b"who")?;
        let mut buffer = [0; 500];
        assert_eq!(socket.recv_from(&mut buffer)?.1, mapped);
        Ok(())
    });
}

#[test]
fn connect_to_a_service_without_endpoints_is_refused_at_once() {
    let mut world = World::new(&[]);
    if !KernelObject::refuses() {
        eprintln!("skipped: this kernel cannot set the errno (6.1)");
        return;
    }
    let mut refusals = 0;
    for asked in asked() {
        let tcp = world.serve(asked, Protocol::TCP, &[]);
        let udp = world.serve(asked, Protocol::UDP, &[]);
        world.client(|| {
            let error = TcpStream::connect(asked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            // Non-blocking as well: not EINPROGRESS and an error later.
            let socket = raw::tcp(asked)?;
            raw::set_nonblocking(&socket)?;
            let error = raw::connect(&socket, asked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            let socket = client::udp_socket(asked)?;
            let error = socket.connect(asked).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            Ok(())
        });
        refusals += 3;
        assert_eq!((world.refusals(tcp), world.refusals(udp)), (2, 1));
        assert_eq!(world.reason(Reason::RejectedNoEndpoint), refusals);
    }
}

#[test]
fn a_kernel_that_cannot_refuse_leaves_the_connect_to_the_packet_path_and_never_says_eperm() {
    let features = running_features() & !lb_common::feature::Feature::SET_RETVAL;
    let mut world = World::with_kernel(&[], KernelObject::load_with(features).unwrap());
    for asked in asked() {
        world.serve(asked, Protocol::TCP, &[]);
        world.client(|| begins(asked));
    }
    assert_eq!(world.reason(Reason::SocketRejectLeftToPacketPath), 2);
}

/// A non-blocking connect that the socket hooks neither refuse nor answer.
fn begins(asked: SocketAddr) -> anyhow::Result<()> {
    let socket = raw::tcp(asked)?;
    raw::set_nonblocking(&socket)?;
    let error = raw::connect(&socket, asked).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
    Ok(())
}

#[test]
fn a_drop_is_left_to_the_packet_path() {
    let mut world = World::new(&[]);
    for asked in asked() {
        let id = world.serve(asked, Protocol::TCP, &[]);
        let silent = Window::empty(lb_common::table::EmptyAction::Drop, 1).to_word();
        let service = Service {
            cluster: silent,
            ..world.service(id)
        };
        world.kernel.service(id, service).unwrap();
        world.client(|| begins(asked));
    }
    assert_eq!(world.reason(Reason::SocketDropLeftToPacketPath), 2);
}

#[test]
fn a_non_blocking_connect_is_translated() {
    let mut world = World::new(&["a"]);
    for asked in asked() {
        world.serve(asked, Protocol::TCP, &["a"]);
        world.client(|| {
            let socket = raw::tcp(asked)?;
            raw::set_nonblocking(&socket)?;
            let error = raw::connect(&socket, asked).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS));
            raw::wait_writable(&socket)?;
            let stream = TcpStream::from(socket);
            assert!(stream.take_error()?.is_none());
            assert_eq!(stream.peer_addr()?, asked);
            stream.set_nonblocking(false)?;
            assert_eq!(client::ask(&stream)?.name, "a");
            Ok(())
        });
    }
}

#[test]
fn tcp_fast_open_is_translated_both_ways_of_asking() {
    let mut world = World::new(&["a"]);
    // Every listener takes data in the SYN (0x400), clients send it (1) even without a cookie (4).
    for pod in [&world.pods["a"], &world.client] {
        pod.namespace()
            .sysctl("net/ipv4/tcp_fastopen", "1543")
            .unwrap();
    }
    for asked in asked() {
        let id = world.serve(asked, Protocol::TCP, &["a"]);
        world.client(|| {
            let socket = raw::tcp(asked)?;
            raw::send_to(&socket, b"who\n", asked, libc::MSG_FASTOPEN)?;
            read_answer(&TcpStream::from(socket), asked)?;
            let socket = raw::tcp(asked)?;
            raw::set_option(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1)?;
            raw::connect(&socket, asked)?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(b"who\n")?;
            read_answer(&stream, asked)
        });
        assert_eq!(world.connections(id), (2, 2));
    }
}

fn read_answer(mut stream: &TcpStream, asked: SocketAddr) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(client::PATIENCE))?;
    let mut buffer = [0; 500];
    let length = stream.read(&mut buffer)?;
    let answer: client::Answer = String::from_utf8_lossy(&buffer[..length]).parse()?;
    assert_eq!(answer.name, "a");
    assert_eq!(stream.peer_addr()?, asked);
    Ok(())
}

#[test]
fn connect_by_io_uring_is_translated() {
    let mut world = World::new(&["a"]);
    for asked in asked() {
        let id = world.serve(asked, Protocol::TCP, &["a"]);
        let said = world.client_says(|| {
            let socket = raw::tcp(asked)?;
            match ring::connect(&socket, asked) {
                Ok(()) => {}
                Err(error) if raw::is_missing(&error) => return Ok("missing".to_owned()),
                Err(error) => return Err(error.into()),
            }
            let stream = TcpStream::from(socket);
            assert_eq!(stream.peer_addr()?, asked);
            assert_eq!(client::ask(&stream)?.name, "a");
            Ok(String::new())
        });
        if said == "missing" {
            eprintln!("skipped: this kernel has no io_uring");
            return;
        }
        assert_eq!(world.connections(id), (1, 1));
    }
}

#[test]
fn a_connection_counts_once_when_it_begins_and_once_when_its_last_descriptor_is_closed() {
    let mut world = World::new(&["a"]);
    let asked = asked()[0];
    let id = world.serve(asked, Protocol::TCP, &["a"]);
    let backend = world.last_backend();
    let (process, hold) = world.hold(move || {
        let stream = TcpStream::connect(asked)?;
        client::ask(&stream)?;
        let copy = stream.try_clone()?;
        drop(stream);
        Ok(Box::new(copy) as Box<dyn AsRawFd>)
    });
    assert_eq!(world.connections(id), (1, 0));
    assert_eq!(world.backend_connections(backend), (1, 0));
    drop(hold);
    process.wait().unwrap();
    assert_eq!(world.connections(id), (1, 1));
    assert_eq!(world.backend_connections(backend), (1, 1));
}

#[test]
fn a_failed_connect_followed_by_another_counts_each_exactly_once() {
    let mut world = World::new(&["a"]);
    for (dead, live) in [
        (v4("10.96.0.1", 80), v4("10.96.0.2", 80)),
        (v6("fd00:10:96::1", 80), v6("fd00:10:96::2", 80)),
    ] {
        let mut nobody = world.endpoint("a", dead);
        nobody.port = lb_common::addr::Port::new(9);
        let refusing = world.serve_endpoints(dead, Protocol::TCP, &[nobody]);
        let serving = world.serve(live, Protocol::TCP, &["a"]);
        world.client(|| {
            let socket = raw::tcp(dead)?;
            let error = raw::connect(&socket, dead).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
            raw::connect(&socket, live)?;
            let stream = TcpStream::from(socket);
            assert_eq!(stream.peer_addr()?, live);
            assert_eq!(client::ask(&stream)?.name, "a");
            Ok(())
        });
        assert_eq!(world.connections(refusing), (1, 1));
        assert_eq!(world.connections(serving), (1, 1));
    }
}

#[test]
fn a_tcp_socket_that_was_disconnected_and_reaches_the_backend_itself_sees_the_backend() {
    let mut world = World::new(&["a"]);
    for asked in asked() {
        let id = world.serve(asked, Protocol::TCP, &["a"]);
        let direct: SocketAddr = (world.pods["a"].address_like(asked.ip()), 8080).into();
        world.client(|| {
            let socket = raw::tcp(asked)?;
            raw::connect(&socket, asked)?;
            raw::disconnect(&socket)?;
            raw::connect(&socket, direct)?;
            let stream = TcpStream::from(socket);
            assert_eq!(stream.peer_addr()?, direct);
            assert_eq!(client::ask(&stream)?.name, "a");
            Ok(())
        });
        assert_eq!(world.connections(id), (1, 1));
    }
}

#[test]
fn every_backend_gets_connections() {
    let mut world = World::new(&["a", "b", "c"]);
    for asked in asked() {
        world.serve(asked, Protocol::TCP, &["a", "b", "c"]);
        let said = world.client_says(|| {
            let mut names = std::collections::BTreeSet::new();
            for _ in 0..60 {
                names.insert(client::tcp(asked)?.name);
            }
            Ok(names.into_iter().collect())
        });
        // Missing one of three in 60 draws: 3 * (2/3)^60, one in ten thousand million.
        assert_eq!(said, "abc");
    }
}
