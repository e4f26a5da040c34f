//! The flow table as one memory-mapped array of 64-byte buckets, with the core's algorithm over it
//! (`lb_common::flow`).
//!
//! Each operation is a global function: the verifier checks it once, by itself, and not again at
//! every place it is called from.

use super::{FULL, answer};
use crate::atomic::compare_and_swap;
use crate::env::Kernel;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use lb_common::addr::{Endpoint, Protocol, Tick};
use lb_common::env::Tables;
use lb_common::flow::{
    Buckets, Flow, FlowTable, Flows, Quick, Record, Refused, SnatAddressIndex, SnatEnd, WORDS,
};
use lb_common::table::Config;

/// One bucket: see `lb_common::flow::Record`.
#[repr(C)]
pub struct Bucket {
    words: [u64; WORDS],
}

/// Memory-mapped also because its elements then begin on a page: none straddles two cache lines.
#[btf_map(name = "lb_flows")]
pub static FLOWS: Array<Bucket, 65_536, { BPF_F_MMAPABLE as usize }> = Array::new();

/// The memory of [`FLOWS`].
struct MapBuckets;

impl Buckets for MapBuckets {
    type Bucket = *mut u64;

    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*mut u64> {
        FLOWS.get_ptr_mut(index).map(<*mut Bucket>::cast)
    }

    #[inline(always)]
    fn load(&self, bucket: *mut u64, word: usize) -> u64 {
        // SAFETY: `bucket` came from `bucket()`, and the core's word numbers are below `WORDS`.
        let word = unsafe { bucket.add(word) };
        // SAFETY: an aligned word of a live map element; volatile keeps it one load, in order.
        unsafe { word.read_volatile() }
    }

    #[inline(always)]
    fn store(&self, bucket: *mut u64, word: usize, value: u64) {
        // SAFETY: as in `load`.
        let word = unsafe { bucket.add(word) };
        // SAFETY: as in `load`.
        unsafe { word.write_volatile(value) }
    }

    #[inline(always)]
    fn store_upper(&self, bucket: *mut u64, word: usize, value: u32) {
        // SAFETY: as in `load`.
        let word = unsafe { bucket.add(word) }.cast::<u32>();
        // SAFETY: the upper half of that word; the object is built for little-endian machines (bpfel).
        let upper = unsafe { word.add(1) };
        // SAFETY: as in `load`.
        unsafe { upper.write_volatile(value) }
    }

    #[inline(always)]
    fn swap_if(&self, bucket: *mut u64, word: usize, expected: u64, new: u64) -> bool {
        // SAFETY: as in `load`.
        let word = unsafe { bucket.add(word) };
        // SAFETY: an aligned word of a live map element.
        unsafe { compare_and_swap(word, expected, new) }
    }
}

/// The table; free to make.
#[inline(always)]
const fn table(config: &Config) -> FlowTable<'_, MapBuckets, Kernel> {
    FlowTable::new(&MapBuckets, &Kernel, config)
}

/// # Safety
/// `record` is null or points at a record nobody else uses; the verifier holds callers to it.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_frontend(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let (Some(record), Some(config)) = (unsafe { record.as_mut() }, Kernel.config()) else {
        return FULL;
    };
    let found =
        table(config).find_by_frontend(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_backend(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let (Some(record), Some(config)) = (unsafe { record.as_mut() }, Kernel.config()) else {
        return FULL;
    };
    let found =
        table(config).find_by_backend(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_alias(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let (Some(record), Some(config)) = (unsafe { record.as_mut() }, Kernel.config()) else {
        return FULL;
    };
    let found =
        table(config).find_by_alias(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_insert(record: *mut Record, state: u32, now: u32) -> u32 {
    // SAFETY: the function's own contract.
    let (Some(record), Some(config)) = (unsafe { record.as_mut() }, Kernel.config()) else {
        return FULL;
    };
    let result = table(config).insert_flow(record, state as u16, Tick(now));
    answer(record, result)
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_attach(
    record: *mut Record,
    address: u32,
    pressure: u32,
    now: u32,
) -> u32 {
    // SAFETY: the function's own contract.
    let (Some(record), Some(config)) = (unsafe { record.as_mut() }, Kernel.config()) else {
        return FULL;
    };
    let result = table(config).attach(record, SnatAddressIndex(address), pressure != 0, Tick(now));
    answer(record, result)
}

/// Looks for the flow where most flows are. This half of a lookup is no function of its own: a call
/// costs as much again.
#[inline(always)]
pub(super) fn quick_by_frontend(
    config: &Config,
    client: &Endpoint,
    frontend: &Endpoint,
    protocol: Protocol,
) -> Quick {
    table(config).quick_by_frontend(client, frontend, protocol)
}

/// As [`quick_by_frontend`].
#[inline(always)]
pub(super) fn quick_by_backend(
    config: &Config,
    client: &Endpoint,
    backend: &Endpoint,
    protocol: Protocol,
) -> Quick {
    table(config).quick_by_backend(client, backend, protocol)
}

/// Replaces `record` by the flow between its client and frontend.
#[inline(always)]
pub(super) fn by_frontend(record: &mut Record) -> u32 {
    // SAFETY: `record` is ours alone for the call.
    unsafe { lb_flow_by_frontend(record) }
}

/// Replaces `record` by the flow between its client and backend.
#[inline(always)]
pub(super) fn by_backend(record: &mut Record) -> u32 {
    // SAFETY: `record` is ours alone for the call.
    unsafe { lb_flow_by_backend(record) }
}

/// Replaces `record` by the flow between its SNAT end and backend.
#[inline(always)]
pub(super) fn by_alias(record: &mut Record) -> u32 {
    // SAFETY: `record` is ours alone for the call.
    unsafe { lb_flow_by_alias(record) }
}

/// Inserts the flow, or replaces `record` by the one that is there.
#[inline(always)]
pub(super) fn insert(record: &mut Record, state: u32, now: u32) -> u32 {
    // SAFETY: `record` is ours alone for the call.
    unsafe { lb_flow_insert(record, state, now) }
}

/// Reserves the alias `record`, then replaces it by its flow.
#[inline(always)]
pub(super) fn attach(record: &mut Record, _flow: &Flow, snat: &SnatEnd, now: u32) -> u32 {
    // SAFETY: `record` is ours alone for the call.
    unsafe { lb_flow_attach(record, snat.address.0, u32::from(snat.pressure), now) }
}

/// [`Flows::note`].
#[inline(always)]
pub(super) fn note(config: &Config, flow: &Flow, state: u16, now: Tick) {
    table(config).note(flow, state, now);
}

/// [`Flows::remove`].
#[inline(always)]
pub(super) fn remove(config: &Config, flow: &Flow) {
    table(config).remove(flow);
}
