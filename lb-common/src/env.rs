//! What the core asks of the world: the tables, the clock, chance.
//!
//! In the kernel these are BPF maps and helpers, inlined away; on the host, plain memory
//! ([`crate::host`]). No load-balancing decision is ever written on the other side of these traits.

use crate::addr::{Addr, BackendId, ServiceId, Tick};
use crate::table::{
    AddressBits, Affinity, AffinityKey, Backend, Config, Filter, FragmentKey, FragmentPorts,
    Frontend, FrontendKey, LocalAddress, Service, ServiceCounters, Slot, SnatAddresses, SourceOf,
};
use crate::verdict::Reason;

/// The clock and chance.
pub trait Env {
    /// Now, on the coarse clock (10 ms steps are fine).
    fn now(&self) -> Tick;
    /// Uniform random bits.
    fn random(&self) -> u32;
}

/// The tables that a balancing decision reads. Values are copied out: an element may be recycled
/// under a reader, and only what was copied can be checked.
pub trait Tables {
    /// The configuration. `None` only before the agent has ever written it.
    fn config(&self) -> Option<&Config>;
    /// The address filter.
    fn address_bits(&self) -> Option<&AddressBits>;
    /// The frontend under `key`.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// True if a source lies in one of the service's ranges.
    fn is_in_source_range(&self, who: &SourceOf) -> bool;
    /// The service's record. The window words are read by [`service_window`](Self::service_window).
    fn service(&self, id: ServiceId) -> Option<&Service>;
    /// One atomic, uncached read of a window word: the Local set's if `local`, else the Cluster
    /// set's.
    fn service_window(&self, id: ServiceId, local: bool) -> Option<u64>;
    /// The slot at `index`.
    fn slot(&self, index: u32) -> Option<&Slot>;
    /// The backend's record.
    fn backend(&self, id: BackendId) -> Option<&Backend>;
    /// Whether and how an address is this node's own.
    fn local_address(&self, addr: &Addr) -> Option<LocalAddress>;
    /// True if pods' packets come in by this device ([`ConfigFlags::PODS_BY_DEVICE`](crate::table::ConfigFlags::PODS_BY_DEVICE)).
    fn is_pod_device(&self, ifindex: u32) -> bool;
    /// The remembered backend of a client.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Remembers a client's backend. Failure is harmless: the next connection chooses again.
    fn remember(&self, key: &AffinityKey, value: Affinity);
    /// Counts a reason.
    fn count(&self, reason: Reason);

    /// The address filter with its keys.
    #[inline(always)]
    fn filter<'a>(&'a self, config: &'a Config) -> Option<Filter<'a>> {
        Some(Filter {
            bits: self.address_bits()?,
            keys: &config.hash_keys,
        })
    }
}

/// The tables that only the packet path reads or writes.
pub trait PacketTables: Tables {
    /// The SNAT addresses for packets that leave by this device; `ifindex` 0 holds those of every
    /// device that has none of its own.
    fn snat_addresses(&self, ifindex: u32) -> Option<SnatAddresses>;
    /// The SNAT address with this index; entries are never changed once used.
    fn snat_address(&self, index: u32) -> Option<Addr>;
    /// The ports of a datagram whose first fragment has been seen.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Remembers the ports of a first fragment. Failure costs the datagram: it is sent again.
    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts);
    /// Changes the counters of a service port; nothing happens if there is no such service.
    fn count_service(&self, id: ServiceId, change: impl FnOnce(&mut ServiceCounters));
}
