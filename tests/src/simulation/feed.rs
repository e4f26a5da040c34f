//! One watch, as an API server and a network really serve it: listings that break off or are older
//! than what was heard before, events that come late, twice, out of order, or not at all until the
//! next listing.
//!
//! What an API server promises is kept: the events of one object come in their order, and after a
//! break there is a listing.

use super::history::{Entry, Log};
use fastrand::Rng;
use kube::runtime::watcher::Event;
use lb_agent::source::Change;
use lb_agent::source::kube::guard::Guarded;
use lb_agent::source::kube::reading::{Reading, Watched};
use serde_json::Value;
use std::collections::VecDeque;

/// How far behind a server that lists may be.
const STALE: usize = 6;

/// One watch.
#[derive(Debug)]
pub(super) struct Feed<W: Watched> {
    reading: Reading<W>,
    /// The resource version reached; `None` before the first listing, and after a break.
    version: Option<usize>,
    /// What is left of a listing under way.
    listing: VecDeque<Event<Guarded<W::Resource>>>,
}

impl<W: Watched> Feed<W> {
    pub(super) fn new(watched: W) -> Self {
        Self {
            reading: Reading::new(watched),
            version: None,
            listing: VecDeque::new(),
        }
    }

    /// Everything there is has been told.
    pub(super) fn is_done(&self, log: &Log) -> bool {
        self.version == Some(log.0.len()) && self.listing.is_empty()
    }

    /// What comes next, which may be nothing. `smooth`: nothing goes wrong.
    pub(super) fn next(&mut self, log: &Log, rng: &mut Rng, smooth: bool) -> Vec<Change> {
        let Some(version) = self.version else {
            let behind = if smooth || rng.u8(..3) != 0 {
                0
            } else {
                rng.usize(..=STALE)
            };
            let version = log.0.len().saturating_sub(behind);
            self.version = Some(version);
            let mut objects = log.listing(version);
            rng.shuffle(&mut objects);
            self.listing.push_back(Event::Init);
            let named = objects.iter().map(|one| Event::InitApply(object::<W>(one)));
            self.listing.extend(named);
            self.listing.push_back(Event::InitDone);
            return Vec::new();
        };
        if !self.listing.is_empty() {
            return self.list(rng, smooth);
        }
        let waiting = &log.0[version..];
        if !smooth && rng.u8(..40) == 0 {
            self.version = None;
            return Vec::new();
        }
        let Some((first, rest)) = waiting.split_first() else {
            return Vec::new();
        };
        let mut told = vec![first];
        self.version = Some(version + 1);
        if let Some(second) = rest.first().filter(|_| rng.u8(..4) == 0) {
            self.version = Some(version + 2);
            told.push(second);
            // Objects know nothing of each other.
            if first.name != second.name && rng.bool() {
                told.swap(0, 1);
            }
        }
        if !smooth && rng.u8(..8) == 0 {
            told.insert(0, told[0]);
        }
        let mut changes = Vec::new();
        for entry in told {
            changes.extend(self.reading.read(event::<W>(entry)).0);
        }
        changes
    }

    fn list(&mut self, rng: &mut Rng, smooth: bool) -> Vec<Change> {
        if !smooth && rng.u8(..30) == 0 {
            self.listing.clear();
            self.version = None;
            return Vec::new();
        }
        let count = rng.usize(1..=4).min(self.listing.len());
        let events: Vec<_> = self.listing.drain(..count).collect();
        let changes = events.into_iter().map(|event| self.reading.read(event).0);
        changes.flatten().collect()
    }
}

fn event<W: Watched>(entry: &Entry) -> Event<Guarded<W::Resource>> {
    let object = object::<W>(&entry.object);
    if entry.deleted {
        Event::Delete(object)
    } else {
        Event::Apply(object)
    }
}

fn object<W: Watched>(value: &Value) -> Guarded<W::Resource> {
    serde_json::from_value(value.clone()).expect("what does not decode is guarded")
}
