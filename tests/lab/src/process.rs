//! Closures as processes: only a process can be moved into a cgroup, and the socket hooks ask for
//! the cgroup of the process that made the socket.

use crate::place::Place;
use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork, pipe};
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

/// Descriptors from here up stay with the process that opened them.
const PRIVATE: u32 = 600;

/// Held while a child is forked, and while a descriptor is on its way up to [`PRIVATE`].
static FORKING: Mutex<()> = Mutex::new(());

/// Opens a descriptor that processes forked by parallel tests do not inherit: who waits for its
/// last copy to be closed would wait for them.
pub fn open_private(open: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
    let _forking = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    let fd = open()?;
    // SAFETY: plain system call with integers.
    let private = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, PRIVATE) };
    if private < 0 {
        return Err(std::io::Error::last_os_error()).context("cannot copy a descriptor");
    }
    // SAFETY: just made, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(private) })
}

/// A forked process; killed and reaped on drop.
///
/// It also dies with the *thread* that started it (`PR_SET_PDEATHSIG` works by thread), so that a
/// killed test leaves nothing running: start it from the test's own thread.
#[derive(Debug)]
pub struct Process {
    pid: Option<Pid>,
    outcome: File,
}

/// What a long-running closure calls once it can be talked to.
#[derive(Debug)]
pub struct Ready(OwnedFd);

impl Ready {
    /// Tells the starter, which waits for it.
    pub fn tell(self) -> Result<()> {
        nix::unistd::write(&self.0, b"r")
            .map(drop)
            .context("cannot report readiness")
    }
}

impl Process {
    /// Starts `work` as a process in `place` and returns once it called [`Ready::tell`]; fails if
    /// it ended before.
    pub fn start(place: &Place, work: impl FnOnce(Ready) -> Result<String>) -> Result<Self> {
        let (reader, writer) = pipe().context("cannot make a pipe")?;
        let mut process = Self::fork(place, move || work(Ready(writer)))?;
        if process.wait_for(&reader)? {
            return Ok(process);
        }
        let text = process.wait()?;
        bail!("the process ended before it was ready: {text}")
    }

    /// Starts `work` as a process in `place`.
    pub fn fork(place: &Place, work: impl FnOnce() -> Result<String>) -> Result<Self> {
        let namespace = place.namespace().open()?;
        let procs = place.cgroup_procs();
        let outcome = memfd_create("lab-outcome", MFdFlags::MFD_CLOEXEC)
            .context("cannot make a memory file for the outcome")?;
        let mut outcome = File::from(outcome);
        let forking = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the child runs on a copy of this thread alone. glibc keeps its allocator usable
        // after a fork; no lock of ours is held here; the child ends in _exit and never returns.
        match unsafe { fork() }.context("cannot fork")? {
            ForkResult::Parent { child } => Ok(Self {
                pid: Some(child),
                outcome,
            }),
            ForkResult::Child => {
                drop(forking);
                // SAFETY: prctl with integers only.
                unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                // SAFETY: in this copy of the process nobody uses these descriptors.
                unsafe { libc::syscall(libc::SYS_close_range, PRIVATE, u32::MAX, 0) };
                let done = catch_unwind(AssertUnwindSafe(|| {
                    if let Some(procs) = procs {
                        fs::write(&procs, "0")
                            .with_context(|| format!("cannot join {}", procs.display()))?;
                    }
                    setns(&namespace, CloneFlags::CLONE_NEWNET)
                        .context("cannot enter the namespace")?;
                    work()
                }));
                let text = match done {
                    Ok(Ok(text)) => format!("+{text}"),
                    Ok(Err(error)) => format!("-{error:#}"),
                    Err(panic) => format!("-panic: {}", panic_text(&*panic)),
                };
                let _ = outcome.write_all(text.as_bytes());
                // SAFETY: ends the copy at once; the parent's exit handlers are not ours to run.
                unsafe { libc::_exit(0) }
            }
        }
    }

    /// Waits for readiness: `true` once a byte arrived, `false` once the process ended.
    fn wait_for(&mut self, reader: &OwnedFd) -> Result<bool> {
        let pid = self.pid.ok_or_else(|| anyhow!("the process has ended"))?;
        // SAFETY: plain system call with an integer pid and no flags.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let pidfd = i32::try_from(pidfd).unwrap_or(-1);
        if pidfd < 0 {
            bail!("pidfd_open failed: {}", std::io::Error::last_os_error());
        }
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut fds = [poll(reader.as_raw_fd()), poll(pidfd)];
        let ready = loop {
            // SAFETY: two valid pollfds that outlive the call.
            if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } > 0 {
                break fds[0].revents & libc::POLLIN != 0;
            }
        };
        // SAFETY: opened above, used by nobody else.
        unsafe { libc::close(pidfd) };
        Ok(ready)
    }

    /// Its process id, while it has not been waited for.
    pub fn id(&self) -> Option<u32> {
        self.pid.and_then(|pid| u32::try_from(pid.as_raw()).ok())
    }

    /// Waits for its end and returns what the closure returned.
    pub fn wait(mut self) -> Result<String> {
        let pid = self
            .pid
            .take()
            .ok_or_else(|| anyhow!("the process has ended"))?;
        let status = loop {
            match waitpid(pid, None) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other.context("cannot wait for the process")?,
            }
        };
        let mut text = String::new();
        self.outcome.rewind().context("cannot read the outcome")?;
        self.outcome
            .read_to_string(&mut text)
            .context("cannot read the outcome")?;
        if let Some(result) = text.strip_prefix('+') {
            return Ok(result.to_owned());
        }
        match (text.strip_prefix('-'), status) {
            (Some(error), _) => Err(anyhow!("{error}")),
            (None, WaitStatus::Signaled(_, signal, _)) => bail!("the process died by {signal}"),
            (None, status) => bail!("the process left no outcome: {status:?}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(pid) = self.pid.take() {
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "without a message".to_owned())
}
