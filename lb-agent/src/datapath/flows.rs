//! Looking at the flow table: what is alive, and what it still needs. Never a write.

use super::directory::Directory;
use super::mapping::Words;
use super::sys;
use crate::plan::Planner;
use lb_common::addr::{BackendId, Protocol, Tick};
use lb_common::flow::{Entry, Flow, Lifetime, WORDS, read};
use lb_common::hash::HashKeys;
use lb_common::table::{AddressBits, Backend, name};
use std::collections::{HashMap, HashSet};
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The flow table of kernels below 5.12, where it is a kernel hash.
pub(super) const FLOW_HASH: &str = "lb_flow_hash";

/// What a look at the flow table found.
#[derive(Debug)]
pub(crate) struct FlowUse {
    /// Records by backend that have not expired: as long as there is one, the backend is needed.
    pub(crate) by_backend: HashMap<BackendId, u64>,
    /// Those of them that have not closed.
    pub(crate) active: HashMap<BackendId, u64>,
    /// Indexes of SNAT addresses that flows use.
    pub(crate) snat_addresses: HashSet<u32>,
    /// The bits of the address filter that live flows need.
    pub(crate) bits: Box<AddressBits>,
    /// Records in use, and records there are.
    pub(crate) fill: (u64, u64),
}

impl FlowUse {
    fn empty() -> Self {
        Self {
            by_backend: HashMap::new(),
            active: HashMap::new(),
            snat_addresses: HashSet::new(),
            bits: Box::new(AddressBits::EMPTY),
            fill: (0, 0),
        }
    }

    fn add(
        &mut self,
        flow: &Flow,
        protocol: Protocol,
        now: Tick,
        keys: &HashKeys,
        backend: &mut impl FnMut(BackendId) -> Option<Backend>,
    ) {
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
        let end = backend(flow.backend).map(|backend| lb_common::addr::Endpoint {
            addr: backend.addr,
            port: backend.port,
        });
        Planner::mark_flow(keys, &mut self.bits, &flow.frontend, end.as_ref(), protocol);
    }
}

/// Looks at every flow. A table that this object does not have is an empty one.
pub(super) fn scan(
    directory: &Directory,
    keys: &HashKeys,
    mut backend: impl FnMut(BackendId) -> Option<Backend>,
) -> io::Result<FlowUse> {
    let mut found = FlowUse::empty();
    let now = now();
    let array = directory.map(name::FLOWS);
    if array.exists() {
        let fd = sys::object_get(&array)?;
        let entries = sys::map_info(fd.as_fd())?.max_entries;
        let mut used = 0;
        Words::<WORDS>::new(fd, entries, false).each(|index, words| {
            match read(index, |word| words[word].load(Ordering::Acquire)) {
                Entry::Free => {}
                Entry::Alias => used += 1,
                Entry::Flow(flow, protocol) => {
                    used += 1;
                    found.add(&flow, protocol, now, keys, &mut backend);
                }
            }
        })?;
        found.fill = (used, u64::from(entries));
    }
    let hash = directory.map(FLOW_HASH);
    if hash.exists() {
        let fd = sys::object_get(&hash)?;
        let info = sys::map_info(fd.as_fd())?;
        let mut used = 0;
        let key_size = info.key_size as usize;
        if info.value_size as usize == size_of::<[u64; WORDS]>() {
            sys::map_each(fd.as_fd(), key_size, WORDS * 8, |_, value| {
                let word = |word: usize| {
                    value[word * 8..]
                        .first_chunk()
                        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
                };
                if let Entry::Flow(flow, protocol) = read(0, word) {
                    used += 1;
                    found.add(&flow, protocol, now, keys, &mut backend);
                }
            })?;
        }
        found.fill = (used, u64::from(info.max_entries));
    }
    Ok(found)
}

/// Now, on the clock the programs use.
fn now() -> Tick {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills in the structure.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    let nanos = u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0);
    Tick::from_nanos(nanos)
}
