//! Runs commands where a person can watch, and says which failed.

use crate::workspace;
use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::io::IsTerminal;
use std::process::Command;
use std::time::Instant;

/// A headline of progress.
pub(crate) fn say(text: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1;36m==>\x1b[0m {text}");
    } else {
        eprintln!("==> {text}");
    }
}

/// A cargo command of the host toolchain, at the root of the workspace.
pub(crate) fn cargo<W: AsRef<OsStr>>(words: impl IntoIterator<Item = W>) -> Command {
    let mut command = Command::new(workspace::cargo());
    command.args(words).current_dir(workspace::root());
    command
}

/// Runs `command` with its output on ours.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = lb_lab::command::show(command);
    let status = command
        .status()
        .with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Says `title`, runs `command` and says how long it took.
pub(crate) fn timed(title: &str, command: &mut Command) -> Result<()> {
    say(title);
    let start = Instant::now();
    run(command)?;
    say(&format!("{title}: done in {} s", start.elapsed().as_secs()));
    Ok(())
}
