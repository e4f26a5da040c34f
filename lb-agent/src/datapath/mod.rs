//! The datapath: load, attach, pin, write, read, sweep. The only place that knows aya and `bpf(2)`,
//! and the only one of the agent that may be unsafe.
//!
//! Everything of one agent lives in one directory on a bpffs:
//!
//! ```text
//! <directory>/v<LAYOUT_VERSION>/maps/<map>            tables
//! <directory>/v<LAYOUT_VERSION>/links/cgroup/<hook>   socket path
//! <directory>/v<LAYOUT_VERSION>/links/tcx/<ifindex>-{ingress,egress}
//! ```

mod error;
mod options;
mod view;

pub use error::{CleanupError, ReadError, StartError};
pub use options::{Capacity, DEFAULT_DIRECTORY, Devices, Options, TcAttach};
pub use view::{EndpointView, Fill, FrontendView, LinkView, ServiceView, StatusView};

use lb_common::verdict::Reason;
use std::path::Path;

/// Reads the live tables of a directory, with or without an agent running on it.
#[derive(Debug)]
pub struct Reader {}

impl Reader {
    /// Opens the tables in `directory` (the one given to the agent, see [`Options::directory`]).
    pub fn open(_directory: &Path) -> Result<Self, ReadError> {
        todo!()
    }

    /// Every service port, sorted by name.
    pub fn services(&self) -> Result<Vec<ServiceView>, ReadError> {
        todo!()
    }

    /// How often each reason was counted.
    pub fn reasons(&self) -> Result<Vec<(Reason, u64)>, ReadError> {
        todo!()
    }

    /// How full the tables are.
    pub fn fill(&self) -> Result<Vec<Fill>, ReadError> {
        todo!()
    }

    /// The state of the directory.
    pub fn status(&self) -> Result<StatusView, ReadError> {
        todo!()
    }
}

/// Removes every trace of an agent that used `directory`: links, clsact filters, programs, tables,
/// the directory. Returns what was removed, one line each; nothing to remove is fine.
pub fn cleanup(_directory: &Path) -> Result<Vec<String>, CleanupError> {
    todo!()
}
