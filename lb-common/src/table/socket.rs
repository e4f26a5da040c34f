//! State that belongs to a socket and lives with it (socket storage), and what is known of the
//! network namespaces sockets live in.

use crate::addr::{Addr, BackendId, Port, ServiceId, Tick};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a connected socket was translated from: read by `getpeername`, `recvmsg` on a connected
/// UDP socket, and by `sock_release` for the count of active connections.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct ConnectedSocket {
    /// The address that was asked; unspecified if the record is empty.
    pub frontend: Addr,
    /// The backend's address it was translated to.
    pub backend_addr: Addr,
    /// The port that was asked.
    pub frontend_port: Port,
    /// The backend's port.
    pub backend_port: Port,
    /// The backend, 0 if none.
    pub backend: BackendId,
    /// The service port.
    pub service: ServiceId,
    /// Must be zero.
    pub reserved: u32,
}

/// Sets of the table in [`UnconnectedSocket`].
pub const UNCONNECTED_SETS: usize = 32;
/// Ways of each set.
pub const UNCONNECTED_WAYS: usize = 4;

/// One conversation of an unconnected UDP socket.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct UnconnectedEntry {
    /// The address that was asked.
    pub frontend: Addr,
    /// The port that was asked.
    pub frontend_port: Port,
    /// Must be zero.
    pub reserved: u16,
    /// The backend; 0 = the entry is free.
    pub backend: BackendId,
    /// Last datagram sent or received.
    pub last_use: Tick,
    /// The service port.
    pub service: ServiceId,
}

/// The conversations of one unconnected UDP socket: a set-associative table by frontend, with a
/// second index by backend for the answers. Sized to fit the default `optmem_max` of old kernels
/// (20 KiB a socket).
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnconnectedSocket {
    /// Entries; an entry's set is a hash of its frontend.
    pub entries: [UnconnectedEntry; UNCONNECTED_SETS * UNCONNECTED_WAYS],
    /// Index by backend: the entry's number plus one, 0 = free; the set is a hash of the backend's
    /// address and port.
    pub by_backend: [u8; UNCONNECTED_SETS * UNCONNECTED_WAYS],
}

/// The addresses connections of a network namespace have been seen to leave from.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct NamespaceAddresses {
    /// IPv4-mapped, unspecified while unknown.
    pub v4: Addr,
    /// IPv6, unspecified while unknown.
    pub v6: Addr,
}

const _: () = {
    assert!(size_of::<ConnectedSocket>() == 48);
    assert!(size_of::<UnconnectedEntry>() == 32);
    assert!(UNCONNECTED_SETS * UNCONNECTED_WAYS < 256);
};
