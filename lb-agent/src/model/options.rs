//! What the operator chose, as far as the model must know.

use super::desired::Family;
use super::node::NodeFacts;
use ipnet::IpNet;

/// How "a pod here" is told from everybody else (section 7).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodDetection {
    /// Sources inside the first of these of the family.
    ClusterCidr(Vec<IpNet>),
    /// Sources inside this node's own pod range of the family.
    NodeCidr,
}

/// Which node addresses serve node ports (section 5.1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodePortAddresses {
    /// Every local address.
    All,
    /// The node's addresses as the Node object lists them.
    Primary,
    /// Local addresses inside these prefixes; a family without a prefix has all of them.
    Ranges(Vec<IpNet>),
}

/// Everything the operator chose that changes what is served.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// kube-proxy's `detectLocalMode` with its ranges.
    pub pods: PodDetection,
    /// kube-proxy's `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// kube-proxy's `localhostNodePorts`: node ports on 127.0.0.0/8 too (IPv4 only).
    pub localhost_node_ports: bool,
    /// kube-proxy's `masqueradeAll`.
    pub masquerade_all: bool,
    /// The ranges ClusterIPs come from. An unused address inside is answered with silence in
    /// nftables mode; not yet served here.
    pub service_cidrs: Vec<IpNet>,
    /// If set, externalIPs and load balancer addresses outside of these are refused.
    pub external_ranges: Option<Vec<IpNet>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pods: PodDetection::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::All,
            localhost_node_ports: true,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            external_ranges: None,
        }
    }
}

impl Options {
    /// The prefix that pods of `family` lie in; `None`: the detector is off for the family.
    pub fn pod_prefix(&self, node: &NodeFacts, family: Family) -> Option<IpNet> {
        let ranges = match &self.pods {
            PodDetection::ClusterCidr(ranges) => ranges,
            PodDetection::NodeCidr => &node.pod_cidrs,
        };
        ranges
            .iter()
            .find(|range| Family::of(range.addr()) == family)
            .copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_range_of_a_family_detects_pods() {
        let net = |text: &str| text.parse::<IpNet>().expect("a test prefix");
        let node = NodeFacts {
            pod_cidrs: vec![net("10.7.0.0/24")],
            ..NodeFacts::named("n")
        };
        let mut options = Options {
            pods: PodDetection::ClusterCidr(vec![
                net("fd00::/64"),
                net("10.0.0.0/8"),
                net("11.0.0.0/8"),
            ]),
            ..Options::default()
        };
        assert_eq!(
            options.pod_prefix(&node, Family::V4),
            Some(net("10.0.0.0/8"))
        );
        assert_eq!(
            options.pod_prefix(&node, Family::V6),
            Some(net("fd00::/64"))
        );
        options.pods = PodDetection::NodeCidr;
        assert_eq!(
            options.pod_prefix(&node, Family::V4),
            Some(net("10.7.0.0/24"))
        );
        assert_eq!(options.pod_prefix(&node, Family::V6), None);
    }
}
