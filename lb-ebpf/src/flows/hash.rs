//! The flow table over the kernel's own hash, for kernels without compare-and-swap (below 5.12).
//!
//! The same promises with two exceptions: the kernel evicts the flow that was unused for longest when
//! the table is full, live or not; and of two CPUs that note packets of one flow at the same moment,
//! one note may be lost. A flow has two entries, one for each direction, and a third for its SNAT end.
//!
//! No global functions here: before 5.13 they take no pointers. A handle's bucket is the protocol,
//! which a flow does not name itself; its version is drawn by lot.

use super::{BUSY, FULL, OK, TAKEN};
use crate::env::Kernel;
use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use lb_common::addr::{Endpoint, Protocol, Tick};
use lb_common::env::{Env, Tables};
use lb_common::flow::{Control, Flow, Kind, Lifetime, Quick, Record, SnatAddressIndex, SnatEnd};
use lb_common::table::Config;

/// Two ends and what they are the ends of.
#[repr(C)]
#[derive(Clone, Copy)]
struct Key {
    client: [u64; 2],
    other: [u64; 2],
    ports: u32,
    /// Protocol, and in the second byte one of the constants below.
    protocol: u32,
}

/// Client and frontend.
const FRONTEND: u32 = 0;
/// Client and backend.
const BACKEND: u32 = 1 << 8;
/// SNAT end and backend.
const ALIAS: u32 = 2 << 8;

impl Key {
    #[inline(always)]
    fn new(client: &Endpoint, other: &Endpoint, protocol: Protocol, kind: u32) -> Self {
        Self {
            client: client.addr.0,
            other: other.addr.0,
            ports: u32::from(client.port.0) | (u32::from(other.port.0) << 16),
            protocol: u32::from(protocol.0) | kind,
        }
    }

    #[inline(always)]
    fn of(record: &Record, kind: u32) -> Self {
        Self::new(
            &record.client(),
            &record.frontend(),
            record.protocol(),
            kind,
        )
    }
}

/// Flows by client and frontend.
#[btf_map(name = "lb_flow_hash")]
static FLOWS: LruHashMap<Key, Record, 65_536> = LruHashMap::new();

/// The key of a flow by its other ends.
#[btf_map(name = "lb_flow_ends")]
static ENDS: LruHashMap<Key, Key, 131_072> = LruHashMap::new();

/// Replaces `record` by the flow under `key`. The element may be recycled under the reader, so the
/// copy is compared with what was asked.
#[inline(always)]
fn copy(key: &Key, record: &mut Record) -> u32 {
    // SAFETY: the element is only copied.
    let Some(found) = (unsafe { FLOWS.get(key) }) else {
        return FULL;
    };
    *record = found.in_bucket(key.protocol);
    if is_under(record, key) { OK } else { FULL }
}

/// True if the record is the flow under `key`. Copies of records and keys cost stack, of which a
/// whole call chain has 512 bytes: hence references and single words here.
#[inline(always)]
fn is_under(record: &Record, key: &Key) -> bool {
    let (client, frontend) = (record.client(), record.frontend());
    client.addr.0 == key.client
        && frontend.addr.0 == key.other
        && u32::from(client.port.0) | (u32::from(frontend.port.0) << 16) == key.ports
        && u32::from(record.protocol().0) == key.protocol
}

/// The flow that another pair of ends leads to.
#[inline(always)]
fn behind(ends: &Key) -> Option<&'static Record> {
    // SAFETY: a live element of a map that lives as long as the program.
    let key = unsafe { ENDS.get(ends) }?;
    // SAFETY: as above.
    unsafe { FLOWS.get(key) }
}

#[inline(always)]
fn is_expired(record: &Record, now: Tick) -> bool {
    let control = record.control();
    Lifetime::is_expired(record.protocol(), control.state(), control.seen(), now)
}

#[inline(always)]
fn is_reclaimable(record: &Record, now: Tick) -> bool {
    let control = record.control();
    Lifetime::is_reclaimable(record.protocol(), control.state(), control.seen(), now)
}

/// A hash lookup has no quick half.
#[inline(always)]
pub(super) const fn quick_by_frontend(
    _: &Config,
    _: &Endpoint,
    _: &Endpoint,
    _: Protocol,
) -> Quick {
    Quick::Unknown
}

/// As [`quick_by_frontend`].
#[inline(always)]
pub(super) const fn quick_by_backend(_: &Config, _: &Endpoint, _: &Endpoint, _: Protocol) -> Quick {
    Quick::Unknown
}

/// Replaces `record` by the flow between its client and frontend.
#[inline(never)]
pub(super) fn by_frontend(record: &mut Record) -> u32 {
    copy(&Key::of(record, FRONTEND), record)
}

/// Replaces `record` by the flow between its client and backend.
#[inline(never)]
pub(super) fn by_backend(record: &mut Record) -> u32 {
    let ends = Key::of(record, BACKEND);
    let Some(found) = behind(&ends) else {
        return FULL;
    };
    *record = found.in_bucket(u32::from(found.protocol().0));
    let is_backend = Kernel.backend(record.backend()).is_some_and(|backend| {
        backend.addr.0 == ends.other && u32::from(backend.port.0) == ends.ports >> 16
    });
    if is_backend && record.client().addr.0 == ends.client {
        OK
    } else {
        FULL
    }
}

/// Replaces `record` by the flow between its SNAT end and backend.
#[inline(never)]
pub(super) fn by_alias(record: &mut Record) -> u32 {
    let ends = Key::of(record, ALIAS);
    let Some(found) = behind(&ends) else {
        return FULL;
    };
    *record = found.in_bucket(u32::from(found.protocol().0));
    if u32::from(record.snat_port().0) == ends.ports & 0xffff {
        OK
    } else {
        FULL
    }
}

/// Inserts the flow, or replaces `record` by the one that is there.
#[inline(never)]
pub(super) fn insert(record: &mut Record, state: u32, now: u32) -> u32 {
    let key = Key::of(record, FRONTEND);
    let mut flags = BPF_NOEXIST;
    // SAFETY: the element is only read.
    if let Some(present) = unsafe { FLOWS.get(&key) } {
        if !is_expired(present, Tick(now)) {
            return copy(&key, record);
        }
        flags = BPF_ANY;
    }
    let Some(backend) = Kernel.backend(record.backend()) else {
        return FULL;
    };
    let ends = Key {
        client: key.client,
        other: backend.addr.0,
        ports: (key.ports & 0xffff) | (u32::from(backend.port.0) << 16),
        protocol: key.protocol | BACKEND,
    };
    let control = Control::new(Kind::LIVE, state as u16, Kernel.random() as u16, Tick(now));
    *record = record.with_control(control).in_bucket(key.protocol);
    if FLOWS.insert(&key, &*record, u64::from(flags)).is_err() {
        // Another CPU was quicker.
        return copy(&key, record);
    }
    if ENDS.insert(&ends, &key, u64::from(BPF_ANY)).is_err() {
        return FULL;
    }
    OK
}

/// Reserves the alias `record` for `flow`, then replaces it by that flow.
#[inline(always)]
pub(super) fn attach(record: &mut Record, flow: &Flow, snat: &SnatEnd, now: u32) -> u32 {
    let key = Key::new(&flow.client, &flow.frontend, record.protocol(), FRONTEND);
    let version_address = (u32::from(flow.handle.version) << 16) | (snat.address.0 & 0xffff);
    attach_to(record, &key, version_address, snat.pressure, now)
}

/// `version_address`: the flow's version and, in the lower half, the SNAT address's index.
#[inline(never)]
fn attach_to(
    record: &mut Record,
    key: &Key,
    version_address: u32,
    pressure: bool,
    now: u32,
) -> u32 {
    let Some(flow) = FLOWS.get_ptr_mut(key) else {
        return BUSY;
    };
    // SAFETY: a live element; only this word of it is read, in one piece.
    let control = Control(unsafe { flow.cast::<u64>().read_volatile() });
    if u32::from(control.version()) != version_address >> 16 {
        return BUSY;
    }
    // SAFETY: a live element.
    if unsafe { &*flow }.snat_port().0 != 0 {
        return copy(key, record);
    }
    let snat = record.client().port;
    let mut ends = Key::of(record, BACKEND);
    if behind(&ends).is_some_and(|real| real.client().addr.0 == ends.client) {
        // A client that really has this end talks to the same backend.
        return TAKEN;
    }
    ends.protocol = u32::from(record.protocol().0) | ALIAS;
    if let Some(holder) = behind(&ends)
        && !is_under(holder, key)
        && holder.snat_port() == snat
        && !is_expired(holder, Tick(now))
        && !(pressure && is_reclaimable(holder, Tick(now)))
    {
        return TAKEN;
    }
    if ENDS.insert(&ends, key, u64::from(BPF_ANY)).is_err() {
        return FULL;
    }
    // SAFETY: a live element; of two CPUs that choose an end for one flow the later one wins, and
    // the other's alias leads nowhere.
    let flow = unsafe { &mut *flow };
    *flow = flow.with_snat(snat, SnatAddressIndex(version_address & 0xffff));
    copy(key, record)
}

/// [`Flows::note`](lb_common::flow::Flows::note).
#[inline(always)]
pub(super) fn note(_: &Config, flow: &Flow, state: u16, now: Tick) {
    if flow.seen == now && flow.state & state == state {
        return;
    }
    let protocol = Protocol(flow.handle.bucket as u8);
    let key = Key::new(&flow.client, &flow.frontend, protocol, FRONTEND);
    let Some(record) = FLOWS.get_ptr_mut(&key) else {
        return;
    };
    let word = record.cast::<u64>();
    // SAFETY: the control word is the first of a live element.
    let control = Control(unsafe { word.read_volatile() });
    if control.version() == flow.handle.version {
        let new = Control::new(Kind::LIVE, control.state() | state, control.version(), now);
        // SAFETY: as above; one aligned store.
        unsafe { word.write_volatile(new.0) };
    }
}

/// [`Flows::remove`](lb_common::flow::Flows::remove).
#[inline(always)]
pub(super) fn remove(_: &Config, flow: &Flow) {
    let protocol = Protocol(flow.handle.bucket as u8);
    let key = Key::new(&flow.client, &flow.frontend, protocol, FRONTEND);
    // SAFETY: the element is only read.
    let found = unsafe { FLOWS.get(&key) };
    if found.is_some_and(|found| found.control().version() == flow.handle.version) {
        // It may be gone already. Its other entries lead nowhere now, and the kernel reuses them.
        let _ = FLOWS.remove(&key);
    }
}
