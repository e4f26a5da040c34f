//! Live traffic: real clients, real servers, every path, both families, every offload setting.
//!
//! Each test is named for the sentence it proves and runs with `socketLoadBalancing` `all` and
//! `off`, IPv4 and IPv6, TCP and UDP.

use anyhow::{Context, Result, ensure};
use lb_lab::{Answer, Offload, Place, PodNetwork};
use lb_tests::stage::{ServiceSpec, Stage, TARGET_PORT};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

const MODES: [&str; 2] = ["all", "off"];
const OFFLOADS: [Offload; 2] = [Offload::ON, Offload::OFF];

/// Runs `check` on a fresh stage for each socket mode.
fn in_both_modes(
    network: PodNetwork,
    services: &[ServiceSpec],
    check: impl Fn(&Stage, &str) -> Result<()>,
) -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(network)?;
        for service in services {
            stage.apply(service)?;
        }
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        check(&stage, mode).with_context(|| format!("socketLoadBalancing {mode}"))?;
        ensure!(
            stage.checksum_errors()? == 0,
            "{mode}: a stack saw wrong checksums"
        );
    }
    Ok(())
}

/// Asks every way a client can: TCP, connected and unconnected UDP.
fn ask_every_way(from: &Place, server: SocketAddr) -> Result<[Answer; 3]> {
    let name = from.namespace().name().unwrap_or("host").to_owned();
    let context = |way: &str| format!("{name} asks {server} over {way}");
    Ok([
        from.ask_tcp(server).with_context(|| context("TCP"))?,
        from.ask_udp(server, 64)
            .with_context(|| context("connected UDP"))?,
        from.ask_udp_unconnected(server, 64)
            .with_context(|| context("unconnected UDP"))?,
    ])
}

/// Asks every way with offloads on and off; every answer must come from one of `names`.
fn reaches(stage: &Stage, from: &Place, server: SocketAddr, names: &[&str]) -> Result<Vec<IpAddr>> {
    let mut peers = Vec::new();
    for offload in OFFLOADS {
        stage.offload(offload)?;
        let answers = ask_every_way(from, server).with_context(|| format!("with {offload:?}"))?;
        for answer in answers {
            ensure!(
                names.contains(&answer.name.as_str()),
                "{server} was answered by {answer}, expected one of {names:?}"
            );
            peers.push(answer.peer.ip());
        }
    }
    Ok(peers)
}

#[test]
fn outside_client_reaches_a_node_port_with_the_backend_here() -> Result<()> {
    let service = ServiceSpec::new("near", 10, &["a"]).node_port(30080);
    in_both_modes(PodNetwork::Routed, &[service], |stage, _| {
        for server in stage.node_port(0, 30080) {
            let peers = reaches(stage, stage.client.place(), server, &["a"])?;
            for peer in peers {
                ensure!(
                    peer != IpAddr::from(stage.client.v4())
                        && peer != IpAddr::from(stage.client.v6()),
                    "external traffic policy Cluster must SNAT, the pod saw {peer}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn outside_client_reaches_a_node_port_with_the_backend_on_another_node() -> Result<()> {
    let service = ServiceSpec::new("far", 10, &["c"]).node_port(30080);
    in_both_modes(PodNetwork::Routed, &[service], |stage, _| {
        for server in stage.node_port(0, 30080) {
            for peer in reaches(stage, stage.client.place(), server, &["c"])? {
                ensure!(
                    stage.lab.node_addresses(0).contains(&peer),
                    "the far pod must see the address of the node that was asked, it saw {peer}"
                );
            }
        }
        Ok(())
    })
}

#[test]
fn pods_on_routed_veths_reach_a_cluster_ip_here_and_on_another_node() -> Result<()> {
    let near = ServiceSpec::new("near", 10, &["b"]);
    let far = ServiceSpec::new("far", 11, &["c"]);
    in_both_modes(
        PodNetwork::Routed,
        &[near.clone(), far.clone()],
        |stage, _| {
            for (service, name) in [(&near, "b"), (&far, "c")] {
                for server in service.cluster_ips() {
                    let client = stage.pod("a");
                    for peer in reaches(stage, client.place(), server, &[name])? {
                        ensure!(
                            peer == client.address_like(peer),
                            "a pod's own address must reach a ClusterIP's backend, not {peer}"
                        );
                    }
                }
            }
            Ok(())
        },
    )
}

#[test]
fn two_pods_on_one_bridge_talk_through_a_cluster_ip() -> Result<()> {
    let service = ServiceSpec::new("near", 10, &["b"]);
    in_both_modes(
        PodNetwork::Bridged,
        std::slice::from_ref(&service),
        |stage, _| {
            for server in service.cluster_ips() {
                reaches(stage, stage.pod("a").place(), server, &["b"])?;
            }
            Ok(())
        },
    )
}

#[test]
fn a_bridged_node_serves_node_ports_near_and_far() -> Result<()> {
    let near = ServiceSpec::new("near", 10, &["b"]).node_port(30080);
    let far = ServiceSpec::new("far", 11, &["c"]).node_port(30081);
    in_both_modes(PodNetwork::Bridged, &[near, far], |stage, _| {
        for (port, name) in [(30080, "b"), (30081, "c")] {
            for server in stage.node_port(0, port) {
                reaches(stage, stage.client.place(), server, &[name])?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let service = ServiceSpec::new("own", 10, &["a"]);
    in_both_modes(
        PodNetwork::Routed,
        std::slice::from_ref(&service),
        |stage, mode| {
            for server in service.cluster_ips() {
                let client = stage.pod("a");
                for peer in reaches(stage, client.place(), server, &["a"])? {
                    // The named deviation: a socket cannot be SNATed.
                    ensure!(
                        mode == "all" || peer != client.address_like(peer),
                        "a hairpin on the packet path must be SNATed"
                    );
                }
            }
            Ok(())
        },
    )
}

#[test]
fn pods_and_the_node_reach_this_nodes_node_port() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["b", "c"]).node_port(30080);
    in_both_modes(PodNetwork::Routed, &[service], |stage, _| {
        for server in stage.node_port(0, 30080) {
            reaches(stage, stage.pod("a").place(), server, &["b", "c"])?;
            reaches(stage, stage.lab.node(0).place(), server, &["b", "c"])?;
        }
        Ok(())
    })
}

#[test]
fn every_endpoint_gets_its_share() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a", "b", "c"]).node_port(30080);
    in_both_modes(
        PodNetwork::Routed,
        std::slice::from_ref(&service),
        |stage, _| {
            for (from, server) in [
                (stage.pod("a").place(), service.cluster_ips()[0]),
                (stage.client.place(), stage.node_port(0, 30080)[0]),
            ] {
                let mut names = BTreeSet::new();
                for _ in 0..60 {
                    names.insert(from.ask_tcp(server)?.name);
                }
                ensure!(
                    names.len() == 3,
                    "{server}: only {names:?} in 60 connections"
                );
            }
            Ok(())
        },
    )
}

#[test]
fn fragmented_udp_crosses_every_path() -> Result<()> {
    let near = ServiceSpec::new("near", 10, &["b"]).node_port(30080);
    let far = ServiceSpec::new("far", 11, &["c"]).node_port(30081);
    in_both_modes(
        PodNetwork::Routed,
        &[near.clone(), far.clone()],
        |stage, mode| {
            for size in [1473, 4000, 20_000] {
                for (service, port, name) in [(&near, 30080, "b"), (&far, 30081, "c")] {
                    for (family, server) in service.cluster_ips().into_iter().enumerate() {
                        let outside = stage.node_port(0, port)[family];
                        for (from, server) in [
                            (stage.pod("a").place(), server),
                            (stage.client.place(), outside),
                        ] {
                            let answer = from
                                .ask_udp(server, size)
                                .with_context(|| format!("{mode}: {size} bytes to {server}"))?;
                            ensure!(answer.name == name, "{server} was answered by {answer}");
                        }
                    }
                }
            }
            Ok(())
        },
    )
}

/// How a refused attempt must look: at once, and as a refusal.
fn is_refused(from: &Place, server: SocketAddr) -> Result<()> {
    let outcome = from.call(|| {
        let outcome = std::net::TcpStream::connect_timeout(&server, lb_lab::client::PATIENCE);
        Ok(format!(
            "{:?}",
            outcome.map(drop).map_err(|error| error.kind())
        ))
    })?;
    ensure!(
        outcome == "Err(ConnectionRefused)",
        "TCP {server}: {outcome}"
    );
    let outcome = from.call(|| {
        let socket = lb_lab::client::udp_socket(server)?;
        let outcome = socket
            .connect(server)
            .and_then(|()| socket.send(b"who\n"))
            .and_then(|_| socket.recv(&mut [0; 64]));
        Ok(format!(
            "{:?}",
            outcome.map(drop).map_err(|error| error.kind())
        ))
    })?;
    ensure!(
        outcome == "Err(ConnectionRefused)",
        "UDP {server}: {outcome}"
    );
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_everybody_at_once() -> Result<()> {
    let service = ServiceSpec::new("none", 10, &[]).node_port(30080);
    in_both_modes(
        PodNetwork::Routed,
        std::slice::from_ref(&service),
        |stage, mode| {
            for family in 0..2 {
                let node_port = stage.node_port(0, 30080)[family];
                let pod = stage.pod("a").place();
                is_refused(pod, service.cluster_ips()[family]).context("pod, ClusterIP")?;
                is_refused(pod, node_port).context("pod, node port")?;
                is_refused(stage.client.place(), node_port).context("outside, node port")?;
                if mode == "all" {
                    is_refused(stage.lab.node(0).place(), service.cluster_ips()[family])
                        .context("node, ClusterIP")?;
                }
            }
            Ok(())
        },
    )
}

#[test]
fn an_icmp_error_that_quotes_a_translated_packet_reaches_the_client() -> Result<()> {
    // A UDP port nobody listens on: the pod's stack answers with port unreachable, quoting what it
    // saw; the client must recognise its own packet in it.
    let service = ServiceSpec::new("web", 10, &["c"]).node_port(30080);
    for mode in MODES {
        let mut stage = Stage::new(PodNetwork::Routed)?;
        let text = "- {name: udp, protocol: UDP, port: 8080}";
        stage.apply(&service)?;
        let path = stage.manifests().join("web.yaml");
        let manifest = std::fs::read_to_string(&path)?;
        ensure!(
            manifest.contains(text),
            "the stage's manifest changed its form"
        );
        let closed = TARGET_PORT + 1;
        std::fs::write(
            &path,
            manifest.replace(text, &text.replace("8080", &closed.to_string())),
        )?;
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        for family in 0..2 {
            for (from, server) in [
                (stage.client.place(), stage.node_port(0, 30080)[family]),
                (stage.pod("a").place(), service.cluster_ips()[family]),
            ] {
                let outcome = from.call(|| {
                    let socket = lb_lab::client::udp_socket(server)?;
                    socket.connect(server)?;
                    socket.send(b"who\n")?;
                    let outcome = socket.recv(&mut [0; 64]);
                    Ok(format!("{:?}", outcome.map_err(|error| error.kind())))
                })?;
                ensure!(
                    outcome == "Err(ConnectionRefused)",
                    "{mode}, {server}: {outcome}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn session_affinity_is_one_memory_over_addresses_and_paths() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a", "b", "c"])
        .node_port(30080)
        .with("sessionAffinity: ClientIP");
    in_both_modes(
        PodNetwork::Routed,
        std::slice::from_ref(&service),
        |stage, mode| {
            for family in 0..2 {
                let pod = stage.pod("a").place();
                let addresses = [
                    service.cluster_ips()[family],
                    stage.node_port(0, 30080)[family],
                ];
                let first = pod.ask_tcp(addresses[0])?.name;
                for _ in 0..10 {
                    for server in addresses {
                        let name = pod.ask_tcp(server)?.name;
                        ensure!(
                            name == first,
                            "{mode}: {server} went to {name} after {first}"
                        );
                    }
                }
                let outside = stage.node_port(0, 30080)[family];
                let first = stage.client.place().ask_tcp(outside)?.name;
                for _ in 0..10 {
                    let name = stage.client.place().ask_tcp(outside)?.name;
                    ensure!(
                        name == first,
                        "{mode}: {outside} went to {name} after {first}"
                    );
                }
            }
            Ok(())
        },
    )
}
