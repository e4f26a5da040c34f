//! The record: 64 bytes, one cache line, one bucket of `lb_flows`.
//!
//! Everything is a 64-bit word, so that each can be read, written and compared-and-swapped as one.
//! What changes while a flow lives (its state, when it was seen) shares one word with the record's
//! kind and version: one compare-and-swap both changes it and proves that the record has not changed
//! hands. Only the packing lives here; who may write what, and when, is in [`super::table`].
//!
//! | word | bits | content |
//! |---|---|---|
//! | 0 control | 0–3 kind · 4–15 [`FlowState`](super::FlowState) · 16–31 version · 32–63 seen |
//! | 1 home | 0–31: bit `d` = bucket `home ^ d` holds records of this home · 63 lock |
//! | 2, 3 | client address (alias: SNAT address) |
//! | 4, 5 | frontend address (alias: backend address) |
//! | 6 ends | 0–15 client port · 16–31 frontend port · 32–63 backend id (alias: primary's bucket) |
//! | 7 tail | 0–7 protocol · 16–31 version · 32–47 SNAT port (alias: primary's version) · 48–63 SNAT address index |
//!
//! Word 1 does not belong to the record: it describes the bucket *as a home*, whoever lives in it.

#![expect(
    clippy::cast_possible_truncation,
    reason = "fields are cut out of words all over this file"
)]

use super::{Flow, FlowHandle, SnatAddressIndex};
use crate::addr::{Addr, BackendId, Endpoint, Port, Protocol, Tick};

/// Words of a bucket.
pub const WORDS: usize = 8;
/// Buckets of a group: a record lies in its home's group. 2 KiB, so a group never crosses a page.
pub const GROUP: u32 = 32;

pub(super) const CONTROL: usize = 0;
pub(super) const HOME: usize = 1;
pub(super) const CLIENT: usize = 2;
pub(super) const FRONTEND: usize = 4;
pub(super) const ENDS: usize = 6;
pub(super) const TAIL: usize = 7;

/// What a bucket holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Kind(pub u8);

impl Kind {
    /// Nothing.
    pub const FREE: Self = Self(0);
    /// A record that one CPU is writing; nobody else may read or touch it.
    pub const BUSY: Self = Self(1);
    /// A flow.
    pub const LIVE: Self = Self(2);
    /// The SNAT end of a flow that lives in another bucket.
    pub const ALIAS: Self = Self(3);
}

/// Word 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Control(pub u64);

impl Control {
    /// The state bits that fit into the word.
    pub const STATE_MASK: u16 = 0x0fff;

    /// Packs the word.
    #[inline(always)]
    pub const fn new(kind: Kind, state: u16, version: u16, seen: Tick) -> Self {
        Self(
            kind.0 as u64
                | (((state & Self::STATE_MASK) as u64) << 4)
                | ((version as u64) << 16)
                | ((seen.0 as u64) << 32),
        )
    }

    /// What the bucket holds.
    #[inline(always)]
    pub const fn kind(self) -> Kind {
        Kind(self.0 as u8 & 0xf)
    }

    /// [`FlowState`](super::FlowState) of a flow.
    #[inline(always)]
    pub const fn state(self) -> u16 {
        (self.0 >> 4) as u16 & Self::STATE_MASK
    }

    /// Raised whenever the bucket is claimed.
    #[inline(always)]
    pub const fn version(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// When a packet was last seen.
    #[inline(always)]
    pub const fn seen(self) -> Tick {
        Tick((self.0 >> 32) as u32)
    }

    /// True if both words speak of one record: same kind, same version.
    #[inline(always)]
    pub const fn is_same_record(self, other: Self) -> bool {
        const IDENTITY: u64 = 0xffff_000f;
        (self.0 ^ other.0) & IDENTITY == 0
    }
}

/// A copy of a bucket's words. In place of the home word, which means nothing to the record, it has
/// the index of the bucket it was read from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Record {
    /// The words.
    pub words: [u64; WORDS],
}

impl Record {
    /// A flow as it is first written.
    #[inline(always)]
    pub fn of_flow(
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
        backend: BackendId,
    ) -> Self {
        let mut words = Self::ends(client, frontend, backend.0);
        words[TAIL] = u64::from(protocol.0);
        Self { words }
    }

    /// An alias that leads from {`snat`, `backend`} to `primary`.
    #[inline(always)]
    pub fn of_alias(
        snat: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
        primary: FlowHandle,
    ) -> Self {
        let mut words = Self::ends(snat, backend, primary.bucket);
        words[TAIL] = u64::from(protocol.0) | (u64::from(primary.version) << 32);
        Self { words }
    }

    #[inline(always)]
    fn ends(client: &Endpoint, other: &Endpoint, upper: u32) -> [u64; WORDS] {
        [
            0,
            0,
            client.addr.0[0],
            client.addr.0[1],
            other.addr.0[0],
            other.addr.0[1],
            u64::from(client.port.0) | (u64::from(other.port.0) << 16) | (u64::from(upper) << 32),
            0,
        ]
    }

    /// The record with another word 0.
    #[inline(always)]
    #[must_use]
    pub const fn with_control(mut self, control: Control) -> Self {
        self.words[CONTROL] = control.0;
        self
    }

    /// The record as if it had been read from `bucket`.
    #[inline(always)]
    #[must_use]
    pub const fn in_bucket(mut self, bucket: u32) -> Self {
        self.words[HOME] = bucket as u64;
        self
    }

    /// The record with this SNAT end.
    #[inline(always)]
    #[must_use]
    pub const fn with_snat(mut self, port: Port, address: SnatAddressIndex) -> Self {
        self.words[TAIL] = self.words[TAIL] & 0xffff_ffff | tail_snat(port, address);
        self
    }

    /// The bucket the record was read from.
    #[inline(always)]
    pub const fn bucket(&self) -> u32 {
        self.words[HOME] as u32
    }

    /// Word 0.
    #[inline(always)]
    pub const fn control(&self) -> Control {
        Control(self.words[CONTROL])
    }

    /// The client's end; of an alias, the SNAT end. The record's home is its hash.
    #[inline(always)]
    pub const fn client(&self) -> Endpoint {
        Endpoint {
            addr: Addr([self.words[CLIENT], self.words[CLIENT + 1]]),
            port: Port(self.words[ENDS] as u16),
        }
    }

    /// The frontend; of an alias, the backend's end.
    #[inline(always)]
    pub const fn frontend(&self) -> Endpoint {
        Endpoint {
            addr: Addr([self.words[FRONTEND], self.words[FRONTEND + 1]]),
            port: Port((self.words[ENDS] >> 16) as u16),
        }
    }

    /// The client's port in the lower half, the frontend's in the upper.
    #[inline(always)]
    pub(super) const fn ports(&self) -> u32 {
        self.words[ENDS] as u32
    }

    /// The backend of a flow.
    #[inline(always)]
    pub const fn backend(&self) -> BackendId {
        BackendId((self.words[ENDS] >> 32) as u32)
    }

    /// The protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> Protocol {
        Protocol(self.words[TAIL] as u8)
    }

    /// The flow an alias leads to.
    #[inline(always)]
    pub const fn primary(&self) -> FlowHandle {
        FlowHandle {
            bucket: (self.words[ENDS] >> 32) as u32,
            version: (self.words[TAIL] >> 32) as u16,
        }
    }

    /// The SNAT port of a flow, zero until chosen.
    #[inline(always)]
    pub const fn snat_port(&self) -> Port {
        Port((self.words[TAIL] >> 32) as u16)
    }

    /// The flow this record holds.
    #[inline(always)]
    pub const fn flow(&self) -> Flow {
        let control = self.control();
        Flow {
            handle: FlowHandle {
                bucket: self.bucket(),
                version: control.version(),
            },
            client: self.client(),
            frontend: self.frontend(),
            backend: self.backend(),
            state: control.state(),
            snat_port: self.snat_port(),
            snat_address: SnatAddressIndex((self.words[TAIL] >> 48) as u32),
            seen: control.seen(),
        }
    }
}

/// Where word 7 keeps the version, so that a swap of the SNAT end proves the record's identity.
#[inline(always)]
pub(super) const fn tail_version(version: u16) -> u64 {
    (version as u64) << 16
}

/// The SNAT half of word 7.
#[inline(always)]
pub(super) const fn tail_snat(port: Port, address: SnatAddressIndex) -> u64 {
    ((port.0 as u64) << 32) | ((address.0 as u16 as u64) << 48)
}

/// Lock bit of word 1.
pub(super) const LOCK: u64 = 1 << 63;
/// The members' bits of word 1: which other buckets of the group hold records of this home.
pub(super) const MEMBERS: u64 = 0xffff_fffe;
