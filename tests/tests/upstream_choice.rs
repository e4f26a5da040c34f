//! What Kubernetes' end-to-end suite asks of the choice among endpoints: session affinity that is switched
//! on and off, and hints of nodes and zones that keep clients near. Three nodes in three zones.
//! `docs/upstream-e2e.md` says which of its tests these stand for.

use anyhow::{Context, Result, ensure};
use lb_lab::{Place, PodNetwork, client};
use lb_tests::attempt::soon;
use lb_tests::stage::{ServiceSpec, Stage};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;

/// How many answers in a row are one endpoint's where affinity holds.
const HOLDS: usize = 16;
/// A server and a client pod on each node.
const PODS: [(usize, &str); 6] = [
    (0, "a"),
    (1, "b"),
    (2, "c"),
    (0, "p0"),
    (1, "p1"),
    (2, "p2"),
];

fn cluster(mode: &str, services: &[&ServiceSpec]) -> Result<Stage> {
    let mut stage = Stage::of(PodNetwork::Routed, 3, &PODS)?;
    let mut nodes = String::new();
    for node in 0..3 {
        let [v4, v6] = stage.lab.node_addresses(node);
        writeln!(
            nodes,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node{node}, labels: \
             {{topology.kubernetes.io/zone: zone{node}}}}}\nstatus: {{addresses: [\
             {{type: InternalIP, address: {v4}}}, {{type: InternalIP, address: \"{v6}\"}}]}}"
        )?;
        stage.route_default(node)?;
    }
    fs::write(stage.manifests().join("nodes.yaml"), nodes)?;
    for service in services {
        stage.apply(service)?;
    }
    stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
    Ok(stage)
}

/// Who answers so many connections, one after the other.
fn answers(place: &Place, server: SocketAddr, count: usize) -> Result<Vec<String>> {
    let names = place.call(|| {
        let names = (0..count).map(|_| Ok(client::tcp(server)?.name));
        Ok(names.collect::<Result<Vec<String>>>()?.join(" "))
    })?;
    Ok(names.split(' ').map(str::to_owned).collect())
}

/// A pod and a host at the ClusterIP, the node port of their node and that of another, both families.
fn askers<'a>(stage: &'a Stage, service: &ServiceSpec) -> Vec<(&'a Place, SocketAddr)> {
    let port = service.node_port.unwrap_or_default();
    let (here, there) = (stage.node_port(0, port), stage.node_port(1, port));
    let servers = [service.cluster_ips(), here, there].concat();
    let places = [stage.pod("p0").place(), stage.lab.node(0).place()];
    let pairs = servers
        .iter()
        .map(|server| places.map(|place| (place, *server)));
    pairs.flatten().collect()
}

fn affinity(stage: &Stage) -> Result<()> {
    let plain = ServiceSpec::new("web", 10, &["a", "b", "c"]).node_port(30080);
    let sticky = plain.clone().with("sessionAffinity: ClientIP");
    let holds = |place: &Place, server: SocketAddr| -> Result<String> {
        let names = answers(place, server, HOLDS)?;
        let one = names.iter().all(|name| *name == names[0]);
        ensure!(one, "{server} was answered by {names:?}");
        Ok(names[0].clone())
    };
    for (place, server) in askers(stage, &plain) {
        let first = holds(place, server).context("from the beginning")?;
        ensure!(
            holds(place, server)? == first,
            "{server}: another one later"
        );
    }
    stage.apply(&plain)?;
    for (place, server) in askers(stage, &plain) {
        soon("without affinity everybody answers", || {
            let names: BTreeSet<String> = answers(place, server, HOLDS)?.into_iter().collect();
            ensure!(names.len() > 1, "{server}: {names:?} alone");
            Ok(())
        })?;
    }
    stage.apply(&sticky)?;
    for (place, server) in askers(stage, &plain) {
        let mut one = String::new();
        soon("affinity holds again", || {
            one = holds(place, server)?;
            Ok(())
        })?;
        ensure!(holds(place, server)? == one, "{server}: another one later");
    }
    Ok(())
}

/// Lets each endpoint of `service` carry these hints.
fn hinted(service: &ServiceSpec, hints: [&str; 3]) -> ServiceSpec {
    let mut service = service.clone();
    for (endpoint, hint) in service.endpoints.clone().iter().zip(hints) {
        service = service.state(
            endpoint,
            &format!("conditions: {{ready: true}}, hints: {{{hint}}}"),
        );
    }
    service
}

/// On every node a pod and the host are answered by these endpoints, and by each of them.
fn chosen(stage: &Stage, service: &ServiceSpec, wanted: [&[&str]; 3]) -> Result<()> {
    for (node, wanted) in wanted.iter().enumerate() {
        let wanted: BTreeSet<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let pod = stage.pod(&format!("p{node}")).place();
        for place in [pod, stage.lab.node(node).place()] {
            for server in service.cluster_ips() {
                let mut met = BTreeSet::new();
                soon("the hints take effect", || {
                    let now: BTreeSet<String> =
                        answers(place, server, HOLDS)?.into_iter().collect();
                    if !now.is_subset(&wanted) {
                        met.clear();
                    }
                    ensure!(
                        now.is_subset(&wanted),
                        "node {node}: {now:?}, not {wanted:?}"
                    );
                    met.extend(now);
                    ensure!(met == wanted, "node {node}: {met:?} of {wanted:?} so far");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

fn hints(stage: &Stage) -> Result<()> {
    let web = ServiceSpec::new("near", 11, &["a", "b", "c"]);
    let zones = hinted(
        &web,
        [
            "forZones: [{name: zone0}]",
            "forZones: [{name: zone1}]",
            "forZones: [{name: zone2}]",
        ],
    );
    stage.apply(&zones)?;
    chosen(stage, &web, [&["a"], &["b"], &["c"]]).context("an endpoint in each zone")?;
    // Nobody left in the last zone: the controller lends it another's.
    let two = web.clone().served_by(&["a", "b"]);
    let lent = hinted(
        &two,
        [
            "forZones: [{name: zone0}]",
            "forZones: [{name: zone1}, {name: zone2}]",
            "",
        ],
    );
    stage.apply(&lent)?;
    chosen(stage, &web, [&["a"], &["b"], &["b"]]).context("a zone without an endpoint")?;
    // No hint for a zone: everybody serves it. One endpoint without hints: nobody's count.
    let missing = hinted(
        &two,
        ["forZones: [{name: zone0}]", "forZones: [{name: zone1}]", ""],
    );
    stage.apply(&missing)?;
    chosen(stage, &web, [&["a"], &["b"], &["a", "b"]]).context("a zone without a hint")?;
    let half = web.clone().served_by(&["a", "b"]).state(
        "a",
        "conditions: {ready: true}, hints: {forZones: [{name: zone0}]}",
    );
    stage.apply(&half)?;
    chosen(stage, &web, [&["a", "b"]; 3]).context("an endpoint without hints")?;
    // Nodes, then zones.
    let nodes = hinted(
        &web,
        [
            "forZones: [{name: zone1}], forNodes: [{name: node0}]",
            "forZones: [{name: zone1}], forNodes: [{name: node1}]",
            "forZones: [{name: zone2}], forNodes: [{name: node1}]",
        ],
    );
    stage.apply(&nodes)?;
    chosen(stage, &web, [&["a"], &["b", "c"], &["c"]]).context("hints of nodes")
}

fn affinity_and_hints(mode: &str) -> Result<()> {
    let sticky = ServiceSpec::new("web", 10, &["a", "b", "c"])
        .node_port(30080)
        .with("sessionAffinity: ClientIP");
    let stage = cluster(mode, &[&sticky])?;
    affinity(&stage).context("affinity")?;
    hints(&stage).context("hints")
}

#[test]
fn affinity_as_it_is_switched_and_hints_of_nodes_and_zones_decide_with_socket_balancing()
-> Result<()> {
    affinity_and_hints("all")
}

#[test]
fn affinity_as_it_is_switched_and_hints_of_nodes_and_zones_decide_packet_by_packet() -> Result<()> {
    affinity_and_hints("off")
}
