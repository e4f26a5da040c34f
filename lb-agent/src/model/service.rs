//! Service objects in compact form: the fields of section 2 and nothing else. Selectors,
//! `targetPort`, `publishNotReadyAddresses`, `trafficDistribution`, `loadBalancerIP` and the like
//! are never read (section 1).

use super::address;
use super::desired::{Family, ObjectName};
use super::options::Options;
use super::refusal::{Reason, Refusal};
use crate::source::Kind;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use lb_common::addr::Protocol;
use std::net::IpAddr;

/// Somebody else serves the service (section 1).
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// What the API server fills in for `ClientIP` affinity.
const AFFINITY_SECONDS: u32 = 10_800;

/// One port of a Service.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Port {
    /// `name`, possibly empty.
    pub name: Box<str>,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`.
    pub number: u16,
    /// `nodePort`, 0 if none.
    pub node_port: u16,
}

/// A Service as the model keeps it. Addresses of both families lie together; each family is served
/// on its own.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Service {
    /// `creationTimestamp` in seconds; an object without one counts as the youngest.
    pub created: i64,
    /// The ports that can be served.
    pub ports: Box<[Port]>,
    /// `clusterIPs`, at most one of each family.
    pub cluster_ips: Box<[IpAddr]>,
    /// `externalIPs`.
    pub external_ips: Box<[IpAddr]>,
    /// `status.loadBalancer.ingress[].ip` with mode VIP.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// `loadBalancerSourceRanges` of both families; empty for a family means open (section 6).
    pub source_ranges: Box<[IpNet]>,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// A valid `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// `healthCheckNodePort` where one is due, else 0.
    pub health_check_node_port: u16,
    /// Affinity timeout in seconds, 0 without affinity.
    pub affinity_seconds: u32,
}

/// The result of reading an object: what can be served, and what cannot.
#[derive(Debug)]
pub(super) struct Converted {
    /// `None`: the object is not served by us at all, and rightly so.
    pub(super) service: Option<Service>,
    pub(super) refusals: Vec<Refusal>,
}

impl Service {
    /// The ClusterIP of a family. Without one the service does not exist for the family.
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        of_family(&self.cluster_ips, family).next()
    }

    /// Every external address: externalIPs, then those of load balancers that are not among them.
    pub(super) fn external_addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let balancers = self.load_balancer_ips.iter();
        let externals = self.external_ips.iter();
        externals
            .chain(balancers.filter(|address| !self.external_ips.contains(address)))
            .copied()
    }

    /// The families the service exists for.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        self.cluster_ips.iter().copied().map(Family::of)
    }

    /// The externalIPs of a family.
    pub fn external_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        of_family(&self.external_ips, family)
    }

    /// The load balancer addresses of a family.
    pub fn load_balancer_ips(&self, family: Family) -> impl Iterator<Item = IpAddr> + '_ {
        of_family(&self.load_balancer_ips, family)
    }

    /// The source ranges that guard the load balancer addresses of a family; none: open.
    pub fn source_ranges(&self, family: Family) -> impl Iterator<Item = IpNet> + '_ {
        self.source_ranges
            .iter()
            .filter(move |range| Family::of(range.addr()) == family)
            .copied()
    }

    /// Everybody who may use the load balancer addresses of a family on the node with this primary
    /// address, sorted; none: open to all. Where the node itself may, packets that come from one of
    /// the addresses may too: on a node that has the address bound, its own packets do (section 6).
    pub fn allowed_sources(&self, family: Family, primary: Option<IpAddr>) -> Vec<IpNet> {
        let mut allowed: Vec<IpNet> = self.source_ranges(family).map(|net| net.trunc()).collect();
        if primary.is_some_and(|node| allowed.iter().any(|range| range.contains(&node))) {
            allowed.extend(self.load_balancer_ips(family).map(IpNet::from));
        }
        allowed.sort_unstable();
        allowed.dedup();
        allowed
    }

    /// True if a port has any frontend but its ClusterIP.
    pub fn has_external_frontend(&self, port: &Port, family: Family) -> bool {
        port.node_port != 0
            || self.external_ips(family).next().is_some()
            || self.load_balancer_ips(family).next().is_some()
    }
}

fn of_family(addresses: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> + '_ {
    addresses
        .iter()
        .copied()
        .filter(move |address| Family::of(*address) == family)
}

/// Reads a Service.
pub(super) fn convert(name: &ObjectName, object: &Object, options: &Options) -> Converted {
    let mut reader = Reader {
        name,
        refusals: Vec::new(),
    };
    let service = reader.service(object, options);
    Converted {
        service,
        refusals: reader.refusals,
    }
}

/// True if another proxy or none serves this object (section 1).
fn is_foreign(object: &Object) -> bool {
    object
        .metadata
        .labels
        .as_ref()
        .is_some_and(|labels| labels.contains_key(PROXY_NAME))
}

struct Reader<'a> {
    name: &'a ObjectName,
    refusals: Vec<Refusal>,
}

impl Reader<'_> {
    fn service(&mut self, object: &Object, options: &Options) -> Option<Service> {
        let allowed = options.external_ranges.as_deref();
        let spec = object.spec.as_ref()?;
        if is_foreign(object) || spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let cluster_ips = self.cluster_ips(spec)?;
        // Not served, they still make a ClusterIP service one that is reachable from outside.
        let listed = spec.external_ips.iter().flatten().map(String::as_str);
        let external_ips = self.external_addresses(
            "spec.externalIPs",
            listed.filter(|_| options.external_ips),
            allowed,
        );
        let ingress = object
            .status
            .as_ref()
            .and_then(|status| status.load_balancer.as_ref())
            .and_then(|balancer| balancer.ingress.as_deref())
            .unwrap_or_default();
        let load_balancer_ips = self.external_addresses(
            "status.loadBalancer.ingress[].ip",
            ingress
                .iter()
                .filter(|one| matches!(one.ip_mode.as_deref(), None | Some("VIP")))
                .filter_map(|one| one.ip.as_deref().filter(|ip| !ip.is_empty())),
            allowed,
        );
        let external_local = external_local(spec);
        let health_due = external_local && spec.type_.as_deref() == Some("LoadBalancer");
        Some(Service {
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(i64::MAX, |time| time.0.as_second()),
            ports: self.ports(spec),
            cluster_ips,
            external_ips,
            load_balancer_ips,
            source_ranges: source_ranges(spec),
            internal_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            external_local,
            health_check_node_port: spec
                .health_check_node_port
                .filter(|_| health_due)
                .and_then(|port| u16::try_from(port).ok())
                .unwrap_or(0),
            affinity_seconds: affinity_seconds(spec),
        })
    }

    fn refuse(&mut self, field: &'static str, value: &str, reason: Reason) {
        self.refusals.push(Refusal {
            kind: Kind::Service,
            object: self.name.clone(),
            field,
            value: value.to_owned(),
            reason,
        });
    }

    /// `clusterIPs` by family, or the single `clusterIP` of old objects; `None` for headless
    /// services and such that have no address yet.
    fn cluster_ips(&mut self, spec: &ServiceSpec) -> Option<Box<[IpAddr]>> {
        if matches!(spec.cluster_ip.as_deref(), Some("None"))
            || (spec.cluster_ip.as_deref().unwrap_or_default().is_empty()
                && spec.cluster_ips.as_deref().unwrap_or_default().is_empty())
        {
            return None;
        }
        let mut found: Vec<IpAddr> = Vec::with_capacity(2);
        let listed = spec.cluster_ips.as_deref().unwrap_or_default();
        let single = spec.cluster_ip.iter().filter(|_| listed.is_empty());
        for text in listed.iter().chain(single) {
            if text.is_empty() || text == "None" {
                continue;
            }
            let Some(address) = address::parse(text) else {
                self.refuse("spec.clusterIPs", text, Reason::Unparsable);
                continue;
            };
            if let Some(reason) = address::unusable(address) {
                self.refuse("spec.clusterIPs", text, reason);
            } else if !found
                .iter()
                .any(|other| Family::of(*other) == Family::of(address))
            {
                found.push(address);
            }
        }
        found.sort_unstable();
        (!found.is_empty()).then(|| found.into())
    }

    fn external_addresses<'a>(
        &mut self,
        field: &'static str,
        texts: impl Iterator<Item = &'a str>,
        allowed: Option<&[IpNet]>,
    ) -> Box<[IpAddr]> {
        let mut found = Vec::new();
        for text in texts {
            let Some(address) = address::parse(text) else {
                self.refuse(field, text, Reason::Unparsable);
                continue;
            };
            let outside =
                allowed.is_some_and(|ranges| !ranges.iter().any(|range| range.contains(&address)));
            if let Some(reason) = address::unusable(address) {
                self.refuse(field, text, reason);
            } else if outside {
                self.refuse(field, text, Reason::OutsideAllowedRanges);
            } else if !found.contains(&address) {
                found.push(address);
            }
        }
        found.into()
    }

    fn ports(&mut self, spec: &ServiceSpec) -> Box<[Port]> {
        let mut found = Vec::new();
        for port in spec.ports.iter().flatten() {
            let text = port.protocol.as_deref();
            let Some(protocol) = protocol(text) else {
                self.refuse(
                    "spec.ports[].protocol",
                    text.unwrap_or_default(),
                    Reason::UnknownProtocol,
                );
                continue;
            };
            let Some(number) = u16::try_from(port.port).ok().filter(|number| *number != 0) else {
                self.refuse(
                    "spec.ports[].port",
                    &port.port.to_string(),
                    Reason::PortOutOfRange,
                );
                continue;
            };
            let asked = port.node_port.unwrap_or(0);
            let node_port = u16::try_from(asked).unwrap_or_else(|_| {
                self.refuse(
                    "spec.ports[].nodePort",
                    &asked.to_string(),
                    Reason::PortOutOfRange,
                );
                0
            });
            found.push(Port {
                name: port.name.as_deref().unwrap_or_default().into(),
                protocol,
                number,
                node_port,
            });
        }
        found.into()
    }
}

/// A protocol as the API writes it; absent means TCP.
pub(super) fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some("SCTP") => Some(Protocol::SCTP),
        Some(_) => None,
    }
}

/// `externalTrafficPolicy: Local` counts only where the type makes the service reachable from
/// outside, or a ClusterIP service lists externalIPs (section 2). The raw list decides.
fn external_local(spec: &ServiceSpec) -> bool {
    let reachable = match spec.type_.as_deref() {
        Some("LoadBalancer" | "NodePort") => true,
        None | Some("" | "ClusterIP") => spec.external_ips.as_ref().is_some_and(|l| !l.is_empty()),
        Some(_) => false,
    };
    reachable && spec.external_traffic_policy.as_deref() == Some("Local")
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    spec.session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client| client.timeout_seconds)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .filter(|seconds| *seconds != 0)
        .unwrap_or(AFFINITY_SECONDS)
}

/// Source ranges that can be read; a `/0` opens its family altogether (section 6).
fn source_ranges(spec: &ServiceSpec) -> Box<[IpNet]> {
    let mut ranges: Vec<IpNet> = spec
        .load_balancer_source_ranges
        .iter()
        .flatten()
        .filter_map(|text| address::parse_prefix(text))
        .collect();
    for family in [Family::V4, Family::V6] {
        let same = |range: &IpNet| Family::of(range.addr()) == family;
        if ranges
            .iter()
            .any(|range| same(range) && range.prefix_len() == 0)
        {
            ranges.retain(|range| !same(range));
        }
    }
    ranges.into()
}
