//! Packets that the node itself makes and that no socket hook treats: everything with
//! `--socket-load-balancing off`, raw sockets, what a socket hook leaves to the packet path.
//!
//! Reverse path filters are strict and a firewall lets in only what belongs to a conversation that
//! the node began: what comes back must look to the node's own stack as what it sent.

use anyhow::{Context, Result, ensure};
use lb_lab::{Offload, Place, PodNetwork, client};
use lb_tests::attempt::attempts;
use lb_tests::raw_datagram;
use lb_tests::stage::{ServiceSpec, Stage};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where a backend can be, seen from node 0: a pod here, a pod elsewhere, the node itself, another node.
const BACKENDS: [&str; 4] = ["b", "c", "node0", "node1"];

/// A service for each place of a backend.
fn services() -> Vec<ServiceSpec> {
    (0..4)
        .zip(BACKENDS)
        .map(|(number, backend)| {
            ServiceSpec::new(&format!("on-{backend}"), 10 + number, &[backend])
                .node_port(30080 + u16::from(number))
        })
        .collect()
}

/// A stage that serves `services`, with a route for the packets of node 0 and the strictest rules
/// that a node may have.
fn stage(network: PodNetwork, services: &[ServiceSpec], flags: &str) -> Result<Stage> {
    let mut stage = Stage::new(network)?;
    for node in 0..2 {
        stage.add_node_server(node)?;
    }
    for service in services {
        stage.apply(service)?;
    }
    stage.route_default(0)?;
    let node = stage.lab.node(0).namespace();
    for device in ["all", "default", "lo", "eth0"] {
        node.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "1")?;
    }
    let rules = stage.lab.dir().join("strict.nft");
    std::fs::write(
        &rules,
        "table inet strict {
            chain input {
                type filter hook input priority 0; policy drop;
                ct state invalid counter drop
                ct state established,related accept
                tcp dport { 8080, 10249, 10256 } accept
                udp dport 8080 accept
                icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
            }
        }",
    )?;
    let mut nft = stage.lab.node(0).place().command("nft")?;
    let done = nft
        .arg("-f")
        .arg(&rules)
        .status()
        .context("cannot run nft")?;
    ensure!(done.success(), "nft refuses the rules of this test: {done}");
    stage.start_agents(flags)?;
    Ok(stage)
}

fn asks_every_way(from: &Place, server: SocketAddr, name: &str) -> Result<()> {
    let ways = [
        ("TCP", from.ask_tcp(server)),
        ("connected UDP", from.ask_udp(server, 64)),
        ("unconnected UDP", from.ask_udp_unconnected(server, 64)),
    ];
    for (way, answer) in ways {
        let answer = answer.with_context(|| format!("{server} over {way}, backend {name}"))?;
        ensure!(answer.name == name, "{server}: {answer} instead of {name}");
    }
    Ok(())
}

fn without_socket_hooks(network: PodNetwork) -> Result<()> {
    let services = services();
    let stage = stage(network, &services, "--socket-load-balancing off")?;
    let node = stage.lab.node(0).place();
    for offload in [Offload::ON, Offload::OFF] {
        stage.offload(offload)?;
        for (service, name) in services.iter().zip(BACKENDS) {
            for server in service.cluster_ips() {
                asks_every_way(node, server, name).with_context(|| format!("{offload:?}"))?;
            }
        }
    }
    ensure!(stage.checksum_errors()? == 0, "a stack saw wrong checksums");
    Ok(())
}

#[test]
fn the_node_reaches_cluster_ips_without_socket_hooks() -> Result<()> {
    without_socket_hooks(PodNetwork::Routed)
}

#[test]
fn the_node_reaches_cluster_ips_without_socket_hooks_with_pods_on_a_bridge() -> Result<()> {
    without_socket_hooks(PodNetwork::Bridged)
}

#[test]
fn the_node_reaches_its_own_node_ports_without_socket_hooks() -> Result<()> {
    let services = services();
    let stage = stage(
        PodNetwork::Routed,
        &services,
        "--socket-load-balancing off --localhost-nodeports true",
    )?;
    let node = stage.lab.node(0).place();
    for (service, name) in services.iter().zip(BACKENDS) {
        let port = service.node_port.context("no node port")?;
        for server in stage.node_port(0, port) {
            asks_every_way(node, server, name)?;
        }
        let localhost = (Ipv4Addr::LOCALHOST, port).into();
        asks_every_way(node, localhost, name).context("by way of 127.0.0.1")?;
    }
    ensure!(stage.checksum_errors()? == 0, "a stack saw wrong checksums");
    Ok(())
}

#[test]
fn fragmented_datagrams_of_the_node_reach_their_backend() -> Result<()> {
    let services = services();
    let stage = stage(PodNetwork::Routed, &services, "--socket-load-balancing off")?;
    let node = stage.lab.node(0).place();
    for (service, name) in services.iter().zip(BACKENDS) {
        for server in service.cluster_ips() {
            let answer = node
                .ask_udp(server, 4000)
                .with_context(|| format!("4000 bytes to {server}, backend {name}"))?;
            ensure!(answer.name == name, "{server}: {answer}");
        }
    }
    Ok(())
}

#[test]
fn raw_sockets_of_the_node_reach_their_backend() -> Result<()> {
    let services = services();
    let stage = stage(PodNetwork::Routed, &services, "--socket-load-balancing all")?;
    let node = stage.lab.node(0).place();
    let [v4, v6] = stage.lab.node_addresses(0);
    for (service, name) in services.iter().zip(BACKENDS) {
        for (server, source) in service.cluster_ips().into_iter().zip([v4, v6]) {
            let answer = node.call(|| raw_datagram::ask(source, server, client::PATIENCE))?;
            ensure!(
                answer.starts_with(&format!("name={name} ")),
                "{server}, backend {name}: {answer}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_node_is_refused_at_once_where_nobody_serves() -> Result<()> {
    let service = ServiceSpec::new("none", 10, &[]).node_port(30080);
    let stage = stage(
        PodNetwork::Routed,
        std::slice::from_ref(&service),
        "--socket-load-balancing off",
    )?;
    let node = stage.lab.node(0).place();
    let refused = format!("{:?}", Err::<(), _>(ErrorKind::ConnectionRefused));
    for family in 0..2 {
        let mut undefined = service.cluster_ips()[family];
        undefined.set_port(81);
        for server in [
            service.cluster_ips()[family],
            undefined,
            stage.node_port(0, 30080)[family],
        ] {
            for outcome in attempts(node, server)? {
                ensure!(outcome == refused, "{server}: {outcome}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_drop_that_a_socket_hook_leaves_to_the_packet_path_is_silence() -> Result<()> {
    let service = ServiceSpec::new("far", 10, &["c"]).with("internalTrafficPolicy: Local");
    for mode in ["all", "off"] {
        let stage = stage(
            PodNetwork::Routed,
            std::slice::from_ref(&service),
            &format!("--socket-load-balancing {mode}"),
        )?;
        let node = stage.lab.node(0).place();
        for server in service.cluster_ips() {
            let before = stage.counted(0, "dropped_no_local_endpoint")?;
            let [tcp, udp] = attempts(node, server)?;
            let timed_out = format!("{:?}", Err::<(), _>(ErrorKind::TimedOut));
            let would_block = format!("{:?}", Err::<(), _>(ErrorKind::WouldBlock));
            ensure!(tcp == timed_out, "{mode}, TCP {server}: {tcp}");
            ensure!(udp == would_block, "{mode}, UDP {server}: {udp}");
            let counted = stage.counted(0, "dropped_no_local_endpoint")? - before;
            ensure!(counted >= 2, "{mode}, {server}: {counted} drops");
        }
    }
    Ok(())
}

#[test]
fn a_socket_bound_to_127_0_0_1_reaches_a_node_port() -> Result<()> {
    let services = services();
    for mode in ["all", "off"] {
        let stage = stage(
            PodNetwork::Routed,
            &services,
            &format!("--socket-load-balancing {mode}"),
        )?;
        let node = stage.lab.node(0).place();
        for (service, name) in services.iter().zip(BACKENDS) {
            let server = stage.node_port(0, service.node_port.unwrap_or(0))[0];
            let answer = node
                .call(|| {
                    let socket = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
                    socket.set_read_timeout(Some(client::PATIENCE))?;
                    socket.connect(server)?;
                    socket.send(b"who\n")?;
                    let mut buffer = [0; 256];
                    let length = socket.recv(&mut buffer)?;
                    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
                })
                .with_context(|| format!("{mode}: {server}, backend {name}"))?;
            ensure!(
                answer.starts_with(&format!("name={name} ")),
                "{mode}: {server}: {answer}"
            );
        }
    }
    Ok(())
}

#[test]
fn an_icmp_error_about_a_packet_of_the_node_reaches_its_socket() -> Result<()> {
    let services = services();
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.route_default(0)?;
    // Nobody listens there: the backend's stack says so, and quotes what it saw.
    for service in &services {
        stage.apply_to_port(service, 8081)?;
    }
    stage.start_agents("--socket-load-balancing off")?;
    let node = stage.lab.node(0).place();
    for (service, name) in services.iter().zip(BACKENDS) {
        for server in service.cluster_ips() {
            let [_, udp] = attempts(node, server)?;
            let refused = format!("{:?}", Err::<(), _>(ErrorKind::ConnectionRefused));
            ensure!(udp == refused, "{server}, backend {name}: {udp}");
        }
    }
    Ok(())
}

#[test]
fn the_nodes_own_conversations_are_left_alone() -> Result<()> {
    let services = services();
    let stage = stage(PodNetwork::Routed, &services, "--socket-load-balancing off")?;
    let node = stage.lab.node(0).place();
    let [v4, v6] = stage.lab.node_addresses(0);
    let own = [v4, v6, IpAddr::from(Ipv4Addr::LOCALHOST)];
    for address in own {
        asks_every_way(node, (address, 8080).into(), "node0")?;
    }
    for address in [
        stage.pod("b").v4().into(),
        IpAddr::from(stage.pod("b").v6()),
    ] {
        asks_every_way(node, (address, 8080).into(), "b")?;
    }
    Ok(())
}
