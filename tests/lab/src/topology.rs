//! A lab: nodes on one wire and a client outside the cluster.

use crate::bpffs::Bpffs;
use crate::node::PodSubnet;
use crate::{Cgroup, Namespace, Node, Place, PodNetwork, janitor};
use anyhow::{Context, Result, anyhow};
use std::cell::{Cell, RefCell};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The device of every node and outside client on the wire.
pub const UPLINK: &str = "eth0";

/// A whole lab. Everything it made is gone after its drop.
///
/// The wire is 10.77.0.0/24 and fd77::/64: node *i* is 10.77.0.10+*i* (fd77::10+*i*, hexadecimal of
/// the same number), outside clients follow from 10.77.0.200. Node *i* has the pod networks
/// 10.244.*i*+1.0/24 and fd00:244:*i*+1::/64. Nodes know each other's pod networks; outside clients
/// know none.
#[derive(Debug)]
pub struct Lab {
    name: String,
    nodes: Vec<Node>,
    clients: Cell<u8>,
    mounts: RefCell<Vec<Bpffs>>,
    // Dropped after the nodes that use them.
    wire: Namespace,
    cgroup: Cgroup,
    dir: PathBuf,
}

impl Lab {
    /// Builds one node for each entry of `networks`, called `node0`, `node1`, …
    pub fn new(networks: &[PodNetwork]) -> Result<Self> {
        let name = janitor::unique_name();
        let dir = janitor::state_dir().join(&name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let cgroup = Cgroup::create(&name)?;
        let wire = Namespace::create(&format!("{name}-wire"))?;
        wire.ip_batch("link add wire type bridge mcast_snooping 0\nlink set wire up\n")?;
        let mut lab = Self {
            name,
            nodes: Vec::new(),
            clients: Cell::new(0),
            mounts: RefCell::default(),
            wire,
            cgroup,
            dir,
        };
        for (number, network) in (0_u8..).zip(networks) {
            lab.add_node(number, *network)?;
        }
        lab.connect_pod_networks()?;
        Ok(lab)
    }

    /// One node.
    pub fn single(network: PodNetwork) -> Result<Self> {
        Self::new(&[network])
    }

    fn add_node(&mut self, number: u8, network: PodNetwork) -> Result<()> {
        let name = format!("node{number}");
        let subnet = PodSubnet {
            v4: [10, 244, number + 1],
            v6: format!("fd00:244:{}", number + 1),
        };
        let node = Node::create(&self.name, &name, network, subnet, &self.cgroup)?;
        self.plug(node.namespace(), &name, 10 + number)?;
        self.nodes.push(node);
        Ok(())
    }

    /// Gives `namespace` an uplink on the wire, with the addresses of `host`.
    fn plug(&self, namespace: &Namespace, port: &str, host: u8) -> Result<()> {
        let wire = self.wire.name().unwrap_or_default();
        let (v4, v6) = (wire4(host), wire6(host));
        namespace.ip_batch(&format!(
            "link add {UPLINK} type veth peer name {port} netns {wire}\n\
             addr add {v4}/24 dev {UPLINK}\n\
             addr add {v6}/64 dev {UPLINK} nodad\n\
             link set {UPLINK} up\n"
        ))?;
        self.wire.ip_batch(&format!(
            "link set {port} master wire\nlink set {port} up\n"
        ))
    }

    fn connect_pod_networks(&self) -> Result<()> {
        for node in &self.nodes {
            for (number, other) in (0_u8..).zip(&self.nodes) {
                if other.name() != node.name() {
                    let [v4, v6] = other.pod_cidrs();
                    node.namespace().ip_batch(&format!(
                        "route add {v4} via {}\nroute add {v6} via {}\n",
                        wire4(10 + number),
                        wire6(10 + number)
                    ))?;
                }
            }
        }
        Ok(())
    }

    /// Node number `number`.
    pub fn node(&self, number: usize) -> &Node {
        &self.nodes[number]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The addresses of node `number` on the wire, IPv4 first.
    pub fn node_addresses(&self, number: usize) -> [IpAddr; 2] {
        let host = 10 + u8::try_from(number).unwrap_or(0);
        [wire4(host).into(), wire6(host).into()]
    }

    /// The namespace of the wire: a bridge, and one port named after each thing that is plugged in.
    pub fn wire(&self) -> &Namespace {
        &self.wire
    }

    /// Adds a client outside the cluster: on the wire, without routes to any pod network, in no
    /// cgroup that an agent knows.
    pub fn add_client(&self) -> Result<OutsideClient> {
        let number = self.clients.get();
        self.clients.set(number + 1);
        let name = format!("client{number}");
        let namespace = Namespace::create(&format!("{}-{name}", self.name))?;
        self.plug(&namespace, &name, 200 + number)?;
        let cgroup = self.cgroup.child(&name)?;
        let place = Place::new(namespace, Some(cgroup));
        Ok(OutsideClient {
            place,
            v4: wire4(200 + number),
            v6: wire6(200 + number),
        })
    }

    /// The lab's unique name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for the lab's files, removed with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Mounts a bpffs for `owner` and returns its path; it lives as long as the lab.
    pub fn bpffs(&self, owner: &str) -> Result<PathBuf> {
        let path = self.dir.join(format!("bpf-{owner}"));
        let mut mounts = self
            .mounts
            .try_borrow_mut()
            .map_err(|_| anyhow!("mounting twice"))?;
        if !mounts.iter().any(|mount| mount.path() == path) {
            mounts.push(Bpffs::mount(&path)?);
        }
        Ok(path)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.mounts.borrow_mut().clear();
        janitor::remove_state(&self.dir);
    }
}

/// A client outside the cluster.
#[derive(Debug)]
pub struct OutsideClient {
    place: Place,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl OutsideClient {
    /// Where its processes run.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where its processes run, for whoever keeps it.
    pub fn into_place(self) -> Place {
        self.place
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.v6
    }
}

fn wire4(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, host)
}

fn wire6(host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(host))
}
