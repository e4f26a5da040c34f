//! Settings: what was typed and what is in the configuration file, merged, checked as a whole and
//! completed with defaults before anything is touched.

mod check;
mod file;

pub use file::parse_file;

use crate::cli::args::RunArgs;
use crate::cli::values::{EndpointsApi, LogFormat, PortRange, SocketLoadBalancing, TcAttach};
use crate::datapath::{Capacity, Devices, Options};
use crate::model::{self, NodePortAddresses, PodDetection};
use ipnet::IpNet;
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

/// Everything `run` needs to know, checked.
#[derive(Clone, Debug)]
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
    /// Which sockets are balanced.
    pub socket_load_balancing: SocketLoadBalancing,
    /// How the packet programs are attached.
    pub tc_attach: TcAttach,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where `/healthz` is served.
    pub health: SocketAddr,
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
        let merged = match &typed.config {
            None => typed,
            Some(path) => {
                let file = file::read_file(path).map_err(|problem| Invalid(vec![problem]))?;
                file::merge(typed, file)
            }
        };
        check::check(merged)
    }

    /// What the datapath is told.
    pub fn datapath_options(&self) -> Options {
        Options {
            directory: self.bpffs.clone(),
            cgroup_root: self.cgroup_root.clone(),
            devices: self.devices.clone(),
            tc_attach: self.tc_attach.into(),
            socket_mode: self.socket_load_balancing.into(),
            node_port_range: (self.node_ports.first, self.node_ports.last),
            capacity: Capacity {
                flows: self.max_flows,
                ..Capacity::default()
            },
            takeover_wait: self.takeover_wait,
            ..Options::default()
        }
    }

    /// What the model is told.
    pub fn model_options(&self) -> model::Options {
        model::Options {
            pods: PodDetection::ClusterCidr(self.cluster_cidrs.clone()),
            node_port_addresses: self.node_port_addresses.clone(),
            localhost_node_ports: self.localhost_node_ports,
            masquerade_all: self.masquerade_all,
            service_cidrs: match &self.source {
                SourceSettings::Manifests(manifests) => manifests.cluster_ip_ranges.clone(),
                SourceSettings::Cluster(_) => Vec::new(),
            },
            external_ips: self.external_ips,
            external_ranges: self.external_ip_ranges.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
