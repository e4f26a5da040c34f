//! What can go wrong between the agent and the kernel, one variant for each phase. Errors are for
//! people: what was attempted, on what, and what to do.

use std::io;
use std::path::PathBuf;

/// Why the datapath could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The binary was built without the eBPF object.
    #[error("this agent was built without its eBPF object: build it with `cargo xtask build`")]
    NoObject,
    /// Somebody else holds the directory.
    #[error(
        "another agent holds {directory}: stop it, give this one a directory of its own (--bpffs), \
         or let it wait (--takeover-wait SECONDS); the tables were not touched"
    )]
    Held {
        /// The directory.
        directory: PathBuf,
    },
    /// The directory is not on a bpffs.
    #[error(
        "{directory} is not on a BPF file system: mount one there \
         (`mount -t bpf bpf DIRECTORY`) or name another directory (--bpffs)"
    )]
    NotBpffs {
        /// The directory.
        directory: PathBuf,
    },
    /// A pinned map is not what this agent would create.
    #[error("the pinned table {path} does not fit: {difference}; {remedy}")]
    Schema {
        /// The pin.
        path: PathBuf,
        /// What differs.
        difference: String,
        /// What to do.
        remedy: &'static str,
    },
    /// No cgroup could be proven to be the root.
    #[error("{0}")]
    CgroupRoot(String),
    /// The options contradict each other or the machine.
    #[error("{0}")]
    Options(String),
    /// The object could not be parsed, or its maps or programs not be loaded.
    #[error("cannot load {what} into the kernel")]
    Load {
        /// The object, map or program.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program could not be attached.
    #[error("cannot attach {program} to {target}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The device or cgroup.
        target: String,
        /// Why.
        source: io::Error,
    },
    /// A step that works on a file, pin or table.
    #[error("cannot {attempt} {object}")]
    Step {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        object: String,
        /// Why.
        source: io::Error,
    },
}

/// Why the live tables could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There are none.
    #[error("no tables in {directory}: no agent ever ran there, or it was cleaned up")]
    Absent {
        /// The directory.
        directory: PathBuf,
    },
    /// A pinned map is not what this agent would create.
    #[error("the pinned table {path} does not fit: {difference}; use the agent that made it")]
    Schema {
        /// The pin.
        path: PathBuf,
        /// What differs.
        difference: String,
    },
    /// Reading failed.
    #[error("cannot {attempt} {object}")]
    Step {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        object: String,
        /// Why.
        source: io::Error,
    },
}

/// Why a directory could not be cleaned up.
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// An agent is running.
    #[error("an agent is running on {directory}: stop it first; nothing was removed")]
    Held {
        /// The directory.
        directory: PathBuf,
    },
    /// Removing failed.
    #[error("cannot {attempt} {object}")]
    Step {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        object: String,
        /// Why.
        source: io::Error,
    },
}
