//! This node's facts, as its Node object states them (section 13).

use super::address;
use super::desired::Family;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use std::net::IpAddr;

/// The only node label that is read (section 4).
const ZONE: &str = "topology.kubernetes.io/zone";

/// What is known of this node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeFacts {
    /// `metadata.name`; decides which endpoints are local.
    pub name: String,
    /// The zone label, if it is there and not empty.
    pub zone: Option<String>,
    /// `status.addresses`: internal ones first, then external ones.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Load balancers may send new connections here: the node is not being deleted, neither by the
    /// API server nor soon by the cluster autoscaler (section 12). True for a node nobody knows.
    pub eligible: bool,
}

/// The autoscaler will delete a node with a taint of this key, whatever its effect.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl NodeFacts {
    /// A node of which only the name is known yet. The name is trimmed and lower-cased, as
    /// kube-proxy does with its own.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.trim().to_lowercase(),
            eligible: true,
            ..Self::default()
        }
    }

    /// The facts of a Node object.
    pub fn from_object(node: &Node) -> Self {
        let zone = node
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(ZONE))
            .filter(|zone| !zone.is_empty())
            .cloned();
        let status = node.status.as_ref();
        let listed = status.and_then(|status| status.addresses.as_deref());
        let of_type = |wanted: &'static str| {
            listed
                .unwrap_or_default()
                .iter()
                .filter(move |address| address.type_ == wanted)
                .filter_map(|address| address::parse(&address.address))
        };
        let spec = node.spec.as_ref();
        let mut pod_cidrs: Vec<IpNet> = spec
            .and_then(|spec| spec.pod_cidrs.as_deref())
            .unwrap_or_default()
            .iter()
            .filter_map(|text| address::parse_prefix(text))
            .collect();
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(
                spec.and_then(|spec| spec.pod_cidr.as_deref())
                    .and_then(address::parse_prefix),
            );
        }
        let taints = spec
            .and_then(|spec| spec.taints.as_deref())
            .unwrap_or_default();
        Self {
            eligible: node.metadata.deletion_timestamp.is_none()
                && !taints.iter().any(|taint| taint.key == TO_BE_DELETED),
            name: node.metadata.name.clone().unwrap_or_default(),
            zone,
            addresses: of_type("InternalIP").chain(of_type("ExternalIP")).collect(),
            pod_cidrs,
        }
    }

    /// Makes this the primary address of its family, whatever the Node object lists.
    pub(super) fn prefer(&mut self, address: Option<IpAddr>) {
        if let Some(address) = address {
            self.addresses.retain(|listed| *listed != address);
            self.addresses.insert(0, address);
        }
    }

    /// The node's primary address of a family.
    pub fn primary(&self, family: Family) -> Option<IpAddr> {
        self.addresses
            .iter()
            .find(|address| Family::of(**address) == family)
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_addresses_come_first_and_an_empty_zone_is_none() {
        let node: Node = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "n1", "labels": {ZONE: ""}},
            "spec": {"podCIDR": "10.7.0.0/24"},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "203.0.113.1"},
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "192.168.0.1"},
                {"type": "InternalIP", "address": "fd00::1"},
            ]},
        }))
        .expect("a Node");
        let facts = NodeFacts::from_object(&node);
        assert_eq!(facts.zone, None);
        let primary = |family| facts.primary(family).map(|ip| ip.to_string());
        assert_eq!(primary(Family::V4).as_deref(), Some("192.168.0.1"));
        assert_eq!(primary(Family::V6).as_deref(), Some("fd00::1"));
        assert_eq!(facts.pod_cidrs.len(), 1);
    }
}
