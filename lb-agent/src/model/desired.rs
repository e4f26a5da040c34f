//! What should be served: the model's answer and the plan's question. Plain data, no I/O.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lb_common::addr::Protocol;
use lb_common::table::{EmptyAction, FrontendKind};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// An IP family. Each is proxied on its own, as kube-proxy does (`SERVICE-SEMANTICS` 18).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(addr: IpAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As Kubernetes writes it: an `EndpointSlice`'s address type, a Service's IP family, and the
    /// label of kube-proxy's metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Namespace and name of an object. Cheap to clone: every table of the agent is keyed by it, and a
/// text of its own in each of them would be a tenth of all memory.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ObjectName {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name that an object's metadata say.
    pub fn of(metadata: &ObjectMeta) -> Self {
        Self {
            namespace: metadata.namespace.as_deref().unwrap_or_default().into(),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of one Service in one family: the unit that gets a service id in the tables.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServicePortName {
    /// The Service object.
    pub service: ObjectName,
    /// `spec.ports[].name`, possibly empty.
    pub port: String,
    /// `spec.ports[].protocol`.
    pub protocol: Protocol,
    /// The family.
    pub family: Family,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.service.fmt(f)?;
        if self.port.is_empty() {
            Ok(())
        } else {
            write!(f, ":{}", self.port)
        }
    }
}

/// Where a frontend listens.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum FrontendAddress {
    /// One address.
    Exact(IpAddr),
    /// Every address of this node that serves node ports, in one family.
    NodePort(Family),
}

/// One frontend. Its protocol is the service port's.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct DesiredFrontend {
    /// Where it listens.
    pub address: FrontendAddress,
    /// The port, host order.
    pub port: u16,
    /// What it is.
    pub kind: FrontendKind,
}

/// One endpoint that is in at least one set, or (UDP) that keeps the conversations it has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "four independent facts of one endpoint"
)]
pub struct DesiredEndpoint {
    /// In the Cluster set (`SERVICE-SEMANTICS` 4).
    pub cluster: bool,
    /// In the Local set.
    pub local: bool,
    /// Terminating (and serving): used only because nobody better is there.
    pub draining: bool,
    /// Its `nodeName` is this node's.
    pub on_this_node: bool,
}

/// One service port as it should be served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DesiredService {
    /// Its frontends, sorted, without duplicates and without any other service's frontends.
    pub frontends: Vec<DesiredFrontend>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// A valid `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// Who may use the load balancer addresses, sorted; none: everybody (`SERVICE-SEMANTICS` 6).
    pub source_ranges: Vec<IpNet>,
    /// Session affinity timeout in seconds, if any.
    pub affinity_seconds: Option<u32>,
    /// Number of the algorithm (`lb_common::balance::Algorithm`).
    pub algorithm: u32,
    /// What clients of an empty Cluster set get.
    pub cluster_empty: EmptyAction,
    /// What clients of an empty Local set get.
    pub local_empty: EmptyAction,
    /// The endpoints by address.
    pub endpoints: BTreeMap<SocketAddr, DesiredEndpoint>,
}

/// Everything that should be served on this node.
pub type Desired = BTreeMap<ServicePortName, DesiredService>;
