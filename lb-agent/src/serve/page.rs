//! How a metric of the catalog is written into the exposition.

use crate::durations::Durations;
use crate::serve::catalog::{Kind, Metric};
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::borrow::Cow;
use std::fmt;

/// One line of the page: values of the metric's labels in their order, and the value.
pub(super) struct Sample<'a> {
    pub(super) labels: Vec<Cow<'a, str>>,
    pub(super) value: Value,
}

/// The value of a sample.
pub(super) enum Value {
    Count(u64),
    Number(f64),
    Histogram { sum: f64, buckets: Vec<(f64, u64)> },
}

impl From<&Durations> for Value {
    fn from(durations: &Durations) -> Self {
        Self::Histogram {
            sum: durations.sum(),
            buckets: durations.buckets().collect(),
        }
    }
}

impl<'a> Sample<'a> {
    /// A sample without labels.
    pub(super) fn plain(value: Value) -> Self {
        Self {
            labels: Vec::new(),
            value,
        }
    }

    /// A sample with these values of the metric's labels.
    pub(super) fn labelled(labels: impl IntoIterator<Item = &'a str>, value: Value) -> Self {
        Self {
            labels: labels.into_iter().map(Cow::Borrowed).collect(),
            value,
        }
    }
}

/// Writes one metric with its samples.
pub(super) fn write<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &Metric,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> fmt::Result {
    let kind = match metric.kind {
        Kind::Counter => MetricType::Counter,
        Kind::Gauge => MetricType::Gauge,
        Kind::Histogram => MetricType::Histogram,
    };
    let mut page = encoder.encode_descriptor(metric.name, metric.help, None, kind)?;
    for sample in samples {
        debug_assert_eq!(sample.labels.len(), metric.labels.len(), "{}", metric.name);
        let labels: Vec<(&str, &str)> = metric
            .labels
            .iter()
            .zip(&sample.labels)
            .map(|(name, value)| (*name, value.as_ref()))
            .collect();
        if labels.is_empty() {
            write_value(&mut page, metric.kind, sample.value)?;
        } else {
            write_value(&mut page.encode_family(&labels)?, metric.kind, sample.value)?;
        }
    }
    Ok(())
}

fn write_value(line: &mut MetricEncoder<'_>, kind: Kind, value: Value) -> fmt::Result {
    match (value, kind) {
        (Value::Count(value), Kind::Counter) => {
            line.encode_counter::<NoLabelSet, _, f64>(&value, None)
        }
        (Value::Number(value), Kind::Counter) => {
            line.encode_counter::<NoLabelSet, _, f64>(&value, None)
        }
        (Value::Count(value), _) => line.encode_gauge(&value),
        (Value::Number(value), _) => line.encode_gauge(&value),
        (Value::Histogram { sum, buckets }, _) => {
            let count = buckets.iter().map(|(_, count)| count).sum();
            line.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        }
    }
}
