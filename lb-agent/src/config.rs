//! Settings: what was typed and what is in the configuration file, merged, checked as a whole and
//! completed with defaults before anything is touched.

mod check;
mod file;
pub mod kube_proxy;
mod merge;
pub mod watch;

pub use file::{Contents, parse_contents, parse_file};

use crate::cli::args::RunArgs;
use crate::cli::values::{EndpointsApi, LogFormat, PortRange, SocketLoadBalancing, TcAttach};
use crate::datapath::{Capacity, Devices, Options};
use crate::model::{self, NodePortAddresses, PodDetection, PodLabel};
use clap::ValueEnum;
use ipnet::IpNet;
use kube_proxy::translate::SYNC_PERIOD;
use kube_proxy::{DetectLocal, KubeProxy, Mode, Remark, field};
use lb_common::balance::Algorithm;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Where objects come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum SourceSettings {
    /// A directory of manifests.
    Manifests(ManifestSettings),
    /// The API server of a cluster.
    Cluster(ClusterSettings),
}

/// A directory of manifests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ManifestSettings {
    /// The directory.
    pub directory: PathBuf,
    /// Ranges ClusterIPs are allocated from.
    pub cluster_ip_ranges: Vec<IpNet>,
    /// Where allocations are remembered.
    pub state_dir: PathBuf,
}

/// The API server of a cluster.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClusterSettings {
    /// Credentials and address; in-cluster configuration without it.
    pub kubeconfig: Option<PathBuf>,
    /// Addresses to use instead of the configured one, in turn.
    pub apiservers: Vec<String>,
    /// Where endpoints are read from.
    pub endpoints: EndpointsApi,
}

/// Marks on packets, for rules of others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Marks {
    /// Bits of the mark of packets that will be SNATed; 0: none.
    pub masquerade: u32,
    /// Replies get them, too.
    pub replies: bool,
}

/// Everything `run` needs to know, checked.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent choices of the operator"
)]
pub struct Settings {
    /// This node's name.
    pub node: String,
    /// Where objects come from.
    pub source: SourceSettings,
    /// The cgroup to attach to; `None`: the proven root.
    pub cgroup_root: Option<PathBuf>,
    /// The agent's directory on a BPF filesystem.
    pub bpffs: PathBuf,
    /// Which devices get the packet programs.
    pub devices: Devices,
    /// Pods' addresses, at most one range a family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Node addresses that serve node ports.
    pub node_port_addresses: NodePortAddresses,
    /// Node ports on 127.0.0.0/8, too.
    pub localhost_node_ports: bool,
    /// Every connection to a ClusterIP is SNATed.
    pub masquerade_all: bool,
    /// Which packets are marked, and how.
    pub marks: Marks,
    /// Which sockets are balanced.
    pub socket_load_balancing: SocketLoadBalancing,
    /// Pods that are not balanced at the socket.
    pub opt_out: Option<PodLabel>,
    /// UDP ports of Services that pods' connected sockets reach by the packet path.
    pub packet_path_udp_ports: Vec<u16>,
    /// Where the pods' network namespaces are, if sockets of removed endpoints are closed there.
    pub close_pod_sockets: Option<PathBuf>,
    /// How the packet programs are attached.
    pub tc_attach: TcAttach,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where `/healthz` is served; `None`: nowhere.
    pub health: Option<SocketAddr>,
    /// Flows the packet path remembers.
    pub max_flows: u32,
    /// How long to wait for another agent's lock.
    pub takeover_wait: Duration,
    /// Whether externalIPs are served.
    pub external_ips: bool,
    /// Ranges externalIPs and load balancer addresses must lie in; `None`: any.
    pub external_ip_ranges: Option<Vec<IpNet>>,
    /// The range node ports lie in.
    pub node_ports: PortRange,
    /// How log lines look.
    pub log_format: LogFormat,
    /// This process stands in for kube-proxy: its configuration or its flags were given. Then the
    /// kernel's settings are kube-proxy's, too.
    pub stands_in: bool,
    /// What kube-proxy's configuration says beyond our own options.
    pub kube_proxy: KubeProxy,
    /// Things to tell the operator once.
    pub remarks: Vec<Remark>,
    /// The configuration file and its text, to see it change.
    pub file: Option<(PathBuf, String)>,
}

/// Why settings cannot be used: everything that is wrong, a sentence each.
#[derive(Debug, Eq, PartialEq)]
pub struct Invalid(pub Vec<String>);

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Invalid {}

impl Settings {
    /// Reads the configuration file, if one is named, puts what was typed over it and checks the
    /// whole. Nothing is created or changed.
    pub fn load(typed: RunArgs) -> Result<Self, Invalid> {
        let (contents, source) = match &typed.config {
            None => (Contents::default(), None),
            Some(path) => {
                let invalid = |problem| Invalid(vec![problem]);
                let text = file::read_text(path).map_err(invalid)?;
                let contents = parse_contents(&text).map_err(|problem| {
                    invalid(format!("configuration file {}, {problem}", path.display()))
                })?;
                (contents, Some((path.clone(), text)))
            }
        };
        let mut settings = merge::settle(typed, contents)?;
        settings.file = source;
        Ok(settings)
    }

    /// kube-proxy's configuration as it is in force: what was given with our own options over it,
    /// and every default.
    pub fn effective(&self) -> serde_json::Value {
        let mut document = self.kube_proxy.document.clone();
        if let SourceSettings::Cluster(ClusterSettings { kubeconfig, .. }) = &self.source
            && let Some(path) = kubeconfig
        {
            document.set(&field::KUBECONFIG, path.to_string_lossy().into());
        }
        let text = |items: &[IpNet]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
        let masquerade_all = match self.kube_proxy.mode {
            Mode::Nftables => &field::NFTABLES_MASQUERADE_ALL,
            Mode::Iptables | Mode::Ipvs => &field::IPTABLES_MASQUERADE_ALL,
        };
        let health = self
            .health
            .map_or_else(String::new, |health| health.to_string());
        for (field, value) in [
            (&field::METRICS_ADDRESS, self.metrics.to_string().into()),
            (&field::HEALTHZ_ADDRESS, health.into()),
            (
                &field::CLUSTER_CIDR,
                text(&self.cluster_cidrs).join(",").into(),
            ),
            (
                &field::LOCALHOST_NODE_PORTS,
                self.localhost_node_ports.into(),
            ),
            (masquerade_all, self.masquerade_all.into()),
            (
                &field::NODE_PORT_ADDRESSES,
                match &self.node_port_addresses {
                    NodePortAddresses::All => serde_json::json!([]),
                    NodePortAddresses::Primary => serde_json::json!(["primary"]),
                    NodePortAddresses::Ranges(ranges) => text(ranges).into(),
                },
            ),
        ] {
            document.set(field, value);
        }
        document.with_defaults()
    }

    /// The configuration in force, as `/configz` shows it: kube-proxy's, and what is ours alone.
    pub fn configz(&self) -> serde_json::Value {
        let source = match &self.source {
            SourceSettings::Manifests(manifests) => manifests.directory.to_string_lossy(),
            SourceSettings::Cluster(_) => "cluster".into(),
        };
        serde_json::json!({
            "kubeproxy.config.k8s.io": self.effective(),
            "lb-agent": {
                "node": self.node,
                "source": source,
                "bpffs": self.bpffs,
                "cgroupRoot": self.cgroup_root,
                "devices": match &self.devices {
                    Devices::Auto => "auto".to_owned(),
                    Devices::Globs(patterns) => patterns.join(","),
                },
                "socketLoadBalancing": name_of(&self.socket_load_balancing),
                "packetPathUdpPorts": self.packet_path_udp_ports,
                "closePodSockets": self.close_pod_sockets,
                "tcAttach": name_of(&self.tc_attach),
                "maxFlows": self.max_flows,
                "takeoverWait": self.takeover_wait.as_secs(),
                "externalIps": self.external_ips,
                "serviceNodePortRange": format!("{}-{}", self.node_ports.first, self.node_ports.last),
            },
        })
    }

    /// How long a change may wait before the node counts as unhealthy: twice `syncPeriod`.
    pub fn late(&self) -> Duration {
        self.kube_proxy.sync_period.unwrap_or(SYNC_PERIOD) * 2
    }

    /// What the datapath is told.
    pub fn datapath_options(&self) -> Options {
        Options {
            directory: self.bpffs.clone(),
            cgroup_root: self.cgroup_root.clone(),
            devices: self.devices.clone(),
            tc_attach: self.tc_attach.into(),
            socket_mode: self.socket_load_balancing.into(),
            masquerade_mark: self.marks.masquerade,
            mark_replies: self.marks.replies,
            opt_out: self.opt_out.is_some(),
            node_port_range: (self.node_ports.first, self.node_ports.last),
            capacity: Capacity {
                flows: self.max_flows,
                ..Capacity::default()
            },
            packet_path_udp_ports: self.packet_path_udp_ports.clone(),
            pod_namespaces: self.close_pod_sockets.clone(),
            takeover_wait: self.takeover_wait,
            ..Options::default()
        }
    }

    /// What the model is told.
    pub fn model_options(&self) -> model::Options {
        model::Options {
            pods: match &self.kube_proxy.detect_local {
                DetectLocal::ClusterCidr => PodDetection::ClusterCidr(self.cluster_cidrs.clone()),
                DetectLocal::NodeCidr => PodDetection::NodeCidr,
                DetectLocal::Bridge(name) => PodDetection::Bridge(name.clone()),
                DetectLocal::InterfacePrefix(prefix) => {
                    PodDetection::InterfacePrefix(prefix.clone())
                }
            },
            node_port_addresses: self.node_port_addresses.clone(),
            localhost_node_ports: self.localhost_node_ports,
            opt_out: self.opt_out.clone(),
            masquerade_all: self.masquerade_all,
            service_cidrs: match &self.source {
                SourceSettings::Manifests(manifests) => manifests.cluster_ip_ranges.clone(),
                SourceSettings::Cluster(_) => Vec::new(),
            },
            external_ips: self.external_ips,
            external_ranges: self.external_ip_ranges.clone(),
            node_ip: self.kube_proxy.node_ip,
            algorithm: (self.kube_proxy.algorithm)
                .and_then(Algorithm::named)
                .unwrap_or(Algorithm::RANDOM),
        }
    }
}

/// A choice as it is typed.
fn name_of(choice: &impl ValueEnum) -> String {
    let value = choice.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

#[cfg(test)]
mod tests;
