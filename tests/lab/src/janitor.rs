//! Removes what a killed process could not: one forked watcher for each process that builds labs.
//!
//! Drop guards cover success, failure and panic; nothing in a process survives SIGKILL or an
//! interrupted `cargo test`. The watcher waits for the end of its parent (an event, by pidfd) and
//! then removes every namespace, cgroup and mount that carries the parent's name.

use crate::{cgroup, command};
use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{ForkResult, fork, getpid, setsid};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

static STARTED: Mutex<bool> = Mutex::new(false);
static LABS: AtomicU32 = AtomicU32::new(0);

/// What begins the name of everything that process `pid` makes.
pub fn prefix(pid: i32) -> String {
    format!("lb{pid}x")
}

/// A name no other lab of this machine carries.
pub fn unique_name() -> String {
    format!(
        "{}{}",
        prefix(getpid().as_raw()),
        LABS.fetch_add(1, Ordering::Relaxed)
    )
}

/// Where labs keep their directories.
pub fn state_dir() -> PathBuf {
    PathBuf::from("/run/lb-lab")
}

/// Starts the watcher once; later calls do nothing.
pub fn start() -> Result<()> {
    let mut started = STARTED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if *started {
        return Ok(());
    }
    let parent = getpid();
    // SAFETY: plain system call with an integer pid and no flags; it returns a descriptor or -1.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, parent.as_raw(), 0) };
    if pidfd < 0 {
        bail!("pidfd_open failed: {}", std::io::Error::last_os_error());
    }
    // SAFETY: the child calls only code that needs no lock another thread could hold at the fork
    // (glibc's allocator handles forks itself) and ends in _exit.
    match unsafe { fork() }.context("cannot fork the lab's janitor")? {
        ForkResult::Parent { .. } => {
            // SAFETY: the descriptor was opened above and is used by nobody else in this process.
            unsafe { libc::close(i32::try_from(pidfd).unwrap_or(-1)) };
        }
        ForkResult::Child => watch(i32::try_from(pidfd).unwrap_or(-1), parent.as_raw()),
    }
    *started = true;
    Ok(())
}

fn watch(pidfd: i32, parent: i32) -> ! {
    // Out of the terminal's process group: Ctrl-C must not reach the one who cleans up after it.
    let _ = setsid();
    let mut poll = libc::pollfd {
        fd: pidfd,
        events: libc::POLLIN,
        revents: 0,
    };
    loop {
        // SAFETY: `poll` is one valid pollfd that outlives the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready > 0 {
            break;
        }
    }
    sweep(&prefix(parent));
    // SAFETY: ends the process at once, without running the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

/// Removes what earlier, killed processes left: everything whose maker no longer lives.
pub fn sweep_dead() {
    let dead = |name: &str| {
        let pid = name
            .strip_prefix("lb")?
            .split_once('x')?
            .0
            .parse::<i32>()
            .ok()?;
        (!Path::new("/proc").join(pid.to_string()).exists()).then(|| prefix(pid))
    };
    let mut places = vec![PathBuf::from("/run/netns"), state_dir()];
    places.extend(cgroup::mount_point());
    let mut found: Vec<String> = places
        .iter()
        .flat_map(|place| names_in(place))
        .filter_map(|name| dead(&name))
        .collect();
    found.sort();
    found.dedup();
    for prefix in found {
        sweep(&prefix);
    }
}

/// Removes every device, namespace, cgroup and directory whose name begins with `prefix`.
pub fn sweep(prefix: &str) {
    // A deleted namespace takes its devices' peers along only when the kernel gets to it: until then
    // their routes are in the way of whoever builds the same again.
    for device in devices().iter().filter(|name| name.starts_with(prefix)) {
        let _ = command::output(Command::new("ip").args(["link", "del", device]));
    }
    let state = state_dir();
    for name in names_in(&state)
        .into_iter()
        .filter(|name| name.starts_with(prefix))
    {
        remove_state(&state.join(name));
    }
    if let Ok(root) = cgroup::mount_point() {
        for name in names_in(&root)
            .into_iter()
            .filter(|name| name.starts_with(prefix))
        {
            cgroup::remove(&root.join(name));
        }
    }
    for name in names_in(Path::new("/run/netns"))
        .iter()
        .filter(|name| name.starts_with(prefix))
    {
        let _ = command::output(Command::new("ip").args(["netns", "del", name]));
    }
}

/// The devices of the namespace we are in.
fn devices() -> Vec<String> {
    let shown = command::output(Command::new("ip").args(["-oneline", "link"])).unwrap_or_default();
    let name = |line: &str| {
        let name = line.split(": ").nth(1)?;
        Some(name.split('@').next().unwrap_or(name).to_owned())
    };
    shown.lines().filter_map(name).collect()
}

/// Where a state directory names the agent whose `cleanup` must run before its pins are dropped:
/// packet programs attached by clsact hold on by themselves.
const CLEANUP: &str = "cleanup";
/// Where a state directory has its bpffs, if an agent of this machine uses it.
pub const BPFFS: &str = "bpf";

/// Remembers in `dir` that `agent cleanup` must run on `dir`/[`BPFFS`].
pub fn remember_agent(dir: &Path, agent: &Path) -> Result<()> {
    fs::write(dir.join(CLEANUP), agent.as_os_str().as_encoded_bytes())
        .with_context(|| format!("cannot write to {}", dir.display()))
}

/// Runs the `cleanup` of the agent that `dir` remembers, if any.
pub fn clean_agent(dir: &Path) -> Result<()> {
    let Ok(agent) = fs::read_to_string(dir.join(CLEANUP)) else {
        return Ok(());
    };
    let run = || {
        command::output(
            Command::new(&agent)
                .arg("cleanup")
                .arg("--bpffs")
                .arg(dir.join(BPFFS)),
        )
    };
    // The agent dies with whoever started it, but nobody is told when it let go of its lock.
    for _ in 0..100 {
        if run().is_ok() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    run().map(drop)
}

/// Where a state directory remembers settings of the machine that must be restored.
const SETTINGS: &str = "settings";

/// Sets `/proc/sys/KEY` of this machine and remembers the old value in `dir`, so that
/// [`remove_state`] restores it, whoever calls that.
pub fn set_machine(dir: &Path, key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{key}");
    let old = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    if old.trim() == value {
        return Ok(());
    }
    let mut file = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join(SETTINGS))
        .context("cannot remember a setting of the machine")?;
    writeln!(file, "{key} {}", old.trim()).context("cannot remember a setting of the machine")?;
    fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))
}

/// Cleans up after the agent and restores the settings that `dir` remembers, unmounts everything below it, deepest
/// first, then removes it.
pub fn remove_state(dir: &Path) {
    let _ = clean_agent(dir);
    for line in fs::read_to_string(dir.join(SETTINGS))
        .unwrap_or_default()
        .lines()
        .rev()
    {
        if let Some((key, value)) = line.split_once(' ') {
            let _ = fs::write(format!("/proc/sys/{key}"), value);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| Path::new(point).starts_with(dir))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in &points {
        let _ = umount2(*point, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(dir);
}

/// What stands in a directory; nothing where it cannot be read.
pub fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{prefix, unique_name};

    #[test]
    fn names_are_unique_and_no_prefix_is_the_start_of_another_process_s() {
        assert_ne!(unique_name(), unique_name());
        assert!(!prefix(123).starts_with(&prefix(12)));
    }
}
