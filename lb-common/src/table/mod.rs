//! The tables: what the agent writes and the programs read, byte for byte.
//!
//! Everything here crosses the kernel boundary, so it is `repr(C)`, has no padding the compiler
//! chose (proved by `zerocopy`), no enums, no bools and no `usize`. Rich types are made at the
//! edge. Changing any of it changes [`LAYOUT_VERSION`].
//!
//! | map | kind | key → value | written by |
//! |---|---|---|---|
//! | `lb_config` | array, mmapable, 1 | 0 → [`Config`] | agent |
//! | `lb_bits` | array, mmapable, 1 | 0 → [`AddressBits`] | agent |
//! | `lb_frontends` | hash | [`FrontendKey`] → [`Frontend`] | agent |
//! | `lb_ranges` | LPM trie | [`SourceRange`] → 1 | agent |
//! | `lb_services` | array, mmapable | service id → [`Service`] | agent |
//! | `lb_slots` | array, mmapable | slot → [`Slot`] | agent |
//! | `lb_backends` | array, mmapable | backend id → [`Backend`] | agent |
//! | `lb_local` | hash | [`Addr`](crate::addr::Addr) → [`LocalAddress`] | agent |
//! | `lb_snat` | hash | ifindex (0: any other device) → [`SnatAddresses`] | agent |
//! | `lb_pod_devices` | hash | ifindex of a device that pods' packets come in by → 1 | agent |
//! | `lb_snat_pool` | array, mmapable, 256 | index → [`Addr`](crate::addr::Addr); 0 is none | agent |
//! | `lb_affinity` | LRU hash | [`AffinityKey`] → [`Affinity`] | programs |
//! | `lb_netns` | LRU hash | netns cookie → [`NamespaceAddresses`] | programs, agent (host) |
//! | `lb_optout` | hash | cgroup (inode) whose processes' sockets are not balanced → 1 | agent |
//! | `lb_fragments` | LRU hash | [`FragmentKey`] → [`FragmentPorts`] | programs |
//! | `lb_flows` | array, mmapable | bucket → `flow::Bucket` | programs |
//! | `lb_sock` | socket storage | socket → [`ConnectedSocket`] | programs |
//! | `lb_peers` | hash | cookie of a connected UDP socket → [`BackendId`](crate::addr::BackendId) it was sent to | programs |
//! | `lb_udp` | socket storage | socket → [`UnconnectedSocket`] | programs |
//! | `lb_svc_count` | per-CPU array | service id → [`ServiceCounters`] | programs |
//! | `lb_bck_count` | per-CPU array | backend id → [`BackendCounters`] | programs |
//! | `lb_reasons` | per-CPU array | [`Reason`](crate::verdict::Reason) → `u64` | programs |
//! | `lb_names` | hash | service id → [`ServiceName`]; created by the agent, unknown to the programs | agent |
//! | `lb_grace` | array of maps, 1 | 0 → any; its update waits for running programs | agent |

mod config;
mod count;
mod filter;
mod name_record;
mod range;
mod service;
mod socket;
mod transit;

pub use config::{
    Config, ConfigFlags, LocalAddress, PACKET_PATH_UDP_PORTS, POD_CGROUP_DEPTH, SERVICE_CIDRS,
    SnatAddresses, SocketMode,
};
pub use count::{BackendCounters, ServiceCounters};
pub use filter::{AddressBits, Bit, Filter};
pub use name_record::{NAME_TEXT, ServiceName};
pub use range::{SourceOf, SourceRange};
pub use service::{
    Backend, BackendState, EmptyAction, Frontend, FrontendKey, FrontendKind, Membership, Service,
    ServiceFlags, Slot, Window,
};
pub use socket::{
    CONVERSATIONS, ConnectedSocket, Conversation, NamespaceAddresses, UnconnectedSocket,
};
pub use transit::{Affinity, AffinityKey, FragmentKey, FragmentPorts};

/// Version of everything in this module; a part of the pin directory's name
/// (`<bpffs>/v<LAYOUT_VERSION>/`), so tables of different layouts never meet.
pub const LAYOUT_VERSION: u32 = 2;

/// The kernel names of the maps (15 bytes at most).
pub mod name {
    #![allow(
        missing_docs,
        reason = "each constant is its map's name; the module table explains them"
    )]
    pub const CONFIG: &str = "lb_config";
    pub const ADDRESS_BITS: &str = "lb_bits";
    pub const FRONTENDS: &str = "lb_frontends";
    pub const RANGES: &str = "lb_ranges";
    pub const SERVICES: &str = "lb_services";
    pub const SLOTS: &str = "lb_slots";
    pub const BACKENDS: &str = "lb_backends";
    pub const LOCAL: &str = "lb_local";
    pub const SNAT: &str = "lb_snat";
    pub const POD_DEVICES: &str = "lb_pod_devices";
    pub const SNAT_POOL: &str = "lb_snat_pool";
    pub const AFFINITY: &str = "lb_affinity";
    pub const NAMESPACES: &str = "lb_netns";
    pub const OPTED_OUT: &str = "lb_optout";
    pub const FRAGMENTS: &str = "lb_fragments";
    pub const FLOWS: &str = "lb_flows";
    pub const SOCKETS: &str = "lb_sock";
    pub const PEERS: &str = "lb_peers";
    pub const UDP_SOCKETS: &str = "lb_udp";
    pub const SERVICE_COUNTERS: &str = "lb_svc_count";
    pub const BACKEND_COUNTERS: &str = "lb_bck_count";
    pub const REASONS: &str = "lb_reasons";
    pub const NAMES: &str = "lb_names";
    pub const GRACE: &str = "lb_grace";
}
