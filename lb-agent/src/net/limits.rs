//! What kube-proxy writes on the machine at its start: limits and timeouts of the kernel's
//! connection tracking, and its own place in the order of who dies when memory runs out.
//!
//! Nothing that is served depends on it, so that what is not allowed is a sentence and no failure.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// kube-proxy never asks for more entries than this.
const MOST: u64 = 1_048_576;

/// The kernel's connection tracking as kube-proxy sets it (`SERVICE-SEMANTICS` 10.2).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Conntrack {
    /// Entries for each CPU; 0: the limit is left alone.
    pub max_per_core: u32,
    /// The least limit.
    pub min: u32,
    /// Whether packets outside of the window are taken.
    pub liberal: bool,
    /// Timeouts to write: the name below `net/netfilter` and seconds.
    pub timeouts: Vec<(&'static str, u64)>,
}

/// Where the kernel's settings are; elsewhere in tests.
#[derive(Clone, Debug)]
pub struct Machine {
    /// `/proc/sys/net/netfilter`, of the namespace of the thread that asks.
    pub netfilter: PathBuf,
    /// The number of buckets of the connection table.
    pub hash_size: PathBuf,
    /// How willing the kernel is to kill this process.
    pub oom_score: PathBuf,
    /// CPUs.
    pub cpus: u64,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            netfilter: "/proc/sys/net/netfilter".into(),
            hash_size: "/sys/module/nf_conntrack/parameters/hashsize".into(),
            oom_score: "/proc/self/oom_score_adj".into(),
            cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        }
    }
}

impl Machine {
    /// Writes what differs. Returns a sentence for each thing that could not be written.
    pub fn apply(&self, conntrack: &Conntrack, oom_score: i32) -> Vec<String> {
        let mut troubles = Vec::new();
        let score = i64::from(oom_score);
        set(&self.oom_score, score, "CAP_SYS_RESOURCE", &mut troubles);
        // Without connection tracking in the kernel there is nothing to limit.
        if self.netfilter.join("nf_conntrack_max").exists() {
            self.conntrack(conntrack, &mut troubles);
        }
        troubles
    }

    fn conntrack(&self, conntrack: &Conntrack, troubles: &mut Vec<String>) {
        const NEEDS: &str = "a writable /proc/sys of the host's network namespace";
        if let Some(entries) = self.entries(conntrack) {
            let most = self.netfilter.join("nf_conntrack_max");
            let entries = i64::try_from(entries).unwrap_or(i64::MAX);
            let buckets = entries / 4;
            let few = read(&self.hash_size).is_some_and(|size| size < buckets);
            if set(&most, entries, NEEDS, troubles) && few {
                set(&self.hash_size, buckets, "a writable /sys", troubles);
            }
        }
        for (name, seconds) in &conntrack.timeouts {
            let seconds = i64::try_from(*seconds).unwrap_or(i64::MAX);
            set(&self.netfilter.join(name), seconds, NEEDS, troubles);
        }
        if conntrack.liberal {
            let liberal = self.netfilter.join("nf_conntrack_tcp_be_liberal");
            set(&liberal, 1, NEEDS, troubles);
        }
    }

    /// The limit of entries; `None`: it is left alone.
    fn entries(&self, conntrack: &Conntrack) -> Option<u64> {
        if conntrack.max_per_core == 0 {
            return None;
        }
        let wanted = (u64::from(conntrack.max_per_core) * self.cpus).min(MOST);
        Some(wanted.max(u64::from(conntrack.min)))
    }
}

/// True if the file holds the value now.
fn set(file: &Path, value: i64, needs: &str, troubles: &mut Vec<String>) -> bool {
    if read(file) == Some(value) {
        return true;
    }
    match fs::write(file, value.to_string()) {
        Ok(()) => {
            tracing::info!(file = %file.display(), value, "set");
            true
        }
        Err(error) => {
            troubles.push(sentence(file, value, needs, &error));
            false
        }
    }
}

fn read(file: &Path) -> Option<i64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

fn sentence(file: &Path, value: i64, needs: &str, error: &io::Error) -> String {
    let now = read(file).map_or_else(String::new, |now| format!(" and stays {now}"));
    format!(
        "{} cannot be set to {value}{now} ({error}): it needs {needs}; set it on the host, or leave \
         it",
        file.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(directory: &Path, files: &[(&str, &str)]) -> Machine {
        for (file, text) in files {
            fs::write(directory.join(file), text).unwrap();
        }
        Machine {
            netfilter: directory.to_owned(),
            hash_size: directory.join("hashsize"),
            oom_score: directory.join("oom"),
            cpus: 4,
        }
    }

    fn value(directory: &Path, file: &str) -> Option<i64> {
        read(&directory.join(file))
    }

    #[test]
    fn limits_and_timeouts_are_written_as_kube_proxy_writes_them() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        let files = [
            ("oom", "0\n"),
            ("nf_conntrack_max", "262144\n"),
            ("hashsize", "8192\n"),
            ("nf_conntrack_tcp_timeout_close_wait", "60\n"),
            ("nf_conntrack_tcp_be_liberal", "0\n"),
        ];
        let machine = machine(at, &files);
        let conntrack = Conntrack {
            max_per_core: 32_768,
            min: 65_536,
            liberal: true,
            timeouts: vec![("nf_conntrack_tcp_timeout_close_wait", 3600)],
        };
        assert_eq!(machine.apply(&conntrack, -999), Vec::<String>::new());
        for (file, wanted) in [
            ("oom", -999),
            // Lowered, too.
            ("nf_conntrack_max", 131_072),
            ("hashsize", 32_768),
            ("nf_conntrack_tcp_timeout_close_wait", 3600),
            ("nf_conntrack_tcp_be_liberal", 1),
        ] {
            assert_eq!(value(at, file), Some(wanted), "{file}");
        }
    }

    #[test]
    fn the_limit_has_bounds_and_nought_leaves_it_alone() {
        let at = |cpus| Machine {
            cpus,
            ..Machine::default()
        };
        let of = |max_per_core, min| Conntrack {
            max_per_core,
            min,
            ..Conntrack::default()
        };
        assert_eq!(at(2).entries(&of(32_768, 131_072)), Some(131_072));
        assert_eq!(at(64).entries(&of(32_768, 131_072)), Some(MOST));
        assert_eq!(at(64).entries(&of(0, 131_072)), None);
        let directory = tempfile::tempdir().unwrap();
        let machine = machine(
            directory.path(),
            &[("oom", "-999"), ("nf_conntrack_max", "5")],
        );
        assert!(machine.apply(&Conntrack::default(), -999).is_empty());
        assert_eq!(value(directory.path(), "nf_conntrack_max"), Some(5));
    }

    #[test]
    fn what_cannot_be_written_is_a_sentence_each() {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine {
            // Directories cannot be written by anybody.
            oom_score: directory.path().to_owned(),
            ..machine(directory.path(), &[("nf_conntrack_max", "5")])
        };
        fs::create_dir(directory.path().join("nf_conntrack_udp_timeout")).unwrap();
        let conntrack = Conntrack {
            timeouts: vec![("nf_conntrack_udp_timeout", 30)],
            ..Conntrack::default()
        };
        let troubles = machine.apply(&conntrack, 7);
        assert_eq!(troubles.len(), 2, "{troubles:?}");
        assert!(troubles[0].contains("CAP_SYS_RESOURCE"), "{troubles:?}");
        assert!(troubles[1].contains("nf_conntrack_udp_timeout cannot be set to 30"));
    }

    #[test]
    fn without_connection_tracking_only_the_score_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let machine = machine(directory.path(), &[("oom", "0")]);
        let conntrack = Conntrack {
            max_per_core: 1,
            timeouts: vec![("nf_conntrack_udp_timeout", 30)],
            ..Conntrack::default()
        };
        assert!(machine.apply(&conntrack, 5).is_empty());
        assert_eq!(value(directory.path(), "oom"), Some(5));
        assert_eq!(value(directory.path(), "nf_conntrack_udp_timeout"), None);
    }
}
