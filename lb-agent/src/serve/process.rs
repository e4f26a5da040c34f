//! What the kernel says about the agent's own process (`/proc/self`).

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The usual process metrics. A value the kernel does not tell is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ProcessFacts {
    /// User and system time, seconds.
    pub(crate) cpu_seconds: Option<f64>,
    /// Resident memory, bytes.
    pub(crate) resident_bytes: Option<u64>,
    /// Virtual memory, bytes.
    pub(crate) virtual_bytes: Option<u64>,
    /// Open file descriptors.
    pub(crate) open_fds: Option<u64>,
    /// Unix time of the start, seconds.
    pub(crate) start_seconds: Option<f64>,
}

impl ProcessFacts {
    /// Reads them now.
    pub(crate) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").ok();
        let stat = stat.as_deref().and_then(Stat::parse);
        let ticks = clock_ticks();
        Self {
            cpu_seconds: stat.map(|stat| seconds(stat.cpu_ticks, ticks).as_secs_f64()),
            resident_bytes: stat.map(|stat| stat.resident_pages * page_bytes()),
            virtual_bytes: stat.map(|stat| stat.virtual_bytes),
            open_fds: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|fds| fds.count() as u64),
            start_seconds: stat.zip(boot_time()).and_then(|(stat, boot)| {
                let began = boot + seconds(stat.start_ticks, ticks);
                began
                    .duration_since(UNIX_EPOCH)
                    .ok()
                    .map(|since| since.as_secs_f64())
            }),
        }
    }
}

/// The fields of `/proc/<pid>/stat` that are wanted (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is the name in parentheses and may itself hold both.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // `fields[0]` is field 3 of the manual page.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: field(14)? + field(15)?,
            start_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

/// Ticks to time. Ticks are 10 ms on every Linux that is built today.
fn seconds(ticks: u64, per_second: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / per_second.max(1))
}

fn clock_ticks() -> u64 {
    sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap_or(100)
}

fn page_bytes() -> u64 {
    sysconf(nix::unistd::SysconfVar::PAGE_SIZE).unwrap_or(4096)
}

fn sysconf(variable: nix::unistd::SysconfVar) -> Option<u64> {
    let value = nix::unistd::sysconf(variable).ok().flatten()?;
    u64::try_from(value).ok()
}

/// When the machine booted (`btime` of `/proc/stat`).
fn boot_time() -> Option<SystemTime> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(UNIX_EPOCH + Duration::from_secs(line.trim().parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_itself() {
        let facts = ProcessFacts::read();
        assert!(facts.resident_bytes.unwrap() > 100_000);
        assert!(facts.virtual_bytes >= facts.resident_bytes);
        assert!(facts.open_fds.unwrap() > 0);
        assert!(facts.start_seconds.unwrap() > 1.0e9);
        assert!(facts.cpu_seconds.unwrap() >= 0.0);
    }

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "7 (a) b (c)) S 1 1 1 0 -1 4194560 1 0 0 0 250 150 0 0 20 0 4 0 9000 8192 2 1";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                cpu_ticks: 400,
                start_ticks: 9000,
                virtual_bytes: 8192,
                resident_pages: 2
            })
        );
    }
}
