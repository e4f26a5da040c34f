//! Every field of `KubeProxyConfiguration` and every flag of kube-proxy: where it stands, how it
//! looks, what it is without being set, and what becomes of it here.
//!
//! Decoding, flags, the log's lines about what is ignored, `/configz` and the reference page all
//! come from this list.

/// How a value looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Number,
    /// Text.
    Text,
    /// Go's notation: `1m30s`.
    Duration,
    /// A list of texts.
    List,
    /// Names with `true` or `false`.
    Gates,
    /// A section that is not looked into.
    Any,
}

/// What becomes of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Treatment {
    /// It means here what it means in kube-proxy.
    Honoured,
    /// It has no meaning here; a line in the log says so if it is set to anything but its default.
    Ignored,
}

/// One field with its flag.
#[derive(Debug, Eq, PartialEq)]
pub struct Field {
    /// Where it stands in the document; empty for a flag without a field.
    pub path: &'static str,
    /// Its flags, the usual one first.
    pub flags: &'static [&'static str],
    /// How its value looks.
    pub shape: Shape,
    /// What it is if it is not set, as JSON.
    pub default: &'static str,
    /// What becomes of it.
    pub treatment: Treatment,
    /// What it does here, or why nothing.
    pub note: &'static str,
}

macro_rules! fields {
    ($list:ident: $($id:ident = $path:literal $flags:expr, $shape:ident $default:literal $treatment:ident $note:literal;)+) => {
        $(
            #[doc = concat!("`", $path, "`: ", $note)]
            pub const $id: Field = Field {
                path: $path,
                flags: &$flags,
                shape: Shape::$shape,
                default: $default,
                treatment: Treatment::$treatment,
                note: $note,
            };
        )+

        /// In the order of the reference page.
        pub const $list: &[&Field] = &[$(&$id),+];
    };
}

fields! { FIELDS:
    FEATURE_GATES = "featureGates" ["feature-gates"], Gates "{}" Honoured "`AllowServiceExternalIPs` decides whether `externalIPs` are served. Gates that are locked on cannot be switched off. Others change nothing here, which a line says.";
    KUBECONFIG = "clientConnection.kubeconfig" ["kubeconfig"], Text "\"\"" Honoured "Credentials and address of the API server; a pod's own without it. `--kubeconfig` counts where the file names none.";
    CONTENT_TYPE = "clientConnection.contentType" ["kube-api-content-type"], Text "\"application/vnd.kubernetes.protobuf\"" Ignored "objects are read as JSON";
    ACCEPT_CONTENT_TYPES = "clientConnection.acceptContentTypes" [], Text "\"\"" Ignored "objects are read as JSON";
    QPS = "clientConnection.qps" ["kube-api-qps"], Number "5" Ignored "four watches and an event now and then need no limit";
    BURST = "clientConnection.burst" ["kube-api-burst"], Int "10" Ignored "four watches and an event now and then need no limit";
    LOGGING_FORMAT = "logging.format" ["logging-format"], Text "\"text\"" Honoured "`text` or `json`; `--log-format` wins.";
    VERBOSITY = "logging.verbosity" ["v"], Int "0" Honoured "4 and more logs debug messages, 6 and more everything; `RUST_LOG` wins.";
    FLUSH_FREQUENCY = "logging.flushFrequency" ["log-flush-frequency"], Any "\"5s\"" Ignored "each line is written at once";
    VMODULE = "logging.vmodule" ["vmodule"], Any "[]" Ignored "`RUST_LOG` chooses by module";
    JSON_SPLIT = "logging.options.json.splitStream" ["log-json-split-stream"], Bool "false" Ignored "the log goes to standard error";
    JSON_BUFFER = "logging.options.json.infoBufferSize" ["log-json-info-buffer-size"], Any "\"0\"" Ignored "each line is written at once";
    TEXT_SPLIT = "logging.options.text.splitStream" ["log-text-split-stream"], Bool "false" Ignored "the log goes to standard error";
    TEXT_BUFFER = "logging.options.text.infoBufferSize" ["log-text-info-buffer-size"], Any "\"0\"" Ignored "each line is written at once";
    HOSTNAME = "hostnameOverride" ["hostname-override"], Text "\"\"" Honoured "This node's name, trimmed and in lower case; the host's name without it. `--node` and `NODE_NAME` win over the file, `--hostname-override` over all.";
    BIND_ADDRESS = "bindAddress" ["bind-address"], Text "\"0.0.0.0\"" Honoured "The node's primary address, if it is not an unspecified one; binds nothing.";
    HEALTHZ_ADDRESS = "healthzBindAddress" ["healthz-bind-address"], Text "\"0.0.0.0:10256\"" Honoured "Where `/healthz` and `/livez` are served; port 10256 is added if none is given.";
    METRICS_ADDRESS = "metricsBindAddress" ["metrics-bind-address"], Text "\"127.0.0.1:10249\"" Honoured "Where `/metrics`, `/metrics/slis`, `/proxyMode`, `/configz`, `/flagz` and `/statusz` are served; port 10249 is added if none is given.";
    HARD_FAIL = "bindAddressHardFail" ["bind-address-hard-fail"], Bool "false" Honoured "`true`: the agent ends if health or metrics cannot be served; `false`: they are tried again every five seconds.";
    PROFILING = "enableProfiling" ["profiling"], Bool "false" Ignored "there are no Go profiles";
    HIDDEN_METRICS = "showHiddenMetricsForVersion" ["show-hidden-metrics-for-version"], Text "\"\"" Ignored "no metric is hidden";
    MODE = "mode" ["proxy-mode"], Text "\"iptables\"" Honoured "The eBPF programs serve in every mode. It decides where the modes differ: see below.";
    MASQUERADE_BIT = "iptables.masqueradeBit" ["iptables-masquerade-bit"], Int "14" Honoured "The bit of the mark that packets carry until they are SNATed; counts in the modes iptables and ipvs. `--masquerade-mark` wins.";
    IPTABLES_MASQUERADE_ALL = "iptables.masqueradeAll" ["masquerade-all"], Bool "false" Honoured "Every connection to a ClusterIP is SNATed; counts in the modes iptables and ipvs.";
    LOCALHOST_NODE_PORTS = "iptables.localhostNodePorts" ["iptables-localhost-nodeports"], Bool "true" Honoured "Node ports answer on 127.0.0.0/8; counts in mode iptables.";
    IPTABLES_SYNC = "iptables.syncPeriod" ["iptables-sync-period"], Duration "\"30s\"" Honoured "A change that waits twice as long makes the node unhealthy.";
    IPTABLES_MIN_SYNC = "iptables.minSyncPeriod" ["iptables-min-sync-period"], Duration "\"1s\"" Honoured "The least time between the end of a sync and the start of the next. Unset, there is none: a change costs only what it touches.";
    IPVS_SYNC = "ipvs.syncPeriod" ["ipvs-sync-period"], Duration "\"30s\"" Honoured "As `iptables.syncPeriod`, in mode ipvs.";
    IPVS_MIN_SYNC = "ipvs.minSyncPeriod" ["ipvs-min-sync-period"], Duration "\"0s\"" Honoured "As `iptables.minSyncPeriod`, in mode ipvs.";
    SCHEDULER = "ipvs.scheduler" ["ipvs-scheduler"], Text "\"\"" Honoured "Names the algorithm, in mode ipvs: see below.";
    EXCLUDE_CIDRS = "ipvs.excludeCIDRs" ["ipvs-exclude-cidrs"], List "[]" Ignored "virtual servers of IPVS are not touched";
    STRICT_ARP = "ipvs.strictARP" ["ipvs-strict-arp"], Bool "false" Ignored "service addresses are on no device, so nobody answers ARP for them";
    IPVS_TCP_TIMEOUT = "ipvs.tcpTimeout" ["ipvs-tcp-timeout"], Duration "\"0s\"" Ignored "IPVS carries no connections";
    IPVS_FIN_TIMEOUT = "ipvs.tcpFinTimeout" ["ipvs-tcpfin-timeout"], Duration "\"0s\"" Ignored "IPVS carries no connections";
    IPVS_UDP_TIMEOUT = "ipvs.udpTimeout" ["ipvs-udp-timeout"], Duration "\"0s\"" Ignored "IPVS carries no connections";
    NFTABLES_BIT = "nftables.masqueradeBit" [], Int "14" Honoured "As `iptables.masqueradeBit`, in mode nftables.";
    NFTABLES_MASQUERADE_ALL = "nftables.masqueradeAll" [], Bool "false" Honoured "As `iptables.masqueradeAll`, in mode nftables.";
    NFTABLES_SYNC = "nftables.syncPeriod" [], Duration "\"30s\"" Honoured "As `iptables.syncPeriod`, in mode nftables.";
    NFTABLES_MIN_SYNC = "nftables.minSyncPeriod" [], Duration "\"1s\"" Honoured "As `iptables.minSyncPeriod`, in mode nftables.";
    WINKERNEL = "winkernel" [], Any "{}" Ignored "this is not Windows";
    WINDOWS_SERVICE = "windowsRunAsService" ["windows-service"], Bool "false" Ignored "this is not Windows";
    DETECT_LOCAL_MODE = "detectLocalMode" ["detect-local-mode"], Text "\"ClusterCIDR\"" Honoured "How pods of this node are told from other clients: `ClusterCIDR`, `NodeCIDR` (a change of the node's range is followed), `BridgeInterface` or `InterfaceNamePrefix`. What comes in by a port of a bridge has come in by the bridge.";
    BRIDGE = "detectLocal.bridgeInterface" ["pod-bridge-interface"], Text "\"\"" Honoured "The device by which pods' packets come in, in the mode `BridgeInterface`.";
    INTERFACE_PREFIX = "detectLocal.interfaceNamePrefix" ["pod-interface-name-prefix"], Text "\"\"" Honoured "How the names of the devices begin by which pods' packets come in, in the mode `InterfaceNamePrefix`.";
    CLUSTER_CIDR = "clusterCIDR" ["cluster-cidr"], Text "\"\"" Honoured "Pods' addresses: one range, or one a family separated by a comma.";
    NODE_PORT_ADDRESSES = "nodePortAddresses" ["nodeport-addresses"], List "[]" Honoured "Node addresses that serve node ports: ranges, or `primary` alone. Unset: all, in mode nftables `primary`.";
    OOM_SCORE = "oomScoreAdj" ["oom-score-adj"], Int "-999" Honoured "Written if the privileges allow it (CAP_SYS_RESOURCE), else a line in the log.";
    CONNTRACK_PER_CORE = "conntrack.maxPerCore" ["conntrack-max-per-core"], Int "32768" Honoured "`nf_conntrack_max` is this times the CPUs, at least `conntrack.min`, at most 1,048,576; 0 leaves it alone.";
    CONNTRACK_MIN = "conntrack.min" ["conntrack-min"], Int "131072" Honoured "The least `nf_conntrack_max`.";
    CONNTRACK_ESTABLISHED = "conntrack.tcpEstablishedTimeout" ["conntrack-tcp-timeout-established"], Duration "\"24h0m0s\"" Honoured "`nf_conntrack_tcp_timeout_established`; 0 leaves it alone. The flow table of the packet path keeps its own.";
    CONNTRACK_CLOSE_WAIT = "conntrack.tcpCloseWaitTimeout" ["conntrack-tcp-timeout-close-wait"], Duration "\"1h0m0s\"" Honoured "`nf_conntrack_tcp_timeout_close_wait`; 0 leaves it alone.";
    CONNTRACK_LIBERAL = "conntrack.tcpBeLiberal" ["conntrack-tcp-be-liberal"], Bool "false" Honoured "`true` sets `nf_conntrack_tcp_be_liberal`.";
    CONNTRACK_UDP = "conntrack.udpTimeout" ["conntrack-udp-timeout"], Duration "\"0s\"" Honoured "`nf_conntrack_udp_timeout`; 0 leaves it alone.";
    CONNTRACK_UDP_STREAM = "conntrack.udpStreamTimeout" ["conntrack-udp-timeout-stream"], Duration "\"0s\"" Honoured "`nf_conntrack_udp_timeout_stream`; 0 leaves it alone.";
    CONFIG_SYNC = "configSyncPeriod" ["config-sync-period"], Duration "\"15m0s\"" Ignored "watches need no repetition; a broken one is listed anew at once";
    PORT_RANGE = "portRange" ["proxy-port-range"], Text "\"\"" Ignored "there is no userspace mode";
}

fields! { FLAGS:
    MASTER = "" ["master"], Text "\"\"" Honoured "The API server's address instead of the kubeconfig's; `--apiserver` wins.";
    HEALTHZ_PORT = "" ["healthz-port"], Int "10256" Honoured "The port of `--healthz-bind-address`; 0 serves no health.";
    METRICS_PORT = "" ["metrics-port"], Int "10249" Honoured "The port of `--metrics-bind-address`; 0 is refused.";
    CLEANUP = "" ["cleanup"], Bool "false" Honoured "Does what `lb-agent cleanup` does with `--bpffs`, and ends. Rules of kube-proxy stay: `kube-proxy --cleanup` removes them.";
    INIT_ONLY = "" ["init-only"], Bool "false" Honoured "Writes the kernel's settings (conntrack) and ends.";
    WRITE_CONFIG = "" ["write-config-to"], Text "\"\"" Honoured "Writes the configuration with all defaults into a file and ends.";
    BOOT_ID = "" ["boot-id-file"], Text "\"\"" Ignored "no machine information is read";
    MACHINE_ID = "" ["machine-id-file"], Text "\"\"" Ignored "no machine information is read";
}

impl Field {
    /// The usual flag, empty if it has none.
    pub fn flag(&self) -> &'static str {
        self.flags.first().copied().unwrap_or_default()
    }
}

/// Every flag of kube-proxy with the field it sets.
pub fn flags() -> impl Iterator<Item = (&'static str, &'static Field)> {
    FIELDS
        .iter()
        .chain(FLAGS)
        .flat_map(|field| field.flags.iter().map(|flag| (*flag, *field)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn paths_and_flags_are_unique_and_defaults_are_json() {
        let (mut paths, mut names) = (BTreeSet::new(), BTreeSet::new());
        for field in FIELDS {
            assert!(paths.insert(field.path), "{} twice", field.path);
        }
        for (flag, field) in flags() {
            assert!(names.insert(flag), "--{flag} twice");
            assert!(
                serde_json::from_str::<Value>(field.default).is_ok(),
                "--{flag}"
            );
        }
    }
}
