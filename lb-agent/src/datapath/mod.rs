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

mod attach;
mod cgroup;
mod cleanup;
mod clsact;
mod directory;
mod engine;
mod error;
mod flows;
mod grace;
mod key_set;
mod load;
mod local;
mod loopback;
mod mapping;
pub mod memory;
mod names;
mod netlink;
mod options;
mod pod_cgroups;
mod probe;
mod read;
mod reader;
mod snat_ports;
mod sock_diag;
mod sockets;
mod switches;
mod sys;
mod tables;
mod verify;
mod view;

pub use attach::DeviceProblem;
pub use cgroup::root as cgroup_root;
pub use cleanup::cleanup;
pub use directory::is_usable as is_usable_directory;
pub use engine::Datapath;
pub use error::{CleanupError, ReadError, StartError};
pub use grace::Grace;
pub use options::{Capacity, DEFAULT_DIRECTORY, Devices, Options, TcAttach};
pub(crate) use pod_cgroups::PodCgroups;
pub use reader::Reader;
pub use sockets::{Closed, Closer, Look};
pub use switches::{Switches, loaded};
pub use tables::WriteError;
pub use view::{EndpointView, Fill, FrontendView, LinkView, ServiceView, StatusView};
