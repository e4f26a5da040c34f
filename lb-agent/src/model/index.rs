//! The indexes of [`State`]: who holds an address, who uses it, and whom a change touches thereby.

use super::claim::{Claim, Claimant};
use super::desired::{FrontendAddress, ObjectName};
use super::endpoint::Slice;
use super::frontend;
use super::service::Service;
use super::state::State;
use lb_common::table::FrontendKind;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

impl State {
    pub(super) fn index_service(
        &mut self,
        name: &Arc<ObjectName>,
        service: &Service,
        touched: &mut BTreeSet<Arc<ObjectName>>,
    ) {
        for (claim, claimant) in claims_of(name, service) {
            touched.extend(self.claims.add(claim, claimant));
        }
        for address in service.external_addresses() {
            self.external_addresses.hold(address, name);
        }
        for address in &service.cluster_ips {
            self.cluster_ips.hold(*address, name);
            self.touch_users_of(*address, touched);
        }
        self.judge(
            service
                .external_addresses()
                .chain(service.cluster_ips.iter().copied()),
        );
    }

    pub(super) fn unindex_service(
        &mut self,
        name: &Arc<ObjectName>,
        service: &Service,
        touched: &mut BTreeSet<Arc<ObjectName>>,
    ) {
        for (claim, claimant) in claims_of(name, service) {
            touched.extend(self.claims.remove(claim, &claimant));
        }
        for address in service.external_addresses() {
            self.external_addresses.forget(address, name);
        }
        for address in &service.cluster_ips {
            self.cluster_ips.forget(*address, name);
            self.touch_users_of(*address, touched);
        }
        self.judge(
            service
                .external_addresses()
                .chain(service.cluster_ips.iter().copied()),
        );
    }

    /// A ClusterIP came or went: services that use the address otherwise are touched.
    fn touch_users_of(&self, address: IpAddr, touched: &mut BTreeSet<Arc<ObjectName>>) {
        touched.extend(self.external_addresses.get(&address).iter().cloned());
        if self.endpoint_addresses.contains_key(&address) {
            let uses = |slice: &&Slice| slice.endpoints.iter().any(|e| e.address == address);
            touched.extend(
                self.slices
                    .values()
                    .filter(uses)
                    .map(|s| Arc::clone(&s.service)),
            );
        }
    }

    /// Decides anew for each address whether it is [`suspicious`](Self::suspicious).
    fn judge(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        for address in addresses {
            let used = self.external_addresses.contains(&address)
                || self.endpoint_addresses.contains_key(&address);
            if used && self.cluster_ips.contains(&address) {
                self.suspicious.insert(address);
            } else {
                self.suspicious.remove(&address);
            }
        }
    }

    pub(super) fn index_slice(&mut self, name: &Arc<ObjectName>, slice: &Slice) {
        let slices = self.slices_of.entry(Arc::clone(&slice.service));
        slices.or_default().insert(Arc::clone(name));
        for endpoint in &slice.endpoints {
            let count = self.endpoint_addresses.entry(endpoint.address).or_insert(0);
            *count += 1;
            if *count == 1 {
                self.judge(std::iter::once(endpoint.address));
            }
        }
    }

    pub(super) fn unindex_slice(&mut self, name: &Arc<ObjectName>, slice: &Slice) {
        if let Some(slices) = self.slices_of.get_mut(&slice.service) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        for endpoint in &slice.endpoints {
            if let Some(count) = self.endpoint_addresses.get_mut(&endpoint.address) {
                *count -= 1;
                if *count == 0 {
                    self.endpoint_addresses.remove(&endpoint.address);
                    self.judge(std::iter::once(endpoint.address));
                }
            }
        }
    }
}

/// Everything a service would listen on.
fn claims_of(name: &Arc<ObjectName>, service: &Service) -> Vec<(Claim, Claimant)> {
    let mut claims = Vec::new();
    for family in service.families() {
        for (index, port) in (0_u16..).zip(&service.ports) {
            for one in frontend::candidates(service, port, family) {
                claims.push((
                    frontend::claim(&one, port),
                    claimant(name, service, index, one.kind),
                ));
            }
        }
    }
    claims
}

/// The claimant of one frontend of a service.
pub(super) fn claimant(
    name: &Arc<ObjectName>,
    service: &Service,
    port: u16,
    kind: FrontendKind,
) -> Claimant {
    Claimant {
        external: kind != FrontendKind::ClusterIp,
        created: service.created,
        service: Arc::clone(name),
        port,
    }
}

/// The address of a frontend, if it has one of its own.
pub(super) fn exact(address: FrontendAddress) -> Option<IpAddr> {
    match address {
        FrontendAddress::Exact(address) => Some(address),
        FrontendAddress::NodePort(_) => None,
    }
}
