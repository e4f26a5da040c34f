//! Network namespaces: made, entered, configured and removed.

use crate::{command, janitor};
use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

/// A network namespace. One that was made here is removed on drop; the machine's own is only used.
#[derive(Debug)]
pub struct Namespace {
    /// `None` is the namespace this process already runs in.
    name: Option<String>,
}

impl Namespace {
    /// Makes the namespace `name`, with loopback up and IPv6 addresses usable at once.
    pub fn create(name: &str) -> Result<Self> {
        janitor::start()?;
        command::output(Command::new("ip").args(["netns", "add", name]))
            .with_context(|| format!("cannot make network namespace {name}"))?;
        let namespace = Self {
            name: Some(name.to_owned()),
        };
        // Duplicate address detection would make every address unusable for a second or two.
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace this process runs in: never removed.
    pub fn host() -> Self {
        Self { name: None }
    }

    /// The name `ip netns exec` knows it by; the machine's own namespace has none.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How `ip link … netns` names it: by name, or by a process that runs in it.
    pub fn handle(&self) -> String {
        self.name
            .clone()
            .unwrap_or_else(|| std::process::id().to_string())
    }

    /// The file that holds the namespace.
    pub fn path(&self) -> PathBuf {
        match &self.name {
            Some(name) => PathBuf::from("/run/netns").join(name),
            None => PathBuf::from("/proc/self/ns/net"),
        }
    }

    /// Opens the namespace for `setns`.
    pub fn open(&self) -> Result<File> {
        let path = self.path();
        File::open(&path).with_context(|| format!("cannot open namespace {}", path.display()))
    }

    /// Runs `inside` on a thread of its own within the namespace. Sockets made there stay in the
    /// namespace and may be used from any thread. The thread is *not* in any lab cgroup: use
    /// [`crate::Place::call`] where the socket hooks must see the socket.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                    Ok(inside())
                })
                .join()
        });
        match outcome {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs `ip WORDS…` inside, e.g. `ip("link set eth0 up")`.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.tool("ip", words)
    }

    /// Runs `tc WORDS…` inside.
    pub fn tc(&self, words: &str) -> Result<String> {
        self.tool("tc", words)
    }

    /// Runs `bridge WORDS…` inside.
    pub fn bridge(&self, words: &str) -> Result<String> {
        self.tool("bridge", words)
    }

    /// Loads netfilter rules (`nft -f`).
    pub fn nft(&self, rules: &str) -> Result<()> {
        command::feed(self.nft_command().args(["-f", "-"]), rules)
    }

    /// A chain with its rules and counters.
    pub fn nft_list(&self, family: &str, table: &str, chain: &str) -> Result<String> {
        command::output(
            self.nft_command()
                .args(["list", "chain", family, table, chain]),
        )
    }

    fn nft_command(&self) -> Command {
        // Unlike its neighbours, nft has no option for a namespace.
        match &self.name {
            Some(name) => {
                let mut ip = Command::new("ip");
                ip.args(["netns", "exec", name, "nft"]);
                ip
            }
            None => Command::new("nft"),
        }
    }

    /// Several `ip` commands in one process, one a line.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut ip = Command::new("ip");
        if let Some(name) = &self.name {
            ip.args(["-n", name]);
        }
        command::feed(ip.args(["-batch", "-"]), lines)
    }

    fn tool(&self, program: &str, words: &str) -> Result<String> {
        let mut tool = Command::new(program);
        if let Some(name) = &self.name {
            tool.args(["-n", name]);
        }
        command::output(tool.args(words.split_whitespace()))
    }

    /// Sets `/proc/sys/KEY` inside and returns the old value.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<String> {
        let path = format!("/proc/sys/{key}");
        self.enter(|| {
            let old = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            fs::write(&path, value).with_context(|| format!("cannot write {value} to {path}"))?;
            Ok(old.trim().to_owned())
        })?
    }

    /// The index of device `device` inside.
    pub fn index_of(&self, device: &str) -> Result<u32> {
        self.enter(|| nix::net::if_::if_nametoindex(device))?
            .map_err(|error| anyhow!("no device {device} in {:?}: {error}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // A destructor has nobody to report to; the janitor tries again at the end.
            let _ = command::output(Command::new("ip").args(["netns", "del", name]));
        }
    }
}
