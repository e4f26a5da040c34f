//! UDP and removed endpoints: flows move at once, sockets that are connected to one are closed, and
//! nobody else's are.

use anyhow::{Context, Result, bail, ensure};
use lb_lab::{Agent, Answer, Place, PodNetwork, Process};
use lb_tests::attempt::soon;
use lb_tests::raw;
use lb_tests::site::sample;
use lb_tests::socket_world::World;
use lb_tests::stage::{Stage, TARGET_PORT};
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How long something is awaited: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(60);

const READY: &str = "ready: true";
const TERMINATING: &str = "ready: false, serving: true, terminating: true";

/// A UDP and TCP service of both families at 10.96.0.N and fd00:10:96::N.
struct Service {
    name: &'static str,
    number: u8,
    port: u16,
}

const WEB: Service = Service {
    name: "web",
    number: 10,
    port: 80,
};
const OTHER: Service = Service {
    name: "other",
    number: 11,
    port: 80,
};
const DNS: Service = Service {
    name: "dns",
    number: 12,
    port: 53,
};

impl Service {
    fn addresses(&self) -> [IpAddr; 2] {
        [
            std::net::Ipv4Addr::new(10, 96, 0, self.number).into(),
            std::net::Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, self.number.into()).into(),
        ]
    }

    fn sockets(&self) -> [SocketAddr; 2] {
        self.addresses().map(|address| (address, self.port).into())
    }

    /// IPv4, IPv6, and IPv4 as an IPv6 socket asks for it.
    fn asked(&self) -> [SocketAddr; 3] {
        let [v4, v6] = self.sockets();
        let SocketAddr::V4(plain) = v4 else {
            unreachable!("the first is IPv4")
        };
        [v4, v6, (plain.ip().to_ipv6_mapped(), self.port).into()]
    }
}

/// A node with an agent; pods `a` and `b` on it, `c` on another.
struct Scene {
    stage: Stage,
    agent: Option<Agent>,
    flags: String,
}

impl Scene {
    fn new(flags: &str, services: &[(&Service, &[&str])]) -> Result<Self> {
        let stage = Stage::new(PodNetwork::Routed)?;
        let mut scene = Self {
            stage,
            agent: None,
            flags: flags.to_owned(),
        };
        for (service, pods) in services {
            scene.serve(service, pods)?;
        }
        // A pod of its own for clients.
        scene.stage.add_pod(0, "client")?;
        scene.stage.route_default(0)?;
        scene.start()?;
        Ok(scene)
    }

    fn start(&mut self) -> Result<()> {
        self.agent = Some(self.stage.start_agent(0, &self.flags)?);
        Ok(())
    }

    fn host(&self) -> &Place {
        self.stage.lab.node(0).place()
    }

    fn pod(&self) -> &Place {
        self.stage.pod("client").place()
    }

    /// Lets these pods be the endpoints, all ready.
    fn serve(&self, service: &Service, pods: &[&str]) -> Result<()> {
        let endpoints: Vec<_> = pods.iter().map(|pod| (*pod, READY)).collect();
        self.serve_as(service, &endpoints)
    }

    fn serve_as(&self, service: &Service, endpoints: &[(&str, &str)]) -> Result<()> {
        let (name, port) = (service.name, service.port);
        let [v4, v6] = service.addresses();
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: lab}}\nspec:\n  \
             clusterIP: {v4}\n  clusterIPs: [\"{v4}\", \"{v6}\"]\n  ipFamilies: [IPv4, IPv6]\n  \
             ipFamilyPolicy: RequireDualStack\n  ports:\n  \
             - {{name: udp, protocol: UDP, port: {port}}}\n  \
             - {{name: tcp, protocol: TCP, port: {port}}}\n"
        );
        for family in ["IPv4", "IPv6"] {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
                 name: {name}-{}\n  namespace: lab\n  \
                 labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n\
                 - {{name: udp, protocol: UDP, port: {TARGET_PORT}}}\n\
                 - {{name: tcp, protocol: TCP, port: {TARGET_PORT}}}\nendpoints:\n",
                family.to_lowercase()
            )?;
            for (pod, conditions) in endpoints {
                let pod = self.stage.pod(pod);
                let address: IpAddr = match family {
                    "IPv4" => pod.v4().into(),
                    _ => pod.v6().into(),
                };
                writeln!(
                    text,
                    "- {{addresses: [\"{address}\"], nodeName: node0, conditions: {{{conditions}}}}}"
                )?;
            }
        }
        let path = self.stage.manifests().join(format!("{name}.yaml"));
        let fresh = self.stage.manifests().join(format!(".{name}.new"));
        fs::write(&fresh, text)?;
        Ok(fs::rename(&fresh, &path)?)
    }

    fn metric(&self, name: &str, labels: &[&str]) -> Result<Option<f64>> {
        let agent = self.agent.as_ref().context("no agent")?;
        let page = agent.metrics(self.stage.lab.node(0))?;
        Ok(sample(&page, name, labels))
    }

    fn await_metric(&self, name: &str, labels: &[&str], value: f64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let now = self.metric(name, labels)?;
            if now == Some(value) {
                return Ok(());
            }
            ensure!(
                Instant::now() < end,
                "{name}{labels:?} is {now:?}, not {value}"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until exactly so many sockets have been closed in this kind of namespace.
    fn await_closed(&self, place: &str, count: u32) -> Result<()> {
        let place = format!("where=\"{place}\"");
        let labels = [place.as_str(), "outcome=\"closed\""];
        self.await_metric("lb_sockets_closed_total", &labels, count.into())
    }

    /// Waits until so many endpoints of a UDP port may get new conversations.
    fn await_endpoints(&self, service: &Service, count: u32) -> Result<()> {
        let name = format!("name=\"{}\"", service.name);
        for family in ["ip_family=\"IPv4\"", "ip_family=\"IPv6\""] {
            let labels = [&*name, "protocol=\"UDP\"", "state=\"active\"", family];
            self.await_metric("lb_service_endpoints", &labels, count.into())?;
        }
        Ok(())
    }
}

/// A UDP socket of a place that is connected to `to`, and answered.
fn connected(place: &Place, to: SocketAddr) -> Result<OwnedFd> {
    let socket = World::socket_of(place, || Ok(raw::udp(to)?));
    raw::connect(&socket, to).with_context(|| format!("connect to {to}"))?;
    ask(&socket).with_context(|| format!("asking {to}"))?;
    Ok(socket)
}

/// Who answers a connected socket. Asks again where no answer comes: a datagram may be lost.
fn ask(socket: &OwnedFd) -> Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        raw::send(socket, b"who\n", 0).context("send")?;
        match raw::wait_readable(socket) {
            Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < end => {}
            ready => {
                ready.context("waiting for an answer")?;
                let (data, _) = raw::receive_from(socket, 0).context("receive")?;
                let answer: Answer = String::from_utf8_lossy(&data).parse()?;
                return Ok(answer.name);
            }
        }
    }
}

/// Waits until the kernel tells the socket's program that it was closed.
fn await_aborted(socket: &OwnedFd) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match raw::wait_readable(socket) {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::TimedOut && Instant::now() < end => {}
            Err(error) => return Err(error).context("the socket was not closed"),
        }
    }
    match raw::receive_from(socket, libc::MSG_DONTWAIT) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        other => bail!("instead of ECONNABORTED: {other:?}"),
    }
}

#[test]
fn host_sockets_connected_to_a_removed_endpoint_are_closed_and_a_resolver_is_served_at_once()
-> Result<()> {
    for mode in ["all", "host-only"] {
        let flags = format!("--socket-load-balancing {mode}");
        let scene = Scene::new(&flags, &[(&WEB, &["a"])])?;
        let mut sockets = Vec::new();
        for to in WEB.asked() {
            sockets.push((to, connected(scene.host(), to)?));
        }
        scene.serve(&WEB, &["b"])?;
        for (to, socket) in &sockets {
            let context = || format!("{mode}: {to}");
            await_aborted(socket).with_context(context)?;
            // What a resolver does about the error; on the same socket, too, if it likes.
            let again = connected(scene.host(), *to)?;
            ensure!(ask(&again)? == "b", "{mode}: {to}");
            raw::connect(socket, *to).with_context(context)?;
            ensure!(ask(socket)? == "b", "{mode}: {to}");
        }
        scene.await_closed("host", 3)?;
    }
    Ok(())
}

#[test]
fn tcp_and_unconnected_sockets_are_never_closed() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"])])?;
    for to in WEB.sockets() {
        let socket = World::socket_of(scene.host(), || Ok(raw::udp(to)?));
        let tcp = World::socket_of(scene.host(), || Ok(raw::tcp(to)?));
        raw::connect(&tcp, to)?;
        let mut tcp = TcpStream::from(tcp);
        let mut ask_tcp = || -> Result<String> {
            tcp.write_all(b"who\n")?;
            let mut buffer = [0; 256];
            let length = tcp.read(&mut buffer)?;
            let answer: Answer = String::from_utf8_lossy(&buffer[..length]).parse()?;
            Ok(answer.name)
        };
        let ask_unconnected = || -> Result<String> {
            raw::send_to(&socket, b"who\n", to, 0)?;
            raw::wait_readable(&socket)?;
            let (data, from) = raw::receive_from(&socket, 0)?;
            ensure!(from == to, "answered by {from}");
            Ok(String::from_utf8_lossy(&data).parse::<Answer>()?.name)
        };
        ensure!(ask_tcp()? == "a");
        soon("an answer", || ensure_is(&ask_unconnected()?, "a"))?;
        let control = connected(scene.host(), to)?;
        let before = closed(&scene)?;
        scene.serve(&WEB, &["b"])?;
        await_aborted(&control)?;
        scene.await_closed("host", before + 1)?;
        ensure!(ask_tcp()? == "a", "{to}: TCP stays");
        soon("an answer of b", || ensure_is(&ask_unconnected()?, "b"))?;
        scene.serve(&WEB, &["a"])?;
        soon("an answer of a", || ensure_is(&ask_unconnected()?, "a"))?;
    }
    Ok(())
}

fn ensure_is(answer: &str, name: &str) -> Result<()> {
    ensure!(answer == name, "answered by {answer}, not by {name}");
    Ok(())
}

/// How many sockets of the host have been closed.
fn closed(scene: &Scene) -> Result<u32> {
    let labels = ["where=\"host\"", "outcome=\"closed\""];
    let value = scene.metric("lb_sockets_closed_total", &labels)?;
    Ok(value.context("no such series")?.to_string().parse()?)
}

#[test]
fn who_connected_to_the_pod_s_own_address_keeps_the_socket() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"])])?;
    let pod = scene.stage.pod("a");
    let direct: [SocketAddr; 2] = [
        (pod.v4(), TARGET_PORT).into(),
        (pod.v6(), TARGET_PORT).into(),
    ];
    let mut kept = Vec::new();
    let mut lost = Vec::new();
    for (pod, service) in direct.into_iter().zip(WEB.sockets()) {
        kept.push(connected(scene.host(), pod)?);
        lost.push(connected(scene.host(), service)?);
        // One that was the service's before it was connected to the pod.
        let socket = connected(scene.host(), service)?;
        raw::connect(&socket, pod)?;
        kept.push(socket);
    }
    scene.serve(&WEB, &["b"])?;
    for socket in &lost {
        await_aborted(socket)?;
    }
    scene.await_closed("host", 2)?;
    for socket in &kept {
        ensure!(ask(socket)? == "a");
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_terminating_keeps_its_sockets() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"]), (&OTHER, &["a"])])?;
    let mut kept = Vec::new();
    for to in WEB.sockets() {
        kept.push(connected(scene.host(), to)?);
    }
    scene.serve_as(&WEB, &[("a", TERMINATING), ("b", READY), ("c", READY)])?;
    scene.await_endpoints(&WEB, 2)?;
    let control = connected(scene.host(), OTHER.sockets()[0])?;
    scene.serve(&OTHER, &["b"])?;
    await_aborted(&control)?;
    scene.await_closed("host", 1)?;
    for socket in &kept {
        ensure!(ask(socket)? == "a");
    }
    // Its end comes with its removal.
    scene.serve(&WEB, &["b"])?;
    for socket in &kept {
        await_aborted(socket)?;
    }
    Ok(())
}

#[test]
fn an_endpoint_of_two_services_that_leaves_one_loses_that_one_s_sockets_alone() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"]), (&OTHER, &["a"])])?;
    let (mut lost, mut kept) = (Vec::new(), Vec::new());
    for (leaves, stays) in WEB.asked().into_iter().zip(OTHER.asked()) {
        lost.push(connected(scene.host(), leaves)?);
        kept.push(connected(scene.host(), stays)?);
    }
    scene.serve(&WEB, &["b"])?;
    for socket in &lost {
        await_aborted(socket)?;
    }
    scene.await_closed("host", 3)?;
    for socket in &kept {
        ensure!(ask(socket)? == "a");
    }
    Ok(())
}

#[test]
fn an_endpoint_that_is_removed_and_added_again_leaves_no_socket_behind() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"])])?;
    for to in WEB.sockets() {
        for _ in 0..5 {
            let socket = connected(scene.host(), to)?;
            scene.serve(&WEB, &["b"])?;
            scene.serve(&WEB, &["a"])?;
            // Closed or not, depending on who was faster: its program gets on.
            let mut answer = ask(&socket);
            while let Err(error) = &answer {
                let cause = error.root_cause().downcast_ref::<std::io::Error>();
                let code = cause.and_then(std::io::Error::raw_os_error);
                let closed = [Some(libc::ECONNABORTED), Some(libc::EDESTADDRREQ)];
                ensure!(closed.contains(&code), "{error:#}");
                raw::connect(&socket, to)?;
                answer = ask(&socket);
            }
            let answer = answer?;
            ensure!(answer == "a" || answer == "b", "answered by {answer}");
            scene.serve(&WEB, &["c"])?;
            scene.await_endpoints(&WEB, 1)?;
            soon("only c serves", || {
                ensure_is(&ask(&connected(scene.host(), to)?)?, "c")
            })?;
            await_aborted(&socket)?;
            scene.serve(&WEB, &["a"])?;
            soon("a serves again", || {
                ensure_is(&ask(&connected(scene.host(), to)?)?, "a")
            })?;
        }
    }
    Ok(())
}

#[test]
fn what_was_removed_while_no_agent_ran_is_closed_at_the_next_start() -> Result<()> {
    let mut scene = Scene::new("", &[(&WEB, &["a"])])?;
    let mut sockets = Vec::new();
    for to in WEB.asked() {
        sockets.push(connected(scene.host(), to)?);
    }
    scene.agent.take().context("no agent")?.stop()?;
    scene.serve(&WEB, &["b"])?;
    scene.start()?;
    for socket in &sockets {
        await_aborted(socket)?;
    }
    scene.await_closed("host", 3)
}

#[test]
fn a_deleted_service_s_sockets_are_closed() -> Result<()> {
    let scene = Scene::new("", &[(&WEB, &["a"])])?;
    let mut sockets = Vec::new();
    for to in WEB.asked() {
        sockets.push(connected(scene.host(), to)?);
    }
    scene.stage.delete(WEB.name)?;
    for socket in &sockets {
        await_aborted(socket)?;
    }
    Ok(())
}

#[test]
fn a_thousand_sockets_of_one_endpoint_are_closed() -> Result<()> {
    const EACH: u16 = 500;
    let scene = Scene::new("", &[(&WEB, &["a"])])?;
    let mut processes = Vec::new();
    for to in WEB.sockets() {
        let process = Process::start(scene.host(), |ready| {
            let open = || -> Result<OwnedFd> {
                let socket = raw::udp(to)?;
                raw::connect(&socket, to)?;
                Ok(socket)
            };
            let sockets: Vec<OwnedFd> = (0..EACH).map(|_| open()).collect::<Result<_>>()?;
            ready.tell()?;
            sockets.iter().try_for_each(await_aborted)?;
            Ok(sockets.len().to_string())
        })?;
        processes.push(process);
    }
    scene.serve(&WEB, &["b"])?;
    for process in processes {
        ensure!(process.wait()? == EACH.to_string());
    }
    scene.await_closed("host", 2 * u32::from(EACH))
}

/// A directory with the pods' namespaces of this scene, as container runtimes keep one.
fn namespaces(scene: &Scene) -> Result<std::path::PathBuf> {
    let directory = scene.stage.lab.dir().join("namespaces");
    fs::create_dir_all(&directory)?;
    for pod in ["a", "b", "client"] {
        let path = scene.stage.pod(pod).namespace().path();
        std::os::unix::fs::symlink(path, directory.join(pod))?;
    }
    // A namespace that is just being made is an empty file.
    fs::write(directory.join("new"), "")?;
    Ok(directory)
}

#[test]
fn sockets_in_pods_are_closed_where_the_operator_wants_it_and_nowhere_else() -> Result<()> {
    let mut scene = Scene::new("", &[(&WEB, &["a"]), (&DNS, &["a"])])?;
    // Without the option: the host's alone.
    let kept = connected(scene.pod(), WEB.sockets()[0])?;
    let host = connected(scene.host(), WEB.sockets()[0])?;
    scene.serve(&WEB, &["b"])?;
    await_aborted(&host)?;
    scene.await_closed("host", 1)?;
    ensure!(ask(&kept)? == "a");
    drop(kept);
    scene.serve(&WEB, &["a"])?;
    soon("a serves again", || {
        ensure_is(&ask(&connected(scene.host(), WEB.sockets()[0])?)?, "a")
    })?;

    scene.agent.take().context("no agent")?.stop()?;
    let directory = namespaces(&scene)?;
    scene.flags = format!("--close-pod-sockets {}", directory.display());
    scene.start()?;
    // With it nothing has to go by the packet path.
    for service in [&WEB, &DNS] {
        let mut sockets = Vec::new();
        for to in service.asked() {
            sockets.push((to, connected(scene.pod(), to)?));
        }
        scene.serve(service, &["b"])?;
        for (to, socket) in &sockets {
            await_aborted(socket).with_context(|| format!("{to}"))?;
            ensure!(ask(&connected(scene.pod(), *to)?)? == "b", "{to}");
        }
    }
    scene.await_closed("pod", 6)
}

/// Asks over one connected socket until `name` answers: what is on its way still goes where it went.
fn moves_to(socket: &OwnedFd, name: &str) -> Result<()> {
    soon("the conversation moves", || ensure_is(&ask(socket)?, name))
}

#[test]
fn a_pod_s_socket_connected_to_port_53_moves_with_its_next_datagram() -> Result<()> {
    let scene = Scene::new("", &[(&DNS, &["a"])])?;
    let mut sockets = Vec::new();
    for to in DNS.asked() {
        let socket = connected(scene.pod(), to)?;
        ensure!(raw::peer(&socket)? == to);
        sockets.push((to, socket));
    }
    let host = connected(scene.host(), DNS.sockets()[0])?;
    let left = ["reason=\"socket_udp_left_to_packet_path\""];
    ensure!(scene.metric("lb_reasons_total", &left)? == Some(3.0));
    scene.serve(&DNS, &["b"])?;
    // The node's own are closed as ever.
    await_aborted(&host)?;
    for (to, socket) in &sockets {
        // Written: not one datagram more goes to the old endpoint.
        ensure!(ask(socket)? == "b", "{to}");
        // By name it goes the same way.
        raw::send_to(socket, b"who\n", *to, 0)?;
        raw::wait_readable(socket)?;
        let (_, from) = raw::receive_from(socket, 0)?;
        ensure!(from == *to, "answered by {from}");
    }
    // Somewhere else, and back.
    for name in ["c", "a"] {
        scene.serve(&DNS, &[name])?;
        for (to, socket) in &sockets {
            moves_to(socket, name).with_context(|| format!("{to}"))?;
        }
    }
    Ok(())
}

#[test]
fn without_socket_hooks_connected_sockets_move_and_none_is_closed() -> Result<()> {
    for mode in ["off", "host-only"] {
        let flags = format!("--socket-load-balancing {mode}");
        let scene = Scene::new(&flags, &[(&WEB, &["a"]), (&DNS, &["a"])])?;
        for service in [&WEB, &DNS] {
            let mut sockets = Vec::new();
            for to in service.sockets() {
                sockets.push(connected(scene.pod(), to)?);
                if mode == "off" {
                    sockets.push(connected(scene.host(), to)?);
                }
            }
            scene.serve(service, &["b"])?;
            for socket in &sockets {
                moves_to(socket, "b").with_context(|| mode.to_owned())?;
            }
        }
        ensure!(closed(&scene)? == 0, "{mode}");
    }
    Ok(())
}

#[test]
fn the_ports_that_stay_on_the_packet_path_are_the_operator_s_choice() -> Result<()> {
    let left = ["reason=\"socket_udp_left_to_packet_path\""];
    for (ports, web, dns) in [("none", 0.0, 0.0), ("80,5353", 1.0, 0.0)] {
        let flags = format!("--packet-path-udp-ports {ports}");
        let scene = Scene::new(&flags, &[(&WEB, &["a"]), (&DNS, &["a"])])?;
        let is = |count: f64| -> Result<()> {
            let counted = scene.metric("lb_reasons_total", &left)?;
            ensure!(counted.or(Some(0.0)) == Some(count), "{ports}: {counted:?}");
            Ok(())
        };
        let _web = connected(scene.pod(), WEB.sockets()[0])?;
        is(web)?;
        let _dns = connected(scene.pod(), DNS.sockets()[0])?;
        is(web + dns)?;
    }
    Ok(())
}
