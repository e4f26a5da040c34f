//! A decision that is made while the agent writes: each of its reads may see a later state of the
//! tables than the one before.

use fastrand::Rng;
use lb_agent::plan::{Op, memory};
use lb_common::addr::{Addr, BackendId, ServiceId};
use lb_common::env::Tables;
use lb_common::host::HostTables;
use lb_common::table::{
    AddressBits, Affinity, AffinityKey, Backend, Config, Frontend, FrontendKey, LocalAddress,
    Service, Slot, SourceOf,
};
use lb_common::verdict::Reason;
use std::cell::{Cell, RefCell};

/// The tables before the first of some stores, and after each of them.
#[derive(Debug)]
pub(super) struct Race<'a> {
    versions: Vec<HostTables>,
    now: &'a HostTables,
    at: Cell<usize>,
    rng: RefCell<Rng>,
}

impl<'a> Race<'a> {
    /// The decision begins before the first of these stores.
    pub(super) fn new(now: &'a HostTables, stores: &[Op], rng: Rng) -> Self {
        let mut versions: Vec<HostTables> = Vec::with_capacity(stores.len());
        for store in stores {
            let mut next = versions.last().unwrap_or(now).clone();
            memory::write(&mut next, &mut memory::Names::new(), store);
            versions.push(next);
        }
        Self {
            versions,
            now,
            at: Cell::new(0),
            rng: RefCell::new(rng),
        }
    }

    /// What this read sees.
    fn seen(&self) -> &HostTables {
        let mut rng = self.rng.borrow_mut();
        while self.at.get() < self.versions.len() && rng.u8(..3) == 0 {
            self.at.set(self.at.get() + 1);
        }
        match self.at.get().checked_sub(1) {
            None => self.now,
            Some(at) => &self.versions[at],
        }
    }
}

impl Tables for Race<'_> {
    fn config(&self) -> Option<&Config> {
        self.seen().config()
    }

    fn address_bits(&self) -> Option<&AddressBits> {
        self.seen().address_bits()
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.seen().frontend(key)
    }

    fn is_in_source_range(&self, who: &SourceOf) -> bool {
        self.seen().is_in_source_range(who)
    }

    fn service(&self, id: ServiceId) -> Option<&Service> {
        self.seen().service(id)
    }

    fn service_window(&self, id: ServiceId, local: bool) -> Option<u64> {
        self.seen().service_window(id, local)
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.seen().slot(index)
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.seen().backend(id)
    }

    fn local_address(&self, addr: &Addr) -> Option<LocalAddress> {
        self.seen().local_address(addr)
    }

    fn is_pod_device(&self, ifindex: u32) -> bool {
        self.seen().is_pod_device(ifindex)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.now.affinity(key)
    }

    fn remember(&self, _: &AffinityKey, _: Affinity) {
        // Nobody comes back: this client was only imagined.
    }

    fn count(&self, _: Reason) {}
}
