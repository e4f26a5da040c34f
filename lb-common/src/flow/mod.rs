//! Flows: what the packet path remembers of a conversation.
//!
//! One record holds both directions' translation. It is found from the client's end
//! {address, port, protocol}: a request's source, a reply's destination. Where a flow is SNATed, a
//! second, small record (the *alias*) under the SNAT end leads a reply back to the first; it is the
//! reservation of the SNAT port as well.
//!
//! ```text
//! ingress  client → frontend          by_frontend   DNAT: destination := backend
//! egress   client → backend           by_backend    SNAT: source := snat end   (if wanted)
//! ingress  backend → snat end         by_alias      un-SNAT: destination := client
//! egress   backend → client           by_backend    un-DNAT: source := frontend
//! ```

mod find;
mod place;
mod record;
pub mod script;
mod table;

#[cfg(any(test, feature = "host"))]
mod memory;
#[cfg(any(test, feature = "host"))]
mod scan;
#[cfg(any(test, feature = "host"))]
pub mod stress;
#[cfg(test)]
mod tests;

pub use find::Quick;
#[cfg(any(test, feature = "host"))]
pub use memory::HostBuckets;
pub use record::{Control, GROUP, Kind, Record, WORDS};
#[cfg(any(test, feature = "host"))]
pub use scan::{Census, Entry, read};
pub use table::{Buckets, FlowTable};

use crate::addr::{Addr, BackendId, Endpoint, Port, Protocol, Tick};

/// Bits of [`Flow::state`].
pub struct FlowState;

impl FlowState {
    /// The backend has answered. Without it the flow is embryonic and the first to be reclaimed.
    pub const REPLIED: u16 = 1;
    /// The client has sent FIN.
    pub const FIN_FORWARD: u16 = 1 << 1;
    /// The backend has sent FIN.
    pub const FIN_REPLY: u16 = 1 << 2;
    /// Either side has sent RST.
    pub const RESET: u16 = 1 << 3;
    /// The source is to be replaced at egress; the SNAT end is chosen there, when the outgoing
    /// device is known.
    pub const WANTS_SNAT: u16 = 1 << 4;
    /// The client keeps its address and gets another port only: two frontends of one backend were
    /// asked from one client port, and the replies could not be told apart. (Of the node's own
    /// clients a loopback address is replaced as well.)
    pub const SNAT_PORT_ONLY: u16 = 1 << 5;
    /// The client is the node itself: its packets are translated as they leave and sent on from
    /// there; no hook follows where its replies arrive, so both their ends are translated at once.
    pub const OF_NODE: u16 = 1 << 6;
}

/// Index into the `lb_snat_pool` table, which holds the addresses flows are SNATed to. Zero: none.
/// A record keeps the lower 16 bits; the pool has 256 entries.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SnatAddressIndex(pub u32);

/// What a flow's source is to become.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SnatEnd {
    /// Address and port.
    pub end: Endpoint,
    /// The address's index in the pool.
    pub address: SnatAddressIndex,
    /// Whether the end of a flow that is closed, or was never answered, may be taken: without this,
    /// the ports of one address would bound the connections to one backend by their number in
    /// [`Lifetime::TCP_CLOSED`].
    pub pressure: bool,
}

/// Names a record: its place, and the version that tells a reused place from the same flow.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct FlowHandle {
    /// Place in the table.
    pub bucket: u32,
    /// The record's version when it was read.
    pub version: u16,
}

/// A consistent copy of a record, as a lookup returns it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flow {
    /// Where it was found.
    pub handle: FlowHandle,
    /// The client's end, as it was before any translation.
    pub client: Endpoint,
    /// The end the client asked.
    pub frontend: Endpoint,
    /// The backend that serves it.
    pub backend: BackendId,
    /// [`FlowState`].
    pub state: u16,
    /// The SNAT source port, zero until it is chosen.
    pub snat_port: Port,
    /// The SNAT source address; unset until chosen, and where [`FlowState::SNAT_PORT_ONLY`]
    /// says so.
    pub snat_address: SnatAddressIndex,
    /// When a packet was last seen.
    pub seen: Tick,
}

impl Flow {
    /// True once either side has begun to close a TCP connection, or reset it: a segment that opens
    /// one on the same ends begins a new conversation.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        const CLOSING: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY | FlowState::RESET;
        self.state & CLOSING != 0
    }

    /// True while a flow that keeps the client's address waits for its port.
    #[inline(always)]
    pub const fn needs_port(&self) -> bool {
        self.state & FlowState::SNAT_PORT_ONLY != 0 && self.snat_port.0 == 0
    }
}

/// A new flow, to be inserted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NewFlow {
    /// The client's end.
    pub client: Endpoint,
    /// The end the client asked.
    pub frontend: Endpoint,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The chosen backend.
    pub backend: BackendId,
    /// [`FlowState::WANTS_SNAT`], perhaps with [`FlowState::SNAT_PORT_ONLY`].
    pub state: u16,
}

/// Why a record could not be written. The packet is dropped and counted; the client tries again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// No free, expired or reclaimable record among the candidates.
    Full,
    /// Another CPU holds the lock, or the record changed meanwhile.
    Busy,
    /// The SNAT end is taken by another flow to the same backend: try another port.
    Taken,
}

/// The flow table. Lookups return copies that were consistent when made; every change names the
/// handle it was decided on and does nothing if the record has changed hands since (but for the time of
/// a note, which is then the newcomer's as well).
pub trait Flows {
    /// The flow of a request as it arrives: `client` → `frontend`. Lookups also return flows whose
    /// time is over but whose place nobody needed yet: see [`Lifetime::is_expired`].
    fn by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow>;

    /// The flow between `client` and the backend with this end: of a translated request, or of a
    /// reply before it is translated back.
    fn by_backend(&self, client: &Endpoint, backend: &Endpoint, protocol: Protocol)
    -> Option<Flow>;

    /// The flow of a reply to an SNAT end: `backend` → `snat`.
    fn by_alias(&self, snat: &Endpoint, backend: &Endpoint, protocol: Protocol) -> Option<Flow>;

    /// Inserts a flow, or returns the one that is there under the same client and frontend: of two
    /// packets that race, the second takes the first one's result. One whose time is over is
    /// replaced.
    ///
    /// # Errors
    /// [`Refused::Full`] or [`Refused::Busy`].
    fn insert(&self, flow: &NewFlow, now: Tick) -> Result<Flow, Refused>;

    /// Reserves `snat` for the flow, once: if another packet was quicker, its end is returned.
    ///
    /// # Errors
    /// [`Refused::Taken`] if `snat` serves another flow to the same backend; else as `insert`.
    fn attach_snat(
        &self,
        flow: &Flow,
        snat: &SnatEnd,
        backend: &Endpoint,
        protocol: Protocol,
        now: Tick,
    ) -> Result<Flow, Refused>;

    /// Notes a packet: sets bits of the state and the time, writing only what changes.
    fn note(&self, flow: &Flow, state: u16, now: Tick);

    /// Forgets the flow (its alias dies with it).
    fn remove(&self, flow: &Flow);
}

/// Whether a record may be reused, by its protocol, state and age. The one place that knows
/// timeouts (SCTP has those of TCP: it begins and ends alike, and its heartbeats keep it alive);
/// pressure is handled by [`Lifetime::is_reclaimable`].
pub struct Lifetime;

impl Lifetime {
    /// Established TCP, seconds: kube-proxy sets nf_conntrack to the same 24 hours.
    pub const TCP_ESTABLISHED: u32 = 86_400;
    /// TCP with one side closed, seconds: half-closed is not closed (kube-proxy's close-wait).
    pub const TCP_HALF_CLOSED: u32 = 3_600;
    /// TCP without any answer, seconds (longer than a client's first six SYNs are apart).
    pub const TCP_EMBRYONIC: u32 = 60;
    /// TCP closed by both sides, seconds: the last ACKs and retransmissions pass.
    pub const TCP_CLOSED: u32 = 30;
    /// TCP after a reset, seconds.
    pub const TCP_RESET: u32 = 10;
    /// UDP without any answer, seconds (as nf_conntrack).
    pub const UDP_EMBRYONIC: u32 = 30;
    /// UDP with answers, seconds (as nf_conntrack's stream timeout).
    pub const UDP_REPLIED: u32 = 120;

    /// Timeout in ticks of a flow in this state.
    #[inline(always)]
    pub const fn timeout(protocol: Protocol, state: u16) -> u32 {
        const CLOSED: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY;
        if protocol.0 == Protocol::UDP.0 {
            return if state & FlowState::REPLIED != 0 {
                const { Tick::seconds(Self::UDP_REPLIED) }
            } else {
                const { Tick::seconds(Self::UDP_EMBRYONIC) }
            };
        }
        if state & FlowState::RESET != 0 {
            const { Tick::seconds(Self::TCP_RESET) }
        } else if state & CLOSED == CLOSED {
            const { Tick::seconds(Self::TCP_CLOSED) }
        } else if state & FlowState::REPLIED == 0 {
            const { Tick::seconds(Self::TCP_EMBRYONIC) }
        } else if state & CLOSED != 0 {
            const { Tick::seconds(Self::TCP_HALF_CLOSED) }
        } else {
            const { Tick::seconds(Self::TCP_ESTABLISHED) }
        }
    }

    /// True if the record's time is over.
    #[inline(always)]
    pub const fn is_expired(protocol: Protocol, state: u16, seen: Tick, now: Tick) -> bool {
        now.since(seen) >= Self::timeout(protocol, state)
    }

    /// True if both ends have closed a TCP connection, or one has reset it: only stragglers come.
    #[inline(always)]
    pub const fn is_closed(protocol: Protocol, state: u16) -> bool {
        const CLOSED: u16 = FlowState::FIN_FORWARD | FlowState::FIN_REPLY;
        protocol.0 != Protocol::UDP.0 && (state & FlowState::RESET != 0 || state & CLOSED == CLOSED)
    }

    /// True if a newcomer without a free record may take this one: closed and reset flows, and
    /// embryonic ones that have waited a second. Live flows are never pushed out.
    #[inline(always)]
    pub const fn is_reclaimable(protocol: Protocol, state: u16, seen: Tick, now: Tick) -> bool {
        if Self::is_closed(protocol, state) {
            return true;
        }
        state & FlowState::REPLIED == 0 && now.since(seen) >= const { Tick::seconds(1) }
    }
}

/// The unspecified end: what an unset SNAT end or an empty record holds.
pub const NO_ENDPOINT: Endpoint = Endpoint {
    addr: Addr::UNSPECIFIED,
    port: Port(0),
};
