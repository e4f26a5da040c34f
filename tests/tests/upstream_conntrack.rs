//! What Kubernetes' end-to-end suite asks under `Conntrack`, asked of our own nodes: clients that keep
//! one UDP source port while what serves them changes, and a server that sends what no connection
//! would. `docs/upstream-e2e.md` says which of its tests these stand for.

use anyhow::{Context, Result, bail, ensure};
use lb_common::host::craft;
use lb_lab::capture::Capture;
use lb_lab::{Offload, Place, PodNetwork, Server, client, snmp};
use lb_tests::attempt::{SILENCE, soon};
use lb_tests::stage::{ServiceSpec, Stage, TARGET_PORT};
use std::io::Read;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// The source port of every datagram of the patient clients.
const SOURCE_PORT: u16 = 12345;
/// A second port on the pods.
const OTHER_PORT: u16 = 9090;
/// How long something is awaited: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);

const REFUSED: &str = "ConnectionRefused";
const SILENT: &str = "WouldBlock";

/// Somebody who asks a service somewhere.
struct Asker<'a> {
    who: &'static str,
    place: &'a Place,
    server: SocketAddr,
}

impl Asker<'_> {
    /// One question on a socket of its own with the source port, as `nc -u -p` asks it: the name of who
    /// answered, or the kind of the error.
    fn once(&self) -> Result<String> {
        let server = self.server;
        let asked = self.place.call(|| {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, SOURCE_PORT).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, SOURCE_PORT).into(),
            };
            let socket = UdpSocket::bind(any).context("the source port is taken")?;
            socket.set_read_timeout(Some(SILENCE))?;
            let mut buffer = [0; 2048];
            let outcome = socket
                .connect(server)
                .and_then(|()| socket.send(b"hostname\n"))
                .and_then(|_| socket.recv(&mut buffer));
            match outcome {
                Ok(length) => {
                    let answer: client::Answer =
                        String::from_utf8_lossy(&buffer[..length]).parse()?;
                    Ok(answer.name)
                }
                Err(error) => Ok(format!("{:?}", error.kind())),
            }
        });
        asked.with_context(|| format!("{} asks {server}", self.who))
    }

    /// Asks on until it meets `wanted`: a flow that leads elsewhere never ends, for each question keeps
    /// it alive.
    fn meets(&self, wanted: &str) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let got = self.once()?;
            if got == wanted {
                return Ok(());
            }
            let (who, server) = (self.who, self.server);
            ensure!(
                Instant::now() < end,
                "{who} at {server} meets {got}, not {wanted}"
            );
        }
    }

    /// Waits until node 0 has dropped a question for want of a local endpoint.
    fn is_dropped(&self, stage: &Stage) -> Result<()> {
        let reason = "dropped_no_local_endpoint";
        let end = Instant::now() + PATIENCE;
        loop {
            let before = stage.counted(0, reason)?;
            let got = self.once()?;
            if got == SILENT && stage.counted(0, reason)? > before {
                return Ok(());
            }
            let (who, server) = (self.who, self.server);
            ensure!(
                Instant::now() < end,
                "{who} at {server} meets {got}, not silence"
            );
        }
    }
}

/// A pod and the host of node 0 at a ClusterIP and at the node port of the other node, and a client
/// outside at that of node 0.
fn askers<'a>(stage: &'a Stage, service: &ServiceSpec) -> Vec<Asker<'a>> {
    let pod = stage.pod("client").place();
    let host = stage.lab.node(0).place();
    let port = service.node_port.unwrap_or_default();
    let mut all = Vec::new();
    for family in 0..2 {
        let cluster_ip = service.cluster_ips()[family];
        let near = stage.node_port(0, port)[family];
        let far = stage.node_port(1, port)[family];
        for (who, place, server) in [
            ("a pod", pod, cluster_ip),
            ("the host", host, cluster_ip),
            ("a pod", pod, far),
            ("the host", host, far),
            ("a client outside", stage.client.place(), near),
        ] {
            all.push(Asker { who, place, server });
        }
    }
    all
}

/// Clients, an agent on each of two nodes, and a Service without endpoints.
fn stage(mode: &str, web: &ServiceSpec) -> Result<Stage> {
    let pods = [(0, "client"), (0, "a"), (0, "b"), (1, "c"), (1, "d")];
    let mut stage = Stage::of(PodNetwork::Routed, 2, &pods)?;
    stage.apply(web)?;
    stage.route_default(0)?;
    stage.start_agents(&format!("--socket-load-balancing {mode}"))?;
    Ok(stage)
}

fn udp_clients_keep_their_source_port(stage: &Stage, web: &ServiceSpec) -> Result<()> {
    let other = Server::start(stage.pod("d").place(), "d-other", OTHER_PORT)?;
    let askers = askers(stage, web);
    let all_meet = |what: &str, wanted: &str| -> Result<()> {
        for asker in &askers {
            asker.meets(wanted).with_context(|| what.to_owned())?;
        }
        Ok(())
    };
    all_meet("no endpoint yet", REFUSED)?;
    let unready = "conditions: {ready: false, serving: false, terminating: false}";
    let starting = web.clone().served_by(&["c"]).state("c", unready);
    stage.apply(&starting)?;
    all_meet("an endpoint that is not ready", REFUSED)?;
    stage.apply(&starting.served_by(&["c"]))?;
    all_meet("it is ready", "c")?;
    stage.apply(&web.clone().served_by(&["c", "d"]))?;
    stage.apply(&web.clone().served_by(&["d"]))?;
    all_meet("another took its place", "d")?;
    stage.apply(&web.clone().served_by(&["c"]))?;
    all_meet("and back", "c")?;
    stage.apply_to_port(&web.clone().served_by(&["d"]), OTHER_PORT)?;
    all_meet("the target port is another one", "d-other")?;
    stage.apply(web)?;
    all_meet("nobody is left", REFUSED)?;
    drop(other);
    Ok(())
}

fn one_source_port_under_a_local_policy(stage: &Stage) -> Result<()> {
    let near = ServiceSpec::new("near", 11, &["a", "c"]).with("internalTrafficPolicy: Local");
    stage.apply(&near)?;
    let pod = ("a pod", stage.pod("client").place());
    let host = ("the host", stage.lab.node(0).place());
    let askers = near
        .cluster_ips()
        .into_iter()
        .flat_map(|server| [pod, host].map(|(who, place)| Asker { who, place, server }));
    let askers: Vec<Asker<'_>> = askers.collect();
    for asker in &askers {
        asker.meets("a").context("one here")?;
    }
    stage.apply(&near.clone().served_by(&["c"]))?;
    for asker in &askers {
        asker.is_dropped(stage).context("none here")?;
    }
    stage.apply(&near.clone().served_by(&["c", "b"]))?;
    for asker in &askers {
        asker.meets("b").context("a new one here")?;
    }
    Ok(())
}

/// Where a TCP segment's parts begin in a frame, if it is one to or from this port of the server.
struct Segment {
    tcp: usize,
    payload: usize,
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let (tcp, end) = match frame.get(14)? >> 4 {
        4 if frame.get(23) == Some(&6) => {
            let total = usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            (14 + usize::from(frame[14] & 15) * 4, 14 + total)
        }
        6 if frame.get(20) == Some(&6) => {
            let body = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            (54, 54 + body)
        }
        _ => return None,
    };
    let header = usize::from(frame.get(tcp + 12)? >> 4) * 4;
    (end <= frame.len()).then_some(Segment {
        tcp,
        payload: tcp + header,
    })
}

fn port(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// A question on a connection that stays open, and another one once `go` can be read.
fn ask_before_and_after(server: SocketAddr, mut go: impl Read) -> Result<String> {
    let stream = TcpStream::connect_timeout(&server, client::PATIENCE)?;
    client::ask(&stream)?;
    go.read_exact(&mut [0])?;
    Ok(client::ask(&stream).context("the connection broke")?.name)
}

/// The server's last answer again, as if it were from long before the connection's window.
fn outside_of_the_window(answer: &[u8]) -> Result<(Vec<u8>, [u8; 4])> {
    let found = segment(answer).context("no segment")?;
    let mut frame = answer.to_vec();
    let at = found.tcp + 4;
    let sequence = u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
    let early = sequence.wrapping_sub(100_000).to_be_bytes();
    frame[at..at + 4].copy_from_slice(&early);
    craft::repair(&mut frame[14..]);
    Ok((frame, early))
}

fn a_stray_segment_harms_nobody(stage: &Stage, place: &Place, server: SocketAddr) -> Result<()> {
    let wire = Capture::open(stage.pod("c").namespace(), "eth0")?;
    let resets =
        |place: &Place| -> Result<i64> { Ok(snmp::read(place.namespace())?["TcpOutRsts"]) };
    let before = resets(place)?;
    let (reader, writer) = std::io::pipe()?;
    let asking = place.spawn(|| ask_before_and_after(server, reader))?;
    let answer = wire.next(PATIENCE, |frame| {
        segment(frame).is_some_and(|found| {
            port(frame, found.tcp) == TARGET_PORT && frame.len() > found.payload
        })
    })?;
    let (stray, early) = outside_of_the_window(&answer)?;
    wire.send(&stray)?;
    // The client acknowledges once more and says which old data it meant; or else it resets.
    let reply = wire.next(PATIENCE, |frame| {
        segment(frame).is_some_and(|found| {
            let options = &frame[found.tcp + 20..found.payload];
            let to_server = port(frame, found.tcp + 2) == TARGET_PORT;
            let reset = frame[found.tcp + 13] & 4 != 0;
            to_server && (reset || options.windows(4).any(|four| four == early))
        })
    })?;
    let flags = reply[segment(&reply).context("no segment")?.tcp + 13];
    ensure!(flags & 4 == 0, "the stray segment was answered by a reset");
    std::io::Write::write_all(&mut { writer }, b"!")?;
    let name = asking.wait()?;
    ensure!(name == "c", "answered by {name}");
    ensure!(resets(place)? == before, "the client sent a reset");
    for frame in wire.drain()? {
        if let Some(found) = segment(&frame)
            && frame[found.tcp + 13] & 4 != 0
        {
            bail!("a reset passed by");
        }
    }
    Ok(())
}

fn stray_segments(stage: &Stage, web: &ServiceSpec) -> Result<()> {
    stage.apply(&web.clone().served_by(&["c"]))?;
    // A frame as long as its packet, and no segments put together.
    stage.offload(Offload::OFF)?;
    for asker in askers(stage, web) {
        let (place, server) = (asker.place, asker.server);
        soon("the service is served again", || {
            place.ask_tcp(server).map(drop)
        })?;
        a_stray_segment_harms_nobody(stage, place, server)
            .with_context(|| format!("{} at {server}", asker.who))?;
    }
    Ok(())
}

fn conntrack(mode: &str) -> Result<()> {
    let web = ServiceSpec::new("web", 10, &[]).node_port(30080);
    let stage = stage(mode, &web)?;
    udp_clients_keep_their_source_port(&stage, &web)?;
    one_source_port_under_a_local_policy(&stage)?;
    stray_segments(&stage, &web)
}

#[test]
fn one_udp_source_port_follows_every_change_and_no_stray_segment_resets_with_socket_balancing()
-> Result<()> {
    conntrack("all")
}

#[test]
fn one_udp_source_port_follows_every_change_and_no_stray_segment_resets_packet_by_packet()
-> Result<()> {
    conntrack("off")
}
