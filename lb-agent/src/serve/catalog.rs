//! Every metric there is: name, kind, labels, meaning. What is served and what the reference says
//! (`docs/metrics.md`) both come from here.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// Only grows (while the tables live).
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

/// One metric.
#[derive(Debug, Eq, PartialEq)]
pub struct Metric {
    /// The name; of a counter without the `_total` that the exposition appends.
    pub name: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, one sentence.
    pub help: &'static str,
    /// What is not counted, and what to mind; empty if nothing.
    pub note: &'static str,
}

/// Labels of a service port on one path.
const ON_PATH: &[&str] = &["namespace", "name", "port", "protocol", "ip_family", "path"];

/// Labels of a service port, path and direction.
const DIRECTED: &[&str] = &[
    "namespace",
    "name",
    "port",
    "protocol",
    "ip_family",
    "path",
    "direction",
];

/// The IP family alone.
const FAMILY: &[&str] = &["ip_family"];

macro_rules! metrics {
    ($($(#[$doc:meta])* $id:ident = $name:literal $kind:ident $labels:expr, $help:literal, $note:literal;)+) => {
        $(
            #[doc = $help]
            pub const $id: Metric = Metric {
                name: $name,
                kind: Kind::$kind,
                labels: $labels,
                help: $help,
                note: $note,
            };
        )+

        /// Every metric, in the order of the page.
        pub const ALL: &[&Metric] = &[$(&$id),+];
    };
}

metrics! {
    CONNECTIONS = "lb_service_connections" Counter ON_PATH,
        "Connections and UDP conversations sent to an endpoint.",
        "path=\"socket\" counts them when the socket connects or sends first; path=\"tc\" counts flows that began on the packet path. A connection is counted on one of the two.";
    ACTIVE = "lb_service_active_connections" Gauge ON_PATH,
        "Connections and UDP conversations that have not ended.",
        "path=\"socket\": sockets that are open; path=\"tc\": flows in the flow table that have not closed or expired. A packet-path flow of a backend that is gone is counted until it ends.";
    REJECTS = "lb_service_rejects" Counter ON_PATH,
        "Connections refused because no endpoint serves.",
        "A client that tries again is counted again.";
    DROPS = "lb_service_drops" Counter ON_PATH,
        "First packets dropped because the policy is Local and no endpoint is on this node.",
        "path=\"tc\" only: a socket hook can fail a connection but not drop it, so it leaves drops to the packet path.";
    PACKETS = "lb_service_packets" Counter DIRECTED,
        "Packets translated, by direction: `in` is towards the endpoints.",
        "path=\"tc\" only: after `connect` no packet of the socket path passes a program of ours, so there is no series for it.";
    BYTES = "lb_service_bytes" Counter DIRECTED,
        "Bytes of the packets translated, as the IP header counts them.",
        "path=\"tc\" only, for the same reason.";
    ENDPOINTS = "lb_service_endpoints" Gauge &["namespace", "name", "port", "protocol", "ip_family", "state"],
        "Endpoints in the tables by state.",
        "`draining` endpoints serve only because nobody better is there; those that only old flows still use are not counted.";
    REASONS = "lb_reasons" Counter &["reason"],
        "Verdicts of the programs by reason; see operations.md for each.",
        "Packets that are no service's are not counted: it would cost every packet of the node.";
    TABLE_USED = "lb_table_entries" Gauge &["table"],
        "Entries in use.",
        "";
    TABLE_CAPACITY = "lb_table_capacity" Gauge &["table"],
        "Entries there is room for.",
        "";
    TABLES_READABLE = "lb_tables_readable" Gauge &[],
        "1 if the tables could be read for this scrape.",
        "While it is 0 the series above are absent, not 0.";
    SYNCED = "lb_synced" Gauge &[],
        "1 once every source was complete and everything was written.",
        "";
    PROBE = "lb_datapath_probe" Gauge &[],
        "1 while the loaded programs treat a synthetic packet rightly, 0 while they do not.",
        "Absent before the first probe.";
    LAST_SYNC = "kubeproxy_sync_proxy_rules_last_timestamp_seconds" Gauge FAMILY,
        "When the tables were last in line with everything known, Unix time.",
        "kube-proxy's name. Absent before the first.";
    LAST_QUEUED = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds" Gauge FAMILY,
        "When a change last asked for a sync, Unix time.",
        "kube-proxy's name. Absent before the first.";
    SYNC_DURATION = "kubeproxy_sync_proxy_rules_duration_seconds" Histogram FAMILY,
        "Time to bring the tables in line, from the first change taken to the last write.",
        "kube-proxy's name and bounds, with two finer ones. What touches both families counts for each.";
    FULL_SYNC = "kubeproxy_sync_full_proxy_rules_duration_seconds" Histogram FAMILY,
        "The same for syncs that looked at everything: the first.",
        "kube-proxy's name.";
    PARTIAL_SYNC = "kubeproxy_sync_partial_proxy_rules_duration_seconds" Histogram FAMILY,
        "The same for syncs that looked at what had changed.",
        "kube-proxy's name.";
    PROGRAMMING = "kubeproxy_network_programming_duration_seconds" Histogram FAMILY,
        "Time from the change of an endpoint, as its slice's last-change-trigger-time tells, to the last write.",
        "kube-proxy's name and bounds. Nothing is counted for slices without the annotation, as those of a directory, for removals, and for changes from before the agent's start.";
    SERVICE_CHANGES = "kubeproxy_sync_proxy_rules_service_changes" Counter &[],
        "Changes of Services seen.",
        "kube-proxy's name; it counts each for both families, here it is counted once.";
    SERVICE_CHANGES_PENDING = "kubeproxy_sync_proxy_rules_service_changes_pending" Gauge &[],
        "Changes of Services that are not yet served.",
        "kube-proxy's name.";
    ENDPOINT_CHANGES = "kubeproxy_sync_proxy_rules_endpoint_changes" Counter &[],
        "Changes of EndpointSlices seen.",
        "kube-proxy's name.";
    ENDPOINT_CHANGES_PENDING = "kubeproxy_sync_proxy_rules_endpoint_changes_pending" Gauge &[],
        "Changes of EndpointSlices that are not yet served.",
        "kube-proxy's name.";
    NO_LOCAL = "kubeproxy_sync_proxy_rules_no_local_endpoints_total" Gauge &["ip_family", "traffic_policy"],
        "Service ports with the policy Local that have endpoints, but none on this node.",
        "kube-proxy's name: a gauge, whatever it ends in.";
    WRITES = "lb_table_writes" Counter &[],
        "Writes to the tables.",
        "";
    WRITE_FAILURES = "lb_table_write_failures" Counter &[],
        "Writes that failed; each is tried again.",
        "";
    MENDED = "lb_hooks_reattached" Counter &[],
        "Times a hook of ours was found detached and was attached again.",
        "Looked for every five seconds; in between its traffic went by it.";
    SOCKETS_CLOSED = "lb_sockets_closed" Counter &["where", "outcome"],
        "UDP sockets that were connected to an endpoint that was removed, by what became of them.",
        "where=\"host\" or \"pod\": the network namespace. outcome=\"closed\": the program's receive fails with ECONNABORTED, its send with EDESTADDRREQ; \"ended\": closed or connected anew by its program meanwhile; \"unsupported\": the kernel has no CONFIG_INET_DIAG_DESTROY; \"failed\": see the log. where=\"pod\" is absent without `--close-pod-sockets`.";
    SERVICES = "lb_services" Gauge &[],
        "Service ports served, each family by itself.",
        "";
    ALL_ENDPOINTS = "lb_endpoints" Gauge &[],
        "Endpoints served, counted for each service port.",
        "";
    DEVICES = "lb_devices" Gauge &[],
        "Devices that carry the packet path.",
        "";
    REFUSALS = "lb_refused_objects" Gauge &["reason"],
        "Objects, or parts of objects, that are refused now; the log names each with its sentence.",
        "";
    SOURCE_PROBLEMS = "lb_source_problems" Gauge &["problem"],
        "What the source could not take now: files that do not parse, an API server that does not answer.",
        "";
    HEALTHZ = "kubeproxy_proxy_healthz" Counter &["code"],
        "Answers of /healthz by status code.",
        "kube-proxy's name.";
    LIVEZ = "kubeproxy_proxy_livez" Counter &["code"],
        "Answers of /livez by status code.",
        "kube-proxy's name.";
    REQUESTS = "rest_client_requests" Counter &["code", "method", "host"],
        "Requests to the API server by status code; `<error>` if nobody answered.",
        "client-go's name.";
    REQUEST_DURATION = "rest_client_request_duration_seconds" Histogram &["verb", "host"],
        "Time until the API server began to answer.",
        "client-go's name and bounds. Watches, by which objects are read, are not in it.";
    BUILD = "lb_build_info" Gauge &["version", "layout"],
        "1; which agent this is, and the layout of its tables.",
        "";
    PROCESS_CPU = "process_cpu_seconds" Counter &[],
        "CPU time of the agent, user and system.",
        "The programs' time is the kernel's and not in here.";
    PROCESS_RESIDENT = "process_resident_memory_bytes" Gauge &[],
        "Resident memory of the agent.",
        "Tables that are memory-mapped count as far as the agent has touched them.";
    PROCESS_VIRTUAL = "process_virtual_memory_bytes" Gauge &[],
        "Virtual memory of the agent.",
        "";
    PROCESS_FDS = "process_open_fds" Gauge &[],
        "Open file descriptors of the agent.",
        "";
    PROCESS_START = "process_start_time_seconds" Gauge &[],
        "When the agent started, Unix time.",
        "";
}

/// The result of a health check that was asked for.
pub const HEALTHCHECK: Metric = Metric {
    name: "kubernetes_healthcheck",
    kind: Kind::Gauge,
    labels: &["name", "type"],
    help: "1 if the health check's last answer was good, else 0.",
    note: "Absent before the first. name=\"ping\" is kube-proxy's: `/healthz` on the metrics address. \
           name=\"service-path\" is `/healthz` or `/livez` on the health address.",
};

/// How often health checks were asked for.
pub const HEALTHCHECKS: Metric = Metric {
    name: "kubernetes_healthchecks",
    kind: Kind::Counter,
    labels: &["name", "type", "status"],
    help: "Answers of health checks by status, `success` or `error`.",
    note: "",
};

/// What is served apart from the others, under `/metrics/slis`.
pub const SLIS: &[&Metric] = &[&HEALTHCHECK, &HEALTHCHECKS];

impl Metric {
    /// The name under which samples appear.
    pub fn sample_name(&self) -> String {
        match self.kind {
            Kind::Counter => format!("{}_total", self.name),
            Kind::Gauge | Kind::Histogram => self.name.to_owned(),
        }
    }
}
