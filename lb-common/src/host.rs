//! The host's side of the traits: tables as plain memory, a clock that is set by hand.

mod build;
pub mod craft;
mod packet;
mod socket;

pub use packet::PacketWorld;
pub use socket::HostSocket;

use crate::addr::{Addr, BackendId, ServiceId, Tick};
use crate::env::{Env, PacketTables, Tables};
use crate::table::{
    AddressBits, Affinity, AffinityKey, Backend, BackendCounters, Config, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, LocalAddress, NamespaceAddresses, Service,
    ServiceCounters, Slot, SnatAddresses, SourceOf, SourceRange,
};
use crate::verdict::Reason;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// A clock set by hand and a seeded generator (`xorshift64*`).
#[derive(Debug)]
pub struct HostEnv {
    /// What [`Env::now`] answers.
    pub now: Cell<Tick>,
    seed: Cell<u64>,
}

impl HostEnv {
    /// A generator with this seed, at tick 1000.
    pub fn new(seed: u64) -> Self {
        Self {
            now: Cell::new(Tick(1000)),
            seed: Cell::new(seed | 1),
        }
    }
}

impl Env for HostEnv {
    fn now(&self) -> Tick {
        self.now.get()
    }

    fn random(&self) -> u32 {
        let mut x = self.seed.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.seed.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// The tables in memory. Fields are public: a test writes them as the agent would.
#[derive(Clone, Debug)]
pub struct HostTables {
    /// See [`Config`].
    pub config: Config,
    /// See [`AddressBits`]; shared by copies of the tables.
    pub bits: Arc<AddressBits>,
    /// See [`Frontend`].
    pub frontends: HashMap<FrontendKey, Frontend>,
    /// See [`SourceRange`].
    pub ranges: Vec<SourceRange>,
    /// See [`Service`].
    pub services: Vec<Service>,
    /// See [`Slot`].
    pub slots: Vec<Slot>,
    /// See [`Backend`].
    pub backends: Vec<Backend>,
    /// See [`LocalAddress`].
    pub local: HashMap<Addr, LocalAddress>,
    /// The devices that pods' packets come in by.
    pub pod_devices: HashSet<u32>,
    /// See [`Affinity`].
    pub affinity: RefCell<HashMap<AffinityKey, Affinity>>,
    /// See [`SnatAddresses`]; by ifindex.
    pub snat: HashMap<u32, SnatAddresses>,
    /// The addresses that `snat` names by index; 0 is none.
    pub snat_pool: Vec<Addr>,
    /// See [`FragmentPorts`].
    pub fragments: RefCell<HashMap<FragmentKey, FragmentPorts>>,
    /// See [`ServiceCounters`]; by service id, made when first counted.
    pub counters: RefCell<HashMap<ServiceId, ServiceCounters>>,
    /// See [`BackendCounters`]; by backend id, made when first counted.
    pub backend_counters: RefCell<HashMap<BackendId, BackendCounters>>,
    /// See [`NamespaceAddresses`]; by the namespace's cookie.
    pub namespaces: RefCell<HashMap<u64, NamespaceAddresses>>,
    /// Counted reasons.
    pub reasons: RefCell<[u64; Reason::COUNT as usize]>,
}

impl HostTables {
    /// Empty tables: nothing is served.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            bits: Arc::new(AddressBits::EMPTY),
            frontends: HashMap::default(),
            ranges: Vec::default(),
            services: Vec::default(),
            slots: Vec::default(),
            backends: Vec::default(),
            local: HashMap::default(),
            pod_devices: HashSet::default(),
            affinity: RefCell::default(),
            snat: HashMap::default(),
            snat_pool: Vec::default(),
            fragments: RefCell::default(),
            counters: RefCell::default(),
            backend_counters: RefCell::default(),
            namespaces: RefCell::default(),
            reasons: RefCell::default(),
        }
    }
}

impl Tables for HostTables {
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn address_bits(&self) -> Option<&AddressBits> {
        Some(&self.bits)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.frontends.get(key).copied()
    }

    fn is_in_source_range(&self, who: &SourceOf) -> bool {
        self.ranges.iter().any(|range| range.contains(who))
    }

    fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(id.0 as usize)
    }

    fn service_window(&self, id: ServiceId, local: bool) -> Option<u64> {
        let service = self.service(id)?;
        Some(if local {
            service.local
        } else {
            service.cluster
        })
    }

    fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get(index as usize)
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.get(id.0 as usize)
    }

    fn local_address(&self, addr: &Addr) -> Option<LocalAddress> {
        self.local.get(addr).copied()
    }

    fn is_pod_device(&self, ifindex: u32) -> bool {
        self.pod_devices.contains(&ifindex)
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }

    fn remember(&self, key: &AffinityKey, value: Affinity) {
        self.affinity.borrow_mut().insert(*key, value);
    }

    fn count(&self, reason: Reason) {
        self.reasons.borrow_mut()[reason as usize] += 1;
    }
}

impl PacketTables for HostTables {
    fn snat_addresses(&self, ifindex: u32) -> Option<SnatAddresses> {
        self.snat.get(&ifindex).copied()
    }

    fn snat_address(&self, index: u32) -> Option<Addr> {
        self.snat_pool.get(index as usize).copied()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, ports);
    }

    fn count_service(&self, id: ServiceId, change: impl FnOnce(&mut ServiceCounters)) {
        if (id.0 as usize) < self.services.len() {
            change(self.counters.borrow_mut().entry(id).or_default());
        }
    }
}
