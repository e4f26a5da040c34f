//! The sources: where objects come from. A directory of manifests and the Kubernetes API yield the
//! same stream of [`Change`]s; what reads it cannot tell them apart.

pub mod backoff;
pub mod directory;
pub mod endpoints;
pub mod kube;

use crate::model::desired::ObjectName;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use std::fmt;
use std::path::PathBuf;

/// The kinds of object the model reads. Endpoints objects are turned into slices by the source.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node, this node's own only.
    Node,
    /// `networking.k8s.io/v1` ServiceCIDR. Older API servers have none, so nothing waits for it.
    ServiceCidr,
    /// `v1` Pod, this node's only and only where sockets of labelled pods are not balanced.
    Pod,
    /// `v1` Namespace, likewise.
    Namespace,
}

impl Kind {
    /// Every kind that services need; nothing stale is removed before each of them is complete.
    pub const ALL: [Self; 3] = [Self::Service, Self::EndpointSlice, Self::Node];
}

/// An object of one of the [`Kind`]s.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service.
    Service(Box<Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// This node.
    Node(Box<Node>),
    /// Ranges that ClusterIPs come from.
    ServiceCidr(Box<ServiceCIDR>),
    /// A pod of this node; its metadata and phase matter.
    Pod(Box<Pod>),
    /// A namespace; its labels matter.
    Namespace(Box<Namespace>),
}

/// One step of a source. A listing is `Restart`, any number of `Apply`, `Complete`: what was known
/// and neither applied again nor kept in between is gone. Outside a listing, `Apply` and `Delete` come singly.
#[derive(Clone, Debug)]
pub enum Change {
    /// A complete listing of this kind begins.
    Restart(Kind),
    /// The object exists and looks like this.
    Apply(Object),
    /// The object exists and cannot be read: what is known of it stays.
    Keep(Kind, ObjectName),
    /// The object is gone. A Node's namespace is empty.
    Delete(Kind, ObjectName),
    /// The listing of this kind is complete.
    Complete(Kind),
}

/// What kind of trouble a [`SourceRefusal`] is; a label of the refusal counter.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Problem {
    /// An object the API server would refuse, too.
    Refused,
    /// A file that does not parse; its last good objects stay.
    Unparsable,
    /// An object of the API that does not decode; what is known of it stays.
    Undecodable,
    /// A file or directory that cannot be read; what it held stays.
    Unreadable,
    /// The same object in two files; the first by path is taken.
    Duplicate,
    /// A kind of object that no service needs.
    Ignored,
    /// The API server denies a list or watch (403); what is known stays.
    Forbidden,
    /// The API server cannot be reached; what is known stays.
    Unreachable,
    /// The API server answers with an error; what is known stays.
    Failed,
}

impl Problem {
    /// The name as metrics and JSON show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unparsable => "unparsable",
            Self::Undecodable => "undecodable",
            Self::Unreadable => "unreadable",
            Self::Duplicate => "duplicate",
            Self::Ignored => "ignored",
            Self::Forbidden => "forbidden",
            Self::Unreachable => "unreachable",
            Self::Failed => "failed",
        }
    }
}

/// One thing a source did not take, with the sentence for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SourceRefusal {
    /// What kind of trouble.
    pub problem: Problem,
    /// The object (`Service default/web`), or empty where the whole file is meant.
    pub object: String,
    /// The file, if the object came from one.
    pub file: Option<PathBuf>,
    /// What is wrong and what happens now.
    pub sentence: String,
}

impl fmt::Display for SourceRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => write!(f, "{}: {}", file.display(), self.sentence),
            None => f.write_str(&self.sentence),
        }
    }
}

/// What a source has to say besides its [`Change`]s. (object, file) is the identity of a trouble:
/// a later refusal of the same identity replaces the earlier, a resolution ends it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Report {
    /// Something was not taken.
    Refused(SourceRefusal),
    /// The trouble named by the same object and file is over.
    Resolved {
        /// As in [`SourceRefusal::object`].
        object: String,
        /// As in [`SourceRefusal::file`].
        file: Option<PathBuf>,
    },
}
