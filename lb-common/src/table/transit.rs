//! Short-lived facts the programs write for themselves: affinity and fragments.

use crate::addr::{Addr, BackendId, Port, Protocol, ServiceId, Tick};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Session affinity is remembered per service port and client address, for all frontends of the
/// service port and for both paths alike (`SERVICE-SEMANTICS` 8).
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AffinityKey {
    /// The client's address before any SNAT; for a socket whose address is not yet known, its
    /// network namespace (see [`AffinityKey::for_namespace`]).
    pub client: Addr,
    /// The service port.
    pub service: ServiceId,
    /// 0: `client` is an address. 1: it holds a network namespace cookie.
    pub by_namespace: u32,
}

impl AffinityKey {
    /// The key of a client with a known address.
    #[inline(always)]
    pub const fn for_address(service: ServiceId, client: Addr) -> Self {
        Self {
            client,
            service,
            by_namespace: 0,
        }
    }

    /// The key of the sockets of a network namespace whose address is not known yet.
    #[inline(always)]
    pub const fn for_namespace(service: ServiceId, cookie: u64) -> Self {
        Self {
            client: Addr([cookie, 0]),
            service,
            by_namespace: 1,
        }
    }
}

/// Where a client was sent last. Eight bytes, so that a reader never sees halves of two writes.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Affinity {
    /// The backend.
    pub backend: BackendId,
    /// When the last *new* connection was made.
    pub last_use: Tick,
}

/// Identifies the fragments of one datagram (RFC 791, RFC 8200 section 4.5).
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentKey {
    /// Source as on the wire where the fragment was seen.
    pub source: Addr,
    /// Destination as on the wire where the fragment was seen.
    pub destination: Addr,
    /// The identification field as it lies in the packet (IPv4: 16 bits in the low half).
    pub identification: u32,
    /// The protocol of the datagram.
    pub protocol: Protocol,
    /// 0 at ingress, 1 at egress: the two hooks see different addresses and ports.
    pub hook: u8,
    /// Must be zero.
    pub reserved: [u8; 2],
}

/// The ports found in the first fragment, before any rewrite at this hook.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FragmentPorts {
    /// Source port.
    pub source: Port,
    /// Destination port.
    pub destination: Port,
}
