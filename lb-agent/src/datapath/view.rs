//! What the live tables say, as people and metrics want to read it.

use crate::model::desired::{FrontendAddress, ServicePortName};
use lb_common::addr::{BackendId, ServiceId};
use lb_common::table::{BackendState, EmptyAction, FrontendKind, ServiceCounters};
use lb_common::verdict::Reason;
use std::net::SocketAddr;
use std::path::PathBuf;

/// One frontend of a service.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct FrontendView {
    /// Where it listens.
    pub address: FrontendAddress,
    /// Its port, host order.
    pub port: u16,
    /// What it is.
    pub kind: FrontendKind,
}

/// One endpoint of a service, or one that is gone and only lives on in flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EndpointView {
    /// Address and port.
    pub address: SocketAddr,
    /// Its id in the tables.
    pub id: BackendId,
    /// Its state.
    pub state: BackendState,
    /// In the Cluster set.
    pub cluster: bool,
    /// In the Local set.
    pub local: bool,
    /// It runs on this node.
    pub on_this_node: bool,
    /// Connections and UDP conversations made at a socket and not yet ended.
    pub active_socket: u64,
    /// Connections and UDP conversations made at a socket so far.
    pub opened_socket: u64,
    /// Live flows of the packet path.
    pub active_tc: u64,
}

/// One service port in the live tables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServiceView {
    /// Its id in the tables.
    pub id: ServiceId,
    /// Whose it is.
    pub name: ServicePortName,
    /// Its frontends, sorted.
    pub frontends: Vec<FrontendView>,
    /// Its endpoints, sorted by address.
    pub endpoints: Vec<EndpointView>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Session affinity timeout in seconds; 0 = none.
    pub affinity_seconds: u32,
    /// Number of the algorithm.
    pub algorithm: u32,
    /// What clients of the Cluster set get while it is empty; `None` while it is not.
    pub cluster_empty: Option<EmptyAction>,
    /// The same for the Local set.
    pub local_empty: Option<EmptyAction>,
    /// What has happened so far.
    pub counters: ServiceCounters,
}

/// How full a table is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fill {
    /// The table's name, as in `lb_common::table::name`.
    pub table: &'static str,
    /// Entries in use.
    pub used: u64,
    /// Entries there is room for.
    pub capacity: u64,
}

/// One pinned link.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LinkView {
    /// Where it is pinned.
    pub path: PathBuf,
    /// Kernel id of the link.
    pub link_id: u32,
    /// Kernel id of the program behind it.
    pub program_id: u32,
}

/// The state of a directory as `lb-agent status` shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StatusView {
    /// The layout version of the tables.
    pub layout: u32,
    /// True while an agent holds the directory.
    pub agent_running: bool,
    /// The pinned links.
    pub links: Vec<LinkView>,
    /// How full the tables are.
    pub fill: Vec<Fill>,
    /// How often each reason was counted.
    pub reasons: Vec<(Reason, u64)>,
}
