//! The kinds a manifest directory is read for, typed, named and pruned of what no service needs.

use super::yaml::{ParseError, from_yaml};
use crate::model::desired::ObjectName;
use k8s_openapi::api::core::v1::{Container, Endpoints, Node, Pod, PodSpec, PodStatus, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt;
use std::sync::Arc;

/// An object as JSON: a quarter of the typed object's memory.
pub type Json = Arc<[u8]>;

/// A kind of object that matters to services.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ObjectKind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Endpoints.
    Endpoints,
    /// `v1` Pod.
    Pod,
    /// `v1` Node.
    Node,
}

impl ObjectKind {
    /// The kind of a document, `None` for those that are ignored.
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        match (api_version, kind) {
            ("v1", "Service") => Some(Self::Service),
            ("discovery.k8s.io/v1", "EndpointSlice") => Some(Self::EndpointSlice),
            ("v1", "Endpoints") => Some(Self::Endpoints),
            ("v1", "Pod") => Some(Self::Pod),
            ("v1", "Node") => Some(Self::Node),
            _ => None,
        }
    }

    /// The kind as manifests write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Endpoints => "Endpoints",
            Self::Pod => "Pod",
            Self::Node => "Node",
        }
    }

    /// Reads a document again straight into its type, only to learn the line of its error.
    pub(super) fn yaml_error(self, text: &str, first_line: u64) -> Option<ParseError> {
        match self {
            Self::Service => from_yaml::<Service>(text, first_line).err(),
            Self::EndpointSlice => from_yaml::<EndpointSlice>(text, first_line).err(),
            Self::Endpoints => from_yaml::<Endpoints>(text, first_line).err(),
            Self::Pod => from_yaml::<Pod>(text, first_line).err(),
            Self::Node => from_yaml::<Node>(text, first_line).err(),
        }
    }
}

/// Kind, namespace and name: what makes two documents the same object.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct ObjectKey {
    /// The kind.
    pub kind: ObjectKind,
    /// Namespace (empty for a Node) and name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ObjectKind::Node => write!(f, "Node {}", self.name.name),
            kind => write!(f, "{} {}", kind.name(), self.name),
        }
    }
}

/// One document.
#[derive(Clone, Debug)]
pub enum Manifest {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// An Endpoints object.
    Endpoints(Box<Endpoints>),
    /// A Pod.
    Pod(Box<Pod>),
    /// A Node.
    Node(Box<Node>),
}

impl Manifest {
    /// The document as its type; the error is a sentence without a line.
    pub fn from_value(kind: ObjectKind, value: Value) -> Result<Self, String> {
        fn typed<T: DeserializeOwned>(value: Value) -> Result<Box<T>, String> {
            serde_json::from_value(value).map_err(|error| error.to_string())
        }
        let mut manifest = match kind {
            ObjectKind::Service => Self::Service(typed(value)?),
            ObjectKind::EndpointSlice => Self::EndpointSlice(typed(value)?),
            ObjectKind::Endpoints => Self::Endpoints(typed(value)?),
            ObjectKind::Pod => Self::Pod(typed(value)?),
            ObjectKind::Node => Self::Node(typed(value)?),
        };
        let meta = manifest.metadata_mut();
        if meta.name.as_deref().is_none_or(str::is_empty) {
            return Err(format!("{}: metadata.name: Required value", kind.name()));
        }
        if kind == ObjectKind::Node {
            meta.namespace = None;
        } else if meta.namespace.as_deref().is_none_or(str::is_empty) {
            meta.namespace = Some("default".to_owned());
        }
        manifest.prune();
        Ok(manifest)
    }

    /// The document as JSON.
    pub fn to_json(&self) -> Option<Json> {
        let json = match self {
            Self::Service(object) => serde_json::to_vec(object),
            Self::EndpointSlice(object) => serde_json::to_vec(object),
            Self::Endpoints(object) => serde_json::to_vec(object),
            Self::Pod(object) => serde_json::to_vec(object),
            Self::Node(object) => serde_json::to_vec(object),
        };
        json.ok().map(Json::from)
    }

    /// The kind.
    pub const fn kind(&self) -> ObjectKind {
        match self {
            Self::Service(_) => ObjectKind::Service,
            Self::EndpointSlice(_) => ObjectKind::EndpointSlice,
            Self::Endpoints(_) => ObjectKind::Endpoints,
            Self::Pod(_) => ObjectKind::Pod,
            Self::Node(_) => ObjectKind::Node,
        }
    }

    /// Namespace and name; a Node's namespace is empty.
    pub fn name(&self) -> ObjectName {
        ObjectName::of(self.metadata())
    }

    /// The object's identity.
    pub fn key(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind(),
            name: self.name(),
        }
    }

    /// `metadata`.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Endpoints(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
        }
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        match self {
            Self::Service(object) => &mut object.metadata,
            Self::EndpointSlice(object) => &mut object.metadata,
            Self::Endpoints(object) => &mut object.metadata,
            Self::Pod(object) => &mut object.metadata,
            Self::Node(object) => &mut object.metadata,
        }
    }

    /// Drops what costs memory and decides nothing.
    fn prune(&mut self) {
        let meta = self.metadata_mut();
        meta.managed_fields = None;
        meta.owner_references = None;
        if let Some(annotations) = &mut meta.annotations {
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        if let Self::EndpointSlice(slice) = self {
            for endpoint in slice.endpoints.iter_mut().flatten() {
                endpoint.target_ref = None;
            }
        }
        if let Self::Pod(pod) = self {
            prune_pod(pod);
        }
        if let Self::Node(node) = self
            && let Some(status) = &mut node.status
        {
            status.images = None;
        }
    }
}

/// Reads back what [`Manifest::to_json`] wrote; never fails on it.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Option<T> {
    serde_json::from_slice(json).ok()
}

/// A Pod as seen from a Service: labels, node, ports, addresses, readiness.
fn prune_pod(pod: &mut Pod) {
    pod.metadata.annotations = None;
    if let Some(spec) = &mut pod.spec {
        let prune = |container: &mut Container| {
            *container = Container {
                name: std::mem::take(&mut container.name),
                ports: container.ports.take(),
                restart_policy: container.restart_policy.take(),
                ..Container::default()
            };
        };
        spec.containers.iter_mut().for_each(prune);
        spec.init_containers.iter_mut().flatten().for_each(prune);
        *spec = PodSpec {
            containers: std::mem::take(&mut spec.containers),
            init_containers: spec.init_containers.take(),
            node_name: spec.node_name.take(),
            host_network: spec.host_network,
            ..PodSpec::default()
        };
    }
    if let Some(status) = &mut pod.status {
        *status = PodStatus {
            conditions: status.conditions.take(),
            phase: status.phase.take(),
            pod_ip: status.pod_ip.take(),
            pod_ips: status.pod_ips.take(),
            ..PodStatus::default()
        };
    }
}
