//! Connections that live through a change: what is open, what is opened afterwards.

use super::world::{Node, World, node_pods};
use super::{Outcome, read};
use crate::host_path::{First, Kind, ends, packet, send};
use lb_agent::source::Kind as Object;
use lb_common::verdict::Verdict;
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Case {
    frontends: Vec<String>,
    setup: String,
    event: String,
    expect: Expect,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Expect {
    #[serde(rename = "establishedTCP")]
    established_tcp: String,
    #[serde(rename = "openUDP")]
    open_udp: String,
    new_connections: String,
}

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 0, 2));
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 180, 9, 1));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
const CLUSTER_IP: &str = "172.30.0.41";
const VIP: &str = "1.2.3.4";
const OLD: &str = "10.180.1.1";
const NEW: &str = "10.180.2.1";

/// Runs one case of `lifetimeCases`.
pub(super) fn run(case: &Value) -> Outcome {
    run_case(case).unwrap_or_else(|outcome| outcome)
}

/// What happens between the two halves of a case.
#[derive(Clone, Copy)]
enum Event {
    EndpointReplaced,
    PolicyLocal,
}

fn run_case(case: &Value) -> Result<Outcome, Outcome> {
    let case: Case = read("the case", case)?;
    let unknown = |what: &str, text: &str| {
        Outcome::Skipped(format!("the {what} “{text}” is not known to this runner"))
    };
    if !case
        .setup
        .starts_with("one ready endpoint, one TCP connection and one UDP flow")
    {
        return Err(unknown("setup", &case.setup));
    }
    let event = if case
        .event
        .starts_with("EndpointSlice now lists a different address")
    {
        Event::EndpointReplaced
    } else if case
        .event
        .starts_with("policy set to Local while the flow uses a remote")
    {
        Event::PolicyLocal
    } else {
        return Err(unknown("event", &case.event));
    };
    if !case.expect.established_tcp.starts_with("goes on") {
        return Err(unknown("expectation", &case.expect.established_tcp));
    }
    // kube-proxy moves a UDP flow when it cleans nf_conntrack; here its next datagram moves.
    let udp_moves = case.expect.open_udp.ends_with("then moves");
    if !case.expect.open_udp.starts_with("goes on") {
        return Err(unknown("expectation", &case.expect.open_udp));
    }
    let new = match case.expect.new_connections.as_str() {
        "new endpoint" => Some(endpoint(NEW)),
        "new policy" => None,
        other => return Err(unknown("expectation", other)),
    };
    for frontend in &case.frontends {
        let (from, to) = ends_of(frontend).ok_or_else(|| unknown("frontend", frontend))?;
        let udp = if udp_moves {
            endpoint(NEW)
        } else {
            endpoint(OLD)
        };
        live_through(event, from, to, udp, new)
            .map_err(|problem| Outcome::Failed(format!("{frontend}: {problem}")))?;
    }
    Ok(Outcome::Passed)
}

fn endpoint(address: &str) -> SocketAddr {
    SocketAddr::new(parsed(address), 8080)
}

fn parsed(address: &str) -> IpAddr {
    address.parse().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

fn ends_of(frontend: &str) -> Option<(IpAddr, SocketAddr)> {
    Some(match frontend {
        "pod -> ClusterIP" => (POD, SocketAddr::new(parsed(CLUSTER_IP), 80)),
        "outside client -> LB VIP" => (CLIENT, SocketAddr::new(parsed(VIP), 80)),
        "outside client -> NodePort" => (CLIENT, SocketAddr::new(NODE, 30_080)),
        _ => return None,
    })
}

fn service(policy: &str) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 80, "nodePort": 30_080});
    json!({
        "metadata": {"namespace": "ns", "name": "service"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": CLUSTER_IP,
            "internalTrafficPolicy": policy,
            "externalTrafficPolicy": policy,
            "ports": [port("tcp", "TCP"), port("udp", "UDP")],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": VIP}]}},
    })
}

fn slice(address: &str) -> Value {
    let port =
        |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 8080});
    json!({
        "metadata": {"namespace": "ns", "name": "slice",
            "labels": {"kubernetes.io/service-name": "service"}},
        "addressType": "IPv4",
        "ports": [port("tcp", "TCP"), port("udp", "UDP")],
        "endpoints": [{"addresses": [address], "nodeName": "there", "conditions": {"ready": true}}],
    })
}

/// Opens both kinds of conversation, lets the event happen, and looks where each goes then.
fn live_through(
    event: Event,
    from: IpAddr,
    to: SocketAddr,
    udp: SocketAddr,
    new: Option<SocketAddr>,
) -> Result<(), String> {
    let spoken = |outcome: Outcome| format!("{outcome:?}");
    let mut world = World::new(&Node {
        name: "here".to_owned(),
        local_ips: vec![NODE],
        ..node_pods("10.0.0.0/8")
    })
    .map_err(spoken)?;
    world
        .upsert(Object::Service, &[service("Cluster")])
        .map_err(spoken)?;
    world
        .upsert(Object::EndpointSlice, &[slice(OLD)])
        .map_err(spoken)?;

    let (tcp_client, udp_client) = (SocketAddr::new(from, 40_001), SocketAddr::new(from, 40_002));
    exchange(&world, tcp_client, to, Kind::Syn)?;
    exchange(&world, udp_client, to, Kind::Datagram)?;
    let changed = match event {
        Event::EndpointReplaced => world.upsert(Object::EndpointSlice, &[slice(NEW)]),
        Event::PolicyLocal => world.upsert(Object::Service, &[service("Local")]),
    };
    changed.map_err(spoken)?;

    let goes = |client, kind, expected| {
        let (first, _) = send(&world.packets, client, to, kind)?;
        match first {
            First::Backend(address, _) if address == expected => Ok(()),
            other => Err(format!("{kind:?} should go to {expected}: {other:?}")),
        }
    };
    goes(tcp_client, Kind::Segment, endpoint(OLD))?;
    goes(udp_client, Kind::Datagram, udp)?;
    for (port, kind) in [(40_003, Kind::Syn), (40_004, Kind::Datagram)] {
        let client = SocketAddr::new(from, port);
        match (new, send(&world.packets, client, to, kind)?.0) {
            (Some(expected), First::Backend(address, _)) if address == expected => {}
            // Nobody is here: that is what the new policy says.
            (None, First::Drop) => {}
            (_, other) => return Err(format!("a new connection ({kind:?}): {other:?}")),
        }
    }
    Ok(())
}

/// A request to the old endpoint and its answer, which must come from the frontend.
fn exchange(world: &World, client: SocketAddr, to: SocketAddr, kind: Kind) -> Result<(), String> {
    let (first, source) = send(&world.packets, client, to, kind)?;
    let First::Backend(backend, _) = first else {
        return Err(format!("{kind:?} should go to {OLD}: {first:?}"));
    };
    let answer = match kind {
        Kind::Datagram => Kind::Datagram,
        Kind::Syn | Kind::SynAck | Kind::Segment => Kind::SynAck,
        Kind::Init => Kind::Init,
    };
    let mut bytes = packet(backend, source, answer)?;
    for verdict in [
        world.packets.ingress(&mut bytes, 2),
        world.packets.egress(&mut bytes, 1),
    ] {
        if verdict != Verdict::Continue {
            return Err(format!("the answer ended with {verdict:?}"));
        }
    }
    let got = ends(&bytes)?;
    if got == (to, client) {
        Ok(())
    } else {
        Err(format!("the answer reaches {} from {}", got.1, got.0))
    }
}
