//! What the datapath is told at start.

use lb_common::table::SocketMode;
use std::path::PathBuf;
use std::time::Duration;

/// Where the pins live unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/lb-agent";

/// Which devices carry the packet path. Loopback never does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Devices {
    /// Every device.
    Auto,
    /// Devices whose name matches one of these patterns (`*` and `?`).
    Globs(Vec<String>),
}

/// How programs get onto a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TcAttach {
    /// TCX where the kernel has it (6.6), else clsact.
    Auto,
    /// TCX only.
    Tcx,
    /// clsact, also on kernels that have TCX.
    Clsact,
}

/// Sizes of the tables. They are fixed when a table is created; other sizes at a later start are
/// refused, never taken silently.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Service ports.
    pub services: u32,
    /// Backends, those included that only old flows still use.
    pub backends: u32,
    /// Slots of all windows.
    pub slots: u32,
    /// Frontends.
    pub frontends: u32,
    /// Flows of the packet path that are to fit comfortably; the table gets room to spare.
    pub flows: u32,
    /// Remembered clients of services with session affinity.
    pub affinity: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            services: 1 << 16,
            backends: 1 << 18,
            slots: 1 << 20,
            frontends: 1 << 18,
            flows: 1 << 17,
            affinity: 1 << 17,
        }
    }
}

/// What the datapath is told at start. What the operator chose about Kubernetes semantics (pod
/// ranges, `masqueradeAll`, node port addresses) stands in the model's options.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Options {
    /// Directory on a bpffs that holds everything of this agent; one agent a directory.
    pub directory: PathBuf,
    /// The cgroup to attach to; without it the root is looked for and must prove to be the root.
    pub cgroup_root: Option<PathBuf>,
    /// Which devices carry the packet path.
    pub devices: Devices,
    /// How programs get onto devices.
    pub tc_attach: TcAttach,
    /// Which sockets are balanced at the socket.
    pub socket_mode: SocketMode,
    /// Bits of `skb->mark` that tell what is to be masqueraded; 0: none.
    pub masquerade_mark: u32,
    /// Replies get the mark, too.
    pub mark_replies: bool,
    /// Some processes' sockets are not balanced.
    pub opt_out: bool,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// First and last source port of SNATed flows; `None`: below the host's ephemeral range.
    pub snat_ports: Option<(u16, u16)>,
    /// Sizes of the tables.
    pub capacity: Capacity,
    /// Ports of UDP frontends that pods' connected sockets reach by the packet path.
    pub packet_path_udp_ports: Vec<u16>,
    /// Where the container runtime keeps the pods' network namespaces, if UDP sockets of removed
    /// endpoints are to be closed there, too.
    pub pod_namespaces: Option<PathBuf>,
    /// How long to wait for another agent to leave the directory before giving up.
    pub takeover_wait: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            directory: PathBuf::from(DEFAULT_DIRECTORY),
            cgroup_root: None,
            devices: Devices::Auto,
            tc_attach: TcAttach::Auto,
            socket_mode: SocketMode::All,
            masquerade_mark: 1 << 14,
            mark_replies: false,
            opt_out: false,
            node_port_range: (30000, 32767),
            snat_ports: None,
            capacity: Capacity::default(),
            packet_path_udp_ports: Vec::new(),
            pod_namespaces: None,
            takeover_wait: Duration::ZERO,
        }
    }
}
