//! `CoreDNS` behind one address, UDP and TCP, IPv4 and IPv6, on a real control plane: programs with
//! the resolvers of glibc, musl and Go look names up in a pod and on the node while one of the name
//! servers is replaced and another hangs. Answers that a datagram does not hold are asked for again
//! over TCP.
//!
//! Pods are real network stacks; what a kubelet does (their objects' status, SIGTERM, their end) is
//! done here.

use anyhow::{Context, Result, ensure};
use lb_lab::Pod;
use lb_lab::dns::{self, Lookups, NameServer, Resolver};
use lb_tests::control_plane::{self, RealCluster, pod_name, service, sockets};
use serde_json::json;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Between two lookups of a client.
const PACE: Duration = Duration::from_millis(20);
/// Lookups of each client that must meet a state before the next change: every fourth is large.
const SETTLE: u64 = 8;
/// How long lookups are awaited: only a failing test waits that long.
const PATIENCE: Duration = Duration::from_secs(120);

/// Each resolver asks again after five seconds or less, for longer than it takes a busy machine to
/// hear of an endpoint's end. musl's `timeout` is that of all attempts.
const RESOLVERS: [(&str, &str); 3] = [
    ("glibc", "timeout:5 attempts:5"),
    ("musl", "timeout:30 attempts:10"),
    ("Go", "timeout:5 attempts:5"),
];

fn program(resolver: &str) -> Result<PathBuf> {
    match resolver {
        "musl" => dns::program(dns::MUSL),
        "Go" => dns::program(dns::PROGRAMS[1]),
        _ => Ok(PathBuf::from(env!("CARGO_BIN_EXE_resolve"))),
    }
}

/// A program that looks names up.
struct Client {
    name: String,
    resolver: Resolver,
    /// Lookups in which a name server hung or was killed: from, and up to but without.
    hurt: Option<(u64, u64)>,
}

/// The name servers and their clients. Fields drop in order.
struct Names {
    clients: Vec<Client>,
    running: Vec<(u8, Pod, NameServer)>,
    cluster: RealCluster,
    made: u8,
}

impl Names {
    /// Three name servers behind one address, the agent with `flags`, and clients that ask already.
    fn new(flags: &str) -> Result<Self> {
        let mut cluster = RealCluster::new(&[])?;
        // Without any route the kernel refuses to send to a ClusterIP before anybody sees it.
        let router = cluster.site.lab().add_client()?;
        let (v4, v6) = (router.v4(), router.v6());
        let node = cluster.site.lab().node(0).namespace();
        node.ip_batch(&format!(
            "route add default via {v4}\nroute add default via {v6}\n"
        ))?;
        let mut object = service("dns", 1);
        for port in [0, 1] {
            object["spec"]["ports"][port]["port"] = json!(dns::PORT);
            object["spec"]["ports"][port]["targetPort"] = json!(dns::PORT);
        }
        cluster.api.apply(&object)?;
        cluster.start(flags)?;
        let mut names = Self {
            clients: Vec::new(),
            running: Vec::new(),
            cluster,
            made: 0,
        };
        for _ in 0..3 {
            names.grow()?;
        }
        names.add_clients()?;
        names.settle()?;
        Ok(names)
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.cluster.site.lab().dir().join(name)
    }

    fn add_clients(&mut self) -> Result<()> {
        let site = &self.cluster.site;
        let places = [
            ("pod", site.client().place()),
            ("node", site.lab().node(0).place()),
        ];
        for (resolver, options) in RESOLVERS {
            for (place_name, place) in places {
                for server in sockets(1).map(|socket| socket.ip()) {
                    let name = format!("{resolver}, {place_name}, {server}");
                    let dir = self.dir(&format!("client-{}", self.clients.len()));
                    let program = program(resolver)?;
                    let resolver = Resolver::start(place, &program, &dir, server, options, PACE)
                        .with_context(|| name.clone())?;
                    self.clients.push(Client {
                        name,
                        resolver,
                        hurt: None,
                    });
                }
            }
        }
        Ok(())
    }

    /// Waits until each client has made `more` lookups.
    fn await_lookups(&mut self, more: u64) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut targets = Vec::new();
        for client in &mut self.clients {
            targets.push(client.resolver.count()? + more);
        }
        for (client, target) in self.clients.iter_mut().zip(targets) {
            while client.resolver.count()? < target {
                ensure!(
                    Instant::now() < end,
                    "{}: not {more} more lookups",
                    client.name
                );
                // Lookups are counted, not announced.
                std::thread::sleep(PACE);
            }
        }
        Ok(())
    }

    /// Lets each client ask for everything, in what is now.
    fn settle(&mut self) -> Result<()> {
        self.await_lookups(SETTLE)
    }

    /// Waits until the agent's tables have so many ready name servers, for both transports and
    /// families.
    fn await_ready(&self, count: usize) -> Result<()> {
        let expected = Some(f64::from(u32::try_from(count)?));
        for protocol in ["protocol=\"TCP\"", "protocol=\"UDP\""] {
            for family in ["ip_family=\"IPv4\"", "ip_family=\"IPv6\""] {
                let labels = ["name=\"dns\"", protocol, family, "state=\"active\""];
                let site = &self.cluster.site;
                site.await_metric("lb_service_endpoints", &labels, expected)?;
            }
        }
        Ok(())
    }

    /// One more name server.
    fn grow(&mut self) -> Result<()> {
        self.made += 1;
        let name = format!("dns-{}", self.made);
        let pod = self.cluster.site.lab().node(0).add_pod(&name)?;
        let server = NameServer::start(pod.place(), &self.dir(&name), self.made)?;
        control_plane::run(&self.cluster.api, &pod, "dns")?;
        self.running.push((self.made, pod, server));
        self.await_ready(self.running.len())
    }

    /// Ends the oldest name server as a kubelet does: its pod is marked, and serves until nobody
    /// asks it any more (`CoreDNS`' own `lameduck`).
    fn end_oldest(&mut self) -> Result<()> {
        let (_, pod, server) = self.running.remove(0);
        self.cluster.api.delete(&pod_name(pod.name()), None)?;
        self.await_ready(self.running.len())?;
        self.await_lookups(2)?;
        drop(server);
        self.cluster.api.delete(&pod_name(pod.name()), Some(0))?;
        Ok(())
    }

    /// The oldest name server hangs: nobody answers there, and nobody says so. Its probe fails, it
    /// is killed, and starts again in its pod.
    fn hang_oldest(&mut self) -> Result<()> {
        for client in &mut self.clients {
            client.hurt = Some((client.resolver.count()?, u64::MAX));
        }
        let (number, pod, server) = self.running.remove(0);
        server.freeze()?;
        self.cluster.set_ready(pod.name(), false)?;
        self.await_ready(self.running.len())?;
        drop(server);
        // Those that had asked it wait for an answer until their patience ends, and ask again.
        self.await_lookups(2)?;
        for client in &mut self.clients {
            let until = client.resolver.count()?;
            client.hurt = client.hurt.map(|(from, _)| (from, until));
        }
        let server = NameServer::start(pod.place(), &self.dir(pod.name()), number)?;
        self.cluster.set_ready(pod.name(), true)?;
        self.running.push((number, pod, server));
        self.await_ready(self.running.len())
    }

    /// Ends the clients; an error names the lookups that failed though they could have been served.
    fn finish(self) -> Result<()> {
        let (mut total, mut lost, mut seen) = (0, 0, BTreeSet::new());
        let mut failed = Vec::new();
        for Client {
            name,
            resolver,
            hurt,
        } in self.clients
        {
            let lookups: Lookups = resolver.finish().with_context(|| name.clone())?;
            total += lookups.made;
            seen.extend(lookups.seen);
            for (number, message) in lookups.failed {
                let was_hurt = hurt.is_some_and(|(from, until)| (from..until).contains(&number));
                // A connection to a name server that hangs and is killed is lost with it, and musl
                // does not ask over another one.
                if was_hurt && name.starts_with("musl") && message.starts_with("large") {
                    lost += 1;
                } else {
                    failed.push(format!("{name}: lookup {number}, hurt {hurt:?}: {message}"));
                }
            }
        }
        println!("{total} lookups, {lost} of which nobody could have served");
        ensure!(
            failed.is_empty(),
            "{} of {total} lookups failed:\n{}\n{}",
            failed.len(),
            failed.join("\n"),
            self.cluster.site.log_tail()
        );
        for number in 1..=self.made {
            let address = IpAddr::from(Ipv4Addr::new(192, 0, 2, number));
            ensure!(
                seen.contains(&address),
                "nobody saw an answer of {address}: {seen:?}"
            );
        }
        Ok(())
    }
}

/// Lookups go on while a name server is replaced, and another one hangs and comes back.
fn resolve(flags: &str) -> Result<()> {
    let mut names = Names::new(flags)?;
    names.end_oldest().context("one ends")?;
    names.settle()?;
    names.grow().context("one comes")?;
    names.settle()?;
    names.hang_oldest().context("one hangs")?;
    names.settle()?;
    names.finish()
}

#[test]
fn names_are_resolved_while_a_name_server_goes_and_comes_back_with_socket_balancing() -> Result<()>
{
    resolve("")
}

#[test]
fn names_are_resolved_while_a_name_server_goes_and_comes_back_packet_by_packet() -> Result<()> {
    resolve("--socket-load-balancing off")
}
