//! What kube-proxy's configuration comes to, as plain data.

use super::document::Document;
use crate::cli::args::RunArgs;
use crate::net::limits::Conntrack;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

/// kube-proxy's modes on Linux. The programs are the same in each; this decides where the modes
/// differ for clients.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// `iptables`, kube-proxy's default.
    #[default]
    Iptables,
    /// `ipvs`.
    Ipvs,
    /// `nftables`.
    Nftables,
}

/// kube-proxy's `detectLocalMode`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum DetectLocal {
    /// By `clusterCIDR`.
    #[default]
    ClusterCidr,
    /// By the node's own pod range.
    NodeCidr,
    /// By the bridge the pods are on.
    Bridge(String),
    /// By the beginning of the names of the pods' devices.
    InterfacePrefix(String),
}

/// What kube-proxy's configuration says and our own options do not.
#[derive(Clone, Debug, Default)]
pub struct KubeProxy {
    /// The configuration itself, for `/configz` and `--write-config-to`.
    pub document: Document,
    /// `mode`.
    pub mode: Mode,
    /// `detectLocalMode`.
    pub detect_local: DetectLocal,
    /// `bindAddress`, if it is the node's.
    pub node_ip: Option<IpAddr>,
    /// The algorithm of services that name none.
    pub algorithm: Option<&'static str>,
    /// `syncPeriod` of the mode.
    pub sync_period: Option<Duration>,
    /// `minSyncPeriod` of the mode, if it is set.
    pub min_sync_period: Option<Duration>,
    /// `bindAddressHardFail`.
    pub hard_fail: bool,
    /// Health is not served (`--healthz-port 0`).
    pub without_health: bool,
    /// `oomScoreAdj`.
    pub oom_score: i32,
    /// `conntrack`.
    pub conntrack: Conntrack,
    /// `logging.verbosity`.
    pub verbosity: i64,
    /// Only the machine's settings are written (`--init-only`).
    pub init_only: bool,
    /// Only the configuration is written, into this file (`--write-config-to`).
    pub write_config: Option<PathBuf>,
}

/// Something to tell the operator once.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remark {
    /// The sentence.
    pub sentence: String,
    /// The reason of the Event on the Node, if it deserves one.
    pub event: Option<&'static str>,
}

impl Remark {
    pub(crate) fn line(sentence: String) -> Self {
        Self {
            sentence,
            event: None,
        }
    }
}

/// kube-proxy's configuration in our terms.
#[derive(Debug, Default)]
pub struct Translated {
    /// Our own options as far as it sets them.
    pub args: RunArgs,
    /// The rest.
    pub kube_proxy: KubeProxy,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What is ignored, a sentence each.
    pub remarks: Vec<Remark>,
}
