//! Reading the flow table from user space, through its mapping: never a write, never a lock.
//!
//! Reclaiming is the programs' own work (a dead agent must not fill the table); user space only
//! counts: active flows, fill, and which backends and frontends still have flows.

use super::record::{CONTROL, Control, HOME, Kind, Record, WORDS};
use super::{Flow, Lifetime};
use crate::addr::{BackendId, Endpoint, Protocol, Tick};
use std::collections::HashMap;

/// What one bucket holds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Entry {
    /// Nothing, or a record that is being written this very moment.
    Free,
    /// A flow and its protocol.
    Flow(Flow, Protocol),
    /// The SNAT end of a flow.
    Alias,
}

/// Reads the bucket `index`. `load` reads one of its [`WORDS`] words, in one piece and in program
/// order (a volatile load does).
pub fn read(index: u32, load: impl Fn(usize) -> u64) -> Entry {
    let before = Control(load(CONTROL));
    match before.kind() {
        Kind::ALIAS => return Entry::Alias,
        Kind::LIVE => {}
        _ => return Entry::Free,
    }
    let mut words = [0; WORDS];
    for (word, value) in words.iter_mut().enumerate() {
        if word != CONTROL && word != HOME {
            *value = load(word);
        }
    }
    let after = Control(load(CONTROL));
    if !after.is_same_record(before) {
        return Entry::Free;
    }
    words[CONTROL] = after.0;
    words[HOME] = u64::from(index);
    let record = Record { words };
    Entry::Flow(record.flow(), record.protocol())
}

/// What a pass over the table found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Census {
    /// Buckets in use, aliases and flows whose time is over included: the table's fill.
    pub used: usize,
    /// Buckets that hold the SNAT end of a flow.
    pub aliases: usize,
    /// Flows whose time is over; newcomers write over them.
    pub expired: usize,
    /// Flows within their time, by backend.
    pub by_backend: HashMap<BackendId, u64>,
    /// Flows within their time, by frontend.
    pub by_frontend: HashMap<(Endpoint, Protocol), u64>,
}

impl Census {
    /// Counts one bucket.
    pub fn add(&mut self, entry: &Entry, now: Tick) {
        match entry {
            Entry::Free => {}
            Entry::Alias => {
                self.used += 1;
                self.aliases += 1;
            }
            Entry::Flow(flow, protocol) => {
                self.used += 1;
                if Lifetime::is_expired(*protocol, flow.state, flow.seen, now) {
                    self.expired += 1;
                } else {
                    *self.by_backend.entry(flow.backend).or_default() += 1;
                    *self
                        .by_frontend
                        .entry((flow.frontend, *protocol))
                        .or_default() += 1;
                }
            }
        }
    }

    /// Flows within their time.
    pub fn active(&self) -> u64 {
        self.by_backend.values().sum()
    }
}
