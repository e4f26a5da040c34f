//! What kube-proxy's files and flags come to, as installers write them.

use crate::cli::args::{Cli, Command, RunArgs, as_called};
use crate::cli::values::LogFormat;
use crate::config::kube_proxy::{DetectLocal, Mode};
use crate::config::{Settings, SourceSettings, parse_contents};
use crate::model::NodePortAddresses;
use clap::Parser;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

const KUBEADM: &str = include_str!("../../../tests/data/kube-proxy/kubeadm.yaml");
const KIND: &str = include_str!("../../../tests/data/kube-proxy/kind.yaml");
const MINIKUBE: &str = include_str!("../../../tests/data/kube-proxy/minikube.yaml");
const K3S: &str = include_str!("../../../tests/data/kube-proxy/k3s.args");
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn typed(words: &[&str]) -> RunArgs {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    match Cli::try_parse_from(as_called(words)).unwrap().command {
        Command::Run(args) => *args,
        Command::KubeProxy(mut args) => {
            args.as_kube_proxy = true;
            *args
        }
        other => panic!("parsed as {other:?}"),
    }
}

/// Settings of this file (with an existing kubeconfig in place of its own) and these words.
fn load(text: &str, words: &[&str]) -> Result<Settings, String> {
    let directory = tempfile::tempdir().unwrap();
    let kubeconfig = directory.path().join("kubeconfig.conf");
    std::fs::write(&kubeconfig, "").unwrap();
    let kubeconfig = kubeconfig.to_str().unwrap();
    let text = text.replace("/var/lib/kube-proxy/kubeconfig.conf", kubeconfig);
    let mut all: Vec<String> = words
        .iter()
        .map(|word| {
            word.replace(
                "/var/lib/rancher/k3s/agent/kubeproxy.kubeconfig",
                kubeconfig,
            )
        })
        .collect();
    let path = directory.path().join("config.conf");
    if !text.is_empty() {
        std::fs::write(&path, text).unwrap();
        all.push(format!("--config={}", path.display()));
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    Settings::load(typed(&all)).map_err(|invalid| invalid.to_string())
}

/// The same with a kubeconfig that is there, whatever the text says of it.
fn configured(text: &str) -> Result<Settings, String> {
    let text = format!(
        "{HEAD}clientConnection: {{kubeconfig: /var/lib/kube-proxy/kubeconfig.conf}}\n{text}"
    );
    load(&text, &["lb-agent", "run", "--node", "n"])
}

fn remarks(settings: &Settings) -> String {
    let all = settings
        .remarks
        .iter()
        .map(|remark| remark.sentence.as_str());
    all.collect::<Vec<_>>().join("\n")
}

#[test]
fn kubeadm_s_config_map_is_taken_without_a_word() {
    let settings = load(
        KUBEADM,
        &["/usr/local/bin/kube-proxy", "--hostname-override=Node-A"],
    )
    .unwrap();
    assert_eq!(remarks(&settings), "");
    assert!(settings.stands_in);
    assert_eq!(settings.node, "node-a");
    assert_eq!(settings.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(settings.node_port_addresses, NodePortAddresses::All);
    assert!(settings.localhost_node_ports && !settings.masquerade_all);
    assert_eq!(settings.health, "0.0.0.0:10256".parse().ok());
    assert_eq!(settings.metrics, "127.0.0.1:10249".parse().unwrap());
    let kube_proxy = &settings.kube_proxy;
    assert_eq!(kube_proxy.mode, Mode::Iptables);
    assert_eq!(kube_proxy.oom_score, -999);
    assert_eq!(
        kube_proxy.min_sync_period, None,
        "unset: as fast as it gets"
    );
    assert_eq!(
        (kube_proxy.conntrack.max_per_core, kube_proxy.conntrack.min),
        (32_768, 131_072)
    );
    assert_eq!(
        kube_proxy.conntrack.timeouts,
        [
            ("nf_conntrack_tcp_timeout_established", 86_400),
            ("nf_conntrack_tcp_timeout_close_wait", 3600)
        ]
    );
    let SourceSettings::Cluster(cluster) = &settings.source else {
        panic!("not a cluster")
    };
    assert!(cluster.kubeconfig.is_some());
}

#[test]
fn kind_s_and_minikube_s_files_leave_conntrack_alone() {
    let settings = load(KIND, &["kube-proxy", "--hostname-override=a"]).unwrap();
    assert_eq!(remarks(&settings), "");
    assert_eq!(
        settings.kube_proxy.min_sync_period,
        Some(Duration::from_secs(1))
    );
    assert_eq!(settings.kube_proxy.conntrack.max_per_core, 0);
    assert!(settings.kube_proxy.conntrack.timeouts.is_empty());
    // minikube's names no kubeconfig: kubeadm fills that in.
    let settings = load(MINIKUBE, &["lb-agent", "run", "--manifests", "/"]).unwrap();
    assert_eq!(settings.metrics, "0.0.0.0:10249".parse().unwrap());
    assert_eq!(settings.kube_proxy.conntrack.max_per_core, 0);
}

#[test]
fn k3s_flags_are_taken_as_they_are() {
    let words: Vec<&str> = ["lb-agent", "kube-proxy"]
        .into_iter()
        .chain(K3S.lines())
        .collect();
    let settings = load("", &words).unwrap();
    assert_eq!(remarks(&settings), "");
    assert_eq!(settings.node, "node-a");
    assert_eq!(settings.cluster_cidrs.len(), 2);
    assert_eq!(settings.health, "127.0.0.1:10256".parse().ok());
    assert_eq!(settings.kube_proxy.conntrack.max_per_core, 0);
    assert!(settings.kube_proxy.conntrack.timeouts.is_empty());
    // The same at `run`.
    let words: Vec<&str> = ["lb-agent", "run"].into_iter().chain(K3S.lines()).collect();
    assert_eq!(load("", &words).unwrap().node, "node-a");
}

#[test]
fn flags_are_written_as_pflag_reads_them() {
    let words = [
        "kube-proxy",
        "--manifests",
        "/",
        "--proxy_mode",
        "nftables",
        "--masquerade-all",
        "-v=4",
        "--oom-score-adj",
        "-5",
        "--oom-score-adj=-7",
        "--profiling=false",
        "--iptables-sync-period=10s",
        "--iptables-min-sync-period",
        "2s",
        "--healthz-port=0",
        "--nodeport-addresses=",
        "--metrics-bind-address=",
        "--logging-format",
        "json",
        "--feature-gates=AllowServiceExternalIPs=false",
    ];
    let settings = load("", &words).unwrap();
    assert!(settings.masquerade_all && !settings.external_ips);
    assert_eq!(settings.kube_proxy.mode, Mode::Nftables);
    assert_eq!(settings.kube_proxy.oom_score, -7);
    assert_eq!(settings.kube_proxy.verbosity, 4);
    assert_eq!(settings.log_format, LogFormat::Json);
    assert_eq!(settings.health, None);
    assert_eq!(settings.metrics, "127.0.0.1:10249".parse().unwrap());
    let kube_proxy = &settings.kube_proxy;
    assert_eq!(
        kube_proxy.sync_period,
        Some(Duration::from_secs(10)),
        "nftables has no flag of its own"
    );
    assert_eq!(kube_proxy.min_sync_period, Some(Duration::from_secs(2)));
    assert!(!settings.node.is_empty(), "the host's name");
}

#[test]
fn the_mode_decides_where_the_modes_differ() {
    let of = |text: &str| configured(text).unwrap();
    let nftables = of("mode: nftables\nnftables: {masqueradeAll: true}\n");
    assert_eq!(nftables.node_port_addresses, NodePortAddresses::Primary);
    assert!(!nftables.localhost_node_ports && nftables.masquerade_all);
    let ipvs = of(
        "mode: ipvs\nnftables: {masqueradeAll: true}\nipvs: {syncPeriod: 7s, minSyncPeriod: 3s}\n",
    );
    assert!(!ipvs.localhost_node_ports && !ipvs.masquerade_all);
    assert_eq!(ipvs.node_port_addresses, NodePortAddresses::All);
    assert_eq!(ipvs.kube_proxy.sync_period, Some(Duration::from_secs(7)));
    assert_eq!(
        ipvs.kube_proxy.min_sync_period,
        Some(Duration::from_secs(3))
    );
    let iptables = of(
        "iptables: {localhostNodePorts: false, masqueradeAll: true}\nnodePortAddresses: [primary]\n",
    );
    assert!(!iptables.localhost_node_ports && iptables.masquerade_all);
    assert_eq!(iptables.node_port_addresses, NodePortAddresses::Primary);
    let settings = of("bindAddress: 192.0.2.7\n");
    assert_eq!(settings.kube_proxy.node_ip, "192.0.2.7".parse().ok());
    let settings = of("detectLocalMode: NodeCIDR\nbindAddress: '::'\n");
    assert_eq!(settings.kube_proxy.node_ip, None);
    assert_eq!(settings.kube_proxy.detect_local, DetectLocal::NodeCidr);
    let settings = of("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}\n");
    let bridge = DetectLocal::Bridge("cni0".to_owned());
    assert_eq!(settings.kube_proxy.detect_local, bridge);
    let settings =
        of("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: cali}\n");
    let prefix = DetectLocal::InterfacePrefix("cali".to_owned());
    assert_eq!(settings.kube_proxy.detect_local, prefix);
}

#[test]
fn a_scheduler_without_a_counterpart_is_said_and_deserves_an_event() {
    let settings = configured("mode: ipvs\nipvs: {scheduler: lblc}\n").unwrap();
    let remark = &settings.remarks[0];
    assert!(
        remark.sentence.contains("`lblc` has no counterpart"),
        "{remark:?}"
    );
    assert_eq!(remark.event, Some("UnsupportedScheduler"));
    // Nobody asked for the default.
    let settings = configured("mode: ipvs\n").unwrap();
    assert!(settings.remarks.iter().all(|remark| remark.event.is_none()));
    // In other modes it means nothing.
    let settings = configured("ipvs: {scheduler: lblc}\n").unwrap();
    assert!(settings.remarks.is_empty());
}

#[test]
fn what_is_ignored_is_a_line_each() {
    let settings = configured(
        "ipvs: {strictARP: true}\nenableProfiling: true\nconfigSyncPeriod: 1m\nportRange: 1-2\n\
         featureGates: {AllAlpha: true, NFTablesProxyMode: true}\nnodes: 3\n",
    )
    .unwrap();
    let said = remarks(&settings);
    for wanted in [
        "ipvs.strictARP (--ipvs-strict-arp) is ignored: service addresses are on no device",
        "enableProfiling (--profiling) is ignored",
        "configSyncPeriod (--config-sync-period) is ignored",
        "portRange (--proxy-port-range) is ignored",
        "featureGates.AllAlpha is ignored",
        "the field `nodes` is not known and ignored",
    ] {
        assert!(said.contains(wanted), "{wanted}\nnot in\n{said}");
    }
    assert_eq!(settings.remarks.len(), 6, "{said}");
}

#[test]
fn what_is_refused_is_said_all_at_once() {
    let error = configured(
        "mode: userspace\nbindAddress: here\nhealthzBindAddress: localhost:1\nclusterCIDR: 10.0.0.0/8,11.0.0.0/8\n\
         iptables: {masqueradeBit: 32, syncPeriod: 1s, minSyncPeriod: 2s}\noomScoreAdj: -1001\n\
         nodePortAddresses: [primary, 10.0.0.0/8]\ndetectLocalMode: InterfaceNamePrefix\n\
         conntrack: {min: -1, udpTimeout: -1s}\nfeatureGates: {NFTablesProxyMode: false}\n\
         logging: {format: xml}\nipvs: {excludeCIDRs: [x], syncPeriod: 30}\n",
    )
    .unwrap_err();
    for wanted in [
        "`userspace` is no mode of Linux",
        "`here` is no IP address",
        "`localhost:1` is not an address",
        "one range, or one of each family",
        "the bits 0 to 31",
        "cannot be longer than iptables.syncPeriod",
        "between -1000 and 1000",
        "`primary` stands alone",
        "InterfaceNamePrefix needs a prefix",
        "-1 is no number of connections",
        "`conntrack.udpTimeout` is -1s: it cannot be negative",
        "`NFTablesProxyMode` is locked on",
        "`xml` is neither text nor json",
        "`x` is not a CIDR",
        "`ipvs.syncPeriod` must be a duration such as 1m30s, not 30",
    ] {
        assert!(error.contains(wanted), "{wanted}\nnot in\n{error}");
    }
    assert_eq!(error.lines().count(), 15, "{error}");
    let error = load(&HEAD.replace("v1alpha1", "v1"), &["kube-proxy"]).unwrap_err();
    assert!(
        error.contains("kubeproxy.config.k8s.io/v1alpha1 is the one"),
        "{error}"
    );
    let error = load("", &["kube-proxy", "--manifests=/", "--metrics-port=0"]).unwrap_err();
    assert!(error.contains("--metrics-port 0"), "{error}");
}

#[test]
fn beside_a_file_only_some_of_kube_proxy_s_flags_count() {
    let words = [
        "kube-proxy",
        "--hostname-override=B",
        "--v=6",
        "--proxy-mode=ipvs",
        "--masquerade-all",
        "--kubeconfig=/nonexistent",
        "--cluster-cidr=10.9.0.0/16",
        "--max-flows=4096",
    ];
    let settings = load(KUBEADM, &words).unwrap();
    assert_eq!(settings.node, "b");
    assert_eq!(settings.kube_proxy.verbosity, 6);
    assert_eq!(settings.kube_proxy.mode, Mode::Iptables);
    assert!(!settings.masquerade_all);
    assert_eq!(settings.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(settings.max_flows, 4096, "ours is no flag of kube-proxy");
    let said = remarks(&settings);
    for flag in ["proxy-mode", "masquerade-all", "kubeconfig", "cluster-cidr"] {
        assert!(
            said.contains(&format!("--{flag} is ignored")),
            "{flag}: {said}"
        );
    }
    assert_eq!(settings.remarks.len(), 4, "{said}");
}

#[test]
fn our_document_stands_beside_kube_proxy_s_and_wins() {
    let ours =
        "---\nmaxFlows: 4096\nsocketLoadBalancing: hostOnly\nmanifests: /\nmasqueradeAll: true\n";
    for text in [format!("{KUBEADM}{ours}"), format!("{ours}---\n{KUBEADM}")] {
        let settings = load(&text, &["kube-proxy", "--hostname-override=a"]).unwrap();
        assert_eq!(settings.max_flows, 4096);
        assert!(settings.masquerade_all);
        assert!(matches!(settings.source, SourceSettings::Manifests(_)));
    }
    let text = format!("{KUBEADM}---\nmaxFlow: 4096\n");
    let line = KUBEADM.lines().count() + 2;
    let error = parse_contents(&text).unwrap_err();
    assert!(error.starts_with(&format!("line {line}: ")), "{error}");
}

#[test]
fn documents_of_other_kinds_are_passed_over_but_are_not_enough() {
    let other = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nx: 1\n";
    let settings = load(&format!("{other}---\n{KUBEADM}"), &["kube-proxy"]).unwrap();
    assert!(remarks(&settings).contains("kind ClusterConfiguration"));
    assert!(parse_contents(other).unwrap_err().contains("neither"));
    assert!(parse_contents(&format!("{KUBEADM}---\n{KUBEADM}")).is_err());
    assert!(parse_contents("node: a\n---\nnode: b\n").is_err());
}

#[test]
fn what_is_written_twice_counts_last_and_is_named() {
    let settings = configured("mode: ipvs\nmode: nftables\n").unwrap();
    assert_eq!(settings.kube_proxy.mode, Mode::Nftables);
    let said = remarks(&settings);
    assert!(
        said.contains("mode") && said.contains("the last one counts"),
        "{said}"
    );
}

#[test]
fn without_kube_proxy_s_configuration_nothing_of_it_applies() {
    let settings = load("", &["lb-agent", "run", "--node", "a", "--manifests", "/"]).unwrap();
    assert!(!settings.stands_in);
    assert!(Path::new("/").exists());
}
