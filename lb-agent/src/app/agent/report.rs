//! What the loop tells: what is refused and what is served.

use super::Agent;
use crate::app::Refusal;
use std::collections::BTreeSet;

impl Agent {
    /// Publishes what is refused, and says it once.
    pub(super) fn report(&mut self) {
        let (state, planner) = (self.reconciler.state(), self.reconciler.planner());
        let mut refusals: BTreeSet<Refusal> = state
            .refusals()
            .iter()
            .map(|refusal| Refusal {
                object: refusal.object.to_string(),
                reason: refusal.reason.name().to_owned(),
                message: refusal.to_string(),
            })
            .collect();
        refusals.extend(planner.refused().iter().map(|(name, refused)| Refusal {
            object: name.to_string(),
            reason: refused.reason().to_owned(),
            message: format!("Service {name}: {}", refused.message()),
        }));
        for news in refusals.difference(&self.told) {
            tracing::warn!(
                object = news.object,
                reason = news.reason,
                "{}",
                news.message
            );
        }
        self.told.clone_from(&refusals);
        let (services, endpoints) = planner.served();
        let fill = self.datapath.fill(planner.used(), self.flows);
        let devices = self.datapath.device_names(&self.facts);
        self.snapshot.send_modify(|snapshot| {
            snapshot.refusals = refusals.into_iter().collect();
            (snapshot.services, snapshot.endpoints) = (services, endpoints);
            snapshot.fill = fill;
            snapshot.devices = devices;
        });
    }
}
