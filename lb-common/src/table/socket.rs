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
    /// The backend, 0 if the record is empty.
    pub backend: BackendId,
    /// The service port.
    pub service: ServiceId,
    /// [`ConnectedSocket::CHOSEN_FOR_NAMESPACE`], [`ConnectedSocket::IN_PEERS`].
    pub flags: u32,
}

impl ConnectedSocket {
    /// Affinity remembers this choice under the namespace's cookie, because the client's address
    /// was not known yet; the address adopts it when the socket has one.
    pub const CHOSEN_FOR_NAMESPACE: u32 = 1;
    /// `lb_peers` has an entry for the socket.
    pub const IN_PEERS: u32 = 2;
}

/// Conversations one unconnected UDP socket can have at a time; more of them go by the packet path.
/// 128 keep the record at 6 KiB: the whole of a socket's options must fit 20 KiB (`optmem_max`)
/// before kernel 6.7.
pub const CONVERSATIONS: usize = 128;

/// One conversation of an unconnected UDP socket.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Conversation {
    /// The address that was asked.
    pub frontend: Addr,
    /// The address the datagrams go to, and the answers come from.
    pub backend_addr: Addr,
    /// The port that was asked.
    pub frontend_port: Port,
    /// The backend's port.
    pub backend_port: Port,
    /// The backend; 0 = the entry is free; [`Conversation::OTHER_ASKED`].
    pub backend: BackendId,
    /// The service port.
    pub service: ServiceId,
    /// Last datagram sent or received.
    pub last_use: Tick,
}

impl Conversation {
    /// In place of a backend: a socket of the node whose own address and port are a node port asked
    /// this one. What goes back to it is an answer and no service's, though it looks like a request.
    pub const OTHER_ASKED: BackendId = BackendId(u32::MAX);
}

/// The conversations of one unconnected UDP socket. Searched from the start, as most sockets have
/// one or two; `used` keeps the search short. Several threads may send on one socket: whoever
/// reads or writes this holds the record's lock (kernel) or has it alone (host).
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct UnconnectedSocket {
    /// Entries at and above this number were never used.
    pub used: u32,
    /// Where a search leaves its finding: a number that came out of memory is any number to the
    /// verifier, one that came out of the loop is 128 different programs.
    pub found: u32,
    /// The entries.
    pub entries: [Conversation; CONVERSATIONS],
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

impl NamespaceAddresses {
    /// The address of the family that `of` belongs to.
    #[inline(always)]
    pub const fn of_family(&self, of: &Addr) -> Addr {
        if of.is_v4() { self.v4 } else { self.v6 }
    }
}

const _: () = {
    assert!(size_of::<ConnectedSocket>() == 48);
    assert!(size_of::<Conversation>() == 48);
    assert!(size_of::<UnconnectedSocket>() == 8 + 48 * CONVERSATIONS);
};
