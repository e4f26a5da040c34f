//! EndpointSlice objects in compact form (section 3).

use super::address;
use super::desired::{Family, ObjectName};
use super::refusal::{Reason, Refusal};
use super::service::protocol;
use crate::source::Kind;
use k8s_openapi::api::discovery::v1::{Endpoint as ObjectEndpoint, EndpointSlice as Object};
use lb_common::addr::Protocol;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Names that many endpoints share are kept once.
#[derive(Debug, Default)]
pub(super) struct Interner {
    names: HashSet<Arc<str>>,
    zones: HashSet<Arc<[Arc<str>]>>,
}

impl Interner {
    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return Arc::clone(known);
        }
        let name: Arc<str> = text.into();
        self.names.insert(Arc::clone(&name));
        name
    }

    fn zones<'a>(&mut self, zones: impl Iterator<Item = &'a str>) -> Arc<[Arc<str>]> {
        let zones: Vec<Arc<str>> = zones.map(|zone| self.name(zone)).collect();
        if let Some(known) = self.zones.get(zones.as_slice()) {
            return Arc::clone(known);
        }
        let zones: Arc<[Arc<str>]> = zones.into();
        self.zones.insert(Arc::clone(&zones));
        zones
    }

    /// Forgets what no slice uses any more.
    pub(super) fn shrink(&mut self) {
        self.zones.retain(|zones| Arc::strong_count(zones) > 1);
        self.names.retain(|name| Arc::strong_count(name) > 1);
    }
}

/// One endpoint of a slice, for every port of the slice.
#[expect(
    clippy::struct_excessive_bools,
    reason = "the API's own conditions, each independent of the others"
)]
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Endpoint {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// `conditions.ready`, true if absent.
    pub ready: bool,
    /// `conditions.serving`, true if absent.
    pub serving: bool,
    /// `conditions.terminating`, false if absent.
    pub terminating: bool,
    /// `nodeName` is this node's.
    pub local: bool,
    /// What the hints say of nodes.
    pub node_hint: NodeHint,
    /// `hints.forZones`, `None` if empty.
    pub zones: Option<Arc<[Arc<str>]>>,
}

/// `hints.forNodes` as seen from this node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NodeHint {
    /// No hint.
    None,
    /// Other nodes only.
    Other,
    /// This node is among them.
    This,
}

impl Endpoint {
    /// True if the endpoint may be used while no ready one is there (section 4).
    pub const fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }
}

/// One port of a slice.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    /// `name`, possibly empty: a service port is served by the slice port of its name and protocol.
    pub name: Arc<str>,
    /// `port`.
    pub number: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// An EndpointSlice as the model keeps it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slice {
    /// The Service it belongs to.
    pub service: Arc<ObjectName>,
    /// `addressType`.
    pub family: Family,
    /// The ports that can be served.
    pub ports: Box<[Port]>,
    /// The endpoints that can be used.
    pub endpoints: Box<[Endpoint]>,
}

/// The result of reading an object.
#[derive(Debug)]
pub(super) struct Converted {
    /// `None`: the slice is none of ours (other address types, no service, headless).
    pub(super) slice: Option<Slice>,
    pub(super) refusals: Vec<Refusal>,
}

/// Reads an EndpointSlice; `node` is this node's name.
pub(super) fn convert(
    name: &ObjectName,
    object: &Object,
    node: &str,
    interner: &mut Interner,
) -> Converted {
    let mut refusals = Vec::new();
    let mut slice = None;
    if let Some((service, family)) = identity(name, object) {
        slice = Some(Slice {
            service: Arc::new(service),
            family,
            ports: ports(object, interner),
            endpoints: object
                .endpoints
                .iter()
                .flatten()
                .filter_map(|endpoint| {
                    endpoint_of(name, endpoint, family, node, interner, &mut refusals)
                })
                .collect(),
        });
    }
    Converted { slice, refusals }
}

/// The service and family of a slice that is to be read at all.
fn identity(name: &ObjectName, object: &Object) -> Option<(ObjectName, Family)> {
    let labels = object.metadata.labels.as_ref()?;
    if labels.contains_key(HEADLESS) {
        return None;
    }
    let service = labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?;
    let family = match object.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    Some((
        ObjectName {
            namespace: name.namespace.clone(),
            name: service.as_str().into(),
        },
        family,
    ))
}

/// Ports with a name and a number; a port without either is no wildcard, it is skipped.
fn ports(object: &Object, interner: &mut Interner) -> Box<[Port]> {
    object
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            Some(Port {
                name: interner.name(port.name.as_deref()?),
                number: u16::try_from(port.port?).ok().filter(|n| *n != 0)?,
                protocol: protocol(port.protocol.as_deref())?,
            })
        })
        .collect()
}

fn endpoint_of(
    slice: &ObjectName,
    object: &ObjectEndpoint,
    family: Family,
    node: &str,
    interner: &mut Interner,
    refusals: &mut Vec<Refusal>,
) -> Option<Endpoint> {
    // kube-proxy uses the first address only.
    let text = object.addresses.first()?;
    let address = address::parse(text);
    let reason = match address {
        None => Some(Reason::Unparsable),
        Some(address) if Family::of(address) != family => Some(Reason::OtherFamily),
        Some(address) => address::unusable(address),
    };
    if let Some(reason) = reason {
        refusals.push(Refusal {
            kind: Kind::EndpointSlice,
            object: slice.clone(),
            field: "endpoints[].addresses",
            value: text.clone(),
            reason,
        });
        return None;
    }
    let conditions = object.conditions.as_ref();
    let hints = object.hints.as_ref();
    let nodes = hints.and_then(|hints| hints.for_nodes.as_deref());
    let zones = hints.and_then(|hints| hints.for_zones.as_deref());
    Some(Endpoint {
        address: address?,
        ready: conditions.and_then(|c| c.ready).unwrap_or(true),
        serving: conditions.and_then(|c| c.serving).unwrap_or(true),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
        local: object.node_name.as_deref() == Some(node),
        node_hint: match nodes {
            None | Some([]) => NodeHint::None,
            Some(nodes) if nodes.iter().any(|hint| hint.name == node) => NodeHint::This,
            Some(_) => NodeHint::Other,
        },
        zones: zones
            .filter(|zones| !zones.is_empty())
            .map(|zones| interner.zones(zones.iter().map(|zone| zone.name.as_str()))),
    })
}
