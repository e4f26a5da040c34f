//! Counters. All are monotonic and per CPU; readers sum over the CPUs.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What happened to one service port.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ServiceCounters {
    /// Connections (or UDP conversations) translated at a socket.
    pub socket_opened: u64,
    /// Of those, how many have ended. The difference is the number of active ones.
    pub socket_closed: u64,
    /// Connections refused at a socket.
    pub socket_rejected: u64,
    /// Flows begun on the packet path.
    pub tc_opened: u64,
    /// First packets refused on the packet path.
    pub tc_rejected: u64,
    /// First packets dropped on the packet path.
    pub tc_dropped: u64,
    /// Packets towards backends on the packet path.
    pub packets_in: u64,
    /// Their bytes, as the IP header counts them.
    pub bytes_in: u64,
    /// Packets from backends on the packet path.
    pub packets_out: u64,
    /// Their bytes.
    pub bytes_out: u64,
}

/// What happened to one backend on the socket path (the packet path's active flows are counted
/// from the flow table).
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BackendCounters {
    /// Connections (or UDP conversations) sent here by a socket hook.
    pub socket_opened: u64,
    /// Of those, how many have ended.
    pub socket_closed: u64,
}
