//! Frontends, services, slots and backends.
//!
//! A frontend names a service; a service publishes up to two *windows* of slots (the Cluster set
//! and the Local set of `SERVICE-SEMANTICS` 4), each by one atomically stored word; a slot names a
//! backend. Visible slots are never modified: a change writes a new window and publishes it.

use crate::addr::{Addr, BackendId, Port, Protocol, ServiceId};
use crate::hash::HashKeys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a client asks for. IPv4 frontends are kept in IPv4-mapped form.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FrontendKey {
    /// The address asked, or [`Addr::UNSPECIFIED`] with `family` for a node port on every local
    /// address.
    pub addr: Addr,
    /// The port asked.
    pub port: Port,
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// 4 or 6 for a wildcard node port (one number may be served by one family only), else 0.
    pub family: u8,
    /// Must be zero.
    pub reserved: u32,
}

impl FrontendKey {
    /// A frontend on an address of its own.
    #[inline(always)]
    pub const fn exact(addr: Addr, port: Port, protocol: Protocol) -> Self {
        Self {
            addr,
            port,
            protocol,
            family: 0,
            reserved: 0,
        }
    }

    /// Every port of a `ClusterIP` that nobody defined: refused (`SERVICE-SEMANTICS` 5.2).
    #[inline(always)]
    pub const fn any_port(addr: Addr) -> Self {
        Self::exact(addr, Port(0), Protocol(0))
    }

    /// A node port: any local address of the family that `of` belongs to.
    #[inline(always)]
    pub const fn node_port(of: &Addr, port: Port, protocol: Protocol) -> Self {
        let family = if of.is_v4() { 4 } else { 6 };
        Self {
            addr: Addr::UNSPECIFIED,
            port,
            protocol,
            family,
            reserved: 0,
        }
    }

    /// True for [`any_port`](Self::any_port).
    pub const fn is_any_port(&self) -> bool {
        self.port.0 == 0 && self.protocol.0 == 0
    }

    /// True for node ports.
    #[inline(always)]
    pub const fn is_node_port(&self) -> bool {
        self.family != 0
    }
}

/// The kinds of frontend, which differ in the policy that applies to them.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum FrontendKind {
    /// `spec.clusterIPs`: the internal traffic policy applies.
    ClusterIp = 1,
    /// `spec.externalIPs`: the external traffic policy applies, as to the following.
    ExternalIp = 2,
    /// `status.loadBalancer.ingress[].ip`.
    LoadBalancer = 3,
    /// `spec.ports[].nodePort`.
    NodePort = 4,
}

/// What a frontend leads to. Immutable once inserted, and sealed: the kernel gives the element of a
/// removed frontend to the next one at once, also while a program still looks at it. That program
/// would send one service's client to another's endpoints; the seal tells it that the value is not
/// of the key it asked for.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Frontend {
    /// The service port.
    pub service: ServiceId,
    /// A [`FrontendKind`].
    pub kind: u8,
    /// [`Frontend::GUARDED`].
    pub flags: u8,
    /// See [`Frontend::sealed`].
    pub seal: [u8; 2],
}

impl Frontend {
    /// Only sources inside one of the service's [`SourceRange`](super::SourceRange)s may use it.
    pub const GUARDED: u8 = 1;
    /// What is under [`FrontendKey::any_port`]: of no kind, and no service's. Not yet sealed.
    pub const ANY_PORT: Self = Self {
        service: ServiceId(0),
        kind: 0,
        flags: 0,
        seal: [0; 2],
    };

    /// A frontend of `kind` for `service`, not yet sealed.
    pub const fn new(service: ServiceId, kind: FrontendKind) -> Self {
        Self {
            service,
            kind: kind as u8,
            flags: 0,
            seal: [0; 2],
        }
    }

    /// As it stands in the table under `key`.
    #[must_use]
    pub const fn sealed(self, keys: &HashKeys, key: &FrontendKey) -> Self {
        Self {
            seal: self.seal_of(keys, key).to_le_bytes(),
            ..self
        }
    }

    /// True if the value was inserted under `key`, as one piece.
    #[inline(always)]
    pub const fn is_of(&self, keys: &HashKeys, key: &FrontendKey) -> bool {
        u16::from_le_bytes(self.seal) == self.seal_of(keys, key)
    }

    /// 16 bits of key and service together: two keys agree with probability 2^-16, on top of that of
    /// the race; halves of two values of one key never fit.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bits of a hash")]
    const fn seal_of(self, keys: &HashKeys, key: &FrontendKey) -> u16 {
        // The filter has asked for the same hash just before.
        let hash = (keys.hash(&key.addr, key.port, key.protocol) >> 48) as u16;
        hash ^ self.service.0 as u16 ^ ((key.family as u16) << 12)
    }

    /// The same, open to the service's source ranges only.
    #[must_use]
    pub const fn guarded(mut self) -> Self {
        self.flags |= Self::GUARDED;
        self
    }

    /// True if the service's source ranges decide who may use it.
    #[inline(always)]
    pub const fn is_guarded(&self) -> bool {
        self.flags & Self::GUARDED != 0
    }

    /// True for every kind but `ClusterIP`.
    #[inline(always)]
    pub const fn is_external(&self) -> bool {
        self.kind != FrontendKind::ClusterIp as u8
    }
}

/// Why a window is empty: what its clients get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum EmptyAction {
    /// Nobody anywhere serves: refuse (`ECONNREFUSED`, TCP RST, ICMP port unreachable).
    Reject = 0,
    /// Endpoints exist, none of them here, and the policy is Local: be silent.
    Drop = 1,
}

/// One published set of slots, as the single word that readers take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Window {
    /// First slot; for an empty window an [`EmptyAction`].
    pub start: u32,
    /// Number of slots.
    pub count: u16,
    /// Equal to the generation of every slot inside; a mismatch makes the reader take the word
    /// again.
    pub generation: u16,
}

impl Window {
    /// A window without slots.
    pub const fn empty(action: EmptyAction, generation: u16) -> Self {
        Self {
            start: action as u32,
            count: 0,
            generation,
        }
    }

    /// The word that is stored.
    #[inline(always)]
    pub const fn to_word(self) -> u64 {
        self.start as u64 | ((self.count as u64) << 32) | ((self.generation as u64) << 48)
    }

    /// From the stored word.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields of the word are cut out"
    )]
    pub const fn from_word(word: u64) -> Self {
        Self {
            start: word as u32,
            count: (word >> 32) as u16,
            generation: (word >> 48) as u16,
        }
    }

    /// True if the window has no slots and its clients get silence, not a refusal.
    #[inline(always)]
    pub const fn drops(&self) -> bool {
        self.count == 0 && self.start == EmptyAction::Drop as u32
    }
}

/// Bits of [`Service::flags`].
pub struct ServiceFlags;

impl ServiceFlags {
    /// `internalTrafficPolicy: Local`: `ClusterIP` clients get the Local set.
    pub const INTERNAL_LOCAL: u32 = 1;
    /// `externalTrafficPolicy: Local`: outside clients get the Local set and keep their address.
    pub const EXTERNAL_LOCAL: u32 = 1 << 1;
    /// The entry is in use.
    pub const LIVE: u32 = 1 << 2;
}

/// One service port.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Service {
    /// The Cluster set: a [`Window`] word, stored atomically.
    pub cluster: u64,
    /// The Local set, likewise.
    pub local: u64,
    /// [`ServiceFlags`].
    pub flags: u32,
    /// Session affinity timeout in seconds; 0 = no affinity.
    pub affinity_seconds: u32,
    /// Which algorithm chooses: an index into `balance::ALGORITHMS`.
    pub algorithm: u32,
    /// Must be zero.
    pub reserved: [u32; 9],
}

/// One place in a window. A Maglev or weighted table is just a longer window in which backends
/// occur more than once.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Slot {
    /// The backend's address.
    pub addr: Addr,
    /// The backend's id.
    pub backend: BackendId,
    /// The service that owns the window.
    pub service: ServiceId,
    /// The backend's port.
    pub port: Port,
    /// The window's generation.
    pub generation: u16,
    /// Must be zero.
    pub reserved: [u8; 4],
}

/// How far a backend's life has got.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum BackendState {
    /// The entry is free.
    Free = 0,
    /// In at least one window.
    Active = 1,
    /// Serving and terminating: in a window only while nobody better is there.
    Draining = 2,
    /// Removed; kept while flows still use it. UDP flows move on at once, TCP flows stay.
    Gone = 3,
}

/// Bits of [`Backend::member`]: the sets a backend is in. Affinity asks here whether a remembered
/// backend is still usable on the client's path.
pub struct Membership;

impl Membership {
    /// In the Cluster set.
    pub const CLUSTER: u8 = 1;
    /// In the Local set.
    pub const LOCAL: u8 = 1 << 1;
}

/// One endpoint of one service port.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Backend {
    /// Its address.
    pub addr: Addr,
    /// Its port.
    pub port: Port,
    /// A [`BackendState`].
    pub state: u8,
    /// [`Membership`].
    pub member: u8,
    /// The service port it belongs to.
    pub service: ServiceId,
    /// Its protocol.
    pub protocol: Protocol,
    /// [`Backend::LOCAL`].
    pub flags: u8,
    /// Must be zero.
    pub reserved: [u8; 6],
}

impl Backend {
    /// The endpoint's `nodeName` is this node's: only then is a hairpin SNATed (nftables mode).
    pub const LOCAL: u8 = 1;

    /// True while new connections may be sent here.
    #[inline(always)]
    pub const fn is_usable(&self) -> bool {
        self.state == BackendState::Active as u8 || self.state == BackendState::Draining as u8
    }
}

const _: () = {
    assert!(size_of::<FrontendKey>() == 24);
    assert!(size_of::<Frontend>() == 8);
    assert!(size_of::<Service>() == 64);
    assert!(size_of::<Slot>() == 32);
    assert!(size_of::<Backend>() == 32);
};
