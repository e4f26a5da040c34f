//! The smallest proof that the agent works on the running kernel: every program it wants loads and
//! attaches, and one connection of each kind gets through each path, SCTP's where the kernel has
//! sockets of it, and over a VLAN on a bond where it has these devices. `cargo xtask vm` runs it on other
//! kernels, with `--complete`: there a kernel without these has failed. Other arguments are passed to the
//! agent.

use anyhow::{Context, Result, ensure};
use lb_lab::{Agent, PodNetwork, client};
use lb_tests::associations::{self, Served};
use lb_tests::bonded::{self, Bonded};
use lb_tests::stage::{ServiceSpec, Stage};
use std::net::SocketAddr;
use std::process::ExitCode;

const NODE_PORT: u16 = 30_080;

fn main() -> ExitCode {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.trim();
    let mut flags: Vec<String> = std::env::args().skip(1).collect();
    let given = flags.len();
    flags.retain(|flag| flag != "--complete");
    let complete = flags.len() < given;
    for mode in ["all", "off"] {
        let flags = format!("--socket-load-balancing {mode} {}", flags.join(" "));
        match one_mode(&flags, complete) {
            Ok(()) => println!("{kernel}: works with {flags}"),
            Err(error) => {
                println!("{kernel}: does not work with {flags}: {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn one_mode(flags: &str, complete: bool) -> Result<()> {
    let mut stage = Stage::new(PodNetwork::Routed)?;
    let service = |name, number, pods: &[&str], port| {
        let service = ServiceSpec::new(name, number, pods).node_port(port);
        service.sctp()
    };
    let near = service("near", 10, &["a"], NODE_PORT);
    let far = service("far", 11, &["c"], NODE_PORT + 1);
    let nobody = service("nobody", 12, &[], NODE_PORT + 2);
    for service in [&near, &far, &nobody] {
        stage.apply(service)?;
    }
    let missing = bonded::missing()?;
    let bonded = if missing.is_empty() {
        Some(Bonded::new(&mut stage)?)
    } else {
        stage.route_default(0)?;
        None
    };
    // Every service is asked at this node; loading programs is what takes longest on an emulated machine.
    let agent = stage.start_agent(0, flags)?;
    stage.agents.push(agent);
    print!("{}", Agent::tool(&stage.lab, stage.lab.node(0), "status")?);
    let services = [
        (near.cluster_ips(), "a", NODE_PORT),
        (far.cluster_ips(), "c", NODE_PORT + 1),
    ];
    every_path(&stage, &services)?;
    if client::has_sctp() {
        associations::every_path(&stage, &services, nobody.cluster_ips()).context("SCTP")?;
        println!("SCTP associations reach their endpoints");
    } else {
        ensure!(!complete, "this kernel has no SCTP sockets");
        println!("this kernel has no SCTP sockets: no association is tried");
    }
    if let Some(bonded) = bonded {
        (bonded.every_path_works(&stage, &near)).context("VLAN on bond as uplink")?;
        println!("VLAN on bond as uplink: every path works");
        bonded.tags_that_are_kept_are_found(&stage)?;
    } else {
        let missing = missing.join(", ");
        ensure!(!complete, "this kernel has no devices of kind {missing}");
        println!("this kernel has no devices of kind {missing}: no VLAN on a bond is tried");
    }
    ensure!(
        stage.checksum_errors()? == 0,
        "a stack counted wrong checksums"
    );
    Ok(())
}

/// Asks every one of `services` from a pod and from outside.
fn every_path(stage: &Stage, services: &[Served<'_>]) -> Result<()> {
    for (cluster_ips, pod, port) in services {
        for server in *cluster_ips {
            ask(stage.pod("b").place(), server, pod)
                .with_context(|| format!("from a pod to the ClusterIP {server}"))?;
        }
        for server in stage.node_port(0, *port) {
            ask(stage.client.place(), server, pod)
                .with_context(|| format!("from outside to the node port {server}"))?;
        }
    }
    Ok(())
}

/// Asks over TCP and both kinds of UDP; `pod` must answer.
fn ask(client: &lb_lab::Place, server: SocketAddr, pod: &str) -> Result<()> {
    let answers = [
        ("TCP", client.ask_tcp(server)),
        ("connected UDP", client.ask_udp(server, 100)),
        ("unconnected UDP", client.ask_udp_unconnected(server, 100)),
    ];
    for (kind, answer) in answers {
        let answer = answer.context(kind)?;
        ensure!(
            answer.name == pod,
            "{kind}: {} answered, not {pod}",
            answer.name
        );
    }
    Ok(())
}
