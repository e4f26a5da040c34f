//! Other kernels: each is booted in a virtual machine with this machine's root file system below a
//! throw-away overlay, and a command runs in it as root. Software emulation is enough.

mod archive;
mod boot;
mod debian;
mod modules;

use crate::step::{self, say};
use crate::{VmArgs, setup, workspace};
use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

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
    on_each(
        kernels,
        &[workspace::target().join("debug/smoke").into_os_string()],
    )
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
    let machine = match debian::Machine::fetch(&dir()) {
        Ok(machine) => machine,
        Err(error) => return Ok(Outcome::Skipped(format!("qemu cannot be had: {error:#}"))),
    };
    let (mut failed, mut skipped) = (Vec::new(), Vec::new());
    for series in kernels {
        let kernel = match machine.kernel(series) {
            Ok(kernel) => kernel,
            Err(error) => {
                say(&format!(
                    "kernel {series}: skipped, it cannot be had: {error:#}"
                ));
                skipped.push(series.as_str());
                continue;
            }
        };
        say(&format!("kernel {}", kernel.release));
        match boot::run(&machine, &kernel, command).with_context(|| kernel.release.clone()) {
            Ok(0) => say(&format!("kernel {}: passed", kernel.release)),
            Ok(code) => failed.push(format!("{} (exit code {code})", kernel.release)),
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
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
