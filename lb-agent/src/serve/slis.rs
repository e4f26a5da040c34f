//! The page of health checks, which components of Kubernetes serve apart from their metrics.

use crate::serve::catalog;
use crate::serve::collector::{NodeMetrics, TableView};
use crate::serve::page::{Sample, Value, write};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use std::fmt;
use std::sync::Arc;

/// `/metrics/slis`: the health checks of a node.
#[derive(Debug)]
pub(super) struct Slis<T>(pub(super) Arc<NodeMetrics<T>>);

impl<T: TableView> Collector for Slis<T> {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let checks = [
            (["ping", "healthz"], &self.0.ping),
            (["service-path", "healthz"], &self.0.healthz),
            (["service-path", "livez"], &self.0.livez),
        ];
        let results = checks.map(|(labels, answers)| (labels, answers.results()));
        write(
            &mut encoder,
            &catalog::HEALTHCHECK,
            results.iter().filter_map(|(labels, (last, _))| {
                let value = Value::Count(u64::from((*last)?));
                Some(Sample::labelled(*labels, value))
            }),
        )?;
        let counts = results.iter().flat_map(|([name, kind], (_, counts))| {
            counts.map(|(status, count)| {
                Sample::labelled([*name, *kind, status], Value::Count(count))
            })
        });
        write(&mut encoder, &catalog::HEALTHCHECKS, counts)
    }
}
