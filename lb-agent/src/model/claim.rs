//! Who holds which {address, port, protocol}: exactly one service port, decided by age and name,
//! never by the order in which objects happened to arrive.

use super::desired::{FrontendAddress, ObjectName};
use lb_common::addr::Protocol;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What can be held once.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Claim {
    pub(super) address: FrontendAddress,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
}

/// Who asks for it. The smallest holds: a ClusterIP before any external address (the API server
/// allocates ClusterIPs, while externalIPs are written by users), then age, then name.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Claimant {
    pub(super) external: bool,
    pub(super) created: i64,
    pub(super) service: Arc<ObjectName>,
    /// Index of the port in its service.
    pub(super) port: u16,
}

/// Every claim with its holder, and the few that others wait for.
#[derive(Debug, Default)]
pub(super) struct Claims {
    holders: HashMap<Claim, Claimant>,
    waiting: BTreeMap<Claim, BTreeSet<Claimant>>,
}

impl Claims {
    /// Adds a claimant. Returns the holder it displaced or must wait for, if any.
    pub(super) fn add(&mut self, claim: Claim, claimant: Claimant) -> Option<Arc<ObjectName>> {
        let Some(holder) = self.holders.get_mut(&claim) else {
            self.holders.insert(claim, claimant);
            return None;
        };
        if *holder == claimant {
            return None;
        }
        let other = Arc::clone(&holder.service);
        let waits = if claimant < *holder {
            std::mem::replace(holder, claimant)
        } else {
            claimant
        };
        self.waiting.entry(claim).or_default().insert(waits);
        Some(other)
    }

    /// Removes a claimant. Returns the service that holds the claim from now on, if it was waiting.
    pub(super) fn remove(&mut self, claim: Claim, claimant: &Claimant) -> Option<Arc<ObjectName>> {
        let waiting = self.waiting.get_mut(&claim);
        if self.holders.get(&claim) != Some(claimant) {
            if let Some(waiting) = waiting {
                waiting.remove(claimant);
                if waiting.is_empty() {
                    self.waiting.remove(&claim);
                }
            }
            return None;
        }
        let next = waiting.and_then(BTreeSet::pop_first);
        if self.waiting.get(&claim).is_some_and(BTreeSet::is_empty) {
            self.waiting.remove(&claim);
        }
        if let Some(next) = next {
            let service = Arc::clone(&next.service);
            self.holders.insert(claim, next);
            Some(service)
        } else {
            self.holders.remove(&claim);
            None
        }
    }

    /// The holder of a claim.
    pub(super) fn holder(&self, claim: &Claim) -> Option<&Claimant> {
        self.holders.get(claim)
    }

    /// Those who wait, with what they wait for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&Claim, &Claimant)> {
        self.waiting
            .iter()
            .flat_map(|(claim, waiting)| waiting.iter().map(move |one| (claim, one)))
    }
}
