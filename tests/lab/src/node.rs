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
    subnet: PodSubnet,
    /// Begins the names of the pods' devices on the node.
    devices: String,
    pods: Cell<u8>,
}

/// A node's pod network: a /24 and a /64.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodSubnet {
    /// The first three octets.
    pub v4: [u8; 3],
    /// The first four groups, e.g. `fd00:244:1:0`.
    pub v6: String,
}

impl PodSubnet {
    fn v4(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.v4;
        Ipv4Addr::new(a, b, c, host)
    }

    fn v6(&self, host: u8) -> Result<Ipv6Addr> {
        let text = format!("{}::{host:x}", self.v6);
        text.parse()
            .with_context(|| format!("{text} is no IPv6 address"))
    }
}

impl Node {
    /// Makes a node. `prefix` begins the names of its namespaces.
    pub fn create(
        prefix: &str,
        name: &str,
        network: PodNetwork,
        subnet: PodSubnet,
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
                 addr add {}/24 dev {BRIDGE}\n\
                 addr add {}/64 dev {BRIDGE} nodad\n\
                 link set {BRIDGE} up\n",
                subnet.v4(1),
                subnet.v6(1)?
            ))?;
        }
        Ok(Self {
            name: name.to_owned(),
            place: Place::new(namespace, Some(host)),
            root,
            prefix: prefix.to_owned(),
            network,
            subnet,
            devices: "pod".to_owned(),
            pods: Cell::new(0),
        })
    }

    /// This machine as a node: its own namespace, the pods' cgroups below `root`, routed pods. The
    /// caller switches forwarding on, for only it knows when to switch it back.
    pub fn this_machine(prefix: &str, name: &str, subnet: PodSubnet, root: Cgroup) -> Self {
        Self {
            name: name.to_owned(),
            place: Place::new(Namespace::host(), None),
            root,
            prefix: prefix.to_owned(),
            network: PodNetwork::Routed,
            subnet,
            devices: format!("{prefix}p"),
            pods: Cell::new(0),
        }
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
            format!("{}/24", self.subnet.v4(0)),
            format!("{}::/64", self.subnet.v6),
        ]
    }

    /// Adds a pod; dropping it removes it from the node.
    pub fn add_pod(&self, name: &str) -> Result<Pod> {
        let number = self.pods.get() + 1;
        self.pods.set(number);
        let host = 9 + number;
        let (v4, v6) = (self.subnet.v4(host), self.subnet.v6(host)?);
        let namespace = Namespace::create(&format!("{}-{}-{name}", self.prefix, self.name))?;
        let cgroup = self.root.child(name)?;
        let device = format!("{}{number}", self.devices);
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
        let node = self.namespace().handle();
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
                    "route add default via {}\nroute add default via {}\n",
                    self.subnet.v4(1),
                    self.subnet.v6(1)?
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
