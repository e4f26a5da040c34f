//! One Service's assignment in the making: what it names is checked, the rest is found. Pure;
//! nothing of the allocator changes before the whole of it is known to be possible.

use super::defaults::{has_node_ports, is_external_name, is_headless, needs_health_port};
use super::holdings::{Allocation, Held, Holdings, port_key};
use super::validate::FieldErrors;
use crate::model::desired::{Family, ObjectName};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::ServiceSpec;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// One assignment that has not happened yet.
pub(super) struct Draft<'a> {
    holdings: &'a Holdings,
    name: &'a ObjectName,
    old: Option<&'a Allocation>,
    pub(super) new: Allocation,
    pub(super) evict: BTreeSet<ObjectName>,
    pub(super) errors: FieldErrors,
}

impl<'a> Draft<'a> {
    /// Nothing assigned yet to the Service of this name, which held `old`.
    pub(super) fn new(
        holdings: &'a Holdings,
        name: &'a ObjectName,
        old: Option<&'a Allocation>,
    ) -> Self {
        Self {
            holdings,
            name,
            old,
            new: Allocation::default(),
            evict: BTreeSet::new(),
            errors: FieldErrors::default(),
        }
    }
}

impl Draft<'_> {
    pub(super) fn addresses(&mut self, spec: &mut ServiceSpec) {
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
                .map(|family| family.name().to_owned())
                .collect(),
        );
    }

    /// The families of a Service, by what it names, else by its policy and the ranges.
    fn families(&mut self, spec: &mut ServiceSpec) -> Option<Vec<Family>> {
        let ranges = &self.holdings.ranges;
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
                let value = format!("{:?}", family.name());
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
        if let Some(owner) = self.holdings.address_owner.get(&address) {
            let holds = &self.holdings.held[owner].cluster_ips;
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
        let Some(range) = self.holdings.ranges.of(family) else {
            self.errors
                .internal("spec.clusterIPs", "no range to allocate a service IP from");
            return None;
        };
        let free = |address: &IpAddr| !self.holdings.address_owner.contains_key(address);
        let before = self.old.into_iter().flat_map(|old| &old.cluster_ips);
        let before = before
            .map(|held| held.value)
            .find(|old| range.contains(old) && free(old));
        let found = before.or_else(|| {
            let size = address_count(range);
            // The first address is the `kubernetes` Service's by custom, the last a broadcast's.
            let usable = 1..size.saturating_sub(1).max(1);
            let band = (size / 16).clamp(16, 256).min(usable.end - 1);
            let start = hash(&[&self.name.namespace, &self.name.name, family.name()]);
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

    pub(super) fn node_ports(&mut self, spec: &mut ServiceSpec) {
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
            let held = if let Some((_, held)) = sibling {
                Some(Held {
                    value: held.value,
                    named: false,
                })
            } else {
                let old = self.old.and_then(|old| old.node_ports.get(&key)).copied();
                self.automatic_port(old, &key)
            };
            port.node_port = held.map(|held| i32::from(held.value));
            self.new.node_ports.extend(held.map(|held| (key, held)));
        }
        spec.ports = Some(ports);
    }

    pub(super) fn health_port(&mut self, spec: &mut ServiceSpec) {
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
        let range = &self.holdings.ranges.node_ports;
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
        if let Some(owner) = self.holdings.port_owner.get(&port) {
            let holds = &self.holdings.held[owner];
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
        let range = &self.holdings.ranges.node_ports;
        let free = |port: &u16| {
            range.contains(port)
                && !self.holdings.port_owner.contains_key(port)
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
