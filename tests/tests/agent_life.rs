//! The agent's life as a node sees it: killed, restarted, doubled, stopped, cleaned up after.

use anyhow::{Context, Result, ensure};
use lb_lab::client;
use lb_lab::{Agent, AgentOptions, PodNetwork};
use lb_tests::stage::{CLUSTER_CIDRS, ServiceSpec, Stage};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

/// A stage with one service (`web` on pods `a` and `b`, node port 30080) and agents running.
fn stage(flags: &str) -> Result<(Stage, ServiceSpec)> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    let service = ServiceSpec::new("web", 10, &["a", "b"]).node_port(30080);
    stage.apply(&service)?;
    stage.start_agents(flags)?;
    Ok((stage, service))
}

/// `count` connections from outside, one after the other, each with an answer.
fn connect(stage: &Stage, count: u32) -> Result<()> {
    let server = stage.node_port(0, 30080)[0];
    stage.client.place().call(|| {
        for number in 0..count {
            client::tcp(server).with_context(|| format!("connection {number} of {count}"))?;
        }
        Ok(String::new())
    })?;
    Ok(())
}

/// A connection from outside that stays open.
fn open(stage: &Stage) -> Result<TcpStream> {
    let server = stage.node_port(0, 30080)[0];
    let stream = stage
        .client
        .place()
        .enter(|| TcpStream::connect(server))??;
    client::ask(&stream)?;
    Ok(stream)
}

#[test]
fn with_a_dead_agent_more_new_connections_succeed_than_the_flow_table_has_entries() -> Result<()> {
    let (mut stage, _) = stage("--socket-load-balancing off --max-flows 256")?;
    let held = open(&stage)?;
    for agent in stage.agents.drain(..) {
        agent.kill()?;
    }
    connect(&stage, 3000)?;
    client::ask(&held).context("the connection held open meanwhile")?;
    Ok(())
}

#[test]
fn a_node_port_takes_more_connections_than_snat_has_ports_and_live_ones_keep_theirs() -> Result<()>
{
    let mut stage = Stage::new(PodNetwork::Routed)?;
    // Pod c lives on the other node: every connection needs a port of this node.
    stage.apply(&ServiceSpec::new("far", 10, &["c"]).node_port(30080))?;
    // What this leaves for SNAT: 16384-16639.
    stage.lab.node(0).place().call(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "16640 65535")?;
        Ok(String::new())
    })?;
    stage.start_agents("--socket-load-balancing off")?;
    let held = (0..8).map(|_| open(&stage)).collect::<Result<Vec<_>>>()?;
    connect(&stage, 3000)?;
    for stream in &held {
        client::ask(stream).context("a connection held open meanwhile")?;
    }
    Ok(())
}

#[test]
fn a_killed_agent_breaks_nothing_and_the_next_one_takes_over() -> Result<()> {
    for mode in ["all", "off"] {
        let flags = format!("--socket-load-balancing {mode}");
        let (mut stage, service) = stage(&flags)?;
        let held = open(&stage)?;
        for agent in stage.agents.drain(..) {
            agent.kill()?;
        }
        connect(&stage, 20)?;
        stage.pod("a").place().ask_tcp(service.cluster_ips()[0])?;
        stage.start_agents(&flags)?;
        client::ask(&held).context("the connection from before the restart")?;
        connect(&stage, 20)?;
        stage.apply(&ServiceSpec::new("web", 10, &["c"]).node_port(30080))?;
        await_answer_from(&stage, stage.node_port(0, 30080)[0], "c")?;
        client::ask(&held).context("the connection to an endpoint removed since")?;
    }
    Ok(())
}

/// Asks until the answer comes from `name`: a change takes effect without an event of its own.
fn await_answer_from(stage: &Stage, server: SocketAddr, name: &str) -> Result<()> {
    let end = std::time::Instant::now() + client::PATIENCE;
    loop {
        let answer = stage.client.place().ask_tcp(server)?;
        if answer.name == name {
            return Ok(());
        }
        ensure!(
            std::time::Instant::now() < end,
            "still answered by {answer}"
        );
    }
}

#[test]
fn kill_at_any_moment_of_the_first_sync_leaves_nothing_broken() -> Result<()> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    let service = ServiceSpec::new("web", 10, &["a", "b"]).node_port(30080);
    stage.apply(&service)?;
    let options =
        AgentOptions::manifests(stage.manifests()).with(&format!("--cluster-cidr {CLUSTER_CIDRS}"));
    for moment in 0..24_u64 {
        let agent = Agent::launch(&stage.lab, stage.lab.node(0), &options)?;
        // The moments are spread over the start, which takes a few hundred milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(moment * 17));
        agent.kill()?;
        // Whatever stage it had reached, direct traffic is untouched.
        stage
            .pod("a")
            .place()
            .ask_tcp(stage.pod("b").sockets(8080)[0])?;
    }
    stage.start_agents("")?;
    connect(&stage, 20)?;
    stage.pod("b").place().ask_tcp(service.cluster_ips()[1])?;
    Ok(())
}

#[test]
fn sigterm_leaves_the_dataplane_in_place() -> Result<()> {
    let (mut stage, _) = stage("--socket-load-balancing off")?;
    for agent in stage.agents.drain(..) {
        let status = agent.stop()?;
        ensure!(status.success(), "the agent ended with {status}");
    }
    connect(&stage, 20)
}

#[test]
fn a_second_agent_on_the_same_directory_exits_with_a_sentence_and_touches_nothing() -> Result<()> {
    let (stage, _) = stage("")?;
    let empty = stage.lab.dir().join("empty");
    let second = Agent::launch(
        &stage.lab,
        stage.lab.node(0),
        &AgentOptions::manifests(&empty).with(
            "--metrics-bind-address 127.0.0.1:11249 --healthz-bind-address 127.0.0.1:11256 \
             --takeover-wait 0",
        ),
    )?;
    let (status, log) = second.wait()?;
    ensure!(!status.success(), "the second agent must not succeed");
    ensure!(
        log.contains("another agent"),
        "no sentence about the other agent in:\n{log}"
    );
    connect(&stage, 20)
}

#[test]
fn a_waiting_agent_takes_over_when_the_first_ends() -> Result<()> {
    let (mut stage, _) = stage("")?;
    let options = AgentOptions::manifests(stage.manifests()).with(&format!(
        "--cluster-cidr {CLUSTER_CIDRS} --takeover-wait 60"
    ));
    let first = stage.agents.remove(0);
    let mut second = Agent::launch(&stage.lab, stage.lab.node(0), &options)?;
    first.kill()?;
    second.wait_healthy(stage.lab.node(0))?;
    connect(&stage, 20)
}

#[test]
fn cleanup_removes_every_trace_and_twice_is_fine() -> Result<()> {
    for attach in ["tcx", "clsact"] {
        let (mut stage, _) = stage(&format!("--tc-attach {attach}"))?;
        connect(&stage, 5)?;
        let agent = stage.agents.remove(0);
        let bpffs = agent.bpffs().to_owned();
        agent.stop()?;
        let node = stage.lab.node(0);
        for _ in 0..2 {
            Agent::tool(&stage.lab, node, "cleanup")?;
        }
        // The kernel puts two files of its own into the first bpffs of a machine.
        let left: Vec<_> = std::fs::read_dir(&bpffs)?
            .flatten()
            .map(|entry| entry.file_name())
            .filter(|name| !name.to_string_lossy().ends_with(".debug"))
            .collect();
        ensure!(left.is_empty(), "{attach}: left in the bpffs: {left:?}");
        let filters = node.namespace().tc("filter show dev eth0 ingress")?;
        ensure!(filters.is_empty(), "filters left behind: {filters}");
        let mut command: Command = node.place().command("bpftool")?;
        let nets = command.args(["net", "show"]).output()?;
        let nets = String::from_utf8_lossy(&nets.stdout).into_owned();
        ensure!(!nets.contains("tc_ingress"), "programs left behind: {nets}");
        let server = stage.node_port(0, 30080)[0];
        let refused = stage.client.place().ask_tcp(server);
        ensure!(refused.is_err(), "nobody serves the node port any more");
    }
    Ok(())
}

#[test]
fn metrics_count_connections_by_service_and_path_and_health_follows_the_sync() -> Result<()> {
    let (stage, service) = stage("")?;
    connect(&stage, 7)?;
    for _ in 0..5 {
        stage.pod("a").place().ask_tcp(service.cluster_ips()[0])?;
    }
    let text = stage.agents[0].metrics(stage.lab.node(0))?;
    let value = |path: &str| {
        text.lines()
            .filter(|line| {
                line.starts_with("lb_service_connections_total{")
                    && line.contains("name=\"web\"")
                    && line.contains("protocol=\"TCP\"")
                    && line.contains(&format!("path=\"{path}\""))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>()
    };
    #[expect(clippy::float_cmp, reason = "small whole numbers")]
    let right = value("tc") == 7.0 && value("socket") == 5.0;
    ensure!(right, "7 by tc and 5 by socket expected in:\n{text}");
    Ok(())
}

#[test]
fn lb_agent_services_shows_frontends_endpoints_and_connections_from_the_live_tables() -> Result<()>
{
    let (stage, _) = stage("--socket-load-balancing off")?;
    let held = open(&stage)?;
    for format in ["table", "wide", "json"] {
        let text = Agent::tool(
            &stage.lab,
            stage.lab.node(0),
            &format!("services -o {format}"),
        )?;
        for expected in ["web", "10.96.0.10", "30080", "10.244.1.10", "fd00:10:96::a"] {
            ensure!(
                text.contains(expected),
                "no {expected} in -o {format}:\n{text}"
            );
        }
    }
    drop(held);
    let text = Agent::tool(&stage.lab, stage.lab.node(0), "status")?;
    ensure!(text.contains("eth0"), "status names no device:\n{text}");
    Ok(())
}
