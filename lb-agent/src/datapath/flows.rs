//! Looking at the flow table: what is alive, and what it still needs. Never a write.

use super::directory::Directory;
use super::mapping::Words;
use super::sys;
use crate::plan::FlowUse;
use lb_common::addr::{BackendId, Tick};
use lb_common::flow::{WORDS, read};
use lb_common::hash::HashKeys;
use lb_common::table::{Backend, name};
use std::io;
use std::mem::size_of;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

/// The flow table of kernels below 5.12, where it is a kernel hash.
pub(super) const FLOW_HASH: &str = "lb_flow_hash";

/// Looks at every flow; also, how many records there are. A table that this object does not have is
/// an empty one.
pub(super) fn scan(
    directory: &Directory,
    keys: &HashKeys,
    mut backend: impl FnMut(BackendId) -> Option<Backend>,
) -> io::Result<(FlowUse, u64)> {
    let mut found = FlowUse::nothing();
    let mut capacity = 0;
    let now = now();
    let array = directory.map(name::FLOWS);
    if array.exists() {
        let fd = sys::object_get(&array)?;
        let entries = sys::map_info(fd.as_fd())?.max_entries;
        Words::<WORDS>::new(fd, entries, false).each(|index, words| {
            let entry = read(index, |word| words[word].load(Ordering::Acquire));
            found.add(&entry, now, keys, &mut backend);
        })?;
        capacity = u64::from(entries);
    }
    let hash = directory.map(FLOW_HASH);
    if hash.exists() {
        let fd = sys::object_get(&hash)?;
        let info = sys::map_info(fd.as_fd())?;
        let key_size = info.key_size as usize;
        if info.value_size as usize == size_of::<[u64; WORDS]>() {
            sys::map_each(fd.as_fd(), key_size, WORDS * 8, |_, value| {
                let word = |word: usize| {
                    value[word * 8..]
                        .first_chunk()
                        .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
                };
                found.add(&read(0, word), now, keys, &mut backend);
            })?;
        }
        capacity = u64::from(info.max_entries);
    }
    Ok((found, capacity))
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
