//! The agent as a process on a node: started, watched, killed, stopped, cleaned up after.

use crate::client::PATIENCE;
use crate::{Lab, Node, command};
use anyhow::{Context, Result, anyhow, bail};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long an agent may take to its first complete sync on a loaded machine, or on one that is
/// emulated: only a failing test waits that long.
const START: Duration = Duration::from_secs(300);

/// What an agent is started with.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Directory of manifests; made if it is missing. `None`: `extra` names another source.
    pub manifests: Option<PathBuf>,
    /// Further flags, e.g. `--socket-load-balancing off`.
    pub extra: Vec<String>,
    /// Environment, e.g. `RUST_LOG`.
    pub environment: Vec<(String, String)>,
}

impl AgentOptions {
    /// The directory `manifests`, nothing else.
    pub fn manifests(dir: &Path) -> Self {
        Self {
            manifests: Some(dir.to_owned()),
            extra: Vec::new(),
            environment: Vec::new(),
        }
    }

    /// The same with `words` as further flags.
    #[must_use]
    pub fn with(mut self, words: &str) -> Self {
        self.extra
            .extend(words.split_whitespace().map(str::to_owned));
        self
    }
}

/// A running agent. Dropping it kills the process; its pins go when the lab unmounts the bpffs.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    node: String,
    bpffs: PathBuf,
    log: PathBuf,
}

/// The binary under test: `LB_AGENT_BIN`, which `cargo xtask test` sets.
pub fn binary() -> Result<PathBuf> {
    let path = std::env::var_os("LB_AGENT_BIN").map(PathBuf::from).ok_or_else(|| {
        anyhow!(
            "LB_AGENT_BIN does not name the agent to test: run `cargo xtask test`, or build it and \
             set LB_AGENT_BIN=$PWD/target/debug/lb-agent"
        )
    })?;
    if !path.is_file() {
        bail!(
            "LB_AGENT_BIN={} is not a file: build it first",
            path.display()
        );
    }
    Ok(path)
}

impl Agent {
    /// Starts the agent on `node` with a bpffs and the cgroup root of that node, and returns once
    /// `/healthz` says 200.
    pub fn start(lab: &Lab, node: &Node, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::launch(lab, node, options)?;
        agent.wait_healthy(node)?;
        Ok(agent)
    }

    /// Starts the agent without waiting for its health.
    pub fn launch(lab: &Lab, node: &Node, options: &AgentOptions) -> Result<Self> {
        let bpffs = lab.bpffs(node.name())?;
        let log = lab.dir().join(format!("agent-{}.log", node.name()));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = node.place().command(binary()?)?;
        command.args(["run", "--node", node.name()]);
        command.arg("--cgroup-root").arg(node.cgroup_root().path());
        command.arg("--bpffs").arg(&bpffs);
        if let Some(dir) = &options.manifests {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
            command.arg("--manifests").arg(dir);
            command
                .arg("--state-dir")
                .arg(lab.dir().join(format!("state-{}", node.name())));
        }
        command.args(&options.extra);
        command.envs(options.environment.iter().cloned());
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", command::show(&command)))?;
        Ok(Self {
            child,
            node: node.name().to_owned(),
            bpffs,
            log,
        })
    }

    /// Waits until `/healthz` says 200; fails at once if the agent ends.
    pub fn wait_healthy(&mut self, node: &Node) -> Result<()> {
        let end = Instant::now() + START;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot watch the agent")? {
                bail!(
                    "the agent of {} ended ({status}); its log:\n{}",
                    self.node,
                    self.log_tail()
                );
            }
            let last = match http_get(node, 10256, "/healthz") {
                Ok((200, _)) => return Ok(()),
                Ok((status, body)) => format!("{status} {body}"),
                Err(error) => format!("{error:#}"),
            };
            if Instant::now() > end {
                bail!(
                    "the agent of {} is not healthy after {START:?} (last: {last}); its log:\n{}",
                    self.node,
                    self.log_tail()
                );
            }
            // Health has no event to wait for: Kubernetes polls it as well.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The text of `/metrics`.
    pub fn metrics(&self, node: &Node) -> Result<String> {
        let (status, body) = http_get(node, 10249, "/metrics")?;
        if status != 200 {
            bail!("/metrics answered {status}: {body}");
        }
        Ok(body)
    }

    /// Kills the process as the kernel does when memory runs out; the dataplane stays.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("cannot kill the agent")?;
        self.child.wait().context("cannot reap the agent")?;
        Ok(())
    }

    /// Sends SIGTERM and waits for the end; the dataplane stays.
    pub fn stop(mut self) -> Result<ExitStatus> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGTERM)
            .context("cannot stop the agent")?;
        self.child.wait().context("cannot wait for the agent")
    }

    /// Waits for the agent's own end (one that is expected to refuse to start).
    pub fn wait(mut self) -> Result<(ExitStatus, String)> {
        let status = self.child.wait().context("cannot wait for the agent")?;
        Ok((status, self.log()))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its bpffs directory.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Everything it (and earlier agents of the node) logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Runs another command of the agent on `node` (`services`, `status`, `cleanup`, …) against
    /// its bpffs and returns its output.
    pub fn tool(lab: &Lab, node: &Node, words: &str) -> Result<String> {
        command::output(&mut Self::tool_command(lab, node, words)?)
    }

    /// The same for commands whose exit code is part of the answer.
    pub fn tool_output(lab: &Lab, node: &Node, words: &str) -> Result<Output> {
        let mut command = Self::tool_command(lab, node, words)?;
        let shown = command::show(&command);
        let output = command.stdin(Stdio::null()).output();
        output.with_context(|| format!("cannot start `{shown}`"))
    }

    fn tool_command(lab: &Lab, node: &Node, words: &str) -> Result<Command> {
        let bpffs = lab.bpffs(node.name())?;
        let mut command: Command = node.place().command(binary()?)?;
        command
            .args(words.split_whitespace())
            .arg("--bpffs")
            .arg(&bpffs);
        Ok(command)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("log of the agent of {}:\n{}", self.node, self.log_tail());
        }
    }
}

/// `GET path` from 127.0.0.1:`port` on `node`: status and body.
pub fn http_get(node: &Node, port: u16, path: &str) -> Result<(u16, String)> {
    let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = node
        .namespace()
        .enter(|| TcpStream::connect_timeout(&server, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| anyhow!("no HTTP answer: {text:?}"))?;
    Ok((
        status,
        text.split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default(),
    ))
}
