//! kube-proxy's `detectLocalMode` `BridgeInterface` and `InterfaceNamePrefix`: whose packets come in
//! by the devices of pods is not masqueraded, and need not stay on the node.

use anyhow::{Context, Result, ensure};
use lb_lab::{Place, Pod, PodNetwork, client};
use lb_tests::stage::{ServiceSpec, Stage};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Instant;

/// The mode, and how the names of pods' devices on a node of the lab begin.
const PREFIX: &str = "--detect-local-mode InterfaceNamePrefix --pod-interface-name-prefix pod";

/// Who answers, and whom the server took for the client.
fn asked(from: &Place, server: SocketAddr) -> Result<(String, IpAddr)> {
    let tcp = from
        .ask_tcp(server)
        .with_context(|| format!("TCP {server}"))?;
    let udp = from
        .ask_udp(server, 100)
        .with_context(|| format!("UDP {server}"))?;
    ensure!(
        (&tcp.name, tcp.peer.ip()) == (&udp.name, udp.peer.ip()),
        "{server} over TCP: {tcp}, over UDP: {udp}"
    );
    Ok((tcp.name, tcp.peer.ip()))
}

/// A service with an endpoint on the other node, with an address for outside whose policy is Local,
/// served by the packet path alone.
fn stage(network: PodNetwork, flags: &str) -> Result<(Stage, ServiceSpec)> {
    let mut stage = Stage::new(network)?;
    let service = ServiceSpec::new("web", 10, &["c"])
        .load_balancer()
        .with("externalTrafficPolicy: Local");
    stage.apply(&service)?;
    stage.route_services(0)?;
    stage.route_default(0)?;
    stage.start_agents(&format!("--socket-load-balancing off {flags}"))?;
    Ok((stage, service))
}

/// The node's addresses as the other node sees them, of the family of `like`.
fn node_like(stage: &Stage, like: IpAddr) -> IpAddr {
    let [v4, v6] = stage.lab.node_addresses(0);
    if like.is_ipv4() { v4 } else { v6 }
}

fn await_peer(from: &Pod, server: SocketAddr, wanted: IpAddr) -> Result<()> {
    let end = Instant::now() + client::PATIENCE;
    loop {
        let (name, peer) = asked(from.place(), server)?;
        if (&*name, peer) == ("c", wanted) {
            return Ok(());
        }
        ensure!(
            Instant::now() < end,
            "{server} sees {peer}, expected {wanted}"
        );
    }
}

/// Pods are known by these flags, those that come later too, and nobody else is taken for one.
fn pods_are_known(network: PodNetwork, flags: &str) -> Result<()> {
    let (mut stage, service) = stage(network, flags)?;
    stage.add_pod(0, "later")?;
    for server in service.cluster_ips() {
        for name in ["b", "later"] {
            let pod = stage.pod(name);
            await_peer(pod, server, pod.address_like(server.ip()))?;
        }
        let outside = asked(stage.client.place(), server)?;
        let node = node_like(&stage, server.ip());
        ensure!(outside == ("c".to_owned(), node), "outside: {outside:?}");
    }
    for server in service.load_balancer_ips() {
        let pod = stage.pod("b");
        let own = pod.address_like(server.ip());
        let answer = asked(pod.place(), server)?;
        ensure!(answer == ("c".to_owned(), own), "the pod: {answer:?}");
    }
    let dropped = stage.counted(0, "dropped_no_local_endpoint")?;
    for server in service.load_balancer_ips() {
        let any: IpAddr = if server.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        stage.client.place().call(|| {
            UdpSocket::bind((any, 0))?.send_to(b"asked", server)?;
            Ok(String::new())
        })?;
    }
    let end = Instant::now() + client::PATIENCE;
    while stage.counted(0, "dropped_no_local_endpoint")? < dropped + 2 {
        ensure!(Instant::now() < end, "what came from outside was let in");
    }
    ensure!(stage.checksum_errors()? == 0);
    Ok(())
}

/// By these flags nobody is a pod.
fn pods_are_masqueraded(network: PodNetwork, flags: &str) -> Result<()> {
    let (stage, service) = stage(network, flags)?;
    for server in service.cluster_ips() {
        let answer = asked(stage.pod("b").place(), server)?;
        let node = node_like(&stage, server.ip());
        ensure!(answer == ("c".to_owned(), node), "{answer:?}");
    }
    Ok(())
}

#[test]
fn packets_from_ports_of_the_bridge_are_pods() -> Result<()> {
    let flags = "--detect-local-mode BridgeInterface --pod-bridge-interface cni0";
    pods_are_known(PodNetwork::Bridged, flags)
}

#[test]
fn packets_from_devices_with_the_prefix_are_pods() -> Result<()> {
    pods_are_known(PodNetwork::Routed, PREFIX)
}

#[test]
fn packets_from_other_devices_are_no_pods() -> Result<()> {
    let flags = "--detect-local-mode BridgeInterface --pod-bridge-interface cni1";
    pods_are_masqueraded(PodNetwork::Bridged, flags)?;
    // A port's own name counts for nothing: packets come in by its bridge.
    pods_are_masqueraded(PodNetwork::Bridged, PREFIX)
}
