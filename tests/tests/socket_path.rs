//! The socket path in the real kernel: real sockets in a pod's cgroup and namespace, tables written
//! by hand, no packet path. What is not translated at the socket reaches nobody, since no route
//! leads to a service address: an answer proves the translation.

use lb_common::addr::Protocol;
use lb_lab::client;
use lb_tests::socket_world::{World, v4, v6};
use std::net::{SocketAddr, TcpStream, UdpSocket};

#[test]
fn tcp_to_a_cluster_ip_reaches_a_backend_and_getpeername_shows_the_frontend() {
    let mut world = World::new(&["a"]);
    for asked in [v4("10.96.0.1", 80), v6("fd00:10:96::1", 80)] {
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
fn udp_connected_and_unconnected_answers_come_from_the_address_that_was_asked() {
    let mut world = World::new(&["a"]);
    for asked in [v4("10.96.0.1", 53), v6("fd00:10:96::1", 53)] {
        world.serve(asked, Protocol::UDP, &["a"]);
        world.client(|| {
            // Checks who answered.
            assert_eq!(client::udp_unconnected(asked, 10)?.name, "a");
            let socket = client::udp_socket(asked)?;
            socket.connect(asked)?;
            assert_eq!(socket.peer_addr()?, asked);
            socket.send(b"who")?;
            let mut buffer = [0; 500];
            assert_eq!(socket.recv_from(&mut buffer)?.1, asked);
            Ok(())
        });
    }
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
