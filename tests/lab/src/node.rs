//! Nodes and pods: a node is a namespace with a cgroup below which its pods' processes live.

use crate::offload::{self, Offload};
use crate::{Cgroup, Namespace, Place};
use anyhow::{Context, Result};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodNetwork {
    /// Each pod on its own veth with a /32 (and /128), a link-local gateway and a route on the node.
    Routed,
    /// All pods on one bridge, which holds the gateway's address.
    Bridged,
}

/// Where the gateway of routed pods answers; the same for all, known to nobody else.
const GATEWAY4: &str = "169.254.1.1";
const GATEWAY6: &str = "fe80::ecee:eeff:feee:eeee";
const GATEWAY_MAC: &str = "ee:ee:ee:ee:ee:ee";
/// The bridge of [`PodNetwork::Bridged`].
pub const BRIDGE: &str = "cni0";

/// A node: its own addresses, its pods' network, its place.
#[derive(Debug)]
pub struct Node {
    name: String,
    place: Place,
    /// The cgroup the agent of this node is given as the root.
    root: Cgroup,
    prefix: String,
    network: PodNetwork,
    subnet: u8,
    pods: Cell<u8>,
}

impl Node {
    /// Makes a node. `prefix` begins the names of its namespaces, `subnet` (1-255) numbers its pod
    /// network: 10.244.SUBNET.0/24 and fd00:244:SUBNET::/64.
    pub fn create(
        prefix: &str,
        name: &str,
        network: PodNetwork,
        subnet: u8,
        parent: &Cgroup,
    ) -> Result<Self> {
        let namespace = Namespace::create(&format!("{prefix}-{name}"))?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            namespace.sysctl(key, "1")?;
        }
        let root = parent.child(name)?;
        let host = root.child("host")?;
        if network == PodNetwork::Bridged {
            namespace.ip_batch(&format!(
                "link add {BRIDGE} type bridge\n\
                 addr add 10.244.{subnet}.1/24 dev {BRIDGE}\n\
                 addr add fd00:244:{subnet}::1/64 dev {BRIDGE} nodad\n\
                 link set {BRIDGE} up\n"
            ))?;
        }
        Ok(Self {
            name: name.to_owned(),
            place: Place::new(namespace, Some(host)),
            root,
            prefix: prefix.to_owned(),
            network,
            subnet,
            pods: Cell::new(0),
        })
    }

    /// Its name, as in a Node object.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the node's own processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        self.place.namespace()
    }

    /// The cgroup that is this node's root: what `--cgroup-root` must say.
    pub fn cgroup_root(&self) -> &Cgroup {
        &self.root
    }

    /// How its pods are connected.
    pub fn network(&self) -> PodNetwork {
        self.network
    }

    /// Its pod networks.
    pub fn pod_cidrs(&self) -> [String; 2] {
        [
            format!("10.244.{}.0/24", self.subnet),
            format!("fd00:244:{}::/64", self.subnet),
        ]
    }

    /// Adds a pod; dropping it removes it from the node.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let host = 9 + number;
        let v4 = Ipv4Addr::new(10, 244, self.subnet, host);
        let v6: Ipv6Addr = format!("fd00:244:{}::{host:x}", self.subnet)
            .parse()
            .context("the pod's IPv6 address")?;
        let namespace = Namespace::create(&format!("{}-{}-{name}", self.prefix, self.name))?;
        let cgroup = self.root.child(name)?;
        let device = format!("pod{number}");
        let pod = Pod {
            name: name.to_owned(),
            v4,
            v6,
            host_device: device,
            place: Place::new(namespace, Some(cgroup)),
        };
        self.wire(&pod)
            .with_context(|| format!("cannot connect pod {name} to {}", self.name))?;
        Ok(pod)
    }

    fn wire(&self, pod: &Pod) -> Result<()> {
        let (device, v4, v6) = (&pod.host_device, pod.v4, pod.v6);
        let node = self.namespace().name().unwrap_or_default();
        let subnet = self.subnet;
        match self.network {
            PodNetwork::Routed => {
                pod.namespace().ip_batch(&format!(
                    "link add eth0 type veth peer name {device} netns {node}\n\
                     addr add {v4}/32 dev eth0\n\
                     addr add {v6}/128 dev eth0 nodad\n\
                     link set eth0 up\n\
                     neigh add {GATEWAY4} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
                     neigh add {GATEWAY6} lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
                     route add {GATEWAY4} dev eth0 scope link\n\
                     route add default via {GATEWAY4} dev eth0\n\
                     route add default via {GATEWAY6} dev eth0\n"
                ))?;
                self.namespace().ip_batch(&format!(
                    "link set {device} address {GATEWAY_MAC}\n\
                     link set {device} up\n\
                     route add {v4} dev {device} scope link\n\
                     route add {v6} dev {device}\n"
                ))
            }
            PodNetwork::Bridged => {
                pod.namespace().ip_batch(&format!(
                    "link add eth0 type veth peer name {device} netns {node}\n\
                     addr add {v4}/24 dev eth0\n\
                     addr add {v6}/64 dev eth0 nodad\n\
                     link set eth0 up\n"
                ))?;
                self.namespace().ip_batch(&format!(
                    "link set {device} master {BRIDGE}\nlink set {device} up\n"
                ))?;
                pod.namespace().ip_batch(&format!(
                    "route add default via 10.244.{subnet}.1\n\
                     route add default via fd00:244:{subnet}::1\n"
                ))
            }
        }
    }

    /// Sets the offloads of `device` on the node.
    pub fn offload(&self, device: &str, setting: Offload) -> Result<()> {
        offload::set(self.namespace(), device, setting)
    }
}

/// A pod: a namespace with one device, `eth0`, of the pod network, and a cgroup of its own.
#[derive(Debug)]
pub struct Pod {
    name: String,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    host_device: String,
    place: Place,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        self.place.namespace()
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }

    /// Its address of the family that `like` has.
    pub fn address_like(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() {
            self.v4.into()
        } else {
            self.v6.into()
        }
    }

    /// Both addresses with `port`, IPv4 first.
    pub fn sockets(&self, port: u16) -> [SocketAddr; 2] {
        [(self.v4, port).into(), (self.v6, port).into()]
    }

    /// The name of its device's other end, on the node.
    pub fn host_device(&self) -> &str {
        &self.host_device
    }

    /// Sets the offloads of the pod's `eth0`.
    pub fn offload(&self, setting: Offload) -> Result<()> {
        offload::set(self.namespace(), "eth0", setting)
    }
}
