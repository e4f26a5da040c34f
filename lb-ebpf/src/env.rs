//! The kernel's side of the core's traits: maps and helpers behind a value without size.

use crate::maps;
use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use lb_common::addr::{Addr, BackendId, ServiceId, Tick};
use lb_common::env::{Env, PacketTables, Tables};
use lb_common::feature::Feature;
use lb_common::table::{
    AddressBits, Affinity, AffinityKey, Backend, BackendCounters, Config, FragmentKey,
    FragmentPorts, Frontend, FrontendKey, LocalAddress, Service, ServiceCounters, Slot,
    SnatAddresses, SourceOf,
};
use lb_common::verdict::Reason;

/// Bits of [`Feature`], set by the agent before loading: branches on a feature that is not there
/// are never verified.
#[unsafe(no_mangle)]
static LB_FEATURES: Global<u32> = Global::new(0);

/// True if the running kernel has this [`Feature`].
#[inline(always)]
pub fn has(feature: u32) -> bool {
    LB_FEATURES.load() & feature != 0
}

/// The running kernel.
#[derive(Clone, Copy)]
pub struct Kernel;

impl Env for Kernel {
    #[inline(always)]
    fn now(&self) -> Tick {
        if has(Feature::COARSE_CLOCK) {
            // SAFETY: the helper takes nothing and only returns a number.
            Tick::from_nanos(unsafe { bpf_ktime_get_coarse_ns() })
        } else {
            // SAFETY: as above.
            Tick::from_nanos(unsafe { bpf_ktime_get_ns() })
        }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: the helper takes nothing and only returns a number.
        unsafe { bpf_get_prandom_u32() }
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        maps::CONFIG.get(0)
    }

    #[inline(always)]
    fn address_bits(&self) -> Option<&AddressBits> {
        maps::ADDRESS_BITS.get(0)
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        let value = maps::FRONTENDS.get_ptr(key)?.cast::<u64>();
        // SAFETY: the value is eight aligned bytes; one volatile read of them, so that the seal that
        // the core checks is the one of the value it uses.
        let word = unsafe { value.read_volatile() };
        Some(zerocopy::transmute!(word))
    }

    #[inline(always)]
    fn is_in_source_range(&self, who: &SourceOf) -> bool {
        maps::RANGES.get(&Key::new(SourceOf::BITS, *who)).is_some()
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<&Service> {
        maps::SERVICES.get(id.0)
    }

    #[inline(always)]
    fn service_window(&self, id: ServiceId, local: bool) -> Option<u64> {
        let service = maps::SERVICES.get(id.0)?;
        let word = if local {
            &raw const service.local
        } else {
            &raw const service.cluster
        };
        // SAFETY: `word` points at an aligned word of a live map element; the agent stores it in
        // one piece, and volatile keeps the compiler from reading it twice or in halves.
        Some(unsafe { word.read_volatile() })
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<&Slot> {
        maps::SLOTS.get(index)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&Backend> {
        maps::BACKENDS.get(id.0)
    }

    #[inline(always)]
    fn local_address(&self, addr: &Addr) -> Option<LocalAddress> {
        // SAFETY: the four bytes are copied at once.
        unsafe { maps::LOCAL.get(addr) }.copied()
    }

    #[inline(always)]
    fn is_pod_device(&self, ifindex: u32) -> bool {
        // SAFETY: the value is not read.
        unsafe { maps::POD_DEVICES.get(ifindex) }.is_some()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let value = maps::AFFINITY.get_ptr(key)?.cast::<u64>();
        // SAFETY: the value is eight aligned bytes; one volatile read never sees halves of two
        // writes.
        let word = unsafe { value.read_volatile() };
        Some(zerocopy::transmute!(word))
    }

    #[inline(always)]
    fn remember(&self, key: &AffinityKey, value: Affinity) {
        // A full or busy map costs only the memory of this client.
        let _ = maps::AFFINITY.insert(key, value, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn count(&self, reason: Reason) {
        if let Some(counter) = maps::REASONS.get_ptr_mut(reason as u32) {
            // SAFETY: the element is this CPU's own; a nested program on the same CPU may at worst
            // lose one count.
            unsafe { *counter = (*counter).wrapping_add(1) };
        }
    }
}

impl PacketTables for Kernel {
    #[inline(always)]
    fn snat_addresses(&self, ifindex: u32) -> Option<SnatAddresses> {
        // SAFETY: the eight bytes are copied at once.
        unsafe { maps::SNAT.get(ifindex) }.copied()
    }

    #[inline(always)]
    fn snat_address(&self, index: u32) -> Option<Addr> {
        maps::SNAT_POOL.get(index).copied()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: the four bytes are copied at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn remember_fragment(&self, key: &FragmentKey, ports: FragmentPorts) {
        // If it fails the datagram's other fragments are left to the stack, and it is sent again.
        let _ = maps::FRAGMENTS.insert(key, ports, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn count_service(&self, id: ServiceId, change: impl FnOnce(&mut ServiceCounters)) {
        if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(id.0) {
            // SAFETY: the element is this CPU's own, and nothing else in the program refers to it
            // while `change` runs.
            change(unsafe { &mut *counters });
        }
    }
}

/// Changes the counters of a backend; nothing happens if there is no such backend.
#[inline(always)]
pub fn count_backend(id: BackendId, change: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = maps::BACKEND_COUNTERS.get_ptr_mut(id.0) {
        // SAFETY: as in `count_service`.
        change(unsafe { &mut *counters });
    }
}
