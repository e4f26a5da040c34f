//! Other kernels: each is booted in a virtual machine with this machine's root file system below a
//! throw-away overlay, and a command runs in it as root. Software emulation is enough.

mod archive;
mod boot;
mod debian;
mod modules;

use crate::step::{self, say};
use crate::{VmArgs, setup, workspace};
use anyhow::{Context, Result, bail};
use debian::{Kernel, Machine};
use std::ffi::OsString;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

/// How the smoke tests ended.
pub(crate) enum Outcome {
    /// On every kernel.
    Passed,
    /// Nothing could be run, for this reason; or some kernels, which are named.
    Skipped(String),
}

/// Where images, packages and machines are kept.
fn dir() -> PathBuf {
    workspace::target().join("vm")
}

/// `cargo xtask vm`.
pub(crate) fn run(args: &VmArgs) -> Result<ExitCode> {
    crate::build::lb_privileges("vm")?;
    if args.command.is_empty() {
        return match smoke(&args.kernels)? {
            Outcome::Passed => Ok(ExitCode::SUCCESS),
            Outcome::Skipped(reason) => {
                say(&format!("skipped: {reason}"));
                Ok(ExitCode::SUCCESS)
            }
        };
    }
    match on_each(&args.kernels, &args.command)? {
        Outcome::Skipped(reason) => bail!("not run: {reason}"),
        Outcome::Passed => Ok(ExitCode::SUCCESS),
    }
}

/// Builds the smoke test and runs it on each of `kernels`. The eBPF objects must have been built.
pub(crate) fn smoke(kernels: &[String]) -> Result<Outcome> {
    crate::build::objects_unless_there()?;
    step::run(&mut step::cargo(["build", "--package", "lb-agent"]))?;
    step::run(&mut step::cargo([
        "build",
        "--package",
        "lb-tests",
        "--bin",
        "smoke",
    ]))?;
    built_smoke(kernels)
}

/// Runs the smoke test, which is built like the agent, on each of `kernels`.
pub(crate) fn built_smoke(kernels: &[String]) -> Result<Outcome> {
    let smoke = workspace::target().join("debug/smoke");
    // Debian's kernels have everything that it can try.
    on_each(kernels, &[smoke.into_os_string(), "--complete".into()])
}

/// Runs `command` on each kernel that can be had.
fn on_each(kernels: &[String], command: &[OsString]) -> Result<Outcome> {
    if !cfg!(target_arch = "x86_64") {
        return Ok(Outcome::Skipped("only x86_64 kernels are known".to_owned()));
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("the virtual machines share this machine's files, which needs root");
    }
    if !setup::have("apt-get") {
        return Ok(Outcome::Skipped(
            "kernels and qemu are Debian packages: no apt-get".to_owned(),
        ));
    }
    setup::vm_tools()?;
    let machine = match Machine::fetch(&dir()) {
        Ok(machine) => machine,
        Err(error) => return Ok(Outcome::Skipped(format!("qemu cannot be had: {error:#}"))),
    };
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for series in kernels {
        match machine.kernel(series) {
            Ok(kernel) => found.push(kernel),
            Err(error) => {
                say(&format!(
                    "kernel {series}: skipped, it cannot be had: {error:#}"
                ));
                skipped.push(series.as_str());
            }
        }
    }
    let failed = boot_all(&machine, found, command);
    if !failed.is_empty() {
        bail!("failed on {}", failed.join(", "));
    }
    if !skipped.is_empty() {
        return Ok(Outcome::Skipped(format!(
            "kernels {} cannot be had",
            skipped.join(", ")
        )));
    }
    Ok(Outcome::Passed)
}

/// Boots two kernels at a time, since either keeps hardly more than one processor busy. Says which failed,
/// and how.
fn boot_all(machine: &Machine, kernels: Vec<Kernel>, command: &[OsString]) -> Vec<String> {
    let queue = Mutex::new(kernels.into_iter());
    let next = || {
        let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.next()
    };
    let work = || {
        let mut failed = Vec::new();
        while let Some(kernel) = next() {
            let release = &kernel.release;
            say(&format!("kernel {release}"));
            let start = Instant::now();
            match boot::run(machine, &kernel, command).with_context(|| release.clone()) {
                Ok(0) => say(&format!(
                    "kernel {release}: passed in {} s",
                    start.elapsed().as_secs()
                )),
                Ok(code) => failed.push(format!("{release} (exit code {code})")),
                Err(error) => failed.push(format!("{error:#}")),
            }
        }
        failed
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut failed = work();
        failed.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        failed
    })
}
