//! `cargo xtask run`: privileges, setup, build, then the demo or the agent against a real source.

use crate::served::{Served, Signals, Stopped, value_of};
use crate::{RunArgs, build, control_plane, demo, setup, workspace};
use anyhow::{Context, Result, bail};
use lb_lab::bpffs::Bpffs;
use lb_lab::control_plane::Programs;
use lb_lab::{Namespace, Place, janitor};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    build::lb_privileges("run")?;
    check_sources(args)?;
    setup::lab_tools()?;
    let agent = build::agent()?;
    let in_cluster = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    let node = match &args.node {
        Some(node) => node.clone(),
        None => fs::read_to_string("/proc/sys/kernel/hostname")
            .context("cannot read the host name: give --node")?
            .trim()
            .to_lowercase(),
    };
    if args.control_plane {
        let programs = Programs::new(&control_plane::MODULE.programs()?);
        return demo::run(&agent, &node, &args.agent, Some(programs));
    }
    if args.kubeconfig.is_none() && args.manifests.is_none() && !in_cluster {
        return demo::run(&agent, &node, &args.agent, None);
    }
    against(&agent, &node, args)
}

/// A source that is not there is said before anything is installed or built.
fn check_sources(args: &RunArgs) -> Result<()> {
    if let Some(dir) = &args.manifests
        && let Err(error) = fs::read_dir(dir)
    {
        bail!(
            "--manifests {} cannot be read: {error}; name a directory with manifests (it may be \
             empty), or leave the option out for the demo",
            dir.display()
        );
    }
    if let Some(file) = &args.kubeconfig
        && let Err(error) = fs::File::open(file)
    {
        bail!(
            "--kubeconfig {} cannot be read: {error}; name the kubeconfig of a cluster, or leave \
             the option out for the demo",
            file.display()
        );
    }
    Ok(())
}

/// Where ClusterIPs and node ports given to the manifests of `dir` are remembered: another run on
/// the same directory gives the same ones.
fn allocations(dir: &Path) -> Result<PathBuf> {
    let dir = dir
        .canonicalize()
        .with_context(|| format!("cannot resolve {}", dir.display()))?;
    let name: String = dir
        .to_string_lossy()
        .chars()
        .map(|letter| if letter == '/' { '%' } else { letter })
        .collect();
    Ok(workspace::target().join("run").join(name))
}

/// Runs the agent against a cluster or a directory until told to stop, then removes its traces.
fn against(agent: &Path, node: &str, args: &RunArgs) -> Result<ExitCode> {
    let mut signals = Signals::block()?;
    janitor::sweep_dead();
    janitor::start()?;
    let dir = janitor::state_dir().join(janitor::unique_name());
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let state = StateDir(dir);
    let _bpffs = Bpffs::mount(&state.0.join(janitor::BPFFS))?;
    let mut command = Place::new(Namespace::host(), None).command(agent)?;
    command.args(["run", "--node", node]);
    if let Some(file) = &args.kubeconfig {
        command.arg("--kubeconfig").arg(file);
    }
    if let Some(dir) = &args.manifests {
        command.arg("--manifests").arg(dir);
        if value_of(&args.agent, "--state-dir").is_none() {
            command.arg("--state-dir").arg(allocations(dir)?);
        }
    }
    command.args(&args.agent);
    let mut served = Served::start(command, agent, &state.0, &args.agent)?;
    served.wait_healthy(&signals)?;
    println!(
        "serving as node {node}; `{} services --bpffs {}` lists what; Ctrl-C removes everything",
        agent.display(),
        served.bpffs.display()
    );
    match served.wait(&mut signals)? {
        Stopped::Signal => Ok(ExitCode::SUCCESS),
        Stopped::Agent(status) => bail!("the agent ended: {status}"),
    }
}

struct StateDir(PathBuf);

impl Drop for StateDir {
    fn drop(&mut self) {
        janitor::remove_state(&self.0);
    }
}
