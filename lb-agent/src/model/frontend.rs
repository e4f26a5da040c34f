//! Frontends: which addresses a service port listens on (sections 2 and 5.1).

use super::claim::Claim;
use super::desired::{DesiredFrontend, Family, FrontendAddress};
use super::node::NodeFacts;
use super::options::{NodePortAddresses, Options};
use super::service::{Port, Service};
use lb_common::table::{FrontendKind, LocalAddress};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a service port would listen on if nobody else did: each address, port and protocol once,
/// a ClusterIP before the other kinds.
pub(super) fn candidates(service: &Service, port: &Port, family: Family) -> Vec<DesiredFrontend> {
    let mut found: BTreeMap<(FrontendAddress, u16), FrontendKind> = BTreeMap::new();
    let exact = |kind| move |address| (FrontendAddress::Exact(address), port.number, kind);
    let node_port = (port.node_port != 0).then_some((
        FrontendAddress::NodePort(family),
        port.node_port,
        FrontendKind::NodePort,
    ));
    let all = service
        .cluster_ip(family)
        .into_iter()
        .map(exact(FrontendKind::ClusterIp))
        // Before externalIPs: an address that is both is guarded by the source ranges.
        .chain(
            service
                .load_balancer_ips(family)
                .map(exact(FrontendKind::LoadBalancer)),
        )
        .chain(
            service
                .external_ips(family)
                .map(exact(FrontendKind::ExternalIp)),
        )
        .chain(node_port);
    for (address, port, kind) in all {
        found.entry((address, port)).or_insert(kind);
    }
    found
        .into_iter()
        .map(|((address, port), kind)| DesiredFrontend {
            address,
            port,
            kind,
        })
        .collect()
}

/// The claim of a frontend.
pub(super) fn claim(frontend: &DesiredFrontend, port: &Port) -> Claim {
    Claim {
        address: frontend.address,
        port: frontend.port,
        protocol: port.protocol,
    }
}

/// The answer of `nodePortAddresses` for one family.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodePortSelection {
    /// Every local address is meant, those that appear later included.
    pub match_all: bool,
    /// The selected ones among the addresses given, in their order. Loopback may be among them;
    /// [`serves_node_ports`] has the last word.
    pub addresses: Vec<IpAddr>,
}

/// Applies `nodePortAddresses` to a node's interface addresses for one family (section 5.1): a list
/// without an entry of the family, or with a /0 of it, means every local address.
pub fn select_node_port_addresses(
    options: &Options,
    node: &NodeFacts,
    interface_addresses: &[IpAddr],
    family: Family,
) -> NodePortSelection {
    let of_family = |address: &IpAddr| Family::of(*address) == family;
    let selects: Box<dyn Fn(&IpAddr) -> bool + '_> = match &options.node_port_addresses {
        NodePortAddresses::Primary if node.primary(family).is_some() => {
            Box::new(|address| node.primary(family) == Some(*address))
        }
        NodePortAddresses::Ranges(ranges)
            if ranges.iter().any(|range| of_family(&range.addr()))
                && !ranges
                    .iter()
                    .any(|range| of_family(&range.addr()) && range.prefix_len() == 0) =>
        {
            Box::new(|address| ranges.iter().any(|range| range.contains(address)))
        }
        _ => {
            return NodePortSelection {
                match_all: true,
                addresses: interface_addresses
                    .iter()
                    .copied()
                    .filter(of_family)
                    .collect(),
            };
        }
    };
    NodePortSelection {
        match_all: false,
        addresses: interface_addresses
            .iter()
            .copied()
            .filter(|address| of_family(address) && selects(address))
            .collect(),
    }
}

/// True if node ports are served on this address of this node. Loopback is served on IPv4 only and
/// only with `localhostNodePorts`.
pub fn serves_node_ports(options: &Options, node: &NodeFacts, address: IpAddr) -> bool {
    if address.is_loopback() && (address.is_ipv6() || !options.localhost_node_ports) {
        return false;
    }
    !select_node_port_addresses(options, node, &[address], Family::of(address))
        .addresses
        .is_empty()
}

/// The entries of the `lb_local` table for the node's own addresses.
pub fn local_addresses(
    options: &Options,
    node: &NodeFacts,
    interface_addresses: &[IpAddr],
) -> BTreeMap<IpAddr, LocalAddress> {
    interface_addresses
        .iter()
        .map(|address| {
            let flags = if serves_node_ports(options, node, *address) {
                LocalAddress::NODE_PORTS
            } else {
                0
            };
            (*address, LocalAddress { flags })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts {
            addresses: vec![ip("192.168.0.1")],
            ..NodeFacts::named("n")
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a test address")
    }

    fn ranges(texts: &[&str]) -> NodePortAddresses {
        NodePortAddresses::Ranges(
            texts
                .iter()
                .map(|text| text.parse().expect("a test prefix"))
                .collect(),
        )
    }

    #[test]
    fn loopback_serves_node_ports_on_ipv4_only_and_only_if_asked() {
        for (address, localhost, on, expected) in [
            ("127.0.0.1", true, NodePortAddresses::All, true),
            ("127.0.0.1", false, NodePortAddresses::All, false),
            ("127.0.0.1", true, ranges(&["192.168.0.0/24"]), false),
            ("127.0.0.1", true, ranges(&["127.0.0.0/8"]), true),
            ("127.0.0.1", true, NodePortAddresses::Primary, false),
            ("::1", true, NodePortAddresses::All, false),
            ("::1", true, ranges(&["::1/128"]), false),
        ] {
            let options = Options {
                localhost_node_ports: localhost,
                node_port_addresses: on.clone(),
                ..Options::default()
            };
            assert_eq!(
                serves_node_ports(&options, &node(), ip(address)),
                expected,
                "{address} {localhost} {on:?}"
            );
        }
    }

    #[test]
    fn primary_means_every_address_of_a_family_the_node_has_none_of() {
        let options = Options {
            node_port_addresses: NodePortAddresses::Primary,
            ..Options::default()
        };
        for (address, expected) in [
            ("192.168.0.1", true),
            ("192.168.1.1", false),
            ("fd00::1", true),
        ] {
            assert_eq!(
                serves_node_ports(&options, &node(), ip(address)),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn every_address_of_the_node_is_known_as_local_and_only_some_serve() {
        let options = Options {
            node_port_addresses: ranges(&["192.168.0.0/24"]),
            ..Options::default()
        };
        let local = local_addresses(&options, &node(), &[ip("192.168.0.1"), ip("10.0.0.1")]);
        assert_eq!(local[&ip("192.168.0.1")].flags, LocalAddress::NODE_PORTS);
        assert_eq!(local[&ip("10.0.0.1")].flags, 0);
    }
}
