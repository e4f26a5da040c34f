//! What the known objects mean: the answers of [`State`].

use super::desired::{
    Desired, DesiredEndpoint, DesiredFrontend, DesiredService, Family, ObjectName, ServicePortName,
};
use super::endpoint::{Endpoint, Slice};
use super::frontend;
use super::index::{claimant, exact};
use super::refusal::{Reason, Refusal};
use super::selection::{Merged, Selection, Wanted, merge, select};
use super::service::{Port, Service};
use super::state::{Dirty, State, add_names};
use crate::source::Kind;
use lb_common::addr::Protocol;
use lb_common::table::{EmptyAction, FrontendKind};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

impl State {
    /// Every service port there is, those that are served by nobody included.
    pub fn names(&self) -> Dirty {
        let mut names = Dirty::new();
        for (name, service) in &self.services {
            add_names(&mut names, name, service, None);
        }
        names
    }

    /// Everything that should be served.
    pub fn desired_all(&self) -> Desired {
        self.names()
            .into_iter()
            .filter_map(|name| self.desired(&name).map(|desired| (name, desired)))
            .collect()
    }

    /// How one service port should be served; `None` if there is none of this name.
    pub fn desired(&self, name: &ServicePortName) -> Option<DesiredService> {
        let (service, port, index) = self.find(name)?;
        let (object, service) = service;
        service.cluster_ip(name.family)?;
        let merged = self.endpoints(object, &port.name, name.protocol, name.family);
        let Selection {
            mut members,
            has_endpoints,
            ..
        } = self.selection(service, port, name.family, &merged);
        if name.protocol == Protocol::UDP {
            // Open conversations stay with an endpoint that serves, though new ones may avoid it:
            // it is about to end, on another node, or in another zone (section 10.1).
            for (address, endpoint) in &merged {
                if endpoint.ready || endpoint.serving {
                    members.entry(*address).or_insert((false, false));
                }
            }
        }
        let endpoints = members
            .into_iter()
            .filter_map(|(address, (cluster, local))| {
                let endpoint = merged.get(&address)?;
                let endpoint = DesiredEndpoint {
                    cluster,
                    local,
                    draining: endpoint.terminating,
                    on_this_node: endpoint.local,
                };
                Some((address, endpoint))
            })
            .collect();
        Some(DesiredService {
            frontends: self.frontends(object, service, port, index, name.family),
            internal_local: service.internal_local,
            external_local: service.external_local,
            source_ranges: service.allowed_sources(name.family, self.node.primary(name.family)),
            affinity_seconds: (service.affinity_seconds != 0).then_some(service.affinity_seconds),
            algorithm: self.options.algorithm,
            // An empty Cluster set means that nobody anywhere serves (section 4.3).
            cluster_empty: EmptyAction::Reject,
            local_empty: if has_endpoints {
                EmptyAction::Drop
            } else {
                EmptyAction::Reject
            },
            endpoints,
        })
    }

    /// What is refused now, each once.
    pub fn refusals(&self) -> BTreeSet<Refusal> {
        let mut refusals: BTreeSet<Refusal> = self
            .refused
            .values()
            .flat_map(|r| r.iter().cloned())
            .collect();
        self.add_waiting(&mut refusals);
        for address in &self.suspicious {
            self.add_suspicious(*address, &mut refusals);
        }
        for address in &self.host_addresses {
            for name in self.cluster_ips.get(address) {
                refusals.insert(Refusal {
                    kind: Kind::Service,
                    object: name.as_ref().clone(),
                    field: "spec.clusterIPs",
                    value: address.to_string(),
                    reason: Reason::OnThisNode,
                });
            }
        }
        refusals
    }

    /// Every endpoint known for a service name in a family, by port name and protocol, before any
    /// is chosen: what people want to see who ask why nobody serves.
    pub fn known_endpoints(
        &self,
        service: &ObjectName,
        family: Family,
    ) -> BTreeMap<(String, Protocol), BTreeMap<SocketAddr, Endpoint>> {
        let ports: BTreeSet<(&str, Protocol)> = self
            .slices(service, family)
            .flat_map(|slice| slice.ports.iter())
            .map(|port| (&*port.name, port.protocol))
            .collect();
        ports
            .into_iter()
            .map(|(port, protocol)| {
                let known = self.endpoints(service, port, protocol, family);
                let known = known
                    .into_iter()
                    .map(|(at, endpoint)| (at, endpoint.clone()));
                ((port.to_owned(), protocol), known.collect())
            })
            .collect()
    }

    #[expect(clippy::type_complexity, reason = "one private answer in three parts")]
    fn find(&self, name: &ServicePortName) -> Option<((&Arc<ObjectName>, &Service), &Port, u16)> {
        let service = self.services.get_key_value(&name.service)?;
        let (index, port) = (0_u16..)
            .zip(&service.1.ports)
            .find(|(_, port)| *port.name == *name.port && port.protocol == name.protocol)?;
        Some((service, port, index))
    }

    /// The endpoints of one service port, before selection.
    pub(super) fn endpoints(
        &self,
        service: &ObjectName,
        port: &str,
        protocol: Protocol,
        family: Family,
    ) -> Merged<'_> {
        let on_service = |address: IpAddr| self.is_cluster_ip(address);
        merge(self.slices(service, family), port, protocol, on_service)
    }

    fn slices(&self, service: &ObjectName, family: Family) -> impl Iterator<Item = &Slice> {
        self.slices_of
            .get(service)
            .into_iter()
            .flatten()
            .filter_map(|name| self.slices.get(name))
            .filter(move |slice| slice.family == family)
    }

    pub(super) fn selection(
        &self,
        service: &Service,
        port: &Port,
        family: Family,
        merged: &Merged<'_>,
    ) -> Selection {
        let wanted = Wanted::by(service, port, family);
        select(merged, wanted, self.node.zone.as_deref())
    }

    /// The frontends that are this service port's and nobody else's.
    fn frontends(
        &self,
        name: &Arc<ObjectName>,
        service: &Service,
        port: &Port,
        index: u16,
        family: Family,
    ) -> Vec<DesiredFrontend> {
        let mut frontends = frontend::candidates(service, port, family);
        frontends.retain(|one| {
            let me = claimant(name, service, index, one.kind);
            let on_this_node = one.kind == FrontendKind::ClusterIp
                && exact(one.address).is_some_and(|address| self.host_addresses.contains(&address));
            !on_this_node
                && self.claims.holder(&frontend::claim(one, port)) == Some(&me)
                && (one.kind == FrontendKind::ClusterIp
                    || exact(one.address)
                        .is_none_or(|address| self.foreign_cluster_ip(name, address).is_none()))
        });
        frontends
    }

    /// True if an endpoint's address is a ClusterIP.
    fn is_cluster_ip(&self, address: IpAddr) -> bool {
        // Nearly always empty, so nearly always free.
        self.suspicious.contains(&address) && self.cluster_ips.contains(&address)
    }

    /// The other service that has `address` as its ClusterIP.
    fn foreign_cluster_ip(&self, name: &ObjectName, address: IpAddr) -> Option<&Arc<ObjectName>> {
        let holders = self.cluster_ips.get(&address);
        holders.iter().find(|holder| holder.as_ref() != name)
    }

    /// Those who came second to an address and port.
    fn add_waiting(&self, refusals: &mut BTreeSet<Refusal>) {
        for (claim, claimant) in self.claims.waiting() {
            let address = exact(claim.address);
            let name = claimant.service.as_ref();
            if claimant.external
                && address.is_some_and(|address| self.foreign_cluster_ip(name, address).is_some())
            {
                // Refused for a better reason, by `add_suspicious`.
                continue;
            }
            let Some(holder) = self.claims.holder(claim) else {
                continue;
            };
            let field = match address {
                None => "spec.ports[].nodePort",
                Some(_) if !claimant.external => "spec.clusterIPs",
                Some(address) => self.external_field(name, address),
            };
            let protocol = protocol_name(claim.protocol);
            refusals.insert(Refusal {
                kind: Kind::Service,
                object: name.clone(),
                field,
                value: match address {
                    None => format!("{}/{protocol}", claim.port),
                    Some(address) => {
                        format!("{}/{protocol}", SocketAddr::new(address, claim.port))
                    }
                },
                reason: Reason::HeldByAnother(holder.service.as_ref().clone()),
            });
        }
    }

    /// The field that an external address of a service stands in.
    fn external_field(&self, name: &ObjectName, address: IpAddr) -> &'static str {
        let service = self.services.get(name);
        if service.is_some_and(|service| service.external_ips.contains(&address)) {
            "spec.externalIPs"
        } else {
            "status.loadBalancer.ingress[].ip"
        }
    }

    /// Everybody who uses a ClusterIP for something else.
    fn add_suspicious(&self, address: IpAddr, refusals: &mut BTreeSet<Refusal>) {
        for name in self.external_addresses.get(&address) {
            if let Some(other) = self.foreign_cluster_ip(name, address) {
                refusals.insert(Refusal {
                    kind: Kind::Service,
                    object: name.as_ref().clone(),
                    field: self.external_field(name, address),
                    value: address.to_string(),
                    reason: Reason::ClusterIpOfAnother(other.as_ref().clone()),
                });
            }
        }
        let Some(service) = self.cluster_ips.get(&address).first() else {
            return;
        };
        for (name, slice) in &self.slices {
            if slice.endpoints.iter().any(|e| e.address == address) {
                refusals.insert(Refusal {
                    kind: Kind::EndpointSlice,
                    object: name.as_ref().clone(),
                    field: "endpoints[].addresses",
                    value: address.to_string(),
                    reason: Reason::ServiceAddress(service.as_ref().clone()),
                });
            }
        }
    }
}

/// A protocol as the API writes it.
pub(super) const fn protocol_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::UDP => "UDP",
        Protocol::SCTP => "SCTP",
        _ => "TCP",
    }
}
