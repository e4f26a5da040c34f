//! The devices that carry the packet path: chosen by name, followed as they come, go and change
//! their names, and shared with whoever else is there.

use anyhow::{Context, Result, ensure};
use lb_common::table::LAYOUT_VERSION;
use lb_lab::topology::UPLINK;
use lb_lab::{PodNetwork, client};
use lb_tests::foreign::{Answer, ForeignProgram, Hook, Side};
use lb_tests::stage::{ServiceSpec, Stage};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A stage with the service `web` on both pods of the first node, and an agent there.
fn stage(flags: &str) -> Result<Stage> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&ServiceSpec::new("web", 10, &["a", "b"]).node_port(30080))?;
    let agent = stage.start_agent(0, &format!("--socket-load-balancing off {flags}"))?;
    stage.agents.push(agent);
    Ok(stage)
}

/// True if the device with this index carries our links, both ways.
fn carries(stage: &Stage, index: u32) -> Result<bool> {
    let links = (stage.lab.bpffs("node0")?).join(format!("v{LAYOUT_VERSION}/links/tcx"));
    Ok(["ingress", "egress"]
        .iter()
        .all(|direction| links.join(format!("{index}-{direction}")).exists()))
}

/// Waits until a device carries our links, or does not.
fn await_carries(stage: &Stage, index: u32, wanted: bool) -> Result<()> {
    let end = Instant::now() + client::PATIENCE;
    while carries(stage, index)? != wanted {
        ensure!(
            Instant::now() < end,
            "device {index} should {}carry the packet path",
            if wanted { "" } else { "not " }
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

#[test]
fn only_devices_that_match_carry_the_packet_path_whatever_they_are_called_later() -> Result<()> {
    let stage = stage(&format!("--devices {UPLINK},lbx*"))?;
    let node = stage.lab.node(0).namespace();
    let pod = node.index_of(stage.pod("a").host_device())?;
    await_carries(&stage, node.index_of(UPLINK)?, true)?;
    ensure!(
        !carries(&stage, pod)?,
        "the pod's device matches no pattern"
    );
    node.ip("link add lbx0 type veth peer name plbx0")?;
    let index = node.index_of("lbx0")?;
    await_carries(&stage, index, true).context("a device that appears, and is down")?;
    node.ip("link set lbx0 name other0")?;
    await_carries(&stage, index, false).context("renamed out of the patterns")?;
    node.ip("link set other0 name lbx1")?;
    await_carries(&stage, index, true).context("renamed into them")?;
    node.ip("link set lbx1 up")?;
    await_carries(&stage, index, true)?;
    node.ip("link del lbx1")?;
    await_carries(&stage, index, false).context("a device that is gone")?;
    let text = stage.agents[0].metrics(stage.lab.node(0))?;
    ensure!(!text.contains("lbx1"), "still in the metrics:\n{text}");
    Ok(())
}

#[test]
fn by_default_every_device_carries_it() -> Result<()> {
    let stage = stage("")?;
    let node = stage.lab.node(0).namespace();
    for device in [
        UPLINK,
        stage.pod("a").host_device(),
        stage.pod("b").host_device(),
        // For what the node sends to its own addresses.
        "lo",
    ] {
        await_carries(&stage, node.index_of(device)?, true).context(device.to_owned())?;
    }
    Ok(())
}

#[test]
fn a_device_that_is_moved_to_another_namespace_is_let_go() -> Result<()> {
    let stage = stage("")?;
    let node = stage.lab.node(0).namespace();
    node.ip("link add lbx0 type veth peer name plbx0")?;
    let index = node.index_of("lbx0")?;
    await_carries(&stage, index, true)?;
    let other = stage.pod("a").namespace().handle();
    node.ip(&format!("link set lbx0 netns {other}"))?;
    await_carries(&stage, index, false)
}

#[test]
fn what_netlink_had_no_room_to_say_is_found_by_looking() -> Result<()> {
    let stage = stage("")?;
    let node = stage.lab.node(0).namespace();
    let agent = Pid::from_raw(i32::try_from(stage.agents[0].id())?);
    node.ip("link add lbx0 type veth peer name plbx0")?;
    await_carries(&stage, node.index_of("lbx0")?, true)?;
    // While the agent cannot listen, more is said than its socket holds.
    kill(agent, Signal::SIGSTOP)?;
    let mut lines = String::new();
    for verb in ["add", "del"] {
        for number in 0..2000 {
            let (high, low) = (number / 250, number % 250);
            writeln!(lines, "addr {verb} 10.99.{high}.{low}/32 dev lbx0")?;
        }
    }
    let said = node.ip_batch(&lines);
    let added = node.ip("link add lbx1 type veth peer name plbx1");
    kill(agent, Signal::SIGCONT)?;
    said?;
    added?;
    await_carries(&stage, node.index_of("lbx1")?, true).context("added meanwhile")?;
    node.ip("link add lbx2 type veth peer name plbx2")?;
    await_carries(&stage, node.index_of("lbx2")?, true).context("added later")
}

fn served(stage: &Stage, count: usize) -> Result<()> {
    let server: SocketAddr = stage.node_port(0, 30080)[0];
    for _ in 0..count {
        stage.client.place().ask_tcp(server)?;
    }
    Ok(())
}

#[test]
fn a_foreign_filter_of_another_kind_on_our_priority_is_stepped_aside_for() -> Result<()> {
    let stage = Stage::new(PodNetwork::Routed)?;
    stage.apply(&ServiceSpec::new("web", 10, &["a", "b"]).node_port(30080))?;
    let filters = |stage: &Stage, direction: &str| {
        let node = stage.lab.node(0).namespace();
        node.tc(&format!("filter show dev {UPLINK} {direction}"))
    };
    stage
        .lab
        .node(0)
        .namespace()
        .tc(&format!("qdisc add dev {UPLINK} clsact"))?;
    for direction in ["ingress", "egress"] {
        stage.lab.node(0).namespace().tc(&format!(
            "filter add dev {UPLINK} {direction} pref 27746 protocol all u32 match u32 0 0"
        ))?;
    }
    let flags = "--socket-load-balancing off --tc-attach clsact";
    let agent = stage.start_agent(0, flags)?;
    served(&stage, 5)?;
    for direction in ["ingress", "egress"] {
        let shown = filters(&stage, direction)?;
        ensure!(
            shown.contains("u32"),
            "the foreign filter is gone:\n{shown}"
        );
        ensure!(
            shown.matches("handle 0x6c62").count() == 1,
            "not one of ours:\n{shown}"
        );
    }
    agent.kill()?;
    // The priority is free again: ours moves there and is there once.
    for direction in ["ingress", "egress"] {
        stage
            .lab
            .node(0)
            .namespace()
            .tc(&format!("filter del dev {UPLINK} {direction} pref 27746"))?;
    }
    let agent = stage.start_agent(0, flags)?;
    served(&stage, 5)?;
    for direction in ["ingress", "egress"] {
        let shown = filters(&stage, direction)?;
        ensure!(
            shown.matches("handle 0x6c62").count() == 1,
            "not one of ours:\n{shown}"
        );
    }
    agent.kill()?;
    lb_lab::Agent::tool(&stage.lab, stage.lab.node(0), "cleanup")?;
    let left = filters(&stage, "ingress")?;
    ensure!(left.is_empty(), "left behind:\n{left}");
    Ok(())
}

#[test]
fn foreign_tcx_programs_stay_where_they_are_when_the_agent_restarts() -> Result<()> {
    let mut stage = stage("")?;
    let node = stage.lab.node(0).namespace();
    let before = ForeignProgram::attach(node, UPLINK, Hook::Ingress, Side::Before, Answer::Next)?;
    let behind = ForeignProgram::attach(node, UPLINK, Hook::Ingress, Side::Behind, Answer::Next)?;
    stage.agents.remove(0).kill()?;
    let agent = stage.start_agent(0, "--socket-load-balancing off")?;
    stage.agents.push(agent);
    served(&stage, 5)?;
    let (first, last) = (before.packets()?, behind.packets()?);
    ensure!(
        first > 0 && first == last,
        "{first} packets before us, {last} behind us"
    );
    Ok(())
}
