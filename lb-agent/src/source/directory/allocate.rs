//! ClusterIPs and node ports for the Services of a directory, as the API server hands them out.
//! Pure; [`Allocator::held`] is what the edge writes down so that a restart changes nothing.
//!
//! Automatic values start at a hash of the name and probe upwards, beginning above the band that
//! the API server leaves to explicit requests (KEP-3070, KEP-3668).

use super::defaults::{has_node_ports, is_external_name, is_headless, needs_health_port};
use super::object::name_of;
use super::validate::FieldErrors;
use crate::model::desired::{Family, ObjectName};
use crate::source::endpoints::address_type;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
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
    fn ports(&self) -> impl Iterator<Item = &Held<u16>> {
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
    fn of(&self, family: Family) -> Option<&IpNet> {
        self.cluster_ips
            .iter()
            .find(|range| Family::of(range.addr()) == family)
    }

    fn default_family(&self) -> Family {
        self.cluster_ips
            .first()
            .map_or(Family::V4, |range| Family::of(range.addr()))
    }
}

/// Who holds what.
#[derive(Debug)]
pub struct Allocator {
    ranges: Ranges,
    held: BTreeMap<ObjectName, Allocation>,
    address_owner: HashMap<IpAddr, ObjectName>,
    port_owner: HashMap<u16, ObjectName>,
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

    /// Gives everything of a Service back.
    pub fn release(&mut self, name: &ObjectName) -> Option<Allocation> {
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
        let Some(held) = self.held.get_mut(&name_of(&service.metadata)) else {
            return;
        };
        let Some(spec) = &service.spec else { return };
        let named: BTreeSet<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|address| address.parse().ok())
            .collect();
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
    }

    /// Whether a Service names values and already holds all of them: those go first, so that of
    /// two who name the same the one that has it keeps it.
    pub fn rank(&self, service: &Service) -> u8 {
        let Some(spec) = &service.spec else { return 2 };
        let held = self.held.get(&name_of(&service.metadata));
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
        let name = name_of(&service.metadata);
        let old = self.release(&name);
        let mut draft = Draft {
            allocator: self,
            name: &name,
            old: old.as_ref(),
            new: Allocation::default(),
            evict: BTreeSet::new(),
            errors: FieldErrors::default(),
        };
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
        self.hold(name, new);
        Ok(evict)
    }

    fn give_way(&mut self, other: &ObjectName, to: &Allocation) {
        let Some(mut allocation) = self.release(other) else {
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

fn port_key(port: &ServicePort) -> String {
    format!(
        "{}/{}",
        port.port,
        port.protocol.as_deref().unwrap_or("TCP")
    )
}

/// One assignment that has not happened yet.
struct Draft<'a> {
    allocator: &'a Allocator,
    name: &'a ObjectName,
    old: Option<&'a Allocation>,
    new: Allocation,
    evict: BTreeSet<ObjectName>,
    errors: FieldErrors,
}

impl Draft<'_> {
    fn addresses(&mut self, spec: &mut ServiceSpec) {
        if is_external_name(spec) || is_headless(spec) {
            return;
        }
        let Some(families) = self.families(spec) else {
            return;
        };
        let named: Vec<String> = spec.cluster_ips.clone().unwrap_or_default();
        for (index, family) in families.iter().enumerate() {
            let held = match named.get(index).and_then(|text| text.parse().ok()) {
                Some(address) => self.named_address(address, &named),
                None => self.automatic_address(*family),
            };
            self.new.cluster_ips.extend(held);
        }
        let list: Vec<String> = self
            .new
            .cluster_ips
            .iter()
            .map(|held| held.value.to_string())
            .collect();
        spec.cluster_ip = list.first().cloned();
        spec.cluster_ips = Some(list);
        spec.ip_families = Some(
            families
                .into_iter()
                .map(|family| address_type(family).to_owned())
                .collect(),
        );
    }

    /// The families of a Service, by what it names, else by its policy and the ranges.
    fn families(&mut self, spec: &mut ServiceSpec) -> Option<Vec<Family>> {
        let ranges = &self.allocator.ranges;
        let policy = spec
            .ip_family_policy
            .get_or_insert_with(|| "SingleStack".to_owned())
            .clone();
        let named: Vec<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|text| text.parse().ok())
            .collect();
        let asked = spec.ip_families.iter().flatten();
        let mut families: Vec<Family> = asked
            .map(|family| {
                if family == "IPv4" {
                    Family::V4
                } else {
                    Family::V6
                }
            })
            .collect();
        families.extend(
            named
                .iter()
                .skip(families.len())
                .map(|address| Family::of(*address)),
        );
        let configured = |family: Family| ranges.of(family).is_some();
        if policy == "RequireDualStack"
            && named.len() < 2
            && !(configured(Family::V4) && configured(Family::V6))
        {
            let detail = "this cluster is not configured for dual-stack services";
            self.errors
                .invalid("spec.ipFamilyPolicy", "\"RequireDualStack\"", detail);
            return None;
        }
        for (index, family) in families.iter().enumerate().skip(named.len()) {
            if !configured(*family) {
                let value = format!("{:?}", address_type(*family));
                let path = format!("spec.ipFamilies[{index}]");
                self.errors
                    .invalid(path, value, "not configured on this cluster");
                return None;
            }
        }
        if families.is_empty() {
            families.push(ranges.default_family());
        }
        if policy != "SingleStack" && families.len() == 1 {
            let other = if families[0] == Family::V4 {
                Family::V6
            } else {
                Family::V4
            };
            families.extend(configured(other).then_some(other));
        }
        Some(families)
    }

    fn named_address(&mut self, address: IpAddr, list: &[String]) -> Option<Held<IpAddr>> {
        if let Some(owner) = self.allocator.address_owner.get(&address) {
            let holds = &self.allocator.held[owner].cluster_ips;
            if holds.iter().any(|held| held.value == address && held.named) {
                let detail =
                    format!("failed to allocate IP {address}: provided IP is already allocated");
                self.errors
                    .invalid("spec.clusterIPs", format!("{list:?}"), detail);
                return None;
            }
            self.evict.insert(owner.clone());
        }
        Some(Held {
            value: address,
            named: true,
        })
    }

    fn automatic_address(&mut self, family: Family) -> Option<Held<IpAddr>> {
        let Some(range) = self.allocator.ranges.of(family) else {
            self.errors
                .internal("spec.clusterIPs", "no range to allocate a service IP from");
            return None;
        };
        let free = |address: &IpAddr| !self.allocator.address_owner.contains_key(address);
        let before = self.old.into_iter().flat_map(|old| &old.cluster_ips);
        let before = before
            .map(|held| held.value)
            .find(|old| range.contains(old) && free(old));
        let found = before.or_else(|| {
            let size = address_count(range);
            // The first address is the `kubernetes` Service's by custom, the last a broadcast's.
            let usable = 1..size.saturating_sub(1).max(1);
            let band = (size / 16).clamp(16, 256).min(usable.end - 1);
            let start = hash(&[&self.name.namespace, &self.name.name, address_type(family)]);
            probe(usable, band, start)
                .map(|offset| nth(range, offset))
                .find(free)
        });
        if found.is_none() {
            let detail = "failed to allocate a serviceIP: range is full";
            self.errors.internal("spec.clusterIPs", detail);
        }
        found.map(|value| Held {
            value,
            named: false,
        })
    }

    fn node_ports(&mut self, spec: &mut ServiceSpec) {
        if !has_node_ports(spec) {
            return;
        }
        let automatic = spec.allocate_load_balancer_node_ports != Some(false);
        let mut ports = spec.ports.take().unwrap_or_default();
        for (index, port) in ports.iter().enumerate() {
            if let Some(number) = port.node_port {
                let path = format!("spec.ports[{index}].nodePort");
                let held = self.named_port(number, &path);
                self.new
                    .node_ports
                    .extend(held.map(|held| (port_key(port), held)));
            }
        }
        for port in &mut ports {
            if port.node_port.is_some() || !automatic {
                continue;
            }
            let key = port_key(port);
            // TCP and UDP on one port share the number, as with the API server.
            let prefix = format!("{}/", port.port);
            let sibling = self
                .new
                .node_ports
                .iter()
                .find(|(key, _)| key.starts_with(&prefix));
            let held = match sibling {
                Some((_, held)) => Some(Held {
                    value: held.value,
                    named: false,
                }),
                None => {
                    let old = self.old.and_then(|old| old.node_ports.get(&key)).copied();
                    self.automatic_port(old, &key)
                }
            };
            port.node_port = held.map(|held| i32::from(held.value));
            self.new.node_ports.extend(held.map(|held| (key, held)));
        }
        spec.ports = Some(ports);
    }

    fn health_port(&mut self, spec: &mut ServiceSpec) {
        if !needs_health_port(spec) {
            return;
        }
        self.new.health_port = match spec.health_check_node_port.filter(|port| *port != 0) {
            Some(number) => self.named_port(number, "spec.healthCheckNodePort"),
            None => self.automatic_port(self.old.and_then(|old| old.health_port), "health"),
        };
        spec.health_check_node_port = self.new.health_port.map(|held| i32::from(held.value));
    }

    fn named_port(&mut self, number: i32, path: &str) -> Option<Held<u16>> {
        let range = &self.allocator.ranges.node_ports;
        let Some(port) = u16::try_from(number)
            .ok()
            .filter(|port| range.contains(port))
        else {
            let detail = format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            );
            self.errors.invalid(path, number, detail);
            return None;
        };
        if let Some(owner) = self.allocator.port_owner.get(&port) {
            let holds = &self.allocator.held[owner];
            if holds.ports().any(|held| held.value == port && held.named) {
                self.errors
                    .invalid(path, number, "provided port is already allocated");
                return None;
            }
            self.evict.insert(owner.clone());
        }
        Some(Held {
            value: port,
            named: true,
        })
    }

    fn automatic_port(&mut self, old: Option<Held<u16>>, key: &str) -> Option<Held<u16>> {
        let range = &self.allocator.ranges.node_ports;
        let free = |port: &u16| {
            range.contains(port)
                && !self.allocator.port_owner.contains_key(port)
                && !self.new.ports().any(|held| held.value == *port)
        };
        let (first, size) = (*range.start(), u64::from(range.end() - range.start()) + 1);
        let found = old.map(|held| held.value).filter(&free).or_else(|| {
            let band = (size / 32).clamp(16, 128).min(size - 1);
            let start = hash(&[&self.name.namespace, &self.name.name, key]);
            probe(0..size, band, start)
                .filter_map(|offset| first.checked_add(u16::try_from(offset).ok()?))
                .find(&free)
        });
        if found.is_none() {
            let detail = "failed to allocate a nodePort: range is full";
            self.errors.internal("spec.ports", detail);
        }
        found.map(|value| Held {
            value,
            named: false,
        })
    }
}

/// Every offset once: those above the band from a hashed start on, then the band's.
fn probe(usable: std::ops::Range<u64>, band: u64, start: u64) -> impl Iterator<Item = u64> {
    let first = usable.start.max(band);
    let count = usable.end.saturating_sub(first);
    let dynamic = (0..count).map(move |step| first + (start % count + step) % count);
    dynamic.chain((usable.start..first).rev())
}

/// Addresses of a range, at most a million: more Services there are not.
fn address_count(range: &IpNet) -> u64 {
    let bits = range.max_prefix_len() - range.prefix_len();
    1 << bits.min(20)
}

fn nth(range: &IpNet, offset: u64) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).unwrap_or_default();
            IpAddr::V4(u32::from(base).wrapping_add(offset).into())
        }
        IpAddr::V6(base) => IpAddr::V6(u128::from(base).wrapping_add(u128::from(offset)).into()),
    }
}

/// FNV-1a with a final mix: the same in every version of this program.
fn hash(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0xff])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
    hash ^ (hash >> 29)
}

#[cfg(test)]
#[path = "allocate_tests.rs"]
mod tests;
