//! The cluster as it really is, and its history as an API server tells it.

mod objects;

use super::history::Log;
use fastrand::Rng;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The node the agent runs on, and another one.
pub(super) const NODES: [&str; 2] = ["here", "elsewhere"];
/// Services there may be at once.
const SERVICES: u8 = 6;
/// `ClusterIP`s there are: few, so that one is soon another service's.
const CLUSTER_IPS: u8 = 8;
/// Addresses of pods there are, likewise.
const PODS: u8 = 20;
/// Node ports there are.
const NODE_PORTS: u16 = 6;
/// External addresses there are.
const EXTERNAL_IPS: u8 = 3;

/// The `ClusterIP` of this number.
fn cluster_ip(number: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 96, 0, number).into()
    }
}

/// The pod's address of this number.
fn pod_ip(number: u8, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x1, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 1, 0, number).into()
    }
}

/// The external address of this number.
fn external_ip(number: u8) -> IpAddr {
    Ipv4Addr::new(198, 51, 100, number).into()
}

/// The node's own address.
pub(super) fn node_ip(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0x192, 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(192, 168, 0, 1).into()
    }
}

/// A port of a service, told by its name.
#[derive(Clone, Copy, Debug)]
struct Port {
    name: &'static str,
    protocol: &'static str,
    number: u16,
    target: u16,
}

/// The ports that services have one or more of. Two share a number.
const PORTS: [Port; 3] = [
    Port {
        name: "web",
        protocol: "TCP",
        number: 80,
        target: 8080,
    },
    Port {
        name: "dns",
        protocol: "UDP",
        number: 53,
        target: 5353,
    },
    Port {
        name: "dns-tcp",
        protocol: "TCP",
        number: 53,
        target: 5353,
    },
];

#[derive(Clone, Debug)]
struct Service {
    cluster_ip: u8,
    /// IPv4, IPv6.
    families: [bool; 2],
    /// By index in [`PORTS`], with its node port if it has one.
    ports: BTreeMap<usize, Option<u16>>,
    external_ip: Option<u8>,
    affinity: Option<u32>,
    internal_local: bool,
    external_local: bool,
    unready_too: bool,
}

/// How a pod is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Health {
    Unready,
    Ready,
    /// It terminates, and still serves.
    Leaving,
    /// It terminates.
    Left,
}

/// A pod behind a service.
#[derive(Clone, Copy, Debug)]
struct Pod {
    health: Health,
    node: &'static str,
    /// Which of the service's slices names it, and whether a second one does, too: as while the
    /// controller moves it.
    slice: u8,
    twice: bool,
}

/// The cluster. Only its histories leave this module.
#[derive(Debug)]
pub(super) struct Cluster {
    services: BTreeMap<u8, Service>,
    /// By service, by the number of its address.
    pods: BTreeMap<u8, BTreeMap<u8, Pod>>,
    /// A service that nobody can read now.
    unreadable: Option<u8>,
    pub(super) service_log: Log,
    pub(super) slice_log: Log,
    pub(super) node_log: Log,
}

impl Cluster {
    pub(super) fn new() -> Self {
        let mut cluster = Self {
            services: BTreeMap::new(),
            pods: BTreeMap::new(),
            unreadable: None,
            service_log: Log::default(),
            slice_log: Log::default(),
            node_log: Log::default(),
        };
        cluster.node_log.put(
            NODES[0],
            Some(json!({
                "metadata": {"name": NODES[0]},
                "status": {"addresses": [{"type": "InternalIP", "address": node_ip(false)},
                                         {"type": "InternalIP", "address": node_ip(true)}]},
            })),
        );
        cluster
    }

    /// Everything is readable again.
    pub(super) fn settle(&mut self) {
        if let Some(number) = self.unreadable.take() {
            self.tell_service(number);
        }
    }

    /// Something happens. Returns a word about it.
    pub(super) fn change(&mut self, rng: &mut Rng) -> String {
        let known: Vec<u8> = self.services.keys().copied().collect();
        if known.is_empty() || (known.len() < usize::from(SERVICES) && rng.u8(..8) == 0) {
            return self.create(rng);
        }
        let number = known[rng.usize(..known.len())];
        match rng.u8(..20) {
            0 => self.delete(number, rng),
            1 | 2 => self.reconfigure(number, rng),
            3 => {
                self.settle();
                self.unreadable = Some(number);
                let broken = json!({"metadata": objects::metadata(&format!("s{number}")),
                                    "spec": {"ports": "80"}});
                self.service_log.put(&format!("s{number}"), Some(broken));
                format!("s{number} cannot be decoded")
            }
            4 => {
                self.settle();
                "everything can be decoded".to_owned()
            }
            5..=9 => self.add_pod(number, rng),
            _ => self.change_pod(number, rng),
        }
    }

    fn create(&mut self, rng: &mut Rng) -> String {
        let free = |number: &u8| !self.services.contains_key(number);
        let Some(number) = (0..SERVICES).find(free) else {
            return "no room for a service".to_owned();
        };
        let taken: BTreeSet<u8> = self.services.values().map(|s| s.cluster_ip).collect();
        let ips: Vec<u8> = (1..=CLUSTER_IPS).filter(|ip| !taken.contains(ip)).collect();
        let mut service = Service {
            cluster_ip: ips[rng.usize(..ips.len())],
            families: [[true, false], [false, true], [true, true]][rng.usize(..3)],
            ports: BTreeMap::new(),
            external_ip: None,
            affinity: None,
            internal_local: false,
            external_local: false,
            unready_too: rng.u8(..8) == 0,
        };
        service.ports.insert(rng.usize(..PORTS.len()), None);
        self.services.insert(number, service);
        // The slices may be there before the service.
        if rng.bool() {
            self.add_pod(number, rng);
        }
        self.reconfigure(number, rng);
        if rng.bool() {
            self.add_pod(number, rng);
        }
        format!("s{number} is created")
    }

    fn delete(&mut self, number: u8, rng: &mut Rng) -> String {
        let pods_first = rng.bool();
        if pods_first {
            self.pods.remove(&number);
            self.tell_pods(number);
        }
        self.services.remove(&number);
        if self.unreadable == Some(number) {
            self.unreadable = None;
        }
        self.service_log.put(&format!("s{number}"), None);
        if !pods_first {
            self.pods.remove(&number);
            self.tell_pods(number);
        }
        format!("s{number} is deleted")
    }

    fn reconfigure(&mut self, number: u8, rng: &mut Rng) -> String {
        let node_ports: BTreeSet<u16> = (self.services.values())
            .flat_map(|service| service.ports.values().copied().flatten())
            .collect();
        let external: BTreeSet<u8> = (self.services.values())
            .filter_map(|service| service.external_ip)
            .collect();
        let Some(service) = self.services.get_mut(&number) else {
            return String::new();
        };
        match rng.u8(..7) {
            0 => service.affinity = [None, Some(10), Some(10_800)][rng.usize(..3)],
            1 => service.internal_local = rng.bool(),
            2 => service.external_local = rng.bool(),
            3 => {
                let free: Vec<u8> = (1..=EXTERNAL_IPS)
                    .filter(|ip| !external.contains(ip))
                    .collect();
                service.external_ip = if service.external_ip.is_some() || free.is_empty() {
                    None
                } else {
                    Some(free[rng.usize(..free.len())])
                };
            }
            4 | 5 => {
                let free: Vec<u16> = (30_000..30_000 + NODE_PORTS)
                    .filter(|port| !node_ports.contains(port))
                    .collect();
                // One at a time: the same port must not be given twice.
                if let Some(node_port) = service.ports.values_mut().next() {
                    *node_port = match node_port {
                        None if !free.is_empty() => Some(free[rng.usize(..free.len())]),
                        _ => None,
                    };
                }
            }
            _ => {
                let port = rng.usize(..PORTS.len());
                if service.ports.len() > 1 && service.ports.contains_key(&port) {
                    service.ports.remove(&port);
                } else {
                    service.ports.entry(port).or_insert(None);
                }
            }
        }
        self.tell_service(number);
        self.tell_pods(number);
        format!("s{number} is reconfigured")
    }

    fn add_pod(&mut self, number: u8, rng: &mut Rng) -> String {
        let all = self.pods.values();
        let taken: BTreeSet<u8> = all.flat_map(|pods| pods.keys().copied()).collect();
        // Now and then two services select one pod.
        let shared = rng.u8(..10) == 0;
        let free: Vec<u8> = (1..=PODS)
            .filter(|pod| shared || !taken.contains(pod))
            .collect();
        if free.is_empty() {
            return "no address is free".to_owned();
        }
        let pod = Pod {
            health: if rng.u8(..4) == 0 {
                Health::Unready
            } else {
                Health::Ready
            },
            node: NODES[rng.usize(..NODES.len())],
            slice: rng.u8(..2),
            twice: false,
        };
        let address = free[rng.usize(..free.len())];
        self.pods.entry(number).or_default().insert(address, pod);
        self.tell_pods(number);
        format!("s{number} has pod {address}")
    }

    fn change_pod(&mut self, number: u8, rng: &mut Rng) -> String {
        let pods = self.pods.entry(number).or_default();
        let addresses: Vec<u8> = pods.keys().copied().collect();
        if addresses.is_empty() {
            return self.add_pod(number, rng);
        }
        let address = addresses[rng.usize(..addresses.len())];
        let pod = pods.get_mut(&address).filter(|_| rng.u8(..3) != 0);
        let what = match pod {
            None => {
                pods.remove(&address);
                "is gone"
            }
            Some(pod) => match (pod.health, rng.u8(..4)) {
                (Health::Leaving | Health::Left, _) => {
                    pod.health = Health::Left;
                    "serves no longer"
                }
                (Health::Unready, 0) => {
                    pod.health = Health::Left;
                    "terminates"
                }
                (Health::Ready, 0) => {
                    pod.health = Health::Leaving;
                    "terminates"
                }
                (_, 1) => {
                    pod.twice = !pod.twice;
                    "moves between slices"
                }
                (Health::Unready, _) => {
                    pod.health = Health::Ready;
                    "is ready"
                }
                (Health::Ready, _) => {
                    pod.health = Health::Unready;
                    "is not ready"
                }
            },
        };
        self.tell_pods(number);
        format!("pod {address} of s{number} {what}")
    }

    /// Who can serve each service port, by its name and whether it is of IPv6: worked out here once
    /// more, from what the cluster is and not from what was heard of it.
    pub(super) fn usable(&self) -> BTreeMap<(String, bool), BTreeSet<SocketAddr>> {
        let mut usable = BTreeMap::new();
        for (number, service) in &self.services {
            for (has, v6) in service.families.into_iter().zip([false, true]) {
                for index in service.ports.keys().filter(|_| has) {
                    let port = PORTS[*index];
                    let serving = |wanted: &dyn Fn(Health) -> bool| -> BTreeSet<SocketAddr> {
                        let pods = self.pods.get(number).into_iter().flatten();
                        let pods = pods.filter(|(_, pod)| wanted(pod.health));
                        pods.map(|(pod, _)| SocketAddr::new(pod_ip(*pod, v6), port.target))
                            .collect()
                    };
                    let mut ends = serving(&|health| {
                        health == Health::Ready
                            || (health == Health::Unready && service.unready_too)
                    });
                    if ends.is_empty() {
                        ends = serving(&|health| health == Health::Leaving);
                    }
                    usable.insert((format!("sim/s{number}:{}", port.name), v6), ends);
                }
            }
        }
        usable
    }

    /// Where a client may want to go: mostly where somebody serves, else to any address and port that
    /// a service may have.
    pub(super) fn destination(&self, rng: &mut Rng) -> (IpAddr, u16, &'static str) {
        let v6 = rng.bool();
        let services: Vec<&Service> = self.services.values().collect();
        let served = (!services.is_empty() && rng.u8(..8) != 0)
            .then(|| services[rng.usize(..services.len())]);
        let ports = served.map_or_else(
            || (0..PORTS.len()).map(|index| (index, None)).collect(),
            |service| service.ports.clone(),
        );
        let ports: Vec<(usize, Option<u16>)> = ports.into_iter().collect();
        let (index, node_port) = ports[rng.usize(..ports.len())];
        let port = PORTS[index];
        let external = served.map_or(Some(EXTERNAL_IPS), |service| service.external_ip);
        match (rng.u8(..4), node_port, external) {
            (0, Some(node_port), _) => (node_ip(v6), node_port, port.protocol),
            (1, _, Some(number)) => (external_ip(number), port.number, port.protocol),
            _ => {
                let number = served.map_or_else(|| rng.u8(1..=CLUSTER_IPS), |s| s.cluster_ip);
                let v6 = served.map_or(v6, |service| match service.families {
                    [true, true] => v6,
                    [_, only_v6] => only_v6,
                });
                (cluster_ip(number, v6), port.number, port.protocol)
            }
        }
    }
}
