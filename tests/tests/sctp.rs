//! SCTP through the real agent: packets made by hand, since few kernels have sockets of it. Where one
//! has, `cargo xtask vm` opens associations.

use anyhow::{Context, Result, ensure};
use lb_common::host::craft;
use lb_common::wire::Sctp;
use lb_lab::client::PATIENCE;
use lb_lab::{Answer, Place, PodNetwork, Process};
use lb_tests::attempt::{SILENCE, soon};
use lb_tests::raw;
use lb_tests::sctp::{self, Checksum, DATA, End};
use lb_tests::stage::{SERVICE_PORT, ServiceSpec, Stage, TARGET_PORT};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Tells which node a service is asked on.
const NODE_PORT: u16 = 30_080;
/// The port that clients ask from.
const CLIENT_PORT: u16 = 40_000;
/// What fits into one packet of Ethernet, and what does not fill one.
const SIZES: [usize; 4] = [0, 1, 700, 1440];

/// The stage and its servers of SCTP, which are to end first.
struct World {
    _servers: Vec<Process>,
    stage: Stage,
}

impl World {
    /// A service for each of the pods `a`, on node 0, and `c`, on node 1, and one for nobody.
    fn new(flags: &str) -> Result<Self> {
        let mut stage = Stage::new(PodNetwork::Routed)?;
        for service in services() {
            stage.apply(&service)?;
        }
        stage.route_default(0)?;
        let mut servers = Vec::new();
        for name in ["a", "c"] {
            let place = stage.pod(name).place();
            sctp::silence_kernel(place)?;
            servers.push(sctp::serve(place, name, TARGET_PORT)?);
        }
        for place in [
            stage.pod("b").place(),
            stage.client.place(),
            stage.lab.node(0).place(),
        ] {
            sctp::silence_kernel(place)?;
        }
        stage.start_agents(flags)?;
        Ok(Self {
            _servers: servers,
            stage,
        })
    }

    /// Who asks: a pod, the outside client, the node; with its addresses.
    fn pod(&self) -> (&Place, [IpAddr; 2]) {
        let pod = self.stage.pod("b");
        (pod.place(), [pod.v4().into(), pod.v6().into()])
    }

    fn outside(&self) -> (&Place, [IpAddr; 2]) {
        let client = &self.stage.client;
        (client.place(), [client.v4().into(), client.v6().into()])
    }

    fn node(&self) -> (&Place, [IpAddr; 2]) {
        let lab = &self.stage.lab;
        (lab.node(0).place(), lab.node_addresses(0))
    }
}

fn services() -> [ServiceSpec; 3] {
    [
        ServiceSpec::new("near", 10, &["a"])
            .node_port(NODE_PORT)
            .sctp(),
        ServiceSpec::new("far", 11, &["c"])
            .node_port(NODE_PORT + 1)
            .sctp(),
        ServiceSpec::new("nobody", 12, &[])
            .node_port(NODE_PORT + 2)
            .sctp(),
    ]
}

/// The services with an endpoint, and its name.
fn served() -> impl Iterator<Item = (ServiceSpec, &'static str)> {
    services().into_iter().zip(["a", "c"])
}

/// Talks to `server` from each family's address; returns whom the server saw.
fn converse(
    (place, sources): (&Place, [IpAddr; 2]),
    servers: [SocketAddr; 2],
    name: &str,
    sizes: &[usize],
) -> Result<[SocketAddr; 2]> {
    let mut seen = servers;
    for ((source, server), seen) in sources.into_iter().zip(servers).zip(&mut seen) {
        let said = place
            .call(|| sctp::converse((source, CLIENT_PORT).into(), server, sizes))
            .with_context(|| format!("{source} to {server}"))?;
        let answer: Answer = said.parse()?;
        ensure!(answer.name == name, "{server}: {said} instead of {name}");
        *seen = answer.peer;
    }
    Ok(seen)
}

#[test]
fn sctp_to_a_cluster_ip_reaches_its_endpoint_on_another_port_with_the_crc_of_that() -> Result<()> {
    for mode in ["all", "off"] {
        let world = World::new(&format!("--socket-load-balancing {mode}"))?;
        for (service, name) in served() {
            let (place, sources) = world.pod();
            let seen = converse((place, sources), service.cluster_ips(), name, &SIZES)?;
            let own = sources.map(|source| SocketAddr::from((source, CLIENT_PORT)));
            ensure!(seen == own, "{name} saw {seen:?}");
        }
    }
    Ok(())
}

#[test]
fn sctp_to_a_node_port_is_masqueraded_and_both_its_ports_replaced() -> Result<()> {
    let world = World::new("")?;
    for (service, name) in served() {
        let port = service.node_port.unwrap_or_default();
        for node in 0..2 {
            let servers = world.stage.node_port(node, port);
            let seen = converse(world.outside(), servers, name, &SIZES)?;
            let addresses = world.stage.lab.node_addresses(node);
            ensure!(
                seen.map(|end| end.ip()) == addresses
                    && seen.iter().all(|end| end.port() != CLIENT_PORT),
                "{name} saw {seen:?}"
            );
        }
    }
    Ok(())
}

#[test]
fn sctp_that_the_node_itself_sends_is_balanced_with_socket_hooks_and_without() -> Result<()> {
    for mode in ["all", "off"] {
        let world = World::new(&format!("--socket-load-balancing {mode}"))?;
        for (service, name) in served() {
            converse(world.node(), service.cluster_ips(), name, &SIZES)
                .with_context(|| mode.to_owned())?;
        }
    }
    Ok(())
}

#[test]
fn sctp_packets_of_60_000_bytes_get_the_crc_of_their_new_port() -> Result<()> {
    let world = World::new("")?;
    let node = world.stage.lab.node(0).namespace();
    for pod in ["a", "b"].map(|name| world.stage.pod(name)) {
        node.ip(&format!("link set {} mtu 65535", pod.host_device()))?;
        pod.namespace().ip("link set eth0 mtu 65535")?;
    }
    let [near, ..] = services();
    let sizes = [1500, 9_000, 60_000];
    converse(world.pod(), near.cluster_ips(), "a", &sizes).map(drop)
}

/// What comes back for a first packet within `patience`.
fn first_answer(
    (place, from): (&Place, SocketAddr),
    server: SocketAddr,
    patience: Duration,
) -> Result<String> {
    place.call(|| {
        let end = End::open(from)?;
        end.send(server, Sctp::INIT, b"", Checksum::Right)?;
        Ok(match end.receive(patience)? {
            Some(arrived) => arrived.to_string(),
            None => "silence".to_owned(),
        })
    })
}

#[test]
fn sctp_to_a_service_without_endpoints_is_refused_with_an_abort_that_its_association_accepts()
-> Result<()> {
    let world = World::new("")?;
    let [.., nobody] = services();
    let undefined = nobody.cluster_ips().map(|server| (server.ip(), 81).into());
    let node_port = world.stage.node_port(0, NODE_PORT + 2);
    for ((place, sources), servers) in [
        (world.pod(), nobody.cluster_ips()),
        (world.pod(), undefined),
        (world.node(), nobody.cluster_ips()),
        (world.outside(), node_port),
    ] {
        for (source, server) in sources.into_iter().zip(servers) {
            // The tag is the one that the INIT asked for.
            let wanted = format!("chunk {} from {server}, tag 7, checksum Right", Sctp::ABORT);
            let answer = first_answer((place, (source, CLIENT_PORT).into()), server, PATIENCE)?;
            ensure!(answer == wanted, "{source} to {server}: {answer}");
        }
    }
    Ok(())
}

#[test]
fn sctp_that_no_local_endpoint_may_serve_meets_silence() -> Result<()> {
    let world = World::new("")?;
    let mut far = services()[1].clone();
    far = far.with("internalTrafficPolicy: Local");
    world.stage.apply(&far)?;
    let (place, sources) = world.pod();
    for (source, server) in sources.into_iter().zip(far.cluster_ips()) {
        let before = world.stage.counted(0, "dropped_no_local_endpoint")?;
        let mut port = CLIENT_PORT;
        soon("the policy", || {
            // Who was answered before the policy came keeps being answered.
            port += 1;
            let answer = first_answer((place, (source, port).into()), server, SILENCE)?;
            ensure!(answer == "silence", "{server}: {answer}");
            Ok(())
        })?;
        let counted = world.stage.counted(0, "dropped_no_local_endpoint")?;
        ensure!(counted > before, "{server}: not counted");
    }
    Ok(())
}

#[test]
fn an_association_outlives_the_removal_of_its_endpoint_and_a_new_one_goes_elsewhere() -> Result<()>
{
    let world = World::new("")?;
    let [near, ..] = services();
    let (place, sources) = world.pod();
    for (source, server) in sources.into_iter().zip(near.cluster_ips()) {
        converse((place, sources), near.cluster_ips(), "a", &[])?;
        world.stage.apply(&ServiceSpec {
            endpoints: vec!["c".to_owned()],
            ..near.clone()
        })?;
        let mut port = CLIENT_PORT;
        soon("the new endpoint", || {
            port += 1;
            let from = SocketAddr::from((source, port));
            let said = place.call(|| sctp::converse(from, server, &[]))?;
            ensure!(said.starts_with("name=c "), "{said}");
            Ok(())
        })?;
        let said = place.call(|| {
            let end = End::open((source, CLIENT_PORT).into())?;
            sctp::talk(&end, server, DATA, 100)
        })?;
        ensure!(said.starts_with("name=a "), "{said}");
        world.stage.apply(&near)?;
        soon("the old endpoint", || {
            port += 1;
            let from = SocketAddr::from((source, port));
            let said = place.call(|| sctp::converse(from, server, &[]))?;
            ensure!(said.starts_with("name=a "), "{said}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_checksum_of_zero_stays_and_a_wrong_one_stays_wrong() -> Result<()> {
    let world = World::new("")?;
    let (place, sources) = world.pod();
    for (service, name) in served() {
        for (source, server) in sources.into_iter().zip(service.cluster_ips()) {
            for checksum in [Checksum::Absent, Checksum::Wrong] {
                let said = place.call(|| {
                    let end = End::open((source, CLIENT_PORT).into())?;
                    sctp::talk(&end, server, Sctp::INIT, 0)?;
                    end.send(server, DATA, &[1; 200], checksum)?;
                    let answer = end
                        .answer(server, DATA, 200, PATIENCE)?
                        .context("no answer")?;
                    Ok(String::from_utf8_lossy(&answer.payload).trim().to_owned())
                })?;
                let wanted = format!(" checksum={checksum:?}");
                ensure!(
                    said.starts_with(&format!("name={name} ")) && said.ends_with(&wanted),
                    "{server}: {said} instead of{wanted}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn fragmented_sctp_passes_where_ports_stay_and_is_dropped_and_counted_where_one_is_replaced()
-> Result<()> {
    let world = World::new("")?;
    let [near, far, _] = services();
    world.stage.apply_to_port(&far, SERVICE_PORT)?;
    let server = sctp::serve(world.stage.pod("c").place(), "c", SERVICE_PORT)?;
    let (place, sources) = world.pod();
    let servers = far.cluster_ips().into_iter().zip(near.cluster_ips());
    for (source, (server, rewritten)) in sources.into_iter().zip(servers) {
        let mut from = SocketAddr::from((source, CLIENT_PORT));
        soon("the port", || {
            from.set_port(from.port() + 1);
            let said = place.call(|| sctp::converse(from, server, &[]))?;
            let port = said.parse::<Answer>()?.local.port();
            ensure!(port == SERVICE_PORT, "{said}");
            Ok(())
        })?;
        place.call(|| sctp::converse(from, server, &[4_000, 10_000]))?;
        let before = world.stage.counted(0, "rewrite_failed")?;
        let said = place.call(|| {
            let end = End::open((source, CLIENT_PORT).into())?;
            sctp::talk(&end, rewritten, Sctp::INIT, 0)?;
            end.send(rewritten, DATA, &[1; 4_000], Checksum::Right)?;
            Ok(format!("{:?}", end.receive(SILENCE)?))
        })?;
        ensure!(said == "None", "{rewritten}: {said}");
        let counted = world.stage.counted(0, "rewrite_failed")?;
        ensure!(counted > before, "{rewritten}: not counted");
    }
    drop(server);
    Ok(())
}

#[test]
fn an_icmp_error_about_sctp_quotes_what_its_sender_sent() -> Result<()> {
    let world = World::new("")?;
    for (service, name) in served() {
        let pod = world.stage.pod(name).namespace();
        pod.nft(
            "table inet refuse {
                chain input {
                    type filter hook input priority 0;
                    meta l4proto sctp reject with icmpx port-unreachable
                }
            }",
        )?;
        for ((place, sources), servers) in [
            (world.pod(), service.cluster_ips()),
            (
                world.outside(),
                world
                    .stage
                    .node_port(0, service.node_port.unwrap_or_default()),
            ),
        ] {
            for (source, server) in sources.into_iter().zip(servers) {
                let quote = place
                    .call(|| quoted((source, CLIENT_PORT).into(), server))
                    .with_context(|| format!("{source} to {server} ({name})"))?;
                let wanted = format!("{source} to {server}, no flaw");
                ensure!(quote == wanted, "{quote} instead of {wanted}");
            }
        }
    }
    Ok(())
}

/// Sends a first packet and reads the ICMP error that comes back about it.
fn quoted(source: SocketAddr, server: SocketAddr) -> Result<String> {
    let (protocol, inside) = if server.is_ipv4() {
        (libc::IPPROTO_ICMP, 20 + 8)
    } else {
        (libc::IPPROTO_ICMPV6, 8)
    };
    let errors = std::net::UdpSocket::from(raw::raw_socket(source, protocol)?);
    errors.set_read_timeout(Some(PATIENCE))?;
    let end = End::open(source)?;
    end.send(server, Sctp::INIT, b"", Checksum::Right)?;
    let mut buffer = [0; 2048];
    loop {
        let (length, peer) = errors.recv_from(&mut buffer).context("no ICMP error")?;
        let (Some(kind), Some(quote)) = (buffer.get(inside - 8), buffer[..length].get(inside..))
        else {
            continue;
        };
        let is_error = *kind == if server.is_ipv4() { 3 } else { 1 };
        if !is_error || peer.ip() != server.ip() {
            continue;
        }
        let (from, to) = if server.is_ipv4() {
            let part = |at: usize| quote.get(at..at + 4)?.first_chunk::<4>().copied();
            (part(12).map(IpAddr::from), part(16).map(IpAddr::from))
        } else {
            let part = |at: usize| quote.get(at..at + 16)?.first_chunk::<16>().copied();
            (part(8).map(IpAddr::from), part(24).map(IpAddr::from))
        };
        let ports = if server.is_ipv4() { 20 } else { 40 };
        let port = u16::from_be_bytes([quote[ports + 2], quote[ports + 3]]);
        let (from, to) = (from.context("source")?, to.context("destination")?);
        let flaw = craft::flaw(quote).unwrap_or_else(|| "no flaw".to_owned());
        return Ok(format!(
            "{from} to {}, {flaw}",
            SocketAddr::from((to, port))
        ));
    }
}
