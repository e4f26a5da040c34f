//! The demo: pods as network namespaces, a directory of manifests or a control plane of its own as
//! the source, the agent attached to this machine, and commands to try. Everything it makes is gone when it ends, however it ends.

mod cluster;
mod machine;
mod manifests;

use crate::served::{Served, Signals, Stopped, value_of};
use crate::step::say;
use anyhow::{Context, Result};
use cluster::Cluster;
use lb_lab::control_plane::Programs;
use machine::Machine;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// The demo's service, as its manifests say.
struct Frontend;

impl Frontend {
    // Of the demo's own networks, so that no cluster of this machine has them, too.
    const CLUSTER_IP4: &str = "198.18.79.10";
    const CLUSTER_IP6: &str = "fd00:198:18:79::10";
    /// Where services without a ClusterIP get theirs.
    const RANGES: &str = "198.18.79.0/24,fd00:198:18:79::/112";
    const PORT: u16 = 80;
    const NODE_PORT: u16 = 30080;
    const TARGET_PORT: u16 = 8080;
}

/// Builds the stage, runs the agent, prints what to try and waits for the end.
pub(crate) fn run(
    agent: &Path,
    node: &str,
    flags: &[OsString],
    programs: Option<Programs>,
) -> Result<ExitCode> {
    let mut signals = Signals::block()?;
    let machine = Machine::build(node)?;
    let manifests = machine.dir().join("manifests");
    let spare = machine.dir().join("spare");
    manifests::write(&manifests, &spare, node, machine.pods())?;
    let cluster = programs
        .map(|programs| Cluster::start(&machine, node, programs, &[&manifests, &spare]))
        .transpose()?;
    let log = machine.dir().join("agent.log");
    let mut command = machine.node().place().command(agent)?;
    command.args(["run", "--node", node]);
    for (name, value) in defaults(machine.dir(), &manifests, cluster.as_ref())? {
        if value_of(flags, name).is_none() {
            command.arg(name).arg(value);
        }
    }
    command.args(flags).stdin(Stdio::null());
    let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    command.stdout(file.try_clone()?).stderr(file);
    let mut served = Served::start(command, agent, machine.dir(), flags)?;
    let healthy = served.wait_healthy(&signals);
    if let Err(error) = healthy {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        return Err(error.context(format!(
            "the demo's agent did not start; its log:\n{tail}\n"
        )));
    }
    print_requests(&machine);
    match &cluster {
        Some(cluster) => cluster.print(),
        None => print_changes(&manifests, &spare),
    }
    println!("\nWhat the tables hold, with endpoints and connections (as root):\n");
    println!(
        "{} services --bpffs {}",
        agent.display(),
        served.bpffs.display()
    );
    println!(
        "\nThe agent's log is {}. Ctrl-C ends the demo and removes everything.\n",
        log.display()
    );
    match served.wait(&mut signals)? {
        Stopped::Signal => {
            say("stopping: removing programs, links, tables, namespaces, devices and cgroups");
            Ok(ExitCode::SUCCESS)
        }
        Stopped::Agent(status) => {
            let text = fs::read_to_string(&log).unwrap_or_default();
            anyhow::bail!("the agent ended ({status}); its log:\n{text}")
        }
    }
}

/// The agent's options in the demo, unless others are given after `--`.
fn defaults(
    dir: &Path,
    manifests: &Path,
    cluster: Option<&Cluster>,
) -> Result<Vec<(&'static str, OsString)>> {
    let mut defaults = vec![
        // Every process of this machine is below the root cgroup, also the client that plays the
        // outside: with `all` its socket would be balanced as a pod's, and no packet path be seen.
        ("--socket-load-balancing", "host-only".into()),
    ];
    match cluster {
        Some(cluster) => defaults.push(("--kubeconfig", cluster.kubeconfig()?.into())),
        None => defaults.extend([
            ("--manifests", manifests.into()),
            ("--service-cluster-ip-range", Frontend::RANGES.into()),
            ("--state-dir", dir.join("state").into()),
        ]),
    }
    Ok(defaults)
}

/// The requests to try, each tried once after it is offered.
fn print_requests(machine: &Machine) {
    let (v4, v6, port) = (
        Frontend::CLUSTER_IP4,
        Frontend::CLUSTER_IP6,
        Frontend::NODE_PORT,
    );
    // Without --noproxy a proxy of the environment would be asked for the pods.
    let curl = "curl --noproxy '*' --silent --show-error --max-time 5";
    let outside = machine.outside().name().unwrap_or_default();
    let (near4, near6) = Machine::addresses_for_outside();
    let commands = [
        (
            "ClusterIP",
            format!("{curl} http://{v4}:{}/", Frontend::PORT),
        ),
        (
            "ClusterIP, IPv6",
            format!("{curl} 'http://[{v6}]:{}/'", Frontend::PORT),
        ),
        ("node port", format!("{curl} http://127.0.0.1:{port}/")),
        (
            "node port, IPv6",
            format!("{curl} 'http://[{near6}]:{port}/'"),
        ),
    ];
    let from_outside = [
        format!("ip netns exec {outside} {curl} http://{near4}:{port}/"),
        format!("ip netns exec {outside} {curl} 'http://[{near6}]:{port}/'"),
    ];
    println!(
        "\nThe demo runs. Each answer names the pod that gave it; repeat a command to meet both.\n"
    );
    for (_, command) in &commands {
        println!("{command}");
    }
    println!("\nAs a client outside the cluster, through the packet path (as root):\n");
    for command in &from_outside {
        println!("{command}");
    }
    let named = commands.iter().map(|(name, command)| (*name, command));
    for (name, command) in named.chain(from_outside.iter().map(|command| ("outside", command))) {
        if let Err(error) = attempt(command) {
            println!("Not answered just now ({name}): {command}: {error:#}");
        }
    }
}

/// What to change where manifests are files.
fn print_changes(manifests: &Path, spare: &Path) {
    let (manifests, spare) = (manifests.display(), spare.display());
    println!("\nThe manifests are in {manifests}; what you change there is served at once:\n");
    println!("mv {manifests}/web-2.yaml {spare}/");
    println!("cp {spare}/web-3.yaml {manifests}/");
    println!(
        "sed -i 's/nodePort: {}/nodePort: {}/' {manifests}/web.yaml",
        Frontend::NODE_PORT,
        Frontend::NODE_PORT + 1
    );
}

/// Runs one printed command as a shell would.
fn attempt(command: &str) -> Result<()> {
    lb_lab::command::output(Command::new("sh").args(["-c", command])).map(drop)
}
