//! The rules that settings must obey, each with the sentence a person gets.

use super::kube_proxy::KubeProxy;
use super::{ClusterSettings, Invalid, ManifestSettings, Marks, Settings, SourceSettings};
use crate::cli::args::RunArgs;
use crate::cli::presence::escaped;
use crate::cli::values::{Cidr, List, Mark, PortRange};
use crate::datapath::{Capacity, DEFAULT_DIRECTORY, Devices};
use crate::model::NodePortAddresses;
use crate::model::desired::Family;
use ipnet::IpNet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Port of `/metrics`, as kube-proxy's.
const METRICS_PORT: u16 = 10249;
/// Port of `/healthz`, as kube-proxy's.
const HEALTH_PORT: u16 = 10256;
/// Bounds of `--max-flows`: below, a handful of clients fill it; above, the table exceeds 4 GiB.
const MAX_FLOWS_BOUNDS: std::ops::RangeInclusive<u32> = 64..=1 << 26;
/// The API server's default node port range.
const NODE_PORTS: PortRange = PortRange {
    first: 30000,
    last: 32767,
};
/// Resolvers keep one connected socket for long, and everything waits for them.
const DNS_PORT: u16 = 53;
/// kube-proxy's `masqueradeBit` is 14.
const MASQUERADE_MARK: u32 = 1 << 14;
/// Where a pod finds its own credentials.
const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Checks the whole, so that everything wrong is said at once.
pub(super) fn check(args: RunArgs, kube_proxy: &KubeProxy) -> Result<Settings, Invalid> {
    let mut problems = Vec::new();
    let bpffs = args
        .bpffs
        .clone()
        .unwrap_or_else(|| PathBuf::from(DEFAULT_DIRECTORY));
    must_be_absolute("--bpffs", &bpffs, &mut problems);
    if let Some(root) = &args.cgroup_root {
        must_be_absolute("--cgroup-root", root, &mut problems);
        must_be_directory("--cgroup-root", root, &mut problems);
    }
    if let Some(namespaces) = &args.close_pod_sockets {
        must_be_absolute("--close-pod-sockets", namespaces, &mut problems);
        must_be_directory("--close-pod-sockets", namespaces, &mut problems);
    }
    let node = check_node(args.node.as_deref(), &mut problems);
    // Whoever only wants the machine's settings or the configuration needs no objects.
    let wants_objects = !kube_proxy.init_only && kube_proxy.write_config.is_none();
    let source = if wants_objects {
        check_source(&args, &bpffs, &mut problems)
    } else {
        check_source(&args, &bpffs, &mut Vec::new())
    };
    let cluster_cidrs = nets(args.cluster_cidr);
    one_a_family("--cluster-cidr", &cluster_cidrs, &mut problems);
    let max_flows = args.max_flows.unwrap_or(Capacity::default().flows);
    if !MAX_FLOWS_BOUNDS.contains(&max_flows) {
        problems.push(format!(
            "--max-flows {max_flows} is out of bounds: between {} and {} flows can be remembered",
            MAX_FLOWS_BOUNDS.start(),
            MAX_FLOWS_BOUNDS.end()
        ));
    }
    let metrics = args.metrics_bind_address.unwrap_or_default();
    let metrics = metrics.or(SocketAddr::from(([127, 0, 0, 1], METRICS_PORT)));
    let health = args.healthz_bind_address.unwrap_or_default();
    let health = health.or(SocketAddr::from(([0, 0, 0, 0], HEALTH_PORT)));
    let health = (!kube_proxy.without_health).then_some(health);
    if health == Some(metrics) && metrics.port() != 0 {
        problems.push(format!(
            "--metrics-bind-address and --healthz-bind-address are both {metrics}: choose two"
        ));
    }
    if args.mark_replies == Some(true) && args.masquerade_mark == Some(Mark(0)) {
        problems.push(
            "--mark-replies needs a mark: give --masquerade-mark bits that nobody else uses"
                .to_owned(),
        );
    }
    if !problems.is_empty() {
        return Err(Invalid(problems));
    }
    let devices = args.devices.unwrap_or(Devices::Auto);
    let packet_path_udp_ports = match args.packet_path_udp_ports {
        Some(ports) => ports.0,
        // Named devices may leave out those of pods, whose packets then nobody translates.
        None if args.close_pod_sockets.is_some() || devices != Devices::Auto => Vec::new(),
        None => vec![DNS_PORT],
    };
    Ok(Settings {
        node,
        source,
        cgroup_root: args.cgroup_root,
        bpffs,
        devices,
        cluster_cidrs,
        node_port_addresses: args.node_port_addresses.unwrap_or(NodePortAddresses::All),
        localhost_node_ports: args.localhost_node_ports.unwrap_or(true),
        masquerade_all: args.masquerade_all.unwrap_or(false),
        marks: Marks {
            masquerade: args.masquerade_mark.map_or(MASQUERADE_MARK, |mark| mark.0),
            replies: args.mark_replies.unwrap_or(false),
        },
        socket_load_balancing: args.socket_load_balancing.unwrap_or_default(),
        opt_out: args.socket_opt_out_label,
        packet_path_udp_ports,
        close_pod_sockets: args.close_pod_sockets,
        tc_attach: args.tc_attach.unwrap_or_default(),
        metrics,
        health,
        max_flows,
        takeover_wait: Duration::from_secs(args.takeover_wait.unwrap_or(0)),
        external_ips: args.external_ips.unwrap_or(true),
        external_ip_ranges: args.external_ip_ranges.map(|list| nets(Some(list))),
        node_ports: args.service_node_port_range.unwrap_or(NODE_PORTS),
        log_format: args.log_format.unwrap_or_default(),
        stands_in: false,
        kube_proxy: KubeProxy::default(),
        remarks: Vec::new(),
        file: None,
    })
}

/// The node's name, as kube-proxy reads it: trimmed, in lower case.
fn check_node(name: Option<&str>, problems: &mut Vec<String>) -> String {
    let name = name.unwrap_or_default().trim().to_lowercase();
    if name.is_empty() {
        problems.push(
            "the node is not named: say which node of the cluster this is with --node NAME, `node:` \
             in the configuration file or NODE_NAME in the environment"
                .to_owned(),
        );
    } else if name.len() > 253
        || !name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
    {
        problems.push(format!(
            "--node `{name}` cannot be a node's name: those have letters, digits, `-` and `.` only"
        ));
    }
    name
}

fn check_source(args: &RunArgs, bpffs: &Path, problems: &mut Vec<String>) -> SourceSettings {
    match (&args.manifests, &args.kubeconfig) {
        (Some(_), Some(_)) => {
            problems.push(
                "the configuration file names both `kubeconfig` and `manifests`: objects come from \
                 one of them"
                    .to_owned(),
            );
            check_cluster(args, problems)
        }
        (Some(directory), None) => check_manifests(args, directory, bpffs, problems),
        (None, _) => check_cluster(args, problems),
    }
}

fn check_manifests(
    args: &RunArgs,
    directory: &Path,
    bpffs: &Path,
    problems: &mut Vec<String>,
) -> SourceSettings {
    must_be_directory("--manifests", directory, problems);
    for (given, option) in [
        (args.apiserver.is_some(), "--apiserver"),
        (args.endpoints_api.is_some(), "--endpoints-api"),
        (
            args.socket_opt_out_label.is_some(),
            "--socket-opt-out-label",
        ),
    ] {
        if given {
            problems.push(format!(
                "{option} is about an API server and means nothing with --manifests"
            ));
        }
    }
    let ranges = match &args.service_cluster_ip_range {
        Some(list) => list.0.iter().map(|cidr| cidr.0).collect(),
        None => default_cluster_ip_ranges(),
    };
    if ranges.is_empty() {
        problems.push("--service-cluster-ip-range is empty: name one range a family".to_owned());
    }
    one_a_family("--service-cluster-ip-range", &ranges, problems);
    for range in &ranges {
        if range.max_prefix_len() - range.prefix_len() < 2 {
            problems.push(format!(
                "--service-cluster-ip-range {range} has no room for Services: at least four addresses \
                 are needed"
            ));
        }
    }
    SourceSettings::Manifests(ManifestSettings {
        directory: directory.to_owned(),
        cluster_ip_ranges: ranges,
        state_dir: args
            .state_dir
            .clone()
            .unwrap_or_else(|| default_state_dir(bpffs)),
    })
}

fn check_cluster(args: &RunArgs, problems: &mut Vec<String>) -> SourceSettings {
    for (given, option) in [
        (
            args.service_cluster_ip_range.is_some(),
            "--service-cluster-ip-range",
        ),
        (args.state_dir.is_some(), "--state-dir"),
    ] {
        if given {
            problems.push(format!(
                "{option} belongs to --manifests: in a cluster the API server allocates addresses"
            ));
        }
    }
    let apiservers = args.apiserver.clone().map_or_else(Vec::new, |list| list.0);
    for url in &apiservers {
        let host = url
            .strip_prefix("https://")
            .or_else(|| url.strip_prefix("http://"));
        if host.is_none_or(|host| host.is_empty() || host.starts_with(['/', ':'])) {
            problems.push(format!(
                "--apiserver `{url}` is not a URL such as https://10.0.0.1:6443"
            ));
        }
    }
    match &args.kubeconfig {
        Some(path) => {
            if let Err(error) = std::fs::File::open(path) {
                problems.push(format!("cannot read --kubeconfig {}: {error}", path.display()));
            }
        }
        None if !Path::new(SERVICE_ACCOUNT_TOKEN).exists() => problems.push(
            "neither --kubeconfig nor --manifests is given, and this process is not a pod with a \
             service account: name a cluster with --kubeconfig FILE or a directory with --manifests DIR"
                .to_owned(),
        ),
        None => {}
    }
    SourceSettings::Cluster(ClusterSettings {
        kubeconfig: args.kubeconfig.clone(),
        apiservers,
        endpoints: args.endpoints_api.unwrap_or_default(),
    })
}

/// What a cluster made with the usual tools has.
fn default_cluster_ip_ranges() -> Vec<IpNet> {
    ["10.96.0.0/16", "fd00:10:96::/112"]
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect()
}

/// A directory for each `--bpffs`, so that agents side by side do not share allocations.
pub(super) fn default_state_dir(bpffs: &Path) -> PathBuf {
    Path::new("/var/lib/lb-agent").join(escaped(bpffs))
}

fn nets(list: Option<List<Cidr>>) -> Vec<IpNet> {
    list.map_or_else(Vec::new, |list| list.0.iter().map(|cidr| cidr.0).collect())
}

fn one_a_family(option: &str, ranges: &[IpNet], problems: &mut Vec<String>) {
    for family in [Family::V4, Family::V6] {
        let of_family: Vec<String> = ranges
            .iter()
            .filter(|range| Family::of(range.addr()) == family)
            .map(ToString::to_string)
            .collect();
        if of_family.len() > 1 {
            problems.push(format!(
                "{option} names {} of one family: at most one range a family is possible",
                of_family.join(" and ")
            ));
        }
    }
}

fn must_be_absolute(option: &str, path: &Path, problems: &mut Vec<String>) {
    if !path.is_absolute() {
        problems.push(format!(
            "{option} {} must be an absolute path",
            path.display()
        ));
    }
}

fn must_be_directory(option: &str, path: &Path, problems: &mut Vec<String>) {
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => problems.push(format!("{option} {} is not a directory", path.display())),
        Err(error) => problems.push(format!(
            "{option} {} cannot be used: {error}",
            path.display()
        )),
    }
}
