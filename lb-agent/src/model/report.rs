//! Figures that follow from the objects alone: gauges and health port counts (sections 11, 14).

use super::desired::{Family, ObjectName};
use super::service::Service;
use super::state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

/// Service ports of one family that are silent here because of a Local policy: endpoints exist, but
/// none on this node (`sync_proxy_rules_no_local_endpoints_total`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NoLocalEndpoints {
    /// For ClusterIP clients.
    pub internal: usize,
    /// For clients from outside.
    pub external: usize,
}

impl State {
    /// Counts the service ports that are silent here.
    pub fn no_local_endpoints(&self, family: Family) -> NoLocalEndpoints {
        let mut count = NoLocalEndpoints::default();
        for (name, service) in &self.services {
            if !(service.internal_local || service.external_local)
                || service.cluster_ip(family).is_none()
            {
                continue;
            }
            for port in &service.ports {
                let merged = self.endpoints(name, &port.name, port.protocol, family);
                let selection = self.selection(service, port, family, &merged);
                if selection.has_endpoints && selection.local_is_empty {
                    count.internal += usize::from(service.internal_local);
                    count.external += usize::from(
                        service.external_local && service.has_external_frontend(port, family),
                    );
                }
            }
        }
        count
    }

    /// The health check ports that are due, by service.
    pub fn health_check_node_ports(&self, family: Family) -> BTreeMap<ObjectName, u16> {
        self.services
            .iter()
            .filter(|(_, service)| {
                service.health_check_node_port != 0 && service.cluster_ip(family).is_some()
            })
            .map(|(name, service)| (name.as_ref().clone(), service.health_check_node_port))
            .collect()
    }

    /// The health check ports that are due, with what they report.
    pub fn health_checks(&self) -> HealthChecks {
        let mut checks = HealthChecks::new();
        for name in &self.health_checked {
            let Some(service) = self.services.get(name) else {
                continue;
            };
            for family in service.families() {
                let mut ready = LocalReady::default();
                self.add_local_ready(name, service, family, &mut ready);
                let check = HealthCheck {
                    port: service.health_check_node_port,
                    local_ready: ready.counts().remove(name.as_ref()).unwrap_or(0),
                };
                checks.insert((name.as_ref().clone(), family), check);
            }
        }
        checks
    }

    fn add_local_ready(
        &self,
        name: &Arc<ObjectName>,
        service: &Service,
        family: Family,
        ready: &mut LocalReady,
    ) {
        for port in &service.ports {
            let merged = self.endpoints(name, &port.name, port.protocol, family);
            for (address, endpoint) in merged {
                if endpoint.local && endpoint.ready {
                    ready.add(name.as_ref(), address.ip());
                }
            }
        }
    }

    /// What each health check port reports: distinct local ready addresses over all ports of the
    /// service. Services without one are absent.
    pub fn local_ready(&self, family: Family) -> BTreeMap<ObjectName, usize> {
        let mut ready = LocalReady::default();
        for (name, service) in &self.services {
            self.add_local_ready(name, service, family, &mut ready);
        }
        ready.counts()
    }
}

/// A health check port that is due (section 11).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HealthCheck {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// How many distinct addresses of the service are ready on this node, over all its ports.
    pub local_ready: usize,
}

/// The health check ports by service and family: each family has a server of its own.
pub type HealthChecks = BTreeMap<(ObjectName, Family), HealthCheck>;

/// Collects local ready endpoints; an address that serves several ports counts once.
#[derive(Debug, Default)]
pub struct LocalReady(BTreeMap<ObjectName, BTreeSet<IpAddr>>);

impl LocalReady {
    /// An endpoint of the service that is ready and on this node.
    pub fn add(&mut self, service: &ObjectName, address: IpAddr) {
        if let Some(addresses) = self.0.get_mut(service) {
            addresses.insert(address);
        } else {
            self.0.insert(service.clone(), BTreeSet::from([address]));
        }
    }

    /// The number of addresses of each service that has any.
    pub fn counts(self) -> BTreeMap<ObjectName, usize> {
        self.0
            .into_iter()
            .map(|(service, addresses)| (service, addresses.len()))
            .collect()
    }
}
