//! What the figures were measured on.

use anyhow::Result;
use serde::Serialize;

/// The machine, as far as figures depend on it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Kernel release.
    pub(crate) kernel: String,
    /// The processor's name.
    pub(crate) processor: String,
    /// How many of them are online.
    pub(crate) processors: usize,
    /// Memory, in MiB.
    pub(crate) memory: u64,
    /// Runnable processes over the last minute: how much else was going on.
    pub(crate) load: String,
}

/// Looks at the machine.
pub(crate) fn describe() -> Result<Machine> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let processor = (processors.lines())
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name)
        .to_owned();
    let memory = (read("/proc/meminfo").lines())
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?
                .split_ascii_whitespace()
                .next()?
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0);
    Ok(Machine {
        kernel: nix::sys::utsname::uname()?
            .release()
            .to_string_lossy()
            .into_owned(),
        processor,
        processors: std::thread::available_parallelism()?.get(),
        memory: memory / 1024,
        load: read("/proc/loadavg")
            .split(' ')
            .next()
            .unwrap_or("")
            .to_owned(),
    })
}
