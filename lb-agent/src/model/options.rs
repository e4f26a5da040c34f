//! What the operator chose, as far as the model must know.

use super::desired::Family;
use super::node::NodeFacts;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_common::addr::Prefix;
use lb_common::balance::Algorithm;
use lb_common::table::{Config, ConfigFlags};
use std::net::IpAddr;

/// How "a pod here" is told from everybody else (section 7).
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PodDetection {
    /// Sources inside the first of these of the family.
    ClusterCidr(Vec<IpNet>),
    /// Sources inside this node's own pod range of the family.
    NodeCidr,
    /// Whatever comes in by this device; by a port of it, if it is a bridge.
    Bridge(String),
    /// Whatever comes in by a device whose name begins so.
    InterfacePrefix(String),
}

impl PodDetection {
    /// True if pods are told by the device that their packets come in by.
    pub fn is_by_device(&self) -> bool {
        matches!(self, Self::Bridge(_) | Self::InterfacePrefix(_))
    }

    /// True if what comes in by the device of this name comes from a pod here. Of a port of a bridge
    /// or bond the name of that is to be asked for: routing and netfilter see no other.
    pub fn is_device(&self, name: &str) -> bool {
        match self {
            Self::ClusterCidr(_) | Self::NodeCidr => false,
            Self::Bridge(bridge) => name == bridge,
            Self::InterfacePrefix(prefix) => name.starts_with(&**prefix),
        }
    }
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

impl NodePortAddresses {
    /// True if any IPv4 loopback address is among them: only then may node ports answer on
    /// 127.0.0.0/8, and only then is `route_localnet` needed.
    pub fn cover_ipv4_loopback(&self) -> bool {
        match self {
            Self::All => true,
            Self::Primary => false,
            Self::Ranges(ranges) => {
                ranges.is_empty()
                    || ranges.iter().any(|range| {
                        range.addr().is_ipv4()
                            && (range.addr().is_loopback() || range.prefix_len() == 0)
                    })
            }
        }
    }
}

/// A label with its value, as `key=value`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PodLabel {
    /// The key, with its prefix.
    pub key: String,
    /// The value.
    pub value: String,
}

impl std::str::FromStr for PodLabel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().split_once('=') {
            Some((key, value)) if !key.is_empty() && !key.contains([' ', ',', '!']) => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err(format!(
                "`{text}` is not a label such as istio-injection=enabled"
            )),
        }
    }
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
    /// The ranges ClusterIPs come from, those of ServiceCIDR objects included: packets to an unused address inside get silence.
    pub service_cidrs: Vec<IpNet>,
    /// kube-proxy's gate `AllowServiceExternalIPs`: whether `spec.externalIPs` are served (KEP-5707).
    pub external_ips: bool,
    /// If set, externalIPs and load balancer addresses outside of these are refused.
    pub external_ranges: Option<Vec<IpNet>>,
    /// kube-proxy's `bindAddress`: the node's primary address of its family, whatever the Node
    /// object lists.
    pub node_ip: Option<IpAddr>,
    /// Number of the algorithm of services that name none (`lb_common::balance::Algorithm`).
    pub algorithm: u32,
    /// Pods with this label, or in a namespace with it, are not balanced at the socket.
    pub opt_out: Option<PodLabel>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pods: PodDetection::ClusterCidr(Vec::new()),
            node_port_addresses: NodePortAddresses::All,
            localhost_node_ports: true,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            external_ips: true,
            external_ranges: None,
            node_ip: None,
            algorithm: Algorithm::RANDOM,
            opt_out: None,
        }
    }
}

impl Options {
    /// The prefix that pods of `family` lie in; `None`: the detector is off for the family.
    pub fn pod_prefix(&self, node: &NodeFacts, family: Family) -> Option<IpNet> {
        let ranges = match &self.pods {
            PodDetection::ClusterCidr(ranges) => ranges,
            PodDetection::NodeCidr => &node.pod_cidrs,
            // Any address, on the right device.
            PodDetection::Bridge(_) | PodDetection::InterfacePrefix(_) => {
                return Some(everything(family));
            }
        };
        ranges
            .iter()
            .find(|range| Family::of(range.addr()) == family)
            .copied()
    }

    /// Writes these choices into a configuration of the tables; what is not the model's stays.
    pub fn configure(&self, node: &NodeFacts, config: &mut Config) {
        let pods = |family| self.pod_prefix(node, family);
        let on_loopback =
            self.localhost_node_ports && self.node_port_addresses.cover_ipv4_loopback();
        for (flag, on) in [
            (ConfigFlags::DETECT_PODS_V4, pods(Family::V4).is_some()),
            (ConfigFlags::DETECT_PODS_V6, pods(Family::V6).is_some()),
            (ConfigFlags::PODS_BY_DEVICE, self.pods.is_by_device()),
            (ConfigFlags::MASQUERADE_ALL, self.masquerade_all),
            (ConfigFlags::LOCALHOST_NODE_PORTS, on_loopback),
        ] {
            config.switch(flag, on);
        }
        let prefix = |range: Option<IpNet>| {
            range.map_or(Prefix::NONE, |range| {
                Prefix::new(range.addr(), range.prefix_len())
            })
        };
        config.pods_v4 = prefix(pods(Family::V4));
        config.pods_v6 = prefix(pods(Family::V6));
        let cidrs: Vec<Prefix> = (self.service_cidrs.iter())
            .map(|cidr| prefix(Some(*cidr)))
            .collect();
        config.set_service_cidrs(&cidrs);
    }
}

/// Every address of a family.
fn everything(family: Family) -> IpNet {
    match family {
        Family::V4 => IpNet::V4(Ipv4Net::default()),
        Family::V6 => IpNet::V6(Ipv6Net::default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::host::HostTables;

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

    #[test]
    fn told_by_device_every_address_may_be_a_pods_and_the_device_decides() {
        let bridge = PodDetection::Bridge("cni0".to_owned());
        let prefix = PodDetection::InterfacePrefix("cali".to_owned());
        for (pods, yes, no) in [(bridge, "cni0", "cni01"), (prefix, "cali1", "eth0cali")] {
            assert!(pods.is_device(yes) && !pods.is_device(no), "{pods:?}");
            let options = Options {
                pods,
                ..Options::default()
            };
            let mut config = HostTables::of_node().config;
            options.configure(&NodeFacts::named("n"), &mut config);
            assert!(config.has(ConfigFlags::PODS_BY_DEVICE));
            for address in ["203.0.113.9", "2001:db8::9"] {
                let address: IpAddr = address.parse().unwrap();
                assert!(config.is_pod(&address.into()), "{address}");
            }
            Options::default().configure(&NodeFacts::named("n"), &mut config);
            assert!(!config.has(ConfigFlags::PODS_BY_DEVICE));
        }
        assert!(!PodDetection::NodeCidr.is_device("cni0"));
    }
}
