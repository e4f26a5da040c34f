//! `docs/metrics.md`, made from the [catalog](super::catalog).

use crate::serve::catalog::{ALL, Kind, Metric, SLIS};
use std::fmt::Write;

/// The page.
pub fn markdown() -> String {
    let mut page = String::from(
        "<!-- Generated from lb-agent/src/serve/catalog.rs; `UPDATE_DOCS=1 cargo test -p lb-agent` writes it anew. -->\n\
         # Metrics\n\n\
         Served on `--metrics-bind-address` under `/metrics`, in the OpenMetrics text format, read from the\n\
         live tables at each scrape. Counters of services and reasons live in the tables: they go on counting\n\
         while no agent runs and do not start at zero with a new agent.\n\n\
         What a path cannot count has no series at all: an absent series means \"not counted\", 0 means\n\
         \"counted, and there was none\".\n",
    );
    metrics(&mut page, ALL);
    page.push_str(
        "\n# Health checks\n\nServed apart, under `/metrics/slis`, as components of Kubernetes do.\n",
    );
    metrics(&mut page, SLIS);
    page.push_str(
        "\n# What kube-proxy has and this agent has not\n\n\
         * `kubeproxy_sync_proxy_rules_iptables_*`, `kubeproxy_iptables_*`, \
         `kubeproxy_sync_proxy_rules_nftables_*`: there are no rules. `lb_table_write_failures_total` \
         tells of writes that failed.\n\
         * `kubeproxy_conntrack_reconciler_*`: connection tracking is not swept after a change; the \
         programs look at a flow's endpoint with each packet.\n\
         * `go_*`: this is no Go program. `rest_client_*` but the two above: no rate limiter, exec plugin \
         or transport of client-go.\n",
    );
    page
}

fn metrics(page: &mut String, metrics: &[&Metric]) {
    for metric in metrics {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let labels = match metric.labels {
            [] => String::new(),
            labels => format!(" · labels `{}`", labels.join("`, `")),
        };
        let name = metric.sample_name();
        // Writing to a String cannot fail.
        let _ = write!(page, "\n## `{name}`\n\n{kind}{labels}\n\n{}", metric.help);
        if !metric.note.is_empty() {
            let _ = write!(page, " {}", metric.note);
        }
        page.push('\n');
    }
}
