//! A running agent of this machine, from its start until somebody wants it to end.

use anyhow::{Context, Result, anyhow, bail};
use lb_lab::janitor;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How long the agent may take to its first complete sync.
const START: Duration = Duration::from_secs(60);

/// Why waiting ended.
pub(crate) enum Stopped {
    /// Ctrl-C, SIGTERM or the terminal's end.
    Signal,
    /// The agent ended by itself.
    Agent(ExitStatus),
}

/// The signals that end a run, held back so that everything is undone in order.
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Holds them back from now on. Programs started by [`lb_lab::Place::command`] get them as usual.
    pub(crate) fn block() -> Result<Self> {
        let set: SigSet = [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ]
        .into_iter()
        .collect();
        set.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC;
        Ok(Self(
            SignalFd::with_flags(&set, flags).context("cannot open a signal descriptor")?,
        ))
    }

    /// Waits for one; `true` if it asks for the end, `false` if a child ended.
    fn wait(&mut self) -> Result<bool> {
        let signal = self.0.read_signal().context("cannot wait for signals")?;
        Ok(signal.is_some_and(|signal| i64::from(signal.ssi_signo) != Signal::SIGCHLD as i64))
    }

    /// Whether the end was asked for meanwhile.
    fn ended() -> bool {
        // The set of pending signals is not in nix; the kernel shows it as text.
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ends = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
        ["SigPnd:", "ShdPnd:"].iter().any(|key| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let bits = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
            bits.is_some_and(|bits| ends.iter().any(|end| bits & (1 << (*end as i32 - 1)) != 0))
        })
    }
}

/// A running agent of this machine; stopped, and its dataplane removed, on drop.
pub(crate) struct Served {
    child: Child,
    state: PathBuf,
    pub(crate) bpffs: PathBuf,
    health: SocketAddr,
}

impl Served {
    /// Starts `command`, an `lb-agent run` to which directory and addresses are added unless
    /// `flags` (already in it) name them.
    pub(crate) fn start(
        mut command: Command,
        agent: &Path,
        state: &Path,
        flags: &[OsString],
    ) -> Result<Self> {
        let given = |name: &str| value_of(flags, name);
        let bpffs = if let Some(dir) = given("--bpffs") {
            PathBuf::from(dir)
        } else {
            let dir = state.join(janitor::BPFFS);
            command.arg("--bpffs").arg(&dir);
            janitor::remember_agent(state, agent)?;
            dir
        };
        // The defaults may be taken by a kube-proxy that still runs here.
        let mut address = |name: &str| -> Result<String> {
            if let Some(value) = given(name) {
                return Ok(value);
            }
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
                .local_addr()?
                .to_string();
            command.arg(name).arg(&free);
            Ok(free)
        };
        let health = address("--healthz-bind-address")?;
        address("--metrics-bind-address")?;
        let health: SocketAddr = health.parse().context("--healthz-bind-address")?;
        let local = if health.ip().is_unspecified() {
            (Ipv4Addr::LOCALHOST, health.port()).into()
        } else {
            health
        };
        // Its own group: Ctrl-C reaches us alone, and we stop it in order.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", agent.display()))?;
        Ok(Self {
            child,
            state: state.to_owned(),
            bpffs,
            health: local,
        })
    }

    /// Waits until the agent serves everything.
    pub(crate) fn wait_healthy(&mut self, _signals: &Signals) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot watch the agent")? {
                bail!("the agent ended: {status}");
            }
            if Signals::ended() {
                bail!("interrupted");
            }
            match health(self.health) {
                Ok((200, _)) => return Ok(()),
                other if Instant::now() > end => {
                    let last = match other {
                        Ok((_, body)) => format!("/healthz says: {}", body.trim()),
                        Err(error) => format!("{error:#}"),
                    };
                    bail!(
                        "the agent is not healthy after {} s: {last}",
                        START.as_secs()
                    );
                }
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Waits for a signal or the agent's end.
    pub(crate) fn wait(&mut self, signals: &mut Signals) -> Result<Stopped> {
        loop {
            if let Some(status) = self.child.try_wait().context("cannot watch the agent")? {
                return Ok(Stopped::Agent(status));
            }
            if signals.wait()? {
                return Ok(Stopped::Signal);
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.child.wait();
        if let Err(error) = janitor::clean_agent(&self.state) {
            eprintln!("warning: {error:#}");
        }
    }
}

/// The value of flag `name` in `flags`, written `--name value` or `--name=value`.
pub(crate) fn value_of(flags: &[OsString], name: &str) -> Option<String> {
    let mut words = flags.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == name {
            return words.next().map(std::borrow::Cow::into_owned);
        }
        if let Some(value) = word
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('='))
        {
            return Some(value.to_owned());
        }
    }
    None
}

/// The status and the text of `/healthz`.
fn health(server: SocketAddr) -> Result<(u16, String)> {
    let second = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&server, second)?;
    stream.set_read_timeout(Some(5 * second))?;
    write!(
        stream,
        "GET /healthz HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let status = status.ok_or_else(|| anyhow!("{server} does not speak HTTP"))?;
    Ok((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::value_of;

    #[test]
    fn a_flag_s_value_is_found_in_both_spellings() {
        let flags = ["--a", "1", "--bpffs=/x", "--b"].map(Into::into);
        assert_eq!(value_of(&flags, "--a").as_deref(), Some("1"));
        assert_eq!(value_of(&flags, "--bpffs").as_deref(), Some("/x"));
        assert_eq!(value_of(&flags, "--b"), None);
        assert_eq!(value_of(&flags, "--c"), None);
    }
}
