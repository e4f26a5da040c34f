//! What was seen of the machine. Plain data.

use super::expression::Expression;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// A machine as `check` sees it, in the network namespace it runs in.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Capabilities that the agent needs and this process has not.
    pub missing_capabilities: Vec<&'static str>,
    /// The kernel's release, e.g. `6.1.0-56-amd64`.
    pub release: String,
    /// `net.core.bpf_jit_enable`, where it can be read.
    pub jit: Option<u32>,
    /// Whether the agent's directory lies on a BPF file system, or its default place can be mounted.
    pub bpf_filesystem: bool,
    /// The cgroup that the socket hooks go to, or why there is none.
    pub cgroup: Result<PathBuf, String>,
    /// `ip_forward` and `all/forwarding` of IPv6; `None`: no such family.
    pub forwarding: [Option<bool>; 2],
    /// Devices, without loopback.
    pub devices: Vec<Device>,
    /// Routing rules of both families, the kernel's own three left out.
    pub rules: Vec<RoutingRule>,
    /// Chains of nf_tables (iptables-nft included), or why they cannot be listed.
    pub chains: Result<Vec<Chain>, String>,
    /// Tables of the older iptables that hold rules nobody else can list.
    pub legacy_tables: Vec<String>,
    /// First and last node port.
    pub node_ports: (u16, u16),
    /// `ip_local_port_range`.
    pub ephemeral: (u16, u16),
    /// `ip_local_reserved_ports`.
    pub reserved: Vec<(u16, u16)>,
    /// What is loaded, if anything is.
    pub loaded: Option<Loaded>,
}

/// A network device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Device {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// It is up.
    pub up: bool,
    /// `rp_filter` as it acts: the larger of the device's own and that of all.
    pub reverse_path_filter: u32,
    /// It is a bridge with this many ports.
    pub bridge_ports: Option<usize>,
    /// It is a VLAN whose packets keep the tag in their Ethernet header (`reorder_hdr off`).
    pub keeps_tags: bool,
    /// For bridges: whether what is switched passes netfilter's IP hooks (`br_netfilter`).
    pub bridge_netfilter: bool,
}

/// One routing rule.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RoutingRule {
    /// Its place; lower ones are asked first.
    pub priority: u32,
    /// Whose packets: a source prefix; `None`: everybody's.
    pub from: Option<String>,
    /// The bits of the mark it looks at and what they must be.
    pub mark: Option<(u32, u32)>,
    /// The table it looks into.
    pub table: u32,
}

/// The main routing table.
pub const MAIN: u32 = 254;

/// A chain of nf_tables.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// Its family as `nft` writes it.
    pub family: &'static str,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where it is hooked in; `None`: it is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules.
    pub rules: Vec<Vec<Expression>>,
}

/// Where a chain is hooked in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Hook {
    /// `NF_INET_*` of linux/netfilter.h.
    pub number: u32,
    /// Lower ones come first.
    pub priority: i32,
    /// What no rule decides is dropped.
    pub drops: bool,
}

/// What is loaded, as the tables and links say.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Loaded {
    /// The bits of the mark of packets that will be SNATed.
    pub masquerade_mark: u32,
    /// Replies get them, too.
    pub mark_replies: bool,
    /// Indexes of devices that carry links; empty with clsact, which has no links.
    pub devices: BTreeSet<u32>,
}
