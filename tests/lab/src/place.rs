//! A place is where processes run: a network namespace and, where it matters, a cgroup.

use crate::client::{self, Answer};
use crate::process::Process;
use crate::{Cgroup, Namespace};
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::SigSet;
use std::fs::OpenOptions;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// A namespace and the cgroup of the processes in it. Processes without a cgroup stay in that of
/// the test, where no socket hook of a lab's agent sees them.
#[derive(Debug)]
pub struct Place {
    // Fields drop in this order: processes die before the namespace they used goes away.
    cgroup: Option<Cgroup>,
    namespace: Namespace,
}

impl Place {
    /// A place from its parts.
    pub fn new(namespace: Namespace, cgroup: Option<Cgroup>) -> Self {
        Self { cgroup, namespace }
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref()
    }

    pub(crate) fn cgroup_procs(&self) -> Option<PathBuf> {
        self.cgroup.as_ref().map(Cgroup::procs)
    }

    /// Runs `work` as a process here (namespace *and* cgroup) and returns the text it returned.
    pub fn call(&self, work: impl FnOnce() -> Result<String>) -> Result<String> {
        Process::fork(self, work)?.wait()
    }

    /// Like [`Self::call`] without waiting: the process runs beside the test.
    pub fn spawn(&self, work: impl FnOnce() -> Result<String>) -> Result<Process> {
        Process::fork(self, work)
    }

    /// Runs `inside` on a thread within the namespace only; see [`Namespace::enter`].
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        self.namespace.enter(inside)
    }

    /// A command that will run here.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        let namespace = self.namespace.open()?;
        let procs = match self.cgroup_procs() {
            Some(path) => Some(
                OpenOptions::new()
                    .write(true)
                    .open(&path)
                    .with_context(|| format!("cannot open {}", path.display()))?,
            ),
            None => None,
        };
        let mut command = Command::new(program);
        let join = move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            // SAFETY: prctl with integers only.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            // Rust passes our signal mask on; a program expects to be stoppable.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes four system calls on descriptors that
        // were opened before, and allocates nothing.
        unsafe { command.pre_exec(join) };
        Ok(command)
    }

    /// Asks a [`crate::Server`] over TCP from a process here.
    pub fn ask_tcp(&self, server: SocketAddr) -> Result<Answer> {
        self.call(|| client::tcp(server).map(|answer| answer.to_string()))?
            .parse()
    }

    /// Asks a [`crate::Server`] over TCP with a question of `size` bytes.
    pub fn ask_tcp_long(&self, server: SocketAddr, size: usize) -> Result<Answer> {
        self.call(|| client::tcp_long(server, size).map(|answer| answer.to_string()))?
            .parse()
    }

    /// Asks a [`crate::Server`] over SCTP from `source`, with a question of `size` bytes.
    pub fn ask_sctp(&self, source: IpAddr, server: SocketAddr, size: usize) -> Result<Answer> {
        self.call(|| client::sctp(source, server, size).map(|answer| answer.to_string()))?
            .parse()
    }

    /// Asks a [`crate::Server`] over connected UDP with a datagram of `size` bytes.
    pub fn ask_udp(&self, server: SocketAddr, size: usize) -> Result<Answer> {
        self.call(|| client::udp_connected(server, size).map(|answer| answer.to_string()))?
            .parse()
    }

    /// Asks a [`crate::Server`] over unconnected UDP with a datagram of `size` bytes; the answer
    /// must come from the address that was asked.
    pub fn ask_udp_unconnected(&self, server: SocketAddr, size: usize) -> Result<Answer> {
        self.call(|| client::udp_unconnected(server, size).map(|answer| answer.to_string()))?
            .parse()
    }
}
