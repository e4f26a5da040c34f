//! Who of a directory's Services holds which ClusterIPs and node ports, and the ranges they are
//! from. Plain data; how a value is found is for [`super::draft`] and [`super::allocate`].

use crate::model::desired::{Family, ObjectName};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServicePort;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;

/// A value in use, and whether a manifest names it: named ones win over automatic ones.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Held<T> {
    /// The address or port.
    pub value: T,
    /// Whether the manifest names it.
    pub named: bool,
}

/// What one Service holds.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Allocation {
    /// ClusterIPs, in the order of the Service's families.
    pub cluster_ips: Vec<Held<IpAddr>>,
    /// Node ports by `port/protocol`.
    pub node_ports: BTreeMap<String, Held<u16>>,
    /// The health check node port.
    pub health_port: Option<Held<u16>>,
}

impl Allocation {
    pub(super) fn ports(&self) -> impl Iterator<Item = &Held<u16>> {
        self.node_ports.values().chain(&self.health_port)
    }
}

/// Where values are taken from.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// `--service-cluster-ip-range`: the first is the default family.
    pub cluster_ips: Vec<IpNet>,
    /// `--service-node-port-range`.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for Ranges {
    /// The node ports of every cluster; addresses of which nothing else in a home or data centre
    /// is likely to be.
    fn default() -> Self {
        let ranges = [
            IpAddr::from([10, 96, 0, 0]),
            IpAddr::from([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0]),
        ];
        let networks = ranges.into_iter().zip([16, 112]);
        Self {
            cluster_ips: networks
                .map(|(address, bits)| IpNet::new_assert(address, bits))
                .collect(),
            node_ports: 30_000..=32_767,
        }
    }
}

impl Ranges {
    pub(super) fn of(&self, family: Family) -> Option<&IpNet> {
        self.cluster_ips
            .iter()
            .find(|range| Family::of(range.addr()) == family)
    }

    pub(super) fn default_family(&self) -> Family {
        self.cluster_ips
            .first()
            .map_or(Family::V4, |range| Family::of(range.addr()))
    }
}

/// Who holds what.
#[derive(Debug)]
pub(super) struct Holdings {
    pub(super) ranges: Ranges,
    pub(super) held: BTreeMap<ObjectName, Allocation>,
    pub(super) address_owner: HashMap<IpAddr, ObjectName>,
    pub(super) port_owner: HashMap<u16, ObjectName>,
}

impl Holdings {
    /// Nothing held of these ranges.
    pub(super) fn new(ranges: Ranges) -> Self {
        Self {
            ranges,
            held: BTreeMap::new(),
            address_owner: HashMap::new(),
            port_owner: HashMap::new(),
        }
    }

    /// Gives everything of a Service back.
    pub(super) fn take(&mut self, name: &ObjectName) -> Option<Allocation> {
        let allocation = self.held.remove(name)?;
        for address in &allocation.cluster_ips {
            if self.address_owner.get(&address.value) == Some(name) {
                self.address_owner.remove(&address.value);
            }
        }
        for port in allocation.ports() {
            if self.port_owner.get(&port.value) == Some(name) {
                self.port_owner.remove(&port.value);
            }
        }
        Some(allocation)
    }

    /// Notes what a Service holds from now on.
    pub(super) fn hold(&mut self, name: ObjectName, allocation: Allocation) {
        for address in &allocation.cluster_ips {
            self.address_owner.insert(address.value, name.clone());
        }
        for port in allocation.ports() {
            self.port_owner.insert(port.value, name.clone());
        }
        self.held.insert(name, allocation);
    }

    /// Takes from a Service what another one was given.
    pub(super) fn give_way(&mut self, other: &ObjectName, to: &Allocation) {
        let Some(mut allocation) = self.take(other) else {
            return;
        };
        let taken = |port: &Held<u16>| to.ports().any(|new| new.value == port.value);
        let at = |address: IpAddr| to.cluster_ips.iter().any(|new| new.value == address);
        allocation.cluster_ips.retain(|address| !at(address.value));
        allocation.node_ports.retain(|_, port| !taken(port));
        allocation.health_port = allocation.health_port.filter(|port| !taken(port));
        self.hold(other.clone(), allocation);
    }
}

/// What a Service's port is known by among its node ports.
pub(super) fn port_key(port: &ServicePort) -> String {
    format!(
        "{}/{}",
        port.port,
        port.protocol.as_deref().unwrap_or("TCP")
    )
}
