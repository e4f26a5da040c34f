//! The cgroup that the socket hooks are attached to is proven to be the root, or given by option:
//! the real agent in containers that see a cgroup of their own as if it were the root.

use anyhow::{Context, Result, ensure};
use lb_lab::{Lab, Node, PodNetwork, agent, cgroup};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a container runtime makes of the cgroup file system.
#[derive(Clone, Copy, Debug)]
enum Container {
    /// A cgroup namespace with a mount of its own, as runtimes do with cgroup v2.
    OwnNamespace,
    /// The container's directory bound over the mount point.
    Bound,
}

/// A command of `node` in a mount namespace whose only cgroup mount is the container's, at `point`.
fn contained(node: &Node, container: Container, program: &Path, point: &Path) -> Result<Command> {
    let mut command = node.place().command(program)?;
    let own = node.place().cgroup().context("the node has a cgroup")?;
    let (own, point) = (own.path().to_owned(), point.to_owned());
    let hosts = cgroup_mounts()?;
    let enter = move || {
        let mut flags = CloneFlags::CLONE_NEWNS;
        if matches!(container, Container::OwnNamespace) {
            flags |= CloneFlags::CLONE_NEWCGROUP;
        }
        unshare(flags)?;
        let (absent, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        mount(absent, "/", absent, private, absent)?;
        match container {
            Container::OwnNamespace => {
                mount(
                    Some("none"),
                    &point,
                    Some("cgroup2"),
                    MsFlags::empty(),
                    absent,
                )?;
            }
            Container::Bound => mount(Some(&own), &point, absent, MsFlags::MS_BIND, absent)?,
        }
        for host in &hosts {
            umount2(host, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec of a child of this thread alone: system calls on paths that
    // were made before, no locks of ours.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

/// Where cgroup v2 is mounted, innermost last.
fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounts: Vec<PathBuf> = text
        .lines()
        .filter(|line| line.contains(" - cgroup2 "))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Runs the agent in the container until it ends; what it wrote.
fn start_and_refuse(container: Container, flags: &[&str]) -> Result<(String, PathBuf)> {
    lb_lab::require_root();
    let lab = Lab::single(PodNetwork::Routed)?;
    let node = lab.node(0);
    let point = lab.dir().join("cgroup");
    let manifests = lab.dir().join("manifests");
    fs::create_dir_all(&point)?;
    fs::create_dir_all(&manifests)?;
    let bpffs = lab.bpffs(node.name())?;
    let mut command = contained(node, container, &agent::binary()?, &point)?;
    command
        .args(["run", "--node", node.name(), "--manifests"])
        .arg(&manifests);
    command.arg("--state-dir").arg(lab.dir().join("state"));
    command.arg("--bpffs").arg(&bpffs).args(flags);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("start the agent")?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        !output.status.success(),
        "{container:?}: the agent ran:\n{text}"
    );
    let left: Vec<_> = fs::read_dir(&bpffs)?.collect();
    ensure!(
        left.iter().flatten().all(|entry| !has_links(&entry.path())),
        "{container:?}: links were left behind"
    );
    Ok((text, point))
}

/// True if a directory of links below `path` holds any.
fn has_links(path: &Path) -> bool {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    entries(path).any(|entry| {
        let path = entry.path();
        path.is_dir()
            && (path.ends_with("links") && entries(&path).next().is_some() || has_links(&path))
    })
}

#[test]
fn the_agent_refuses_a_cgroup_that_is_not_the_root_and_names_the_mount() -> Result<()> {
    for container in [Container::OwnNamespace, Container::Bound] {
        let (text, point) = start_and_refuse(container, &[])?;
        let point = point.display().to_string();
        for word in [point.as_str(), "not the root", "--cgroup-root"] {
            ensure!(
                text.contains(word),
                "{container:?}: no {word:?} in:\n{text}"
            );
        }
    }
    Ok(())
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused_even_if_given_by_option() -> Result<()> {
    let flags = ["--cgroup-root", "/proc/self"];
    let (text, _) = start_and_refuse(Container::Bound, &flags)?;
    ensure!(
        text.contains("/proc/self is not a cgroup v2 directory"),
        "{text}"
    );
    Ok(())
}

#[test]
fn the_cgroup_given_by_option_is_taken_though_it_is_not_the_root() -> Result<()> {
    lb_lab::require_root();
    let mut stage = lb_tests::stage::Stage::new(PodNetwork::Routed)?;
    let service = lb_tests::stage::ServiceSpec::new("web", 10, &["b"]);
    stage.apply(&service)?;
    stage.start_agents("--socket-load-balancing all")?;
    let root = stage.lab.node(0).cgroup_root().path();
    ensure!(
        root != cgroup::mount_point()?,
        "the lab's cgroups are children"
    );
    let asked = service.cluster_ips()[0];
    let shown = stage.pod("a").place().call(|| {
        let stream = std::net::TcpStream::connect(asked)?;
        lb_lab::client::ask(&stream)?;
        // Only a socket knows another address than its packets have.
        let source = stream.local_addr()?;
        ensure!(stream.peer_addr()? == asked, "connected from {source}");
        Ok(String::new())
    });
    shown.map(drop)?;
    let metrics = stage.agents[0].metrics(stage.lab.node(0))?;
    let counted = metrics.lines().any(|line| {
        line.starts_with("lb_service_connections_total")
            && line.contains("path=\"socket\"")
            && !line.ends_with(" 0")
    });
    ensure!(counted, "nothing was counted at a socket:\n{metrics}");
    Ok(())
}
