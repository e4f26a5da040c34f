//! This machine as the demo's node: pods, an outside client, and the directory that remembers what
//! must be undone.

use super::Frontend;
use anyhow::{Context, Result};
use lb_lab::bpffs::Bpffs;
use lb_lab::{Cgroup, Namespace, Node, Place, Pod, PodSubnet, Server, janitor};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The networks of the demo, of the range set aside for benchmarks (RFC 2544), which no machine
/// routes, and unique local ones that look alike: pods, and the wire to the outside client.
const PODS4: [u8; 3] = [198, 18, 77];
const PODS6: &str = "fd00:198:18:77";
const OUTSIDE: Wire = Wire {
    name: "outside",
    v4: "198.18.78",
    v6: "fd00:198:18:78:",
};
/// The wire to the control plane, where the demo has one.
const CONTROL: Wire = Wire {
    name: "control",
    v4: "198.18.80",
    v6: "fd00:198:18:80:",
};

/// A cable between this machine (host number 1) and a namespace (number 2).
struct Wire {
    name: &'static str,
    v4: &'static str,
    v6: &'static str,
}

/// The stage. Fields are dropped in order: processes, then namespaces, then what they stood on.
pub(crate) struct Machine {
    _servers: Vec<Server>,
    pods: Vec<Pod>,
    outside: Namespace,
    node: Node,
    _bpffs: Bpffs,
    state: State,
}

/// The state directory; what it remembers is undone when it goes.
struct State(PathBuf);

impl Drop for State {
    fn drop(&mut self) {
        janitor::remove_state(&self.0);
    }
}

impl Machine {
    /// Builds everything, after removing what an earlier, killed demo may have left.
    pub(crate) fn build(node: &str) -> Result<Self> {
        janitor::sweep_dead();
        janitor::start()?;
        let name = janitor::unique_name();
        let state = State(janitor::state_dir().join(&name));
        fs::create_dir_all(&state.0)
            .with_context(|| format!("cannot make {}", state.0.display()))?;
        let bpffs = Bpffs::mount(&state.0.join(janitor::BPFFS))?;
        for key in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            janitor::set_machine(&state.0, key, "1")?;
        }
        let subnet = PodSubnet {
            v4: PODS4,
            v6: PODS6.to_owned(),
        };
        let node = Node::this_machine(&name, node, subnet, Cgroup::create(&name)?);
        let outside = OUTSIDE.lay(&name)?;
        let pods = ["web-1", "web-2", "web-3"]
            .into_iter()
            .map(|pod| node.add_pod(pod))
            .collect::<Result<Vec<_>>>()?;
        let servers = pods
            .iter()
            .map(|pod| Server::start(pod.place(), pod.name(), Frontend::TARGET_PORT))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            _servers: servers,
            pods,
            outside,
            node,
            _bpffs: bpffs,
            state,
        })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.state.0
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    pub(crate) fn pods(&self) -> &[Pod] {
        &self.pods
    }

    /// Where the client outside the cluster lives.
    pub(crate) fn outside(&self) -> &Namespace {
        &self.outside
    }

    /// Makes a place for a control plane, and says which address it has.
    pub(crate) fn control_place(&self) -> Result<(Place, Ipv4Addr)> {
        let prefix = self.outside.name().unwrap_or_default();
        let prefix = prefix.trim_end_matches("-outside");
        let cgroup = self.node.cgroup_root().child(CONTROL.name)?;
        let address = format!("{}.2", CONTROL.v4).parse().context("an address")?;
        Ok((Place::new(CONTROL.lay(prefix)?, Some(cgroup)), address))
    }

    /// This machine's addresses on the wire to the outside client.
    pub(crate) fn addresses_for_outside() -> (String, String) {
        (format!("{}.1", OUTSIDE.v4), format!("{}:1", OUTSIDE.v6))
    }
}

impl Wire {
    /// Makes the namespace, with one cable to this machine and no other route.
    fn lay(&self, prefix: &str) -> Result<Namespace> {
        let Self { name, v4, v6 } = self;
        let namespace = Namespace::create(&format!("{prefix}-{name}"))?;
        let initial = name.get(..1).unwrap_or_default();
        let (host, device) = (Namespace::host(), format!("{prefix}{initial}"));
        namespace.ip_batch(&format!(
            "link add eth0 type veth peer name {device} netns {}\n\
             addr add {v4}.2/24 dev eth0\n\
             addr add {v6}:2/64 dev eth0 nodad\n\
             link set eth0 up\n",
            host.handle()
        ))?;
        host.ip_batch(&format!(
            "addr add {v4}.1/24 dev {device}\n\
             addr add {v6}:1/64 dev {device} nodad\n\
             link set {device} up\n"
        ))?;
        Ok(namespace)
    }
}
