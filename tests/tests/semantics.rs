//! Who is refused, who gets silence and who is served: kube-proxy's answers (nftables mode) given to
//! real clients, with `socketLoadBalancing` `all` and `off`, IPv4 and IPv6.

use anyhow::{Context, Result, ensure};
use lb_lab::{Place, PodNetwork};
use lb_tests::attempt::attempts;
use lb_tests::health::ask as ask_health;
use lb_tests::stage::{ServiceSpec, Stage};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

const MODES: [&str; 2] = ["all", "off"];

fn in_both_modes(
    services: &[ServiceSpec],
    check: impl Fn(&Stage, &str) -> Result<()>,
) -> Result<()> {
    for mode in MODES {
        let mut stage = Stage::new(PodNetwork::Routed)?;
        for service in services {
            stage.apply(service)?;
        }
        stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
        stage.route_services(0)?;
        check(&stage, mode).with_context(|| format!("socketLoadBalancing {mode}"))?;
    }
    Ok(())
}

fn is_refused(from: &Place, server: SocketAddr) -> Result<()> {
    let refused = format!("{:?}", Err::<(), _>(ErrorKind::ConnectionRefused));
    for outcome in attempts(from, server)? {
        ensure!(
            outcome == refused,
            "{server}: {outcome}, expected a refusal"
        );
    }
    Ok(())
}

/// True silence, counted on node 0 for this reason.
fn is_dropped(stage: &Stage, from: &Place, server: SocketAddr, reason: &str) -> Result<()> {
    let before = stage.counted(0, reason)?;
    let [tcp, udp] = attempts(from, server)?;
    let timed_out = format!("{:?}", Err::<(), _>(ErrorKind::TimedOut));
    let would_block = format!("{:?}", Err::<(), _>(ErrorKind::WouldBlock));
    ensure!(tcp == timed_out, "TCP {server}: {tcp}, expected silence");
    ensure!(udp == would_block, "UDP {server}: {udp}, expected silence");
    let counted = stage.counted(0, reason)? - before;
    ensure!(
        counted >= 2,
        "{server}: {reason} was counted {counted} times"
    );
    Ok(())
}

#[test]
fn an_undefined_port_of_a_cluster_ip_is_refused_to_everybody() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a", "c"]);
    in_both_modes(std::slice::from_ref(&service), |stage, mode| {
        for mut server in service.cluster_ips() {
            stage.pod("b").place().ask_tcp(server)?;
            stage.client.place().ask_tcp(server)?;
            server.set_port(81);
            is_refused(stage.pod("b").place(), server).context("pod")?;
            is_refused(stage.client.place(), server).context("outside")?;
            if mode == "all" {
                is_refused(stage.lab.node(0).place(), server).context("node")?;
            }
        }
        Ok(())
    })
}

#[test]
fn a_datagram_to_an_undefined_port_is_refused_without_a_connection_too() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a"]);
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&service)?;
    stage.start_agents("--socket-load-balancing all")?;
    for mut server in service.cluster_ips() {
        server.set_port(81);
        let outcome = stage.pod("b").place().call(|| {
            let socket = lb_lab::client::udp_socket(server)?;
            let outcome = socket.send_to(b"who\n", server);
            Ok(format!("{:?}", outcome.map_err(|error| error.kind())))
        })?;
        ensure!(outcome == "Err(ConnectionRefused)", "{server}: {outcome}");
    }
    Ok(())
}

#[test]
fn resolvers_may_connect_a_datagram_socket_to_learn_its_source() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a"]);
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        for mut server in service.cluster_ips() {
            server.set_port(65_535);
            let source = stage.pod("b").place().call(|| {
                let socket = lb_lab::client::udp_socket(server)?;
                socket.connect(server)?;
                Ok(socket.local_addr()?.ip().to_string())
            })?;
            let own = stage.pod("b").address_like(server.ip()).to_string();
            ensure!(source == own, "{server}: the source is {source}");
        }
        Ok(())
    })
}

#[test]
fn a_free_address_of_a_service_cidr_is_met_with_silence() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a"]);
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        let free = ServiceSpec::new("nobody", 99, &[]).cluster_ips();
        for server in free {
            let reason = "dropped_unused_address";
            is_dropped(stage, stage.pod("b").place(), server, reason).context("pod")?;
            is_dropped(stage, stage.client.place(), server, reason).context("outside")?;
        }
        Ok(())
    })
}

#[test]
fn source_ranges_decide_who_may_use_a_load_balancer_address() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a", "c"])
        .node_port(30080)
        .load_balancer()
        .with("externalIPs: [\"198.51.100.77\", \"2001:db8:51::77\"]")
        .with("loadBalancerSourceRanges: [\"10.244.1.0/24\", \"fd00:244:1::/64\"]");
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        let guarded = service.load_balancer_ips();
        let external: [SocketAddr; 2] =
            ["198.51.100.77:80".parse()?, "[2001:db8:51::77]:80".parse()?];
        for family in 0..2 {
            let vip = guarded[family];
            for _ in 0..4 {
                stage
                    .pod("b")
                    .place()
                    .ask_tcp(vip)
                    .context("a pod in the range")?;
            }
            stage.pod("b").place().ask_udp(vip, 64)?;
            let outside = stage.client.place();
            is_dropped(stage, outside, vip, "dropped_source_range").context("outside")?;
            // The other addresses of the same service are open.
            for open in [
                service.cluster_ips()[family],
                stage.node_port(0, 30080)[family],
                external[family],
            ] {
                outside.ask_tcp(open).with_context(|| format!("{open}"))?;
            }
        }
        // Another range: who was outside is inside now, and the other way round.
        let moved = ServiceSpec {
            spec: String::new(),
            ..service.clone()
        }
        .with("loadBalancerSourceRanges: [\"10.77.0.0/24\", \"fd77::/64\"]");
        stage.apply(&moved)?;
        for vip in guarded {
            let opened = || stage.client.place().ask_tcp(vip).is_ok();
            ensure!(
                (0..20).any(|_| opened()),
                "{vip} stays closed to the new range"
            );
            let pod = stage.pod("b").place();
            is_dropped(stage, pod, vip, "dropped_source_range").context("the old range")?;
        }
        Ok(())
    })
}

#[test]
fn the_disallowed_get_silence_and_the_allowed_a_refusal_where_nobody_serves() -> Result<()> {
    let service = ServiceSpec::new("none", 10, &[])
        .load_balancer()
        .with("loadBalancerSourceRanges: [\"10.244.1.0/24\", \"fd00:244:1::/64\"]");
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        for vip in service.load_balancer_ips() {
            is_refused(stage.pod("b").place(), vip).context("allowed")?;
            is_dropped(stage, stage.client.place(), vip, "dropped_source_range")?;
        }
        Ok(())
    })
}

#[test]
fn a_health_check_node_port_tells_which_nodes_have_endpoints_and_follows_them() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a", "b"])
        .node_port(30080)
        .load_balancer()
        .with("externalTrafficPolicy: Local")
        .with("healthCheckNodePort: 32000");
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        let outside = stage.client.place();
        let until = |server: SocketAddr, wanted: (u16, usize)| -> Result<()> {
            let body = format!(
                "{{\"service\":{{\"namespace\":\"lab\",\"name\":\"web\"}},\
                 \"localEndpoints\":{},\"serviceProxyHealthy\":true}}",
                wanted.1
            );
            let mut last = None;
            for _ in 0..200 {
                let got = ask_health(outside, server).ok();
                if got.as_ref() == Some(&(wanted.0, body.clone())) {
                    return Ok(());
                }
                last = got;
                std::thread::yield_now();
            }
            anyhow::bail!("{server}: expected {wanted:?}, got {last:?}")
        };
        for family in 0..2 {
            until(stage.node_port(0, 32000)[family], (200, 2))?;
            until(stage.node_port(1, 32000)[family], (503, 0))?;
        }
        let mut moved = service.clone();
        moved.endpoints = vec!["c".to_owned()];
        stage.apply(&moved)?;
        for family in 0..2 {
            until(stage.node_port(0, 32000)[family], (503, 0))?;
            until(stage.node_port(1, 32000)[family], (200, 1))?;
        }
        Ok(())
    })
}

#[test]
fn an_open_udp_conversation_moves_at_once_when_its_endpoint_is_removed() -> Result<()> {
    let service = ServiceSpec::new("web", 10, &["a"]).node_port(30080);
    in_both_modes(std::slice::from_ref(&service), |stage, _| {
        for server in stage.node_port(0, 30080) {
            stage.apply(&service)?;
            let mut moved = service.clone();
            moved.endpoints = vec!["b".to_owned()];
            let names = stage.client.place().call(|| {
                let until = |name: &str| -> Result<()> {
                    while lb_lab::client::udp_connected(server, 64)?.name != name {}
                    Ok(())
                };
                until("a")?;
                let socket = lb_lab::client::udp_socket(server)?;
                let ask = || lb_lab::client::ask_datagram(&socket, server, 64);
                let before = ask()?.name;
                stage.apply(&moved)?;
                // New conversations tell when the change is served.
                until("b")?;
                Ok(format!("{before} {}", ask()?.name))
            })?;
            ensure!(names == "a b", "{server}: {names}");
        }
        Ok(())
    })
}

#[test]
fn local_policies_keep_clients_on_their_node_and_their_addresses_as_they_are() -> Result<()> {
    let outside = ServiceSpec::new("outside", 10, &["c"])
        .node_port(30080)
        .with("externalTrafficPolicy: Local");
    let near = ServiceSpec::new("near", 11, &["b", "c"]).with("internalTrafficPolicy: Local");
    let far = ServiceSpec::new("far", 12, &["c"]).with("internalTrafficPolicy: Local");
    in_both_modes(&[outside, near.clone(), far.clone()], |stage, _| {
        for family in 0..2 {
            let pod = stage.pod("a").place();
            let here = stage.node_port(0, 30080)[family];
            let silent = "dropped_no_local_endpoint";
            is_dropped(stage, stage.client.place(), here, silent)
                .context("outside, no endpoint on this node")?;
            let there = stage.node_port(1, 30080)[family];
            let answer = stage.client.place().ask_tcp(there)?;
            let own: [IpAddr; 2] = [stage.client.v4().into(), stage.client.v6().into()];
            ensure!(
                answer.name == "c" && answer.peer.ip() == own[family],
                "the client's address must reach the endpoint: {answer}"
            );
            // Pods of the node are served from everywhere, policy or not.
            let name = pod.ask_tcp(here).context("pod, node port")?.name;
            ensure!(name == "c", "{here} was answered by {name}");
            for _ in 0..8 {
                let name = pod.ask_tcp(near.cluster_ips()[family])?.name;
                ensure!(name == "b", "internal policy Local went to {name}");
            }
            is_dropped(stage, pod, far.cluster_ips()[family], silent)
                .context("pod, internal policy, no endpoint on this node")?;
        }
        Ok(())
    })
}
