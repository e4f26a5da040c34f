//! The flow table: one algorithm for kernel and host, over any memory that offers word loads,
//! stores and compare-and-swap ([`Buckets`]).
//!
//! A record's *home* is the bucket that the hash of its client's end names. It lies there or, if
//! that was taken, in another bucket of the home's group, which a bit of the home's word then names:
//! a lookup reads one cache line, seldom a second.
//!
//! 1. A record's words change only while its bucket is BUSY; only who made it BUSY by
//!    compare-and-swap writes them, and that swap raised the version. The state (word 0) and, once, the
//!    SNAT end (word 7) are changed by swaps that carry the version; the time (word 0) by a plain store.
//! 2. A record is inserted only under its home's lock, after a second look: it is never there twice.
//! 3. A record outside its home is named by a bit of its home, written before the lock is released.
//!    Bits are dropped only under the lock: only its holder can make one needed.
//! 4. Nobody spins: who does not get a lock within a bounded number of tries gives up. A virtual
//!    CPU may have been stopped while it held the lock.
//!
//! Readers copy and then look at the version again: what they return was there at one moment.

use super::record::{CLIENT, CONTROL, Control, ENDS, FRONTEND, Kind, Record, TAIL};
use super::{Flow, FlowHandle, Flows, NewFlow, Refused, SnatEnd};
use crate::addr::{Endpoint, Protocol, Tick};
use crate::env::Tables;
use crate::table::Config;

/// The memory of the flow table, by buckets of [`WORDS`](super::WORDS) words.
pub trait Buckets {
    /// A bucket within bounds.
    type Bucket: Copy;
    /// The bucket at `index`, if there is one.
    fn bucket(&self, index: u32) -> Option<Self::Bucket>;
    /// One untorn, uncached load, in program order.
    fn load(&self, bucket: Self::Bucket, word: usize) -> u64;
    /// One untorn store, in program order.
    fn store(&self, bucket: Self::Bucket, word: usize, value: u64);
    /// One untorn store of the upper half of a word, which leaves the lower half alone.
    fn store_upper(&self, bucket: Self::Bucket, word: usize, value: u32);
    /// Stores `new` if the word is `expected`, with a full barrier; true if it did.
    fn swap_if(&self, bucket: Self::Bucket, word: usize, expected: u64, new: u64) -> bool;
}

/// The table, over its memory, the tables that name backends and the configuration with the hash keys.
#[derive(Debug)]
pub struct FlowTable<'a, B, T> {
    pub(super) buckets: &'a B,
    pub(super) tables: &'a T,
    pub(super) config: &'a Config,
}

impl<'a, B: Buckets, T: Tables> FlowTable<'a, B, T> {
    /// The table over this memory.
    #[inline(always)]
    pub const fn new(buckets: &'a B, tables: &'a T, config: &'a Config) -> Self {
        Self {
            buckets,
            tables,
            config,
        }
    }

    /// The home of a client's end.
    #[inline(always)]
    pub(super) const fn home(&self, client: &Endpoint, protocol: Protocol) -> u32 {
        let keys = &self.config.hash_keys;
        let hash = keys.hash(&client.addr, client.port, protocol);
        (hash >> 32) as u32 & self.config.flow_mask
    }

    /// A copy of the bucket, whatever it holds. If it changed hands meanwhile, it reads as BUSY.
    #[inline(always)]
    pub(super) fn read(&self, index: u32) -> Option<Record> {
        let bucket = self.buckets.bucket(index)?;
        let load = |word| self.buckets.load(bucket, word);
        let mut record = Record {
            words: [
                load(CONTROL),
                u64::from(index),
                load(CLIENT),
                load(CLIENT + 1),
                load(FRONTEND),
                load(FRONTEND + 1),
                load(ENDS),
                load(TAIL),
            ],
        };
        let after = Control(load(CONTROL));
        if after.is_same_record(record.control()) {
            record.words[CONTROL] = after.0;
        } else {
            record.words[CONTROL] = Control::new(Kind::BUSY, 0, 0, Tick(0)).0;
        }
        Some(record)
    }

    /// The record of a flow, if it still is the same.
    #[inline(always)]
    pub(super) fn flow_at(&self, handle: FlowHandle) -> Option<Record> {
        let record = self.read(handle.bucket)?;
        let control = record.control();
        (control.kind() == Kind::LIVE && control.version() == handle.version).then_some(record)
    }
}

impl<B: Buckets, T: Tables> Flows for FlowTable<'_, B, T> {
    #[inline(always)]
    fn by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        let record = self.find_by_frontend(client, frontend, protocol)?;
        Some(record.flow())
    }

    #[inline(always)]
    fn by_backend(
        &self,
        client: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        let record = self.find_by_backend(client, backend, protocol)?;
        Some(record.flow())
    }

    #[inline(always)]
    fn by_alias(&self, snat: &Endpoint, backend: &Endpoint, protocol: Protocol) -> Option<Flow> {
        let record = self.find_by_alias(snat, backend, protocol)?;
        Some(record.flow())
    }

    #[inline(always)]
    fn insert(&self, flow: &NewFlow, now: Tick) -> Result<Flow, Refused> {
        let record = Record::of_flow(&flow.client, &flow.frontend, flow.protocol, flow.backend);
        Ok(self.insert_flow(&record, flow.state, now)?.flow())
    }

    #[inline(always)]
    fn attach_snat(
        &self,
        flow: &Flow,
        snat: &SnatEnd,
        backend: &Endpoint,
        protocol: Protocol,
        now: Tick,
    ) -> Result<Flow, Refused> {
        let alias = Record::of_alias(&snat.end, backend, protocol, flow.handle);
        Ok(self
            .attach(&alias, snat.address, snat.pressure, now)?
            .flow())
    }

    #[inline(always)]
    fn note(&self, flow: &Flow, state: u16, now: Tick) {
        /// How often a packet of the same flow on another CPU may be quicker.
        const TRIES: u32 = 4;
        let is_new_state = flow.state & state != state;
        if !is_new_state && flow.seen == now {
            return;
        }
        let Some(bucket) = self.buckets.bucket(flow.handle.bucket) else {
            return;
        };
        if !is_new_state {
            // A locked instruction would wait for the record's cache line and hold up whatever
            // comes behind it. A plain store needs no proof: should the record change hands this
            // very moment, then its new owner was seen now as well.
            self.buckets.store_upper(bucket, CONTROL, now.0);
            return;
        }
        let mut tries = 0;
        while tries < TRIES {
            tries += 1;
            let control = Control(self.buckets.load(bucket, CONTROL));
            if control.kind() != Kind::LIVE || control.version() != flow.handle.version {
                return;
            }
            let new = Control::new(Kind::LIVE, control.state() | state, control.version(), now);
            if new == control || self.buckets.swap_if(bucket, CONTROL, control.0, new.0) {
                return;
            }
        }
    }

    #[inline(always)]
    fn remove(&self, flow: &Flow) {
        self.release(flow.handle);
    }
}
