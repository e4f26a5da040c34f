//! The life of an application under load: on a real control plane it is updated, rolled back,
//! scaled and given other types, while clients in a pod and outside ask it over TCP and UDP.
//! Not one request fails that kube-proxy's semantics could have served.
//!
//! Pods are real network stacks; what a kubelet does (their objects' status, SIGTERM, their end) is
//! done here.

use anyhow::{Context, Result, ensure};
use lb_lab::topology::OutsideClient;
use lb_lab::{Pod, Server};
use lb_tests::control_plane::{self, RealCluster, pod_name, service, sockets};
use lb_tests::load::{Failure, Load, Moment, Transport, now};
use lb_tests::stage::TARGET_PORT;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;

const NODE_PORT: u16 = 30_111;
/// Each of the clients asks a hundred times a second.
const PACE: Duration = Duration::from_millis(10);
/// What pods do between SIGTERM and their end.
const GRACE: Duration = Duration::from_millis(500);
/// Requests of each client that must meet a state before the next change.
const SETTLE: u64 = 30;

/// The client whose datagrams are one flow.
const ONE_PORT: &str = "outside, one port, UDP";

/// When, and for whose clients, requests may fail.
#[derive(Debug)]
struct Forgiven {
    from: Moment,
    until: Moment,
    /// Begins the names of the clients it is for.
    clients: &'static str,
}

/// The application: pods with servers, and the clients that ask. Fields drop in order.
struct Application {
    load: Load,
    running: Vec<(Pod, Server)>,
    made: u32,
    forgiven: Vec<Forgiven>,
    outside: OutsideClient,
    cluster: RealCluster,
}

/// The Service, by its type.
fn object(kind: &str) -> Value {
    let mut object = service("web", 1);
    if kind == "ExternalName" {
        object["spec"] = json!({"type": kind, "externalName": "web.example.net"});
        return object;
    }
    object["spec"]["type"] = json!(kind);
    if kind != "ClusterIP" {
        for port in [0, 1] {
            object["spec"]["ports"][port]["nodePort"] = json!(NODE_PORT);
        }
    }
    object
}

impl Application {
    /// Three pods behind a node port, the agent with `flags`, and clients that ask already.
    fn new(flags: &str) -> Result<Self> {
        let mut cluster = RealCluster::new(&[])?;
        let outside = cluster.site.lab().add_client()?;
        cluster.api.apply(&object("NodePort"))?;
        cluster.start(flags)?;
        let load = Load::new(&cluster.site.lab().dir().join("load"), PACE)?;
        let mut application = Self {
            load,
            running: Vec::new(),
            made: 0,
            forgiven: Vec::new(),
            outside,
            cluster,
        };
        application.grow(3)?;
        application.add_clients()?;
        Ok(application)
    }

    fn add_clients(&mut self) -> Result<()> {
        let site = &self.cluster.site;
        let (inside, outside) = (site.client().place(), self.outside.place());
        let [v4, v6] = sockets(1);
        let [near4, near6] = site.lab().node_addresses(0);
        let node4 = SocketAddr::from((near4, NODE_PORT));
        let node6 = SocketAddr::from((near6, NODE_PORT));
        let load = &mut self.load;
        load.add("pod, ClusterIP, TCP", inside, v4, Transport::Tcp)?;
        load.add("pod, ClusterIP, TCP, IPv6", inside, v6, Transport::Tcp)?;
        load.add("pod, ClusterIP, UDP", inside, v4, Transport::Udp)?;
        load.add("outside, node port, TCP", outside, node4, Transport::Tcp)?;
        load.add(
            "outside, node port, TCP, IPv6",
            outside,
            node6,
            Transport::Tcp,
        )?;
        load.add("outside, node port, UDP", outside, node4, Transport::Udp)?;
        load.add(ONE_PORT, outside, node4, Transport::UdpFromOnePort)?;
        load.await_requests(SETTLE)
    }

    /// Waits until the agent's tables have so many ready endpoints of the Service.
    fn await_ready(&self, count: usize) -> Result<()> {
        let labels = [
            "name=\"web\"",
            "protocol=\"TCP\"",
            "ip_family=\"IPv4\"",
            "state=\"active\"",
        ];
        let expected = Some(f64::from(u32::try_from(count)?));
        self.cluster
            .site
            .await_metric("lb_service_endpoints", &labels, expected)
    }

    /// Starts pods, one after the other, each waited for.
    fn grow(&mut self, to: usize) -> Result<()> {
        while self.running.len() < to {
            let name = format!("web-{}", self.made);
            self.made += 1;
            let pod = self.cluster.site.lab().node(0).add_pod(&name)?;
            let server = Server::start(pod.place(), &name, TARGET_PORT)?;
            control_plane::run(&self.cluster.api, &pod, "web")?;
            self.running.push((pod, server));
            self.await_ready(self.running.len())?;
        }
        Ok(())
    }

    /// Ends the oldest `count` pods as a kubelet does: their objects are marked, they get SIGTERM,
    /// and end half a second later, though not before a busy machine has told the agent and let
    /// every client finish what it was at.
    fn end(&mut self, count: usize) -> Result<()> {
        let (pods, servers): (Vec<Pod>, Vec<Server>) = self.running.drain(..count).unzip();
        let names: Vec<Value> = pods.iter().map(|pod| pod_name(pod.name())).collect();
        for name in &names {
            // As for any pod with a node: marked now, gone when the kubelet says so.
            self.cluster.api.delete(name, None)?;
        }
        let told = now()?;
        self.await_ready(self.running.len())?;
        self.load.await_requests(2)?;
        std::thread::sleep((told + GRACE).saturating_sub(now()?));
        // kube-proxy keeps a UDP flow with an endpoint that terminates while it serves, and learns
        // of its end from the API.
        self.forgive(ONE_PORT, |application| {
            drop(servers);
            for name in &names {
                application.cluster.api.delete(name, Some(0))?;
            }
            if application.running.is_empty() {
                return Ok(());
            }
            application.load.await_answers(ONE_PORT, 2)
        })?;
        drop(pods);
        Ok(())
    }

    /// Every pod is replaced by a new one, one more than needed at a time.
    fn roll(&mut self) -> Result<()> {
        let replicas = self.running.len();
        for _ in 0..replicas {
            self.grow(replicas + 1)?;
            self.end(1)?;
        }
        self.load.await_requests(SETTLE)
    }

    /// Runs `change`, during which and until whose end the clients of that name may fail.
    fn forgive(
        &mut self,
        clients: &'static str,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        let from = now()?;
        change(self)?;
        let until = now()?;
        self.forgiven.push(Forgiven {
            from,
            until,
            clients,
        });
        Ok(())
    }

    /// Gives the Service another type and waits until the node port works, or nobody answers there.
    fn turn(&mut self, kind: &str) -> Result<()> {
        self.cluster.api.apply(&object(kind))?;
        let site = &self.cluster.site;
        let node_port = SocketAddr::from((site.lab().node_addresses(0)[0], NODE_PORT));
        let answers = |server: SocketAddr, yes: bool| {
            site.until(&format!("{server} answers: {yes}"), || {
                let answer = site.client().place().ask_tcp(server);
                Ok((answer.is_ok() != yes).then(|| format!("{answer:?}")))
            })
        };
        answers(node_port, matches!(kind, "NodePort" | "LoadBalancer"))?;
        answers(sockets(1)[0], kind != "ExternalName")
    }

    /// Ends the load; an error names the requests that failed though they could have been served.
    fn finish(self) -> Result<()> {
        let (total, failures) = self.load.finish()?;
        let is_forgiven = |failure: &Failure| {
            self.forgiven.iter().any(|window| {
                failure.client.starts_with(window.clients)
                    && failure.during.0 < window.until
                    && failure.during.1 > window.from
            })
        };
        let (forgiven, failed): (Vec<_>, Vec<_>) =
            failures.iter().partition(|one| is_forgiven(one));
        println!(
            "{total} requests, {} of which nobody could have served",
            forgiven.len()
        );
        let shown: Vec<String> = failed.iter().take(20).map(ToString::to_string).collect();
        ensure!(
            failed.is_empty(),
            "{} of {total} requests failed:\n{}\nnot when they might: {:?}\n{}",
            failed.len(),
            shown.join("\n"),
            self.forgiven,
            self.cluster.site.log_tail()
        );
        Ok(())
    }
}

/// A rolling update, a rollback, and scaling to six, none and three.
fn live(flags: &str) -> Result<()> {
    let mut application = Application::new(flags)?;
    application.roll().context("the update")?;
    application.roll().context("the rollback")?;
    application.grow(6)?;
    application.load.await_requests(SETTLE)?;
    application.end(5)?;
    application.load.await_requests(SETTLE)?;
    application.forgive("", |application| {
        application.end(1)?;
        // Few: kernels tell UDP clients of a refusal once a second, the others wait in vain.
        application.load.await_requests(2)?;
        application.grow(1)
    })?;
    application.grow(3)?;
    application.load.await_requests(SETTLE)?;
    application.finish()
}

#[test]
fn updates_rollbacks_and_scaling_lose_no_request_with_socket_balancing() -> Result<()> {
    live("")
}

#[test]
fn updates_rollbacks_and_scaling_lose_no_request_packet_by_packet() -> Result<()> {
    live("--socket-load-balancing off")
}

#[test]
fn a_change_of_type_takes_away_what_the_type_has_and_nothing_else() -> Result<()> {
    let mut application = Application::new("")?;
    for _ in 0..2 {
        application.turn("LoadBalancer")?;
        application.load.await_requests(SETTLE)?;
        application.forgive("", |application| {
            // Questions to a free address are dropped, each takes a client's patience: no more of
            // them than need be.
            application.turn("ExternalName")?;
            application.turn("LoadBalancer")
        })?;
        application.turn("NodePort")?;
        application.load.await_requests(SETTLE)?;
        application.forgive("outside", |application| {
            application.turn("ClusterIP")?;
            application.turn("NodePort")
        })?;
        application.load.await_requests(SETTLE)?;
    }
    application.finish()
}
