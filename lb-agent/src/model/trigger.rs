//! When the changes happened that are being programmed: the
//! `endpoints.kubernetes.io/last-change-trigger-time` annotations of changed slices, which
//! programming latency is measured from (section 14).

use super::desired::{Family, ObjectName};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// The moment the annotation names, if it is there and readable.
pub fn trigger_time(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION)?.parse().ok()
}

/// A service in one family: each is programmed on its own.
type Key = (Arc<ObjectName>, Family);

/// Moments not yet asked for, by service and family.
#[derive(Debug, Default)]
pub(super) struct TriggerTimes(BTreeMap<Key, Vec<Timestamp>>);

impl TriggerTimes {
    /// A slice of the service changed.
    pub(super) fn changed(
        &mut self,
        service: &Arc<ObjectName>,
        family: Family,
        at: Option<Timestamp>,
    ) {
        if let Some(at) = at {
            let key = (Arc::clone(service), family);
            self.0.entry(key).or_default().push(at);
        }
    }

    /// A slice of the service is gone. Its annotation tells when it was last updated, not when it
    /// was removed, so the service's moments mean nothing any more.
    pub(super) fn removed(&mut self, service: &Arc<ObjectName>, family: Family) {
        self.0.remove(&(Arc::clone(service), family));
    }

    /// Hands out what was collected since the last call and lies after `start` (what happened
    /// before the process began is not its latency).
    pub(super) fn take(
        &mut self,
        start: Timestamp,
    ) -> BTreeMap<(ObjectName, Family), Vec<Timestamp>> {
        std::mem::take(&mut self.0)
            .into_iter()
            .filter_map(|((service, family), mut times)| {
                times.retain(|time| *time > start);
                (!times.is_empty()).then(|| ((service.as_ref().clone(), family), times))
            })
            .collect()
    }
}
