//! Options of `lb-agent run` that no other test uses: each does what the reference says of it.

use anyhow::{Context, Result, ensure};
use lb_common::table::LAYOUT_VERSION;
use lb_lab::agent::http_get;
use lb_lab::client::PATIENCE;
use lb_lab::{Agent, AgentOptions, PodNetwork};
use lb_tests::stage::{ServiceSpec, Stage};
use std::fs;
use std::time::Instant;

const NODE_PORT: u16 = 30_080;

/// A stage with `web` on pods `a` (node 0) and `c` (node 1), with a node port.
fn stage() -> Result<(Stage, ServiceSpec)> {
    let stage = Stage::new(PodNetwork::Routed)?;
    let service = ServiceSpec::new("web", 10, &["a", "c"]).node_port(NODE_PORT);
    stage.apply(&service)?;
    Ok((stage, service))
}

/// What `lb-agent` with these words says of node 0.
fn tool(stage: &Stage, words: &str) -> Result<String> {
    Agent::tool(&stage.lab, stage.lab.node(0), words)
}

#[test]
fn devices_named_by_a_pattern_are_the_only_ones_that_get_the_packet_programs() -> Result<()> {
    let (stage, _) = stage()?;
    let attached = |flags: &str| -> Result<Vec<String>> {
        let agent = stage.start_agent(0, flags)?;
        let status = tool(&stage, "status")?;
        let mut devices: Vec<String> = status
            .lines()
            .filter(|line| line.contains(" ingress "))
            .filter_map(|line| line.strip_prefix("device ")?.split(' ').next())
            .map(str::to_owned)
            .collect();
        devices.sort();
        agent.stop()?;
        tool(&stage, "cleanup")?;
        Ok(devices)
    };
    let pods: Vec<String> = ["a", "b"]
        .map(|pod| stage.pod(pod).host_device().to_owned())
        .to_vec();
    let [first, second] = &pods[..] else {
        unreachable!("two pods")
    };
    ensure!(attached("--devices eth*")? == ["eth0"]);
    ensure!(attached(&format!("--devices e*0,{first}"))? == ["eth0", first]);
    let all = attached("--devices auto")?;
    ensure!(all == ["eth0", "lo", first, second], "{all:?}");
    ensure!(attached("--devices nothing*")?.is_empty());
    Ok(())
}

#[test]
fn a_configuration_file_gives_what_is_not_typed_and_what_is_typed_wins() -> Result<()> {
    let (stage, service) = stage()?;
    let file = stage.lab.dir().join("agent.yaml");
    fs::write(
        &file,
        "node: somebody-else\nsocketLoadBalancing: off\nmetricsBindAddress: 127.0.0.1:10301\n\
         healthzBindAddress: 127.0.0.1:10302\nclusterCidr: [192.0.2.0/24]\n",
    )?;
    let typed = format!(
        "--config {} --healthz-bind-address 127.0.0.1:10256",
        file.display()
    );
    let _agent = stage.start_agent(0, &typed)?;
    let node = stage.lab.node(0);
    // From the file: where metrics are, and that sockets are left alone.
    let (status, metrics) = http_get(node, 10301, "/metrics")?;
    ensure!(status == 200, "/metrics answers {status}");
    stage.pod("b").place().ask_tcp(service.cluster_ips()[0])?;
    ensure!(!tool(&stage, "services")?.contains("node: somebody-else"));
    ensure!(
        !tool(&stage, "status")?.contains("connect4"),
        "with sockets off nothing is attached to the cgroup"
    );
    // Typed: health's address and the node's name.
    ensure!(http_get(node, 10302, "/healthz").is_err());
    ensure!(tool(&stage, "status")?.contains("for node node0"));
    ensure!(!metrics.contains("somebody-else"));
    Ok(())
}

#[test]
fn a_configuration_file_that_makes_no_sense_ends_the_start_before_anything_is_touched() -> Result<()>
{
    let (stage, _) = stage()?;
    let file = stage.lab.dir().join("agent.yaml");
    for (text, word) in [
        ("socketLoadBalancing: sometimes\n", "sometimes"),
        ("maxflows: 7\n", "maxflows"),
        ("maxFlows: many\n", "line 1"),
        ("{", "agent.yaml"),
    ] {
        fs::write(&file, text)?;
        let options = AgentOptions::manifests(stage.manifests())
            .with(&format!("--config {}", file.display()));
        let agent = Agent::launch(&stage.lab, stage.lab.node(0), &options)?;
        let bpffs = agent.bpffs().to_owned();
        let before = agent.log().len();
        let (status, log) = agent.wait()?;
        let log = &log[before.min(log.len())..];
        ensure!(!status.success() && log.contains(word), "{text:?}: {log}");
        ensure!(
            !bpffs.join(format!("v{LAYOUT_VERSION}")).exists(),
            "{text:?}: tables were made"
        );
    }
    Ok(())
}

#[test]
fn node_ports_are_served_on_the_addresses_that_are_given() -> Result<()> {
    let (stage, _) = stage()?;
    // A family without a range has all its addresses, as with kube-proxy.
    let _agent = stage.start_agent(0, "--nodeport-addresses 192.0.2.0/24")?;
    let [v4, v6] = stage.node_port(0, NODE_PORT);
    stage.client.place().ask_tcp(v6)?;
    let answer = stage.client.place().ask_tcp(v4);
    ensure!(answer.is_err(), "{v4} is not in the range: {answer:?}");
    Ok(())
}

#[test]
fn node_ports_on_loopback_are_served_unless_told_otherwise() -> Result<()> {
    let (stage, _) = stage()?;
    let server = ([127, 0, 0, 1], NODE_PORT).into();
    let agent = stage.start_agent(0, "")?;
    stage.lab.node(0).place().ask_tcp(server)?;
    agent.stop()?;
    let _agent = stage.start_agent(0, "--localhost-nodeports false")?;
    let answer = stage.lab.node(0).place().ask_tcp(server);
    ensure!(answer.is_err(), "127.0.0.1 answers: {answer:?}");
    Ok(())
}

#[test]
fn with_masquerade_all_a_pod_s_own_address_is_not_seen_behind_a_cluster_ip() -> Result<()> {
    let (stage, service) = stage()?;
    let pod = stage.pod("b");
    for (flags, masqueraded) in [("", false), ("--masquerade-all", true)] {
        let flags = format!("--socket-load-balancing off {flags}");
        let agent = stage.start_agent(0, &flags)?;
        for server in service.cluster_ips() {
            let answer = pod.place().ask_tcp(server)?;
            let own = answer.peer.ip() == pod.address_like(server.ip());
            ensure!(own != masqueraded, "{flags}: {answer}");
        }
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn external_ips_outside_of_the_given_ranges_are_refused_by_name() -> Result<()> {
    let (stage, _) = stage()?;
    stage.apply(
        &ServiceSpec::new("shop", 11, &["a"]).with("externalIPs: [198.51.100.7, 203.0.113.7]"),
    )?;
    let agent = stage.start_agent(0, "--external-ip-ranges 198.51.100.0/24")?;
    let services = tool(&stage, "services")?;
    ensure!(
        services.contains("198.51.100.7:80") && !services.contains("203.0.113.7"),
        "{services}"
    );
    let log = agent.log();
    let refusal = log
        .lines()
        .find(|line| line.contains("203.0.113.7"))
        .with_context(|| format!("no word of 203.0.113.7 in {log}"))?;
    ensure!(refusal.contains("lab/shop"), "{refusal}");
    Ok(())
}

#[test]
fn as_json_every_line_of_the_log_is_an_object() -> Result<()> {
    let (stage, _) = stage()?;
    let agent = stage.start_agent(0, "--log-format json")?;
    let end = Instant::now() + PATIENCE;
    // The last line may be half written.
    while agent.log().lines().count() < 4 {
        ensure!(Instant::now() < end, "{}", agent.log());
    }
    let log = agent.log();
    let (whole, _) = log.rsplit_once('\n').context("no line")?;
    for line in whole.lines() {
        let value: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
        ensure!(value.is_object(), "{line}");
    }
    Ok(())
}

#[test]
fn the_agent_starts_no_other_program() -> Result<()> {
    let (stage, service) = stage()?;
    let mut options = AgentOptions::manifests(stage.manifests());
    // Whatever it looked for would be missing.
    options
        .environment
        .push(("PATH".to_owned(), "/nonexistent".to_owned()));
    let agent = Agent::start(&stage.lab, stage.lab.node(0), &options)?;
    stage.pod("b").place().ask_tcp(service.cluster_ips()[0])?;
    stage
        .client
        .place()
        .ask_tcp(stage.node_port(0, NODE_PORT)[0])?;
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.id()))?;
    for task in tasks.flatten() {
        let children = fs::read_to_string(task.path().join("children"))?;
        ensure!(children.is_empty(), "it has children: {children}");
    }
    ensure!(!agent.log().contains("No such file"), "{}", agent.log());
    Ok(())
}
