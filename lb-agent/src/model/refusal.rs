//! What is refused: each with a name for the metric and a sentence for people.

use super::desired::ObjectName;
use crate::source::Kind;
use std::fmt;

/// Why something in an object was refused. [`Reason::name`] is stable: it labels a metric.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The text is no IP address.
    Unparsable,
    /// An address of the other family than its slice says.
    OtherFamily,
    /// A port outside 1-65535.
    PortOutOfRange,
    /// A protocol other than TCP, UDP and SCTP.
    UnknownProtocol,
    /// 127.0.0.0/8 or `::1`.
    Loopback,
    /// 169.254.0.0/16 or `fe80::/10`.
    LinkLocal,
    /// 224.0.0.0/4, `ff00::/8` or the broadcast address.
    Multicast,
    /// `0.0.0.0` or `::`.
    Unspecified,
    /// Another service's ClusterIP.
    ClusterIpOfAnother(ObjectName),
    /// An endpoint on a ClusterIP.
    ServiceAddress(ObjectName),
    /// A ClusterIP that this node has on a device, bound there by somebody who answers it here.
    OnThisNode,
    /// Outside the ranges the operator allows.
    OutsideAllowedRanges,
    /// An older service has this address, port and protocol.
    HeldByAnother(ObjectName),
}

impl Reason {
    /// The reason's name in metrics.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unparsable => "unparsable",
            Self::OtherFamily => "other_family",
            Self::PortOutOfRange => "port_out_of_range",
            Self::UnknownProtocol => "unknown_protocol",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Multicast => "multicast",
            Self::Unspecified => "unspecified",
            Self::ClusterIpOfAnother(_) => "cluster_ip_of_another_service",
            Self::ServiceAddress(_) => "endpoint_on_service_address",
            Self::OnThisNode => "address_of_this_node",
            Self::OutsideAllowedRanges => "outside_allowed_ranges",
            Self::HeldByAnother(_) => "held_by_another_service",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unparsable => f.write_str("it is not an IP address; correct it"),
            Self::OtherFamily => f.write_str(
                "it is not of the slice's addressType; put it into a slice of its own family",
            ),
            Self::PortOutOfRange => {
                f.write_str("it is not a port number; use one between 1 and 65535")
            }
            Self::UnknownProtocol => f.write_str("it is not a protocol; use TCP, UDP or SCTP"),
            Self::Loopback => f.write_str(
                "it is a loopback address, which on every node means the node itself; use an address that other nodes can reach",
            ),
            Self::LinkLocal => f.write_str(
                "it is a link-local address (metadata services live there); use a routable address",
            ),
            Self::Multicast => {
                f.write_str("it is a multicast or broadcast address; use a unicast address")
            }
            Self::Unspecified => {
                f.write_str("it is the unspecified address; name the address that is meant")
            }
            Self::ClusterIpOfAnother(other) => write!(
                f,
                "it is the ClusterIP of Service {other}, whose traffic it would take; remove it"
            ),
            Self::ServiceAddress(service) => write!(
                f,
                "it is the ClusterIP of Service {service}, and a service is no endpoint; list that service's pods instead"
            ),
            Self::OnThisNode => f.write_str(
                "this node has it on a device, and whoever put it there answers it (NodeLocal DNSCache does so); remove it from the device if it is to be balanced",
            ),
            Self::OutsideAllowedRanges => f.write_str(
                "it lies outside the ranges this cluster allows for external addresses; use one inside, or have the range allowed",
            ),
            Self::HeldByAnother(other) => write!(
                f,
                "Service {other} came first and keeps this address, port and protocol; change one of the two"
            ),
        }
    }
}

/// One thing in one object that is not served, while the rest of the object is.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Refusal {
    /// The kind of object.
    pub kind: Kind,
    /// The object.
    pub object: ObjectName,
    /// The field, as the API writes its path.
    pub field: &'static str,
    /// The field's value.
    pub value: String,
    /// Why.
    pub reason: Reason,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
            Kind::Pod => "Pod",
            Kind::Namespace => "Namespace",
        };
        write!(
            f,
            "{kind} {}: {} {} is refused: {}",
            self.object, self.field, self.value, self.reason
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_the_object_the_field_and_the_way_out() {
        let refusal = Refusal {
            kind: Kind::Service,
            object: ObjectName {
                namespace: "shop".into(),
                name: "web".into(),
            },
            field: "spec.externalIPs",
            value: "127.0.0.1".into(),
            reason: Reason::Loopback,
        };
        let text = refusal.to_string();
        assert!(
            text.starts_with(
                "Service shop/web: spec.externalIPs 127.0.0.1 is refused: it is a loopback address"
            ),
            "{text}"
        );
        assert!(
            text.contains("use an address"),
            "says what to do instead: {text}"
        );
    }
}
