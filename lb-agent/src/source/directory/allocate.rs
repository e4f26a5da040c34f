//! ClusterIPs and node ports for the Services of a directory, as the API server hands them out.
//! Pure; [`Allocator::held`] is what the edge writes down so that a restart changes nothing.
//!
//! Automatic values start at a hash of the name and probe upwards, beginning above the band that
//! the API server leaves to explicit requests (KEP-3070, KEP-3668).

use super::draft::Draft;
use super::holdings::{Allocation, Holdings, Ranges, port_key};
use super::validate::FieldErrors;
use crate::model::desired::ObjectName;
use k8s_openapi::api::core::v1::Service;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Hands out what nobody holds.
#[derive(Debug)]
pub struct Allocator {
    pub(super) holdings: Holdings,
    revision: u64,
}

impl Allocator {
    /// An allocator that continues from what was written down.
    pub fn new(ranges: Ranges, held: BTreeMap<ObjectName, Allocation>) -> Self {
        let mut holdings = Holdings::new(ranges);
        for (name, allocation) in held {
            holdings.hold(name, allocation);
        }
        Self {
            holdings,
            revision: 0,
        }
    }

    /// What is held now.
    pub const fn held(&self) -> &BTreeMap<ObjectName, Allocation> {
        &self.holdings.held
    }

    /// Another number whenever [`Self::held`] may be another.
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// Gives everything of a Service back.
    pub fn release(&mut self, name: &ObjectName) {
        self.revision += u64::from(self.holdings.take(name).is_some());
    }

    /// Values that the manifest no longer names stay with the Service, but give way to others who
    /// name them. To be called for every changed Service before any of them is assigned.
    pub fn unname(&mut self, service: &Service) {
        let Some(held) = self
            .holdings
            .held
            .get_mut(&ObjectName::of(&service.metadata))
        else {
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
        let held = self.holdings.held.get(&ObjectName::of(&service.metadata));
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
        let old = self.holdings.take(&name);
        let mut draft = Draft::new(&self.holdings, &name, old.as_ref());
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
                self.holdings.hold(name, old);
            }
            return Err(errors);
        }
        for other in &evict {
            self.holdings.give_way(other, &new);
        }
        *spec = completed;
        self.revision += u64::from(old.as_ref() != Some(&new));
        self.holdings.hold(name, new);
        Ok(evict)
    }
}

#[cfg(test)]
#[path = "allocate_tests.rs"]
mod tests;
