//! What live flows still need of the tables.

use super::Planner;
use lb_common::addr::{BackendId, Endpoint, Tick};
use lb_common::flow::{Entry, Lifetime};
use lb_common::hash::HashKeys;
use lb_common::table::{AddressBits, Backend};
use std::collections::{HashMap, HashSet};

/// What a look at the flow table found.
#[derive(Debug)]
pub struct FlowUse {
    /// Records by backend that have not expired: as long as there is one, the backend is needed.
    pub by_backend: HashMap<BackendId, u64>,
    /// Those of them that have not closed.
    pub active: HashMap<BackendId, u64>,
    /// Indexes of SNAT addresses that flows use.
    pub snat_addresses: HashSet<u32>,
    /// The bits of the address filter that live flows need.
    pub bits: Box<AddressBits>,
    /// Records in use.
    pub used: u64,
}

impl FlowUse {
    /// Nothing seen yet.
    pub fn nothing() -> Self {
        Self {
            by_backend: HashMap::new(),
            active: HashMap::new(),
            snat_addresses: HashSet::new(),
            bits: Box::new(AddressBits::EMPTY),
            used: 0,
        }
    }

    /// Takes one bucket, as it was `now`. `backend` reads a backend's record.
    pub fn add(
        &mut self,
        entry: &Entry,
        now: Tick,
        keys: &HashKeys,
        backend: impl FnOnce(BackendId) -> Option<Backend>,
    ) {
        let (flow, protocol) = match entry {
            Entry::Free => return,
            Entry::Alias => {
                self.used += 1;
                return;
            }
            Entry::Flow(flow, protocol) => (flow, *protocol),
        };
        self.used += 1;
        if Lifetime::is_expired(protocol, flow.state, flow.seen, now) {
            return;
        }
        *self.by_backend.entry(flow.backend).or_default() += 1;
        if !Lifetime::is_closed(protocol, flow.state) {
            *self.active.entry(flow.backend).or_default() += 1;
        }
        if flow.snat_address.0 != 0 {
            self.snat_addresses.insert(flow.snat_address.0);
        }
        let end = backend(flow.backend).map(|backend| Endpoint {
            addr: backend.addr,
            port: backend.port,
        });
        Planner::mark_flow(keys, &mut self.bits, &flow.frontend, end.as_ref(), protocol);
    }
}
