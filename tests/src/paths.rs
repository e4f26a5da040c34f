//! Every way a client can take to a service, walked with real clients on a [`Stage`].
//!
//! What may not live here: what a machine looks like. The stage is whatever its maker made of it.

use crate::stage::{ServiceSpec, Stage};
use anyhow::{Context, Result, ensure};
use lb_lab::{Answer, Place};
use std::net::{IpAddr, SocketAddr};

/// More than one segment, and more than one window of a new connection.
const LONG: usize = 100_000;
/// More than one fragment on any of the lab's devices.
const FRAGMENTED: usize = 3000;

/// Pod `b`, on the first node.
pub const NEAR: u16 = 30080;
/// Pod `c`, on the second node.
const FAR: u16 = 30081;
/// Pod `b` with `externalTrafficPolicy: Local`.
const LOCAL: u16 = 30082;

/// The services that [`walk`] asks.
pub fn services() -> Vec<ServiceSpec> {
    vec![
        ServiceSpec::new("near", 10, &["b"]).node_port(NEAR),
        ServiceSpec::new("far", 11, &["c"]).node_port(FAR),
        ServiceSpec::new("own", 12, &["a"]),
        ServiceSpec::new("local", 13, &["b"])
            .node_port(LOCAL)
            .with("externalTrafficPolicy: Local"),
    ]
}

/// One way from a client to a pod.
struct Path<'a> {
    what: &'static str,
    from: &'a Place,
    to: SocketAddr,
    name: &'static str,
    /// The address the pod must see, where it is not the path's business to change it.
    seen: Option<IpAddr>,
    /// Whether a datagram larger than a packet gets through.
    fragments: bool,
}

/// Walks every path of these families (0: IPv4, 1: IPv6) and says which do not work. `sockets`: whether
/// connections are balanced at the socket.
pub fn walk(stage: &Stage, families: &[usize], sockets: bool) -> Result<()> {
    if !sockets {
        stage.route_default(0)?;
    }
    let mut broken = Vec::new();
    for family in families {
        for path in paths(stage, *family, sockets) {
            let name = path.from.namespace().name().unwrap_or("host");
            if let Err(error) = take(&path) {
                broken.push(format!("{} ({name} to {}): {error:#}", path.what, path.to));
            }
        }
    }
    ensure!(
        broken.is_empty(),
        "{} paths are broken:\n{}",
        broken.len(),
        broken.join("\n")
    );
    Ok(())
}

fn paths(stage: &Stage, family: usize, sockets: bool) -> Vec<Path<'_>> {
    let cluster = |number| ServiceSpec::new("", number, &[]).cluster_ips()[family];
    let port = |node, port| stage.node_port(node, port)[family];
    let (pod, node, outside) = (
        stage.pod("a").place(),
        stage.lab.node(0).place(),
        stage.client.place(),
    );
    let own: [IpAddr; 2] = [stage.pod("a").v4().into(), stage.pod("a").v6().into()];
    let client: [IpAddr; 2] = [stage.client.v4().into(), stage.client.v6().into()];
    let path = |what, from, to, name| Path {
        what,
        from,
        to,
        name,
        seen: None,
        fragments: true,
    };
    // Without socket balancing the node makes packets for the device that the service's route names; where
    // the pod's takes smaller ones, nothing fragments them again (docs/operations.md).
    let from_node = |what, to, name| Path {
        fragments: sockets,
        ..path(what, node, to, name)
    };
    vec![
        Path {
            seen: Some(own[family]),
            ..path("pod, ClusterIP, pod here", pod, cluster(10), "b")
        },
        Path {
            seen: Some(own[family]),
            ..path("pod, ClusterIP, pod elsewhere", pod, cluster(11), "c")
        },
        path("pod, ClusterIP, itself", pod, cluster(12), "a"),
        path("pod, node port, pod here", pod, port(0, NEAR), "b"),
        path("pod, node port, pod elsewhere", pod, port(0, FAR), "c"),
        from_node("node, ClusterIP, pod here", cluster(10), "b"),
        from_node("node, ClusterIP, pod elsewhere", cluster(11), "c"),
        from_node("node, node port, pod here", port(0, NEAR), "b"),
        path("outside, node port, pod here", outside, port(0, NEAR), "b"),
        path(
            "outside, node port, pod elsewhere",
            outside,
            port(0, FAR),
            "c",
        ),
        path(
            "outside, the other node's port",
            outside,
            port(1, NEAR),
            "b",
        ),
        Path {
            seen: Some(client[family]),
            ..path("outside, policy Local", outside, port(0, LOCAL), "b")
        },
    ]
}

/// One way to ask.
type Ask<'a> = &'a dyn Fn() -> Result<Answer>;

fn take(path: &Path<'_>) -> Result<()> {
    let (from, to) = (path.from, path.to);
    let ways: [(&str, Ask<'_>); 5] = [
        ("TCP", &|| from.ask_tcp(to)),
        ("a long question over TCP", &|| from.ask_tcp_long(to, LONG)),
        ("connected UDP", &|| from.ask_udp(to, 64)),
        ("unconnected UDP", &|| from.ask_udp_unconnected(to, 64)),
        ("fragmented UDP", &|| {
            // IPv6 routers do not fragment: a first datagram may only teach what fits.
            let first = from.ask_udp(to, FRAGMENTED);
            first.or_else(|_| from.ask_udp(to, FRAGMENTED))
        }),
    ];
    let ways = &ways[..if path.fragments { 5 } else { 4 }];
    for (way, ask) in ways {
        let answer = ask().context(*way)?;
        ensure!(
            answer.name == path.name,
            "{way}: answered by {answer}, expected {}",
            path.name
        );
        if let Some(seen) = path.seen {
            ensure!(
                answer.peer.ip() == seen,
                "{way}: the pod sees {}, expected {seen}",
                answer.peer.ip()
            );
        }
    }
    Ok(())
}
