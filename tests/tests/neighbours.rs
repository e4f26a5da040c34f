//! Others on the same machine: foreign programs on our hooks, the host's own sockets, devices and
//! addresses that come and go.

use anyhow::{Context, Result, ensure};
use lb_lab::topology::UPLINK;
use lb_lab::{PodNetwork, Server, client};
use lb_tests::attempt::soon;
use lb_tests::foreign::{Answer, ForeignProgram, Hook, Side};
use lb_tests::stage::{ServiceSpec, Stage};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

fn stage(flags: &str) -> Result<Stage> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&ServiceSpec::new("web", 10, &["a", "c"]).node_port(30080))?;
    stage.start_agents(flags)?;
    Ok(stage)
}

#[test]
fn foreign_programs_before_and_behind_ours_see_every_packet() -> Result<()> {
    let stage = stage("--socket-load-balancing off")?;
    let node = stage.lab.node(0).namespace();
    let device = stage.pod("a").host_device().to_owned();
    let mut watchers = Vec::new();
    for (device, hook) in [
        (UPLINK, Hook::Ingress),
        (UPLINK, Hook::Egress),
        (device.as_str(), Hook::Ingress),
        (device.as_str(), Hook::Egress),
    ] {
        let before = ForeignProgram::attach(node, device, hook, Side::Before, Answer::Next)?;
        let behind = ForeignProgram::attach(node, device, hook, Side::Behind, Answer::Next)?;
        watchers.push((device, hook, before, behind));
    }
    let server = stage.node_port(0, 30080)[0];
    for _ in 0..20 {
        stage.client.place().ask_tcp(server)?;
    }
    for (device, hook, before, behind) in watchers {
        let (before, behind) = (before.packets()?, behind.packets()?);
        ensure!(before > 0, "{device} {hook:?}: nothing passed");
        ensure!(
            before == behind,
            "{device} {hook:?}: {before} before us, {behind} behind us"
        );
    }
    Ok(())
}

#[test]
fn a_foreign_drop_behind_ours_still_drops_what_we_rewrote() -> Result<()> {
    let stage = stage("--socket-load-balancing off")?;
    let node = stage.lab.node(0).namespace();
    let server = stage.node_port(0, 30080)[0];
    let connect = || {
        stage.client.place().call(|| {
            let patience = std::time::Duration::from_millis(300);
            std::net::TcpStream::connect_timeout(&server, patience)?;
            Ok(String::new())
        })
    };
    connect().context("before the foreign filter")?;
    let filter = ForeignProgram::attach(node, UPLINK, Hook::Ingress, Side::Behind, Answer::Drop)?;
    ensure!(
        connect().is_err(),
        "a packet passed a filter that drops everything"
    );
    drop(filter);
    connect().context("after the foreign filter")?;
    Ok(())
}

#[test]
fn udp_of_a_host_socket_in_the_node_port_range_gets_its_answers() -> Result<()> {
    for mode in ["all", "off"] {
        let stage = stage(&format!("--socket-load-balancing {mode}"))?;
        let _server = Server::start(stage.client.place(), "outside", 9000)?;
        for to in [IpAddr::from(stage.client.v4()), stage.client.v6().into()] {
            let to = SocketAddr::from((to, 9000));
            // The node port of the service, as the source port of the host's own question.
            let text = stage.lab.node(0).place().call(|| {
                let any: IpAddr = if to.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    std::net::Ipv6Addr::UNSPECIFIED.into()
                };
                let socket = UdpSocket::bind((any, 30080))?;
                socket.set_read_timeout(Some(client::PATIENCE))?;
                Ok(client::ask_datagram(&socket, to, 64)?.name)
            })?;
            ensure!(text == "outside", "{mode}: {text}");
        }
    }
    Ok(())
}

#[test]
fn pods_that_come_later_are_served_at_once() -> Result<()> {
    let mut stage = stage("--socket-load-balancing off")?;
    stage.add_pod(0, "d")?;
    let server = ServiceSpec::new("web", 10, &[]).cluster_ips()[0];
    soon("a pod added after the agent asks a ClusterIP", || {
        stage.pod("d").place().call(|| {
            let patience = std::time::Duration::from_millis(200);
            std::net::TcpStream::connect_timeout(&server, patience)?;
            Ok(String::new())
        })?;
        Ok(())
    })?;
    stage.apply(&ServiceSpec::new("web", 10, &["d"]).node_port(30080))?;
    soon("outside reaches the new pod", || {
        let answer = stage.client.place().ask_tcp(stage.node_port(0, 30080)[0])?;
        ensure!(answer.name == "d", "answered by {answer}");
        Ok(())
    })
}

#[test]
fn node_addresses_that_come_and_go_are_followed() -> Result<()> {
    let stage = stage("")?;
    let node = stage.lab.node(0).namespace();
    let server = SocketAddr::from(([10, 77, 0, 99], 30080));
    let connect = || {
        stage.client.place().call(|| {
            let patience = std::time::Duration::from_millis(200);
            std::net::TcpStream::connect_timeout(&server, patience)?;
            Ok(String::new())
        })
    };
    ensure!(connect().is_err(), "nobody has 10.77.0.99 yet");
    node.ip(&format!("addr add 10.77.0.99/24 dev {UPLINK}"))?;
    soon("a node port on a new address", || connect().map(drop))?;
    node.ip(&format!("addr del 10.77.0.99/24 dev {UPLINK}"))?;
    soon("the address is gone", || {
        ensure!(connect().is_err(), "still answered");
        Ok(())
    })
}
