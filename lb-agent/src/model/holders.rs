//! Who names an address.

use super::desired::ObjectName;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// Services by an address that they name.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<IpAddr, Vec<Arc<ObjectName>>>);

impl Holders {
    /// Those who name this address, in the order of their names.
    pub(super) fn get(&self, address: &IpAddr) -> &[Arc<ObjectName>] {
        self.0.get(address).map_or(&[], Vec::as_slice)
    }

    /// True if anybody names this address.
    pub(super) fn contains(&self, address: &IpAddr) -> bool {
        self.0.contains_key(address)
    }

    /// A service names an address. The names stay sorted, so that answers do not depend on the
    /// order of arrival.
    pub(super) fn hold(&mut self, address: IpAddr, name: &Arc<ObjectName>) {
        let names = self.0.entry(address).or_default();
        if let Err(place) = names.binary_search(name) {
            names.insert(place, Arc::clone(name));
        }
    }

    /// It does so no longer.
    pub(super) fn forget(&mut self, address: IpAddr, name: &Arc<ObjectName>) {
        if let Some(names) = self.0.get_mut(&address) {
            names.retain(|other| other != name);
            if names.is_empty() {
                self.0.remove(&address);
            }
        }
    }
}
