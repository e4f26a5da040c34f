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
use lb_common::flow::{Control, Flow, Kind, Lifetime, Record, SnatAddressIndex};

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

/// A copy of the flow under `key`. The element may be recycled under the reader, so the copy is
/// compared with what was asked.
#[inline(always)]
fn flow(key: &Key) -> Option<Record> {
    // SAFETY: the element is only copied.
    let record = *unsafe { FLOWS.get(key) }?;
    let found = Key::of(&record, FRONTEND);
    let same = found.client == key.client
        && found.other == key.other
        && found.ports == key.ports
        && found.protocol == key.protocol;
    same.then(|| record.in_bucket(key.protocol))
}

/// The flow that another pair of ends leads to.
#[inline(always)]
fn flow_behind(ends: &Key) -> Option<Record> {
    // SAFETY: the element is only copied.
    let key = *unsafe { ENDS.get(ends) }?;
    flow(&key)
}

#[inline(always)]
fn is_expired(record: &Record, now: Tick) -> bool {
    let control = record.control();
    Lifetime::is_expired(record.protocol(), control.state(), control.seen(), now)
}

#[inline(always)]
fn give(record: &mut Record, found: Option<Record>) -> u32 {
    match found {
        Some(found) => {
            *record = found;
            OK
        }
        None => FULL,
    }
}

#[inline(never)]
pub(super) fn by_frontend(record: &mut Record) -> u32 {
    let found = flow(&Key::of(record, FRONTEND));
    give(record, found)
}

#[inline(never)]
pub(super) fn by_backend(record: &mut Record) -> u32 {
    let found = flow_behind(&Key::of(record, BACKEND)).filter(|found| {
        let end = record.frontend();
        found.client() == record.client()
            && Kernel
                .backend(found.backend())
                .is_some_and(|backend| backend.addr == end.addr && backend.port == end.port)
    });
    give(record, found)
}

#[inline(never)]
pub(super) fn by_alias(record: &mut Record) -> u32 {
    let port = record.client().port;
    let found = flow_behind(&Key::of(record, ALIAS)).filter(|found| found.snat_port() == port);
    give(record, found)
}

#[inline(never)]
pub(super) fn insert(record: &mut Record, state: u32, now: u32) -> u32 {
    let now = Tick(now);
    let key = Key::of(record, FRONTEND);
    let present = flow(&key);
    let flags = match present {
        Some(present) if !is_expired(&present, now) => return give(record, Some(present)),
        Some(_) => BPF_ANY,
        None => BPF_NOEXIST,
    };
    let Some(backend) = Kernel.backend(record.backend()) else {
        return FULL;
    };
    let end = Endpoint {
        addr: backend.addr,
        port: backend.port,
    };
    let control = Control::new(Kind::LIVE, state as u16, Kernel.random() as u16, now);
    let new = record.with_control(control).in_bucket(key.protocol);
    if FLOWS.insert(&key, new, u64::from(flags)).is_err() {
        // Another CPU was quicker.
        return give(record, flow(&key));
    }
    let ends = Key::new(&record.client(), &end, record.protocol(), BACKEND);
    if ENDS.insert(&ends, key, u64::from(BPF_ANY)).is_err() {
        return FULL;
    }
    give(record, Some(new))
}

/// Reserves the alias `record` for `flow`.
#[inline(always)]
pub(super) fn attach(record: &mut Record, flow: &Flow, address: u32, now: u32) -> u32 {
    let protocol = record.protocol();
    let primary = Record::of_flow(&flow.client, &flow.frontend, protocol, flow.backend);
    attach_to(
        record,
        &primary,
        u32::from(flow.handle.version) << 16 | address,
        now,
    )
}

/// `version_address`: the flow's version and, in the lower half, the SNAT address's index (five
/// arguments are the limit, and a struct would be one more on a small stack).
#[inline(never)]
fn attach_to(record: &mut Record, primary: &Record, version_address: u32, now: u32) -> u32 {
    let (version, address) = ((version_address >> 16) as u16, version_address & 0xffff);
    let key = Key::of(primary, FRONTEND);
    let alias = Key::of(record, ALIAS);
    let snat = record.client().port;
    let Some(current) = flow(&key) else {
        return BUSY;
    };
    if current.control().version() != version {
        return BUSY;
    }
    if current.snat_port().0 != 0 {
        return give(record, Some(current));
    }
    if let Some(holder) = flow_behind(&alias) {
        let other = Key::of(&holder, FRONTEND);
        let same =
            other.client == key.client && other.other == key.other && other.ports == key.ports;
        if !same && holder.snat_port() == snat && !is_expired(&holder, Tick(now)) {
            return TAKEN;
        }
    }
    let client = Key::of(record, BACKEND);
    if flow_behind(&client).is_some_and(|real| real.client() == record.client()) {
        // A client that really has this end talks to the same backend.
        return TAKEN;
    }
    if ENDS.insert(&alias, key, u64::from(BPF_ANY)).is_err() {
        return FULL;
    }
    let new = current.with_snat(snat, SnatAddressIndex(address));
    if FLOWS.insert(&key, new, u64::from(BPF_ANY)).is_err() {
        return FULL;
    }
    give(record, Some(new))
}

/// [`Flows::note`](lb_common::flow::Flows::note).
#[inline(always)]
pub(super) fn note(flow: &Flow, state: u16, now: Tick) {
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
pub(super) fn remove(flow: &Flow) {
    let protocol = Protocol(flow.handle.bucket as u8);
    let key = Key::new(&flow.client, &flow.frontend, protocol, FRONTEND);
    if self::flow(&key).is_some_and(|found| found.control().version() == flow.handle.version) {
        // It may be gone already. Its other entries lead nowhere now, and the kernel reuses them.
        let _ = FLOWS.remove(&key);
    }
}
