//! Programs that run beside a test, each with a log that is shown when it ends too early.

use crate::command;
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// A process with a log, killed and reaped on drop.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; its log is NAME.log in `dir`.
    pub(crate) fn start(name: &'static str, mut command: Command, dir: &Path) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start `{}`", command::show(&command)))?;
        Ok(Self { child, name, log })
    }

    /// Fails, with the end of the log, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        let ended = self.child.try_wait().context("cannot watch a process")?;
        ended.map_or(Ok(()), |status| {
            bail!("{} ended ({status}); its log:\n{}", self.name, self.tail())
        })
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its own end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        let name = self.name;
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {name}"))
    }

    /// The log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of the log.
    pub(crate) fn tail(&self) -> String {
        let text = self.log();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
