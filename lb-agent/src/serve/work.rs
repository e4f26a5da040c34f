//! The agent's own work on the metrics page, under kube-proxy's names.

use crate::app::Snapshot;
use crate::app::account::{FAMILIES, FamilyWork};
use crate::durations::Durations;
use crate::serve::catalog::{self, Metric};
use crate::serve::page::{Sample, Value, write};
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::time::UNIX_EPOCH;

/// A histogram of one family's work.
type Histogram = fn(&FamilyWork) -> &Durations;

/// The agent's own work, as kube-proxy's dashboards ask for it.
pub(super) fn write_work(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let synced = snapshot.updates.map(|updates| updates.served_at());
    let queued = [0, 1].map(|at: usize| snapshot.work[at].queued);
    for (metric, times) in [
        (&catalog::LAST_SYNC, synced),
        (&catalog::LAST_QUEUED, queued),
    ] {
        let samples = FAMILIES.iter().zip(times).filter_map(|(family, at)| {
            let at = at?.duration_since(UNIX_EPOCH).ok()?;
            let value = Value::Number(at.as_secs_f64());
            Some(Sample::labelled([family.name()], value))
        });
        write(encoder, metric, samples)?;
    }
    let histograms: [(&Metric, Histogram); 4] = [
        (&catalog::SYNC_DURATION, |work| &work.syncs),
        (&catalog::FULL_SYNC, |work| &work.full),
        (&catalog::PARTIAL_SYNC, |work| &work.partial),
        (&catalog::PROGRAMMING, |work| &work.programming),
    ];
    for (metric, of) in histograms {
        let samples = FAMILIES
            .iter()
            .zip(&snapshot.work)
            .map(|(family, work)| Sample::labelled([family.name()], Value::from(of(work))));
        write(encoder, metric, samples)?;
    }
    let (services, endpoints) = (&snapshot.service_changes, &snapshot.endpoint_changes);
    for (metric, value) in [
        (&catalog::SERVICE_CHANGES, services.seen),
        (&catalog::SERVICE_CHANGES_PENDING, services.pending),
        (&catalog::ENDPOINT_CHANGES, endpoints.seen),
        (&catalog::ENDPOINT_CHANGES_PENDING, endpoints.pending),
    ] {
        write(encoder, metric, [Sample::plain(Value::Count(value))])?;
    }
    let gaps = FAMILIES
        .iter()
        .zip(&snapshot.work)
        .flat_map(|(family, work)| {
            let gaps = work.no_local;
            [("internal", gaps.internal), ("external", gaps.external)].map(|(policy, count)| {
                Sample::labelled([family.name(), policy], Value::Count(count as u64))
            })
        });
    write(encoder, &catalog::NO_LOCAL, gaps)
}
