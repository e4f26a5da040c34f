//! The socket path in the real kernel: node ports, and the other addresses that are not ClusterIPs.
//! The stage is that of `socket_path.rs`: what is not translated at the socket reaches nobody.

use lb_common::addr::{Addr, Port, Protocol, ServiceId};
use lb_common::table::{ConfigFlags, FrontendKey, FrontendKind, LocalAddress};
use lb_common::verdict::Reason;
use lb_lab::{Answer, Place, Server, client};
use lb_tests::kernel::{KernelObject, frontend_key};
use lb_tests::raw;
use lb_tests::socket_world::{TARGET, World, namespace_cookie, v4, v6};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

const PORT: u16 = 30_080;
const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// A service on node port [`PORT`] for each family and protocol, all answered by pod `a`, on a node
/// whose addresses are those of the lab.
fn world() -> (World, Vec<ServiceId>) {
    let mut world = World::new(&["a", "b"]);
    world.configure(|config| {
        config.flags |= ConfigFlags::LOCALHOST_NODE_PORTS;
        (config.node_port_first, config.node_port_last) = (30_000, 32_767);
    });
    let mut ids = Vec::new();
    for cluster_ip in [v4("10.96.0.1", 80), v6("fd00:10:96::1", 80)] {
        for protocol in PROTOCOLS {
            let id = world.serve(cluster_ip, protocol, &["a"]);
            let family = Addr::from(cluster_ip.ip());
            let key = FrontendKey::node_port(&family, Port::new(PORT), protocol);
            world.frontend(key, id, FrontendKind::NodePort);
            ids.push(id);
        }
    }
    for address in world.lab.node_addresses(0) {
        declare(&mut world, address, LocalAddress::NODE_PORTS);
    }
    (world, ids)
}

/// True if this kernel tells which namespace a lab's node is; below, it is nobody's host.
fn tells_the_host() -> bool {
    let tells = namespace_cookie().is_some();
    if !tells {
        eprintln!("skipped: this kernel does not tell namespaces (5.14)");
    }
    tells
}

fn declare(world: &mut World, address: IpAddr, flags: u32) {
    let local = LocalAddress { flags };
    world.kernel.local_address(address.into(), local).unwrap();
}

/// Asks over TCP and both kinds of UDP and sees the address that was asked; pod `a` answers.
fn is_served(from: &Place, asked: SocketAddr) {
    let said = from.call(|| {
        let stream = std::net::TcpStream::connect(asked)?;
        assert_eq!(stream.peer_addr()?, asked);
        let tcp = client::ask(&stream)?.name;
        let socket = client::udp_socket(asked)?;
        let unconnected = client::ask_datagram(&socket, asked, 9)?.name;
        let socket = client::udp_socket(asked)?;
        socket.connect(asked)?;
        assert_eq!(socket.peer_addr()?, asked);
        socket.send(b"who")?;
        let mut buffer = [0; 500];
        let (length, from) = socket.recv_from(&mut buffer)?;
        assert_eq!(from, asked);
        let connected = String::from_utf8_lossy(&buffer[..length]).parse::<Answer>()?;
        Ok(format!("{tcp} {unconnected} {}", connected.name))
    });
    match said {
        Ok(said) => assert_eq!(said, "a a a", "{asked}"),
        Err(error) => panic!("{asked}: {error:#}"),
    }
}

/// Neither TCP nor UDP to this address is changed: nothing is opened.
fn is_left_alone(world: &World, from: &Place, asked: SocketAddr) {
    let before = world.reason(Reason::Opened);
    let stream = World::socket_of(from, || Ok(raw::tcp(asked)?));
    raw::set_nonblocking(&stream).unwrap();
    // What becomes of it is the kernel's business.
    let _ = raw::connect(&stream, asked);
    let datagrams = World::socket_of(from, || Ok(raw::udp(asked)?));
    let _ = raw::send_to(&datagrams, b"who", asked, 0);
    if raw::connect(&datagrams, asked).is_ok() {
        let shown = raw::peer(&datagrams).unwrap();
        assert!(shown == asked || asked.ip().is_unspecified(), "{shown}");
    }
    assert_eq!(world.reason(Reason::Opened), before, "{asked}");
}

#[test]
fn node_ports_are_served_on_every_address_of_this_node_to_pods_and_host() {
    let (mut world, ids) = world();
    let mut addresses = world.lab.node_addresses(0).to_vec();
    // An address that belongs to no device's network, as a VRRP daemon adds one.
    let later: IpAddr = "198.51.100.77".parse().unwrap();
    let node = world.lab.node(0).namespace();
    node.ip(&format!("addr add {later}/32 dev lo")).unwrap();
    declare(&mut world, later, LocalAddress::NODE_PORTS);
    addresses.push(later);
    addresses.push("::ffff:198.51.100.77".parse().unwrap());
    for address in addresses {
        for from in [world.client.place(), world.lab.node(0).place()] {
            is_served(from, (address, PORT).into());
        }
    }
    let counted: Vec<_> = ids.iter().map(|id| world.connections(*id)).collect();
    // Three addresses of IPv4 and one of IPv6, from two places; UDP twice.
    assert_eq!(counted, [(6, 6), (12, 12), (2, 2), (4, 4)]);
}

#[test]
fn node_ports_are_served_on_127_0_0_1_to_the_host_alone() {
    if !tells_the_host() {
        return;
    }
    let (mut world, _) = world();
    let host = world.lab.node(0).place();
    for address in ["127.0.0.1", "127.9.9.9", "::ffff:127.0.0.1"] {
        let asked = (address.parse::<IpAddr>().unwrap(), PORT).into();
        is_served(host, asked);
        is_left_alone(&world, world.client.place(), asked);
    }
    is_left_alone(&world, host, v6("::1", PORT));
    world.configure(|config| config.flags &= !ConfigFlags::LOCALHOST_NODE_PORTS);
    let host = world.lab.node(0).place();
    is_left_alone(&world, host, v4("127.0.0.1", PORT));
}

#[test]
fn node_ports_of_other_nodes_and_of_addresses_that_do_not_serve_them_are_left_alone() {
    let (mut world, _) = world();
    let chosen_out: IpAddr = "10.77.0.99".parse().unwrap();
    declare(&mut world, chosen_out, 0);
    let others = [
        v4("10.77.0.11", PORT),
        v6("fd77::11", PORT),
        (chosen_out, PORT).into(),
        // A ClusterIP on the node port, a pod on it, a node address on the service's port.
        v4("10.96.0.1", PORT),
        (world.pods["b"].v4(), PORT).into(),
        (world.lab.node_addresses(0)[0], 80).into(),
    ];
    for asked in others {
        for from in [world.client.place(), world.lab.node(0).place()] {
            is_left_alone(&world, from, asked);
        }
    }
}

#[test]
fn external_ips_and_load_balancer_addresses_are_served_to_datagrams_too() {
    let mut world = World::new(&["a"]);
    for (served, others) in [
        (
            v4("10.96.0.1", 80),
            [v4("198.51.100.7", 80), v4("203.0.113.9", 80)],
        ),
        (
            v6("fd00:10:96::1", 80),
            [v6("2001:db8::7", 80), v6("2001:db8::9", 80)],
        ),
    ] {
        let kinds = [FrontendKind::ExternalIp, FrontendKind::LoadBalancer];
        for protocol in PROTOCOLS {
            let id = world.serve(served, protocol, &["a"]);
            for (other, kind) in others.into_iter().zip(kinds) {
                world.frontend(frontend_key(other, protocol), id, kind);
            }
        }
        for asked in others {
            for from in [world.client.place(), world.lab.node(0).place()] {
                is_served(from, asked);
            }
        }
    }
}

/// A UDP socket of the host on the node port itself.
fn on_the_node_port(world: &World, like: SocketAddr) -> OwnedFd {
    World::socket_of(world.lab.node(0).place(), || {
        let any: SocketAddr = if like.is_ipv4() {
            v4("0.0.0.0", PORT)
        } else {
            v6("::", PORT)
        };
        Ok(std::net::UdpSocket::bind(any)?.into())
    })
}

#[test]
fn udp_of_a_host_socket_on_the_node_port_gets_its_answers_from_pods_and_host() {
    if !tells_the_host() {
        return;
    }
    let (world, ids) = world();
    let host = Server::start(world.lab.node(0).place(), "host", TARGET).unwrap();
    let node = world.lab.node_addresses(0);
    let pod = &world.pods["b"];
    for (asked, name) in [
        (SocketAddr::from((pod.v4(), TARGET)), "b"),
        ((pod.v6(), TARGET).into(), "b"),
        ((node[0], TARGET).into(), "host"),
        ((node[1], TARGET).into(), "host"),
        (v4("127.0.0.1", TARGET), "host"),
    ] {
        let socket = on_the_node_port(&world, asked);
        for _ in 0..3 {
            raw::send_to(&socket, b"who", asked, 0).unwrap();
            raw::wait_readable(&socket).unwrap();
            let (text, from) = raw::receive_from(&socket, 0).unwrap();
            let answer: Answer = String::from_utf8(text).unwrap().parse().unwrap();
            assert_eq!((answer.name.as_str(), from), (name, asked));
        }
    }
    // 15 answers, none of which was taken for a request.
    assert_eq!(world.reason(Reason::HostSocket), 15);
    assert_eq!(world.connections(ids[1]), (0, 0));
    drop(host);
}

#[test]
fn udp_to_the_node_port_that_answers_nobody_is_a_request_even_where_a_host_socket_has_the_port() {
    let (world, _) = world();
    for address in world.lab.node_addresses(0) {
        let asked = SocketAddr::from((address, PORT));
        let _listener = on_the_node_port(&world, asked);
        is_served(world.client.place(), asked);
        is_served(world.lab.node(0).place(), asked);
    }
}

#[test]
fn a_node_port_without_endpoints_refuses_at_once() {
    if !KernelObject::refuses() {
        eprintln!("skipped: this kernel cannot set the errno (6.1)");
        return;
    }
    let (mut world, ids) = world();
    for (id, protocol) in ids.iter().zip(PROTOCOLS.into_iter().cycle()) {
        world.publish(*id, protocol, &[], lb_common::table::Service::default());
    }
    for address in world.lab.node_addresses(0) {
        let asked = SocketAddr::from((address, PORT));
        let stream = world.socket(|| Ok(raw::tcp(asked)?));
        let error = raw::connect(&stream, asked).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        let socket = world.socket(|| Ok(raw::udp(asked)?));
        let error = raw::send_to(&socket, b"who", asked, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
