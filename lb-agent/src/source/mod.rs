//! The sources: where objects come from. A directory of manifests and the Kubernetes API yield the
//! same stream of [`Change`]s; what reads it cannot tell them apart.

use crate::model::desired::ObjectName;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The kinds of object the model reads. Endpoints objects are turned into slices by the source.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `v1` Node, this node's own only.
    Node,
}

impl Kind {
    /// Every kind; nothing stale is removed before each of them is complete.
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
}

/// One step of a source. A listing is `Restart`, any number of `Apply`, `Complete`: what was known
/// and not applied again in between is gone. Outside a listing, `Apply` and `Delete` come singly.
#[derive(Clone, Debug)]
pub enum Change {
    /// A complete listing of this kind begins.
    Restart(Kind),
    /// The object exists and looks like this.
    Apply(Object),
    /// The object is gone. A Node's namespace is empty.
    Delete(Kind, ObjectName),
    /// The listing of this kind is complete.
    Complete(Kind),
}
