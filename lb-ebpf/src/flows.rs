//! The flow table in the kernel: one memory-mapped array of 64-byte buckets, and the core's
//! algorithm over it (`lb_common::flow`).
//!
//! Each operation is a global function: the verifier checks it once, by itself, and not again at
//! every place it is called from. They take and return a record, the only form that crosses the
//! calls without padding.

use crate::atomic::compare_and_swap;
use crate::env::Kernel;
use aya_ebpf::bindings::BPF_F_MMAPABLE;
use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use lb_common::addr::{Endpoint, Protocol, Tick};
use lb_common::flow::{
    Buckets, Flow, FlowTable, Flows, NewFlow, Record, Refused, SnatAddressIndex, WORDS,
};

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
    fn swap_if(&self, bucket: *mut u64, word: usize, expected: u64, new: u64) -> bool {
        // SAFETY: as in `load`.
        let word = unsafe { bucket.add(word) };
        // SAFETY: an aligned word of a live map element.
        unsafe { compare_and_swap(word, expected, new) }
    }
}

/// The table; free to make.
#[inline(always)]
fn table() -> FlowTable<'static, MapBuckets, Kernel> {
    FlowTable::new(&MapBuckets, &Kernel)
}

const OK: u32 = 0;
const FULL: u32 = 1;
const BUSY: u32 = 2;
const TAKEN: u32 = 3;

/// Fills `record` with the result, or says why there is none.
#[inline(always)]
fn answer(record: &mut Record, result: Result<Record, Refused>) -> u32 {
    match result {
        Ok(found) => {
            *record = found;
            OK
        }
        Err(Refused::Full) => FULL,
        Err(Refused::Busy) => BUSY,
        Err(Refused::Taken) => TAKEN,
    }
}

/// What a global function answered.
#[inline(always)]
fn result(code: u32, record: &Record) -> Result<Flow, Refused> {
    match code {
        OK => Ok(record.flow()),
        FULL => Err(Refused::Full),
        TAKEN => Err(Refused::Taken),
        _ => Err(Refused::Busy),
    }
}

/// # Safety
/// `record` is null or points at a record nobody else uses; the verifier holds callers to it.
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_frontend(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let Some(record) = (unsafe { record.as_mut() }) else {
        return FULL;
    };
    let found = table().find_by_frontend(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_backend(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let Some(record) = (unsafe { record.as_mut() }) else {
        return FULL;
    };
    let found = table().find_by_backend(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_by_alias(record: *mut Record) -> u32 {
    // SAFETY: the function's own contract.
    let Some(record) = (unsafe { record.as_mut() }) else {
        return FULL;
    };
    let found = table().find_by_alias(&record.client(), &record.frontend(), record.protocol());
    answer(record, found.ok_or(Refused::Full))
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_insert(record: *mut Record, state: u32, now: u32) -> u32 {
    // SAFETY: the function's own contract.
    let Some(record) = (unsafe { record.as_mut() }) else {
        return FULL;
    };
    let result = table().insert_flow(record, state as u16, Tick(now));
    answer(record, result)
}

/// # Safety
/// As [`lb_flow_by_frontend`].
#[unsafe(no_mangle)]
#[inline(never)]
unsafe extern "C" fn lb_flow_attach(record: *mut Record, address: u32, now: u32) -> u32 {
    // SAFETY: the function's own contract.
    let Some(record) = (unsafe { record.as_mut() }) else {
        return FULL;
    };
    let result = table().attach(record, SnatAddressIndex(address), Tick(now));
    answer(record, result)
}

/// The flow table as the core uses it.
#[derive(Clone, Copy)]
pub struct KernelFlows;

/// A record that only says what is looked for.
#[inline(always)]
fn wanted(client: &Endpoint, other: &Endpoint, protocol: Protocol) -> Record {
    Record::of_flow(client, other, protocol, lb_common::addr::BackendId(0))
}

impl Flows for KernelFlows {
    #[inline(always)]
    fn by_frontend(
        &self,
        client: &Endpoint,
        frontend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        let mut record = wanted(client, frontend, protocol);
        // SAFETY: `record` is ours alone for the call.
        let code = unsafe { lb_flow_by_frontend(&raw mut record) };
        result(code, &record).ok()
    }

    #[inline(always)]
    fn by_backend(
        &self,
        client: &Endpoint,
        backend: &Endpoint,
        protocol: Protocol,
    ) -> Option<Flow> {
        let mut record = wanted(client, backend, protocol);
        // SAFETY: `record` is ours alone for the call.
        let code = unsafe { lb_flow_by_backend(&raw mut record) };
        result(code, &record).ok()
    }

    #[inline(always)]
    fn by_alias(&self, snat: &Endpoint, backend: &Endpoint, protocol: Protocol) -> Option<Flow> {
        let mut record = wanted(snat, backend, protocol);
        // SAFETY: `record` is ours alone for the call.
        let code = unsafe { lb_flow_by_alias(&raw mut record) };
        result(code, &record).ok()
    }

    #[inline(always)]
    fn insert(&self, flow: &NewFlow, now: Tick) -> Result<Flow, Refused> {
        let mut record = Record::of_flow(&flow.client, &flow.frontend, flow.protocol, flow.backend);
        // SAFETY: `record` is ours alone for the call.
        let code = unsafe { lb_flow_insert(&raw mut record, u32::from(flow.state), now.0) };
        result(code, &record)
    }

    #[inline(always)]
    fn attach_snat(
        &self,
        flow: &Flow,
        snat: &Endpoint,
        address: SnatAddressIndex,
        backend: &Endpoint,
        protocol: Protocol,
        now: Tick,
    ) -> Result<Flow, Refused> {
        let mut record = Record::of_alias(snat, backend, protocol, flow.handle);
        // SAFETY: `record` is ours alone for the call.
        let code = unsafe { lb_flow_attach(&raw mut record, address.0, now.0) };
        result(code, &record)
    }

    #[inline(always)]
    fn note(&self, flow: &Flow, state: u16, now: Tick) {
        table().note(flow, state, now);
    }

    #[inline(always)]
    fn remove(&self, flow: &Flow) {
        table().remove(flow);
    }
}
