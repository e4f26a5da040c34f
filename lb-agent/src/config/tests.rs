//! Merging and validation, each rule by the sentence a person gets.

use super::check::{check, default_state_dir};
use super::merge::over;
use super::*;
use crate::cli::args::{Cli, Command};
use clap::Parser;
use std::path::Path;

fn typed(arguments: &[&str]) -> RunArgs {
    let all = ["lb-agent", "run"].iter().chain(arguments);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Run(args) => *args,
        other => panic!("parsed as {other:?}"),
    }
}

/// Settings of a directory source in a fresh directory, with more arguments.
fn with_manifests(more: &[&str]) -> Result<Settings, Invalid> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap().to_owned();
    let mut arguments = vec!["--node", "node-a", "--manifests", &path];
    arguments.extend(more);
    Settings::load(typed(&arguments))
}

fn problems(result: Result<Settings, Invalid>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn defaults_are_those_of_the_reference() {
    let settings = with_manifests(&[]).unwrap();
    assert_eq!(settings.bpffs, Path::new("/sys/fs/bpf/lb-agent"));
    assert_eq!(settings.metrics, "127.0.0.1:10249".parse().unwrap());
    assert_eq!(settings.health, "0.0.0.0:10256".parse().ok());
    assert_eq!(settings.devices, Devices::Auto);
    assert_eq!(settings.socket_load_balancing, SocketLoadBalancing::All);
    assert_eq!(settings.takeover_wait, Duration::ZERO);
    assert_eq!(
        (settings.node_ports.first, settings.node_ports.last),
        (30000, 32767)
    );
    let SourceSettings::Manifests(manifests) = settings.source else {
        panic!("not a directory")
    };
    assert_eq!(manifests.cluster_ip_ranges.len(), 2);
    assert_eq!(
        manifests.state_dir,
        Path::new("/var/lib/lb-agent/sys-fs-bpf-lb%2Dagent")
    );
}

#[test]
fn agents_with_directories_of_their_own_share_no_state() {
    let of = |bpffs| default_state_dir(Path::new(bpffs));
    assert_ne!(of("/sys/fs/bpf/a-b"), of("/sys/fs/bpf/a/b"));
}

#[test]
fn the_file_has_the_same_names_in_camel_case() {
    let file = parse_file(
        "# a comment\nnode: n\nsocketLoadBalancing: hostOnly\ndevices: eth*,cali*\nclusterCIDR: [10.1.0.0/16, fd00::/64]\n\
         maxFlows: 4096\nmetricsBindAddress: 127.0.0.1:1\nserviceNodePortRange: 30000-30100\ntakeoverWait: 7\n",
    )
    .unwrap();
    assert_eq!(
        file.socket_load_balancing,
        Some(SocketLoadBalancing::HostOnly)
    );
    assert_eq!(file.cluster_cidr.unwrap().0.len(), 2);
    assert_eq!(file.max_flows, Some(4096));
    assert_eq!(file.takeover_wait, Some(7));
}

#[test]
fn off_is_a_word_not_a_boolean() {
    let file = parse_file("socketLoadBalancing: off\n").unwrap();
    assert_eq!(file.socket_load_balancing, Some(SocketLoadBalancing::Off));
}

#[test]
fn an_empty_file_sets_nothing() {
    for text in ["", "---\n# nothing\n", "\u{feff}\r\n"] {
        assert!(parse_file(text).unwrap().node.is_none(), "{text:?}");
    }
}

#[test]
fn an_unknown_key_is_an_error_with_its_line() {
    let error = parse_file("node: n\nsocketLoadBalancer: all\n").unwrap_err();
    assert!(error.starts_with("line 2: "), "{error}");
    assert!(error.contains("socketLoadBalancer"), "{error}");
}

#[test]
fn a_bad_value_is_an_error_with_its_line() {
    let error = parse_file("node: n\n\nsocketLoadBalancing: some\n").unwrap_err();
    assert_eq!(error, "line 3: `some` is not one of all, host-only, off");
    let error = parse_file("clusterCidr: 10.0.0.0\n").unwrap_err();
    assert!(
        error.starts_with("line 1: `10.0.0.0` is not a CIDR"),
        "{error}"
    );
}

#[test]
fn what_is_typed_wins_over_the_file() {
    let file = parse_file("node: from-file\nmaxFlows: 2048\nkubeconfig: /nowhere\n").unwrap();
    let merged = over(typed(&["--node", "typed", "--manifests", "/m"]), file);
    assert_eq!(merged.node.as_deref(), Some("typed"));
    assert_eq!(merged.max_flows, Some(2048));
    assert_eq!(
        merged.kubeconfig, None,
        "a typed source replaces the file's"
    );
}

#[test]
fn the_file_is_read_from_where_it_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let manifests = directory.path().to_str().unwrap();
    let path = directory.path().join("lb.yaml");
    std::fs::write(&path, format!("node: Node-A \nmanifests: {manifests}\n")).unwrap();
    let settings = Settings::load(typed(&["--config", path.to_str().unwrap()])).unwrap();
    assert_eq!(settings.node, "node-a", "trimmed and in lower case");

    std::fs::write(&path, "nodes: a\n").unwrap();
    let error = Settings::load(typed(&["--config", path.to_str().unwrap()])).unwrap_err();
    let start = format!("configuration file {}, line 1: ", path.display());
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn everything_wrong_is_said_at_once() {
    let message = problems(with_manifests(&[
        "--bpffs",
        "relative",
        "--cluster-cidr",
        "10.0.0.0/8,11.0.0.0/8",
        "--max-flows",
        "3",
        "--metrics-bind-address",
        "127.0.0.1:5",
        "--healthz-bind-address",
        "127.0.0.1:5",
        "--cgroup-root",
        "/nonexistent/cgroup",
        "--apiserver",
        "https://x",
    ]));
    for wanted in [
        "--bpffs relative must be an absolute path",
        "--cluster-cidr names 10.0.0.0/8 and 11.0.0.0/8 of one family",
        "--max-flows 3 is out of bounds",
        "are both 127.0.0.1:5",
        "--cgroup-root /nonexistent/cgroup cannot be used",
        "--apiserver is about an API server",
    ] {
        assert!(message.contains(wanted), "{wanted}\nnot in:\n{message}");
    }
    assert_eq!(message.lines().count(), 6, "{message}");
}

#[test]
fn two_free_ports_may_be_asked_for() {
    let any = "127.0.0.1:0";
    let settings = with_manifests(&["--metrics-bind-address", any, "--healthz-bind-address", any]);
    assert!(settings.is_ok());
}

#[test]
fn the_node_must_be_named_and_could_be_a_node() {
    // NODE_NAME may be set where the tests run: the merged arguments are checked directly.
    let mut arguments = typed(&["--manifests", "/", "--node", " "]);
    assert!(
        check(arguments.clone(), &KubeProxy::default())
            .unwrap_err()
            .to_string()
            .contains("the node is not named")
    );
    arguments.node = Some("a/b".to_owned());
    assert!(
        check(arguments, &KubeProxy::default())
            .unwrap_err()
            .to_string()
            .contains("cannot be a node's name")
    );
}

#[test]
fn without_a_source_a_pod_is_expected() {
    let message = problems(Settings::load(typed(&["--node", "a"])));
    assert!(
        message.contains("neither --kubeconfig nor --manifests is given"),
        "{message}"
    );
}

#[test]
fn ranges_to_allocate_from_belong_to_a_directory() {
    let message = problems(Settings::load(typed(&[
        "--node",
        "a",
        "--kubeconfig",
        "/nonexistent/kubeconfig",
        "--service-cluster-ip-range",
        "10.96.0.0/16",
        "--apiserver",
        "10.0.0.1",
    ])));
    assert!(
        message.contains("cannot read --kubeconfig /nonexistent/kubeconfig"),
        "{message}"
    );
    assert!(
        message.contains("--service-cluster-ip-range belongs to --manifests"),
        "{message}"
    );
    assert!(
        message.contains("--apiserver `10.0.0.1` is not a URL"),
        "{message}"
    );
    let message = problems(with_manifests(&[
        "--service-cluster-ip-range",
        "10.0.0.0/31",
    ]));
    assert!(message.contains("has no room for Services"), "{message}");
}

#[test]
fn connected_udp_of_pods_to_port_53_is_the_packet_path_s_unless_pods_sockets_can_be_closed() {
    let ports = |more: &[&str]| with_manifests(more).unwrap().packet_path_udp_ports;
    assert_eq!(ports(&[]), [53]);
    assert_eq!(ports(&["--packet-path-udp-ports", "53,5353"]), [53, 5353]);
    assert!(ports(&["--packet-path-udp-ports", "none"]).is_empty());
    assert!(ports(&["--close-pod-sockets", "/"]).is_empty());
    assert_eq!(
        ports(&["--close-pod-sockets", "/", "--packet-path-udp-ports", "53"]),
        [53]
    );
    // The pods' devices may not be among those that are named.
    assert!(ports(&["--devices", "eth*"]).is_empty());
    for wrong in ["0", "53,", "dns", "65536", &"53,".repeat(20)[..59]] {
        let arguments = ["lb-agent", "run", "--packet-path-udp-ports", wrong];
        assert!(Cli::try_parse_from(arguments).is_err(), "{wrong}");
    }
    let of_file = |text: &str| parse_file(text).unwrap().packet_path_udp_ports.unwrap().0;
    assert_eq!(of_file("packetPathUdpPorts: 53"), [53]);
    assert_eq!(of_file("packetPathUdpPorts: [53, 5353]"), [53, 5353]);
    assert_eq!(of_file("packetPathUdpPorts: \"53, 5353\""), [53, 5353]);
    assert!(of_file("packetPathUdpPorts: none").is_empty());
    assert!(of_file("packetPathUdpPorts: []").is_empty());
}

#[test]
fn the_directory_of_namespaces_must_be_there() {
    let sentence = problems(with_manifests(&["--close-pod-sockets", "/nowhere"]));
    assert!(sentence.contains("--close-pod-sockets"), "{sentence}");
}
