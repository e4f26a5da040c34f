//! What can be typed: the commands and their options. Parsing only; meaning is given by
//! [`crate::config`].

use crate::cli::values::{
    BindAddress, Cidr, EndpointsApi, Format, List, LogFormat, Mark, Output, PortRange, Ports,
    SocketLoadBalancing, TcAttach, choice,
};
use crate::config::kube_proxy::Flags;
use crate::datapath::{DEFAULT_DIRECTORY, Devices};
use crate::model::{NodePortAddresses, PodLabel};
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use std::ffi::OsString;
use std::path::PathBuf;

/// Balances Kubernetes Services on this node with eBPF, in place of kube-proxy.
#[derive(Debug, Parser)]
#[command(name = "lb-agent", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Parses arguments without the program's name; an error is the text clap would print.
pub fn parse(arguments: &[String]) -> Result<Cli, String> {
    let all = std::iter::once("lb-agent").chain(arguments.iter().map(String::as_str));
    Cli::try_parse_from(all).map_err(|error| error.to_string())
}

/// The arguments as this program understands them: a binary that is called kube-proxy has no
/// commands but the one it is named after, and kube-proxy takes `_` for `-` in names of flags.
pub fn as_called(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called = arguments.first().map(PathBuf::from).unwrap_or_default();
    if called.file_name().is_some_and(|name| name == "kube-proxy") {
        arguments.insert(1, "kube-proxy".into());
    }
    if arguments
        .get(1)
        .is_some_and(|command| command == "kube-proxy")
    {
        for argument in arguments.iter_mut().skip(2) {
            if let Some(flag) = argument.to_str().filter(|text| text.starts_with("--")) {
                let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
                *argument = format!("{}{value}", name.replace('_', "-")).into();
            }
        }
    }
    arguments
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves this node's Services until told to stop; what is loaded goes on without the agent.
    Run(Box<RunArgs>),
    /// Stands in for kube-proxy: the same as `run`, with kube-proxy's defaults. A binary of the
    /// name kube-proxy does so by itself.
    KubeProxy(Box<RunArgs>),
    /// Lists every frontend with its endpoints, their state and connections, from the live tables.
    Services(ServicesArgs),
    /// Shows what is loaded and attached, how full the tables are and which agent holds the lock.
    Status(DirectoryArgs),
    /// Looks for what on this machine keeps Services from working, and says what to do about it;
    /// changes nothing. Ends with 1 if something will not work.
    Check(CheckArgs),
    /// Removes every program, link and table of a directory; nothing is balanced afterwards.
    Cleanup(DirectoryArgs),
    /// Prints a page of the reference.
    #[command(hide = true)]
    Reference {
        /// Which page.
        page: ReferencePage,
    },
}

/// Pages that are generated from the code.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum ReferencePage {
    /// `docs/cli.md`
    Cli,
    /// `docs/configuration.md`
    Configuration,
    /// `docs/metrics.md`
    Metrics,
}

/// Options of commands that look at what is loaded.
#[derive(Args, Clone, Debug)]
pub struct DirectoryArgs {
    /// The agent's directory on a BPF filesystem.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    pub bpffs: PathBuf,
}

/// Options of `check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// The directory.
    #[command(flatten)]
    pub directory: DirectoryArgs,
    /// The cgroup that `run` is given.
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,
    /// The range node ports lie in.
    #[arg(long, value_name = "A-B", default_value = "30000-32767")]
    pub service_node_port_range: PortRange,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, ignore_case = true)]
    pub output: Format,
}

/// Options of `services`.
#[derive(Args, Clone, Debug)]
pub struct ServicesArgs {
    /// The directory.
    #[command(flatten)]
    pub directory: DirectoryArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t, ignore_case = true)]
    pub output: Output,
}

/// Options of `run`, which are at the same time the keys of the configuration file (in camelCase).
/// Nothing has a default here: a value that is absent may come from the file.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[command(args_override_self = true)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RunArgs {
    /// This node's name in the cluster.
    #[arg(long, value_name = "NAME", env = "NODE_NAME", hide_env_values = true)]
    pub node: Option<String>,

    /// Reads Services from the cluster of this kubeconfig. Without it and --manifests: in-cluster
    /// configuration.
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// Reads Services, EndpointSlices, Endpoints and Pods from the manifests in a directory.
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// A YAML file with these options in camelCase (`socketLoadBalancing: hostOnly`), a
    /// `KubeProxyConfiguration`, or both; see docs/configuration.md.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The cgroup v2 directory whose sockets are balanced [default: the root of the hierarchy,
    /// which must be visible].
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// The agent's directory on a BPF filesystem; agents with directories of their own run side by
    /// side [default: /sys/fs/bpf/lb-agent].
    #[arg(long, value_name = "DIR")]
    pub bpffs: Option<PathBuf>,

    /// Which devices get the packet programs: `auto` (all) or name patterns
    /// [default: auto].
    #[arg(long, value_name = "auto|GLOB,…")]
    pub devices: Option<Devices>,

    /// Addresses of pods, at most one range a family: connections to ClusterIPs from elsewhere are
    /// SNATed, as kube-proxy's `--cluster-cidr` does.
    #[arg(long, value_name = "CIDR[,CIDR]")]
    #[serde(alias = "clusterCIDR")]
    pub cluster_cidr: Option<List<Cidr>>,

    /// Node addresses that serve node ports: `all`, `primary` (those of the Node object) or ranges
    /// [default: all].
    #[arg(long = "nodeport-addresses", value_name = "all|primary|CIDR,…")]
    pub node_port_addresses: Option<NodePortAddresses>,

    /// Serves node ports on 127.0.0.0/8, too [default: true].
    #[arg(long = "localhost-nodeports", value_name = "true|false")]
    pub localhost_node_ports: Option<bool>,

    /// SNATs every connection to a ClusterIP [default: false].
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub masquerade_all: Option<bool>,

    /// Bits that are set in the mark of packets which will be SNATed, until they are: rules of others
    /// accept such packets or leave them alone; 0: none [default: 0x4000, as kube-proxy].
    #[arg(long, value_name = "BITS")]
    pub masquerade_mark: Option<Mark>,

    /// Sets these bits on replies, too, before they are routed: for nodes whose routing rules would
    /// send them elsewhere than the requests came from [default: false].
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub mark_replies: Option<bool>,

    /// Which sockets are balanced when they connect; the packet path serves the others
    /// [default: all].
    #[arg(long, value_name = "all|host-only|off", value_enum, ignore_case = true)]
    #[serde(deserialize_with = "choice")]
    pub socket_load_balancing: Option<SocketLoadBalancing>,

    /// Pods with this label, or in a namespace with it, are not balanced at the socket but by the
    /// packet path: what redirects connections inside of them (a service mesh) sees the addresses of
    /// services. A pod's own label goes before that of its namespace. Needs to list pods and
    /// namespaces.
    #[arg(long, value_name = "KEY=VALUE")]
    pub socket_opt_out_label: Option<PodLabel>,

    /// UDP ports of Services to which pods' connected sockets go by the packet path, whatever
    /// --socket-load-balancing says: a removed endpoint is replaced there with the next datagram,
    /// which a connected socket cannot be told [default: 53; none with --close-pod-sockets, or where
    /// --devices names some].
    #[arg(long, value_name = "none|PORT,…")]
    pub packet_path_udp_ports: Option<Ports>,

    /// Closes UDP sockets of pods, too, that are connected to an endpoint that was removed: names the
    /// directory in which the container runtime keeps the pods' network namespaces (/run/netns).
    /// Needs CAP_SYS_ADMIN to enter them [default: those of the host alone are closed].
    #[arg(long, value_name = "DIR")]
    pub close_pod_sockets: Option<PathBuf>,

    /// How the packet programs are attached: TCX needs kernel 6.6 [default: auto].
    #[arg(long, value_name = "auto|tcx|clsact", value_enum, ignore_case = true)]
    #[serde(deserialize_with = "choice")]
    pub tc_attach: Option<TcAttach>,

    /// Where `/metrics` is served [default: 127.0.0.1:10249].
    #[arg(long, value_name = "ADDRESS")]
    pub metrics_bind_address: Option<BindAddress>,

    /// Where `/healthz` and `/livez` are served [default: 0.0.0.0:10256].
    #[arg(long, value_name = "ADDRESS")]
    pub healthz_bind_address: Option<BindAddress>,

    /// Flows of the packet path that are to fit comfortably [default: 131072].
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,

    /// Seconds to wait for another agent that holds the directory, before giving up [default: 0].
    #[arg(long, value_name = "SECONDS")]
    pub takeover_wait: Option<u64>,

    /// Addresses of the API server, tried in turn, that work without Services: on a node that has
    /// only this agent, the ClusterIP of the API server is the agent's to serve.
    #[arg(
        long,
        value_name = "URL,…",
        env = "LB_APISERVER",
        hide_env_values = true
    )]
    pub apiserver: Option<List<String>>,

    /// Where endpoints are read from in a cluster [default: slices].
    #[arg(long, value_name = "slices|endpoints", value_enum, ignore_case = true)]
    #[serde(deserialize_with = "choice")]
    pub endpoints_api: Option<EndpointsApi>,

    /// Whether `spec.externalIPs` of Services are served, as kube-proxy's feature gate
    /// `AllowServiceExternalIPs` says [default: true].
    #[arg(long = "external-ips", value_name = "true|false")]
    pub external_ips: Option<bool>,

    /// Ranges that externalIPs and load balancer addresses must lie in; others are refused
    /// [default: any].
    #[arg(long, value_name = "CIDR,…")]
    pub external_ip_ranges: Option<List<Cidr>>,

    /// With --manifests: ranges that ClusterIPs are allocated from, at most one a family
    /// [default: 10.96.0.0/16,fd00:10:96::/112].
    #[arg(long, value_name = "CIDR,…")]
    pub service_cluster_ip_range: Option<List<Cidr>>,

    /// The range node ports lie in: with --manifests they are allocated from it, else it must be
    /// the API server's [default: 30000-32767].
    #[arg(long, value_name = "A-B")]
    pub service_node_port_range: Option<PortRange>,

    /// With --manifests: where allocated ClusterIPs and node ports are remembered
    /// [default: a directory under /var/lib/lb-agent named after --bpffs].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// How log lines look; RUST_LOG chooses which are written [default: text].
    #[arg(long, value_name = "text|json", value_enum, ignore_case = true)]
    #[serde(deserialize_with = "choice")]
    pub log_format: Option<LogFormat>,

    /// kube-proxy's other flags.
    #[command(flatten)]
    #[serde(skip)]
    pub kube_proxy: Flags,

    /// Whether this process stands in for kube-proxy, whatever is typed.
    #[arg(skip)]
    #[serde(skip)]
    pub as_kube_proxy: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn run(arguments: &[&str]) -> Result<RunArgs, clap::Error> {
        let all = ["lb-agent", "run"].iter().chain(arguments);
        match Cli::try_parse_from(all)?.command {
            Command::Run(args) => Ok(*args),
            other => panic!("parsed as {other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_command_line_that_others_script_against_is_understood() {
        let args = run(&[
            "--node",
            "a",
            "--manifests",
            "/m",
            "--config",
            "/c",
            "--cgroup-root",
            "/cg",
            "--bpffs",
            "/b",
            "--devices",
            "eth*,cali*",
            "--cluster-cidr",
            "10.244.0.0/16,fd00::/56",
            "--socket-load-balancing",
            "host-only",
            "--metrics-bind-address",
            "127.0.0.1:1",
            "--healthz-bind-address",
            "0.0.0.0:2",
            "--max-flows",
            "4096",
            "--service-cluster-ip-range",
            "10.96.0.0/16",
            "--service-node-port-range",
            "30000-32767",
            "--takeover-wait",
            "5",
            "--tc-attach",
            "clsact",
            "--apiserver",
            "https://10.0.0.1:6443,https://10.0.0.2:6443",
            "--endpoints-api",
            "endpoints",
            "--external-ip-ranges",
            "192.0.2.0/24",
            "--state-dir",
            "/s",
            "--log-format",
            "json",
        ])
        .unwrap();
        assert_eq!(args.node.as_deref(), Some("a"));
        assert_eq!(
            args.socket_load_balancing,
            Some(SocketLoadBalancing::HostOnly)
        );
        assert_eq!(args.cluster_cidr.unwrap().0.len(), 2);
        assert_eq!(args.apiserver.unwrap().0.len(), 2);
        assert_eq!(args.tc_attach, Some(TcAttach::Clsact));
        assert_eq!(args.max_flows, Some(4096));
    }

    #[test]
    fn a_cluster_and_a_directory_exclude_each_other() {
        let error = run(&["--kubeconfig", "/k", "--manifests", "/m"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
    }

    #[test]
    fn other_commands_know_their_directory() {
        let cli = Cli::try_parse_from(["lb-agent", "services", "-o", "JSON"]).unwrap();
        let Command::Services(args) = cli.command else {
            panic!("not services")
        };
        assert_eq!(args.output, Output::Json);
        assert_eq!(args.directory.bpffs, PathBuf::from(DEFAULT_DIRECTORY));
        assert!(Cli::try_parse_from(["lb-agent", "cleanup", "--bpffs", "/x"]).is_ok());
        assert!(Cli::try_parse_from(["lb-agent", "status", "--bpffs", "/x"]).is_ok());
    }
}
