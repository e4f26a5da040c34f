//! ClusterIPs and node ports for the Services of a directory, as the API server hands them out.
//! Pure; [`Allocator::held`] is what the edge writes down so that a restart changes nothing.
//!
//! Automatic values start at a hash of the name and probe upwards, beginning above the band that
//! the API server leaves to explicit requests (KEP-3070, KEP-3668).

use super::draft::Draft;
use super::validate::FieldErrors;
use crate::model::desired::{Family, ObjectName};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
pub struct Allocator {
    pub(super) ranges: Ranges,
    pub(super) held: BTreeMap<ObjectName, Allocation>,
    pub(super) address_owner: HashMap<IpAddr, ObjectName>,
    pub(super) port_owner: HashMap<u16, ObjectName>,
    revision: u64,
}

impl Allocator {
    /// An allocator that continues from what was written down.
    pub fn new(ranges: Ranges, held: BTreeMap<ObjectName, Allocation>) -> Self {
        let (address_owner, port_owner) = (HashMap::new(), HashMap::new());
        let mut allocator = Self {
            ranges,
            held: BTreeMap::new(),
            address_owner,
            port_owner,
            revision: 0,
        };
        for (name, allocation) in held {
            allocator.hold(name, allocation);
        }
        allocator
    }

    /// What is held now.
    pub const fn held(&self) -> &BTreeMap<ObjectName, Allocation> {
        &self.held
    }

    /// Another number whenever [`Self::held`] may be another.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Gives everything of a Service back.
    pub fn release(&mut self, name: &ObjectName) {
        self.revision += u64::from(self.take(name).is_some());
    }

    fn take(&mut self, name: &ObjectName) -> Option<Allocation> {
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

    fn hold(&mut self, name: ObjectName, allocation: Allocation) {
        for address in &allocation.cluster_ips {
            self.address_owner.insert(address.value, name.clone());
        }
        for port in allocation.ports() {
            self.port_owner.insert(port.value, name.clone());
        }
        self.held.insert(name, allocation);
    }

    /// Values that the manifest no longer names stay with the Service, but give way to others who
    /// name them. To be called for every changed Service before any of them is assigned.
    pub fn unname(&mut self, service: &Service) {
        let Some(held) = self.held.get_mut(&ObjectName::of(&service.metadata)) else {
            return;
        };
        let Some(spec) = &service.spec else { return };
        let named: BTreeSet<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|address| address.parse().ok())
            .collect();
        let before = held.clone();
        for address in &mut held.cluster_ips {
            address.named &= named.contains(&address.value);
        }
        let ports: BTreeMap<String, i32> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port_key(port), port.node_port?)))
            .collect();
        for (key, port) in &mut held.node_ports {
            port.named &= ports.get(key) == Some(&i32::from(port.value));
        }
        self.revision += u64::from(*held != before);
    }

    /// Whether a Service names values and already holds all of them: those go first, so that of
    /// two who name the same the one that has it keeps it.
    pub fn rank(&self, service: &Service) -> u8 {
        let Some(spec) = &service.spec else { return 2 };
        let held = self.held.get(&ObjectName::of(&service.metadata));
        let ports: Vec<i32> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| port.node_port)
            .collect();
        let addresses: Vec<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect();
        if ports.is_empty() && addresses.is_empty() {
            return 2;
        }
        let holds = held.is_some_and(|held| {
            let has = |port: &i32| held.ports().any(|held| i32::from(held.value) == *port);
            let at = |address: &IpAddr| held.cluster_ips.iter().any(|held| held.value == *address);
            ports.iter().all(has) && addresses.iter().all(at)
        });
        u8::from(!holds)
    }

    /// Completes a defaulted, valid Service with its families, addresses and ports. Returns the
    /// Services that lost an automatic value to it and must be assigned again. On an error nothing
    /// has changed.
    pub fn assign(&mut self, service: &mut Service) -> Result<BTreeSet<ObjectName>, FieldErrors> {
        let name = ObjectName::of(&service.metadata);
        let old = self.take(&name);
        let mut draft = Draft::new(self, &name, old.as_ref());
        let spec = service.spec.get_or_insert_default();
        let mut completed = spec.clone();
        draft.addresses(&mut completed);
        draft.node_ports(&mut completed);
        draft.health_port(&mut completed);
        let Draft {
            new, evict, errors, ..
        } = draft;
        if !errors.is_empty() {
            if let Some(old) = old {
                self.hold(name, old);
            }
            return Err(errors);
        }
        for other in &evict {
            self.give_way(other, &new);
        }
        *spec = completed;
        self.revision += u64::from(old.as_ref() != Some(&new));
        self.hold(name, new);
        Ok(evict)
    }

    fn give_way(&mut self, other: &ObjectName, to: &Allocation) {
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

pub(super) fn port_key(port: &ServicePort) -> String {
    format!(
        "{}/{}",
        port.port,
        port.protocol.as_deref().unwrap_or("TCP")
    )
}

#[cfg(test)]
#[path = "allocate_tests.rs"]
mod tests;
