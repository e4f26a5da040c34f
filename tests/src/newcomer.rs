//! `cargo xtask run` as a newcomer meets it: started, its printed lines typed in, ended.
//!
//! What may not live here: expectations of what the demo shows.

use crate::island::{Loaded, Traces, called};
use anyhow::{Context, Result, bail, ensure};
use lb_lab::{agent, cgroup, client::PATIENCE};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// How long what takes a moment may take on a busy machine: only a failing test waits that long.
pub const LONG: Duration = Duration::from_secs(120);

/// A running `cargo xtask run`.
#[derive(Debug)]
pub struct Xtask {
    /// Cargo.
    pub child: Child,
    /// Kept, or what it prints later would kill it.
    _output: BufReader<ChildStdout>,
    /// The lines so far.
    pub printed: Vec<String>,
    /// What its agent has in the kernel.
    pub loaded: Loaded,
}

impl Xtask {
    /// Starts it and reads what it prints until it has said all.
    pub fn start(words: &[&str], last_line: &str) -> Result<Self> {
        let errors = PathBuf::from("/run/xtask.err");
        let mut command = xtask(words)?;
        // Ctrl-C goes to the terminal's foreground group; this is it.
        command.process_group(0);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(File::create(&errors)?)
            .spawn()
            .context("cannot start cargo")?;
        let mut output = BufReader::new(child.stdout.take().context("no output")?);
        let mut printed = Vec::new();
        loop {
            let mut line = String::new();
            if output.read_line(&mut line)? == 0 {
                let status = child.wait()?;
                let text = fs::read_to_string(&errors).unwrap_or_default();
                bail!("cargo xtask run ended ({status}): {printed:?}\n{text}");
            }
            printed.push(line.trim_end().to_owned());
            if line.contains(last_line) {
                break;
            }
        }
        let agents = called("lb-agent")?;
        ensure!(agents.len() == 1, "agents: {agents:?}");
        let loaded = Loaded::by(agents[0])?;
        for (kind, count) in [
            ("programs", loaded.programs.len()),
            ("maps", loaded.maps.len()),
            ("links", loaded.links.len()),
        ] {
            ensure!(count > 0, "the agent runs, but has no {kind} to be seen");
        }
        Ok(Self {
            child,
            _output: output,
            printed,
            loaded,
        })
    }

    /// The demo on a directory of manifests.
    pub fn demo() -> Result<Self> {
        Self::start(&[], "Ctrl-C ends the demo")
    }

    /// The printed lines that begin with `words`.
    pub fn lines(&self, words: &str) -> Vec<&str> {
        let lines = self.printed.iter().map(String::as_str);
        lines.filter(|line| line.starts_with(words)).collect()
    }

    /// The one printed line that begins with `words`.
    pub fn line(&self, words: &str) -> Result<&str> {
        match self.lines(words)[..] {
            [line] => Ok(line),
            _ => bail!("not one line begins with {words:?}: {:#?}", self.printed),
        }
    }

    /// Its process.
    pub fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Sends `signal` as a terminal does, and waits for the end.
    pub fn interrupt(&mut self, signal: Signal) -> Result<ExitStatus> {
        killpg(self.pid()?, signal)?;
        self.child.wait().context("cannot wait for cargo")
    }
}

/// `cargo xtask run WORDS -- …`. The agent takes this island for the machine: its root cgroup is no
/// true root, so it must be named.
pub fn xtask(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["xtask", "run"])
        .args(words)
        .args(["--", "--cgroup-root"])
        .arg(cgroup::mount_point()?)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .env("LB_AGENT_BIN", agent::binary()?)
        .stdin(Stdio::null());
    Ok(command)
}

/// Types `line` into a shell that has nothing but its path.
pub fn shell(line: &str) -> Result<Output> {
    let mut sh = Command::new("sh");
    sh.args(["-c", line])
        .current_dir("/")
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .stdin(Stdio::null());
    sh.output().context("cannot start sh")
}

/// The pod that answers.
pub fn ask(line: &str) -> Result<String> {
    let out = shell(line)?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let name = text
        .split(' ')
        .find_map(|word| word.strip_prefix("name="))
        .map(str::to_owned);
    name.with_context(|| {
        let errors = String::from_utf8_lossy(&out.stderr);
        format!("`{line}` answers {text:?} {errors:?} ({})", out.status)
    })
}

/// Asks until `done`: a change takes effect without an event of its own.
pub fn ask_until(line: &str, done: impl Fn(&Result<String>) -> bool) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = ask(line);
        if done(&answer) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "`{line}` still answers {answer:?}");
    }
}

/// Asks until `name` answers.
pub fn answers_from(line: &str, name: &str) -> Result<()> {
    ask_until(line, |answer| {
        answer.as_ref().is_ok_and(|found| found == name)
    })
}

/// Who answers in 24 tries.
pub fn answering(line: &str) -> Result<BTreeSet<String>> {
    (0..24).map(|_| ask(line)).collect()
}

/// A set of names.
pub fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Waits until nothing is left: the kernel frees programs and maps a moment after their last use,
/// and the janitor of a killed demo works beside us.
pub fn nothing_is_left(before: &Traces, loaded: &Loaded) -> Result<()> {
    let end = Instant::now() + LONG;
    loop {
        let mut left = Traces::take()?.differences(before);
        left.extend(loaded.left());
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < end, "left behind: {left:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// How the demo's line about the tables begins.
pub fn agent_line() -> Result<String> {
    Ok(format!("{} services", agent::binary()?.display()))
}
