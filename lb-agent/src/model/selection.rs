//! Which endpoints are usable (section 4). Pure functions over the endpoints of one service port.

use super::endpoint::{Endpoint, NodeHint, Slice};
use super::service::{Port, Service};
use lb_common::addr::Protocol;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// The endpoints of one service port by address, after the rules for duplicates.
pub(super) type Merged<'a> = BTreeMap<SocketAddr, &'a Endpoint>;

/// Collects a service port's endpoints from the slices of its service and family, in the slices'
/// order. A copy that terminates never takes the place of another; else the last one wins
/// (section 3). Endpoints on a service's address are left out.
pub(super) fn merge<'a>(
    slices: impl Iterator<Item = &'a Slice>,
    name: &str,
    protocol: Protocol,
    is_service: impl Fn(IpAddr) -> bool,
) -> Merged<'a> {
    let mut merged = Merged::new();
    for slice in slices {
        let wanted =
            |port: &&super::endpoint::Port| &*port.name == name && port.protocol == protocol;
        for port in slice.ports.iter().filter(wanted) {
            for endpoint in slice.endpoints.iter().filter(|e| !is_service(e.address)) {
                let address = SocketAddr::new(endpoint.address, port.number);
                if endpoint.terminating {
                    merged.entry(address).or_insert(endpoint);
                } else {
                    merged.insert(address, endpoint);
                }
            }
        }
    }
    merged
}

/// Which sets clients of a service port can meet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    /// The Cluster set.
    pub(super) cluster: bool,
    /// The Local set.
    pub(super) local: bool,
}

impl Wanted {
    pub(super) fn by(service: &Service, port: &Port, family: super::desired::Family) -> Self {
        let external = service.has_external_frontend(port, family);
        Self {
            cluster: !service.internal_local || external,
            local: service.internal_local || (service.external_local && external),
        }
    }
}

/// The sets of a service port.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Selection {
    /// Members by address: in the Cluster set, in the Local set.
    pub(super) members: BTreeMap<SocketAddr, (bool, bool)>,
    /// Anybody anywhere could serve: decides between refusal and silence (section 5.2).
    pub(super) has_endpoints: bool,
    /// Nobody is in the Local set, though one is wanted.
    pub(super) local_is_empty: bool,
}

/// Chooses the sets.
pub(super) fn select(merged: &Merged<'_>, wanted: Wanted, zone: Option<&str>) -> Selection {
    let mut members: BTreeMap<SocketAddr, (bool, bool)> = BTreeMap::new();
    if wanted.cluster {
        for address in cluster_set(merged, zone) {
            members.insert(address, (true, false));
        }
    }
    let mut local_is_empty = wanted.local;
    if wanted.local {
        for address in local_set(merged) {
            members.entry(address).or_default().1 = true;
            local_is_empty = false;
        }
    }
    let anybody = || merged.values().any(|e| e.ready || e.is_fallback());
    Selection {
        has_endpoints: members.values().any(|(cluster, _)| *cluster) || (wanted.local && anybody()),
        members,
        local_is_empty,
    }
}

fn cluster_set(merged: &Merged<'_>, zone: Option<&str>) -> Vec<SocketAddr> {
    let topology = Topology::of(merged, zone);
    let ready: Vec<SocketAddr> = merged
        .iter()
        .filter(|(_, endpoint)| endpoint.ready && topology.keeps(endpoint))
        .map(|(address, _)| *address)
        .collect();
    if ready.is_empty() {
        fallback(merged, |_| true)
    } else {
        ready
    }
}

fn local_set(merged: &Merged<'_>) -> Vec<SocketAddr> {
    let ready: Vec<SocketAddr> = merged
        .iter()
        .filter(|(_, endpoint)| endpoint.ready && endpoint.local)
        .map(|(address, _)| *address)
        .collect();
    if ready.is_empty() {
        fallback(merged, |endpoint| endpoint.local)
    } else {
        ready
    }
}

fn fallback(merged: &Merged<'_>, keep: impl Fn(&Endpoint) -> bool) -> Vec<SocketAddr> {
    merged
        .iter()
        .filter(|(_, endpoint)| endpoint.is_fallback() && keep(endpoint))
        .map(|(address, _)| *address)
        .collect()
}

/// The topology filter, decided over all ready endpoints of the service port.
enum Topology<'a> {
    SameNode,
    SameZone(&'a str),
    Off,
}

impl<'a> Topology<'a> {
    /// One ready endpoint without a hint switches that kind of hint off.
    fn of(merged: &Merged<'_>, zone: Option<&'a str>) -> Self {
        let ready = || merged.values().filter(|endpoint| endpoint.ready);
        if ready().all(|e| e.node_hint != NodeHint::None)
            && ready().any(|e| e.node_hint == NodeHint::This)
        {
            return Self::SameNode;
        }
        if let Some(zone) = zone
            && ready().all(|e| e.zones.is_some())
            && ready().any(|e| hints_zone(e, zone))
        {
            return Self::SameZone(zone);
        }
        Self::Off
    }

    fn keeps(&self, endpoint: &Endpoint) -> bool {
        match self {
            Self::SameNode => endpoint.node_hint == NodeHint::This,
            Self::SameZone(zone) => hints_zone(endpoint, zone),
            Self::Off => true,
        }
    }
}

fn hints_zone(endpoint: &Endpoint, zone: &str) -> bool {
    endpoint
        .zones
        .as_ref()
        .is_some_and(|zones| zones.iter().any(|hint| &**hint == zone))
}
