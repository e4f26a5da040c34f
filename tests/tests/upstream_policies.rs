//! What Kubernetes' end-to-end suite asks under `Services` about traffic policies, endpoints on their way
//! out, and addresses that pass unchanged, asked of three nodes whose network masquerades pods that
//! leave the cluster's pod network, as every real one does. `docs/upstream-e2e.md` says which of its
//! tests these stand for.

use anyhow::{Context, Result, ensure};
use lb_lab::{Answer, Place, PodNetwork};
use lb_tests::attempt::{attempts_together, soon};
use lb_tests::health::ask as ask_health;
use lb_tests::stage::{ServiceSpec, Stage};
use std::fs;
use std::net::{IpAddr, SocketAddr};

/// What a network plugin has on its nodes: pods speak to others than pods with their node's address.
const MASQUERADE: &str = "table ip plugin {
  chain post {
    type nat hook postrouting priority srcnat;
    ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
  }
}
table ip6 plugin {
  chain post {
    type nat hook postrouting priority srcnat;
    ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade
  }
}";

/// Servers `a` on node 0 and `c` on node 1, and a client pod on each of three nodes.
const PODS: [(usize, &str); 5] = [(0, "a"), (1, "c"), (0, "p0"), (1, "p1"), (2, "p2")];

fn cluster(mode: &str, services: &[&ServiceSpec]) -> Result<Stage> {
    let mut stage = Stage::of(PodNetwork::Routed, 3, &PODS)?;
    for node in 0..3 {
        stage.lab.node(node).namespace().nft(MASQUERADE)?;
        stage.route_default(node)?;
    }
    stage.add_node_server(0)?;
    for service in services {
        stage.apply(service)?;
    }
    stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
    stage.route_services(0)?;
    Ok(stage)
}

/// The client pods, then the hosts.
fn everybody(stage: &Stage) -> Vec<(String, &Place)> {
    let pods = (0..3).map(|node| {
        let name = format!("p{node}");
        let place = stage.pod(&name).place();
        (name, place)
    });
    let hosts = (0..3).map(|node| (format!("host {node}"), stage.lab.node(node).place()));
    pods.chain(hosts).collect()
}

/// Every one of these is answered by `name`; `who` ends with the number of its node.
fn served(stage: &Stage, servers: [SocketAddr; 2], nodes: &[usize], name: &str) -> Result<()> {
    for (who, place) in everybody(stage) {
        for server in servers {
            if nodes.iter().any(|node| who.ends_with(&node.to_string())) {
                let answer = place.ask_tcp(server);
                let answer = answer.with_context(|| format!("{who} asks {server}"))?;
                ensure!(answer.name == name, "{who} at {server}: {answer}");
            }
        }
    }
    Ok(())
}

/// Silence for the pods and the hosts of a node, which counts why.
fn silent(stage: &Stage, servers: [SocketAddr; 2], node: usize) -> Result<()> {
    let pod = stage.pod(&format!("p{node}")).place();
    let host = stage.lab.node(node).place();
    let askers = servers.map(|server| [(pod, server), (host, server)]);
    are_silent(stage, node, &askers.concat())
}

/// Silence over TCP and UDP for each of these, counted on `node`.
fn are_silent(stage: &Stage, node: usize, askers: &[(&Place, SocketAddr)]) -> Result<()> {
    let reason = "dropped_no_local_endpoint";
    let before = stage.counted(node, reason)?;
    for (outcome, (place, server)) in attempts_together(askers)?.iter().zip(askers) {
        let who = place.namespace().name().unwrap_or_default();
        ensure!(
            *outcome == ["Err(TimedOut)", "Err(WouldBlock)"],
            "{who} at {server}: {outcome:?}"
        );
    }
    let counted = stage.counted(node, reason)? - before;
    ensure!(counted >= 2 * askers.len() as u64, "counted {counted} only");
    Ok(())
}

/// Waits until new connections meet the service as it was applied last: a client there is answered.
fn settled(place: &Place, servers: [SocketAddr; 2], name: &str) -> Result<()> {
    for server in servers {
        soon("the change takes effect", || {
            let answer = place.ask_tcp(server)?;
            ensure!(answer.name == name, "{server}: {answer}");
            Ok(())
        })?;
    }
    Ok(())
}

fn internal_policies(stage: &Stage) -> Result<()> {
    let near = ServiceSpec::new("near", 10, &["a"]).with("internalTrafficPolicy: Local");
    let on_host = ServiceSpec::new("on-host", 11, &["node0"]).with("internalTrafficPolicy: Local");
    let everywhere = ServiceSpec::new("everywhere", 12, &["a"]).terminating("a");
    let leaving = ServiceSpec::new("leaving", 13, &["a"])
        .with("internalTrafficPolicy: Local")
        .terminating("a");
    for service in [&near, &on_host, &leaving, &everywhere] {
        stage.apply(service)?;
    }
    for node in 0..3 {
        let host = stage.lab.node(node).place();
        settled(host, everywhere.cluster_ips(), "a")?;
    }
    served(stage, everywhere.cluster_ips(), &[0, 1, 2], "a").context("terminating, Cluster")?;
    for (service, name) in [(&near, "a"), (&on_host, "node0"), (&leaving, "a")] {
        let context = || format!("{}, internalTrafficPolicy Local", service.name);
        settled(stage.pod("p0").place(), service.cluster_ips(), name).with_context(context)?;
        served(stage, service.cluster_ips(), &[0], name).with_context(context)?;
        silent(stage, service.cluster_ips(), 1).with_context(context)?;
    }
    Ok(())
}

fn answer(stage: &Stage, pod: &str, server: SocketAddr, name: &str) -> Result<Answer> {
    let asked = stage.pod(pod).place().ask_tcp(server);
    let answer = asked.with_context(|| format!("{pod} asks {server}"))?;
    ensure!(answer.name == name, "{pod} at {server}: {answer}");
    Ok(answer)
}

/// What a service with one endpoint, on node 0, and `externalTrafficPolicy: Local` owes to everybody.
fn external_local(stage: &Stage, port: u16) -> Result<()> {
    for family in 0..2 {
        let [here, there] = [0, 1].map(|node| stage.node_port(node, port)[family]);
        let outside = stage.client.place().ask_tcp(here)?;
        let own: [IpAddr; 2] = [stage.client.v4().into(), stage.client.v6().into()];
        ensure!(
            outside.name == "a" && outside.peer.ip() == own[family],
            "a client outside keeps its address: {outside}"
        );
        for (pod, node) in [("p0", 0), ("p1", 1), ("p2", 2)] {
            let seen = answer(stage, pod, here, "a")?.peer.ip();
            // Pods of other nodes come with the address of theirs, by the network's own rules.
            let pod_address = stage.pod(pod).address_like(here.ip());
            let expected = if node == 0 {
                pod_address
            } else {
                stage.lab.node_addresses(node)[family]
            };
            ensure!(seen == expected, "{pod} at {here} is seen as {seen}");
        }
        // A pod of the node itself is neither inside nor outside: every endpoint serves it.
        answer(stage, "p1", there, "a")?;
    }
    // Everybody else is a stranger to a node without an endpoint.
    let strangers = [
        stage.client.place(),
        stage.pod("p0").place(),
        stage.lab.node(0).place(),
        stage.lab.node(2).place(),
    ];
    let there = stage.node_port(1, port);
    let askers = strangers.map(|place| there.map(|server| (place, server)));
    are_silent(stage, 1, &askers.concat())
}

/// No socket of the node listens on `port`, of which `ss -ant46 'sport = :PORT'` would know.
fn nobody_listens(place: &Place, port: u16) -> Result<()> {
    let tables = place.enter(|| {
        let read = |file| fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        Ok::<_, std::io::Error>([read("tcp")?, read("tcp6")?])
    })??;
    let end = format!(":{port:04X}");
    for line in tables.iter().flat_map(|table| table.lines()) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let listens = fields.get(3) == Some(&"0A") && fields[1].ends_with(&end);
        ensure!(!listens, "a socket listens on port {port}: {line}");
    }
    Ok(())
}

fn external_policies(stage: &Stage) -> Result<()> {
    let local = ServiceSpec::new("local", 20, &["a"])
        .node_port(30080)
        .load_balancer()
        .with("externalTrafficPolicy: Local")
        .with("healthCheckNodePort: 32000");
    let anywhere = ServiceSpec::new("anywhere", 21, &["a"])
        .node_port(30081)
        .terminating("a");
    stage.apply(&local)?;
    stage.apply(&anywhere)?;
    let health = |node: usize, wanted: u16| -> Result<()> {
        for server in stage.node_port(node, 32000) {
            for place in [stage.pod("p0").place(), stage.client.place()] {
                soon("the health check node port follows", || {
                    let (status, body) = ask_health(place, server)?;
                    ensure!(status == wanted, "{server} says {status}: {body}");
                    Ok(())
                })?;
            }
        }
        Ok(())
    };
    for node in 0..3 {
        let servers = stage.node_port(node, 30081);
        settled(stage.client.place(), servers, "a")?;
        served(stage, servers, &[0, 1, 2], "a").context("terminating, Cluster")?;
    }
    health(0, 200)?;
    health(1, 503)?;
    nobody_listens(stage.lab.node(0).place(), 30080)?;
    external_local(stage, 30080).context("ready")?;
    // The load balancer's address works from every pod, with the pod's own address.
    for server in local.load_balancer_ips() {
        for pod in ["p0", "p1", "p2"] {
            let seen = answer(stage, pod, server, "a")?.peer.ip();
            let own = stage.pod(pod).address_like(server.ip());
            ensure!(seen == own, "{pod} at {server} is seen as {seen}");
        }
    }
    // On its way out it goes on serving, while load balancers are told to go elsewhere.
    stage.apply(&local.clone().terminating("a"))?;
    health(0, 503)?;
    external_local(stage, 30080).context("terminating")?;
    // Policy Cluster: every node serves outsiders, and there is nothing to ask for health.
    let cluster = ServiceSpec {
        spec: String::new(),
        ..local.clone()
    };
    stage.apply(&cluster)?;
    settled(stage.client.place(), stage.node_port(1, 30080), "a")?;
    for server in stage.node_port(0, 32000) {
        soon("the health check node port is closed", || {
            let asked = ask_health(stage.client.place(), server);
            ensure!(asked.is_err(), "still answered: {asked:?}");
            Ok(())
        })?;
    }
    // And back, on another port.
    let again = cluster
        .with("externalTrafficPolicy: Local")
        .with("healthCheckNodePort: 32001");
    stage.apply(&again)?;
    for (node, wanted) in [(0, 200), (1, 503)] {
        for server in stage.node_port(node, 32001) {
            soon("the new health check node port answers", || {
                let (status, body) = ask_health(stage.client.place(), server)?;
                ensure!(status == wanted, "{server} says {status}: {body}");
                Ok(())
            })?;
        }
    }
    external_local(stage, 30080).context("changed there and back")
}

fn addresses_as_they_are(stage: &Stage, web: &ServiceSpec) -> Result<()> {
    let mut direct = Vec::new();
    for (_, name) in PODS {
        for server in stage.pod(name).sockets(lb_tests::stage::TARGET_PORT) {
            direct.push((name, server));
        }
    }
    for pod in ["p0", "p1", "p2"] {
        let own = |server: SocketAddr| stage.pod(pod).address_like(server.ip());
        // Pods that speak to pods are nobody's business, whatever serves beside.
        for (name, server) in &direct {
            let seen = answer(stage, pod, *server, name)?.peer.ip();
            ensure!(seen == own(*server), "{pod} is seen as {seen} by {name}");
        }
        for server in web.cluster_ips() {
            let seen = answer(stage, pod, server, "a")?.peer.ip();
            ensure!(seen == own(server), "{pod} is seen as {seen}");
        }
    }
    Ok(())
}

fn policies_and_addresses(mode: &str) -> Result<()> {
    let web = ServiceSpec::new("web", 9, &["a"]);
    let stage = cluster(mode, &[&web])?;
    addresses_as_they_are(&stage, &web).context("addresses")?;
    internal_policies(&stage).context("inside")?;
    external_policies(&stage).context("outside")
}

#[test]
fn policies_terminating_endpoints_and_addresses_hold_on_three_nodes_with_socket_balancing()
-> Result<()> {
    policies_and_addresses("all")
}

#[test]
fn policies_terminating_endpoints_and_addresses_hold_on_three_nodes_packet_by_packet() -> Result<()>
{
    policies_and_addresses("off")
}
