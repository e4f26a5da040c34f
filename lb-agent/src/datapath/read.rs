//! How the tables are read, by whoever writes them and by those who only look.

use super::sys;
use lb_common::addr::BackendId;
use lb_common::table::{Backend, BackendCounters, Frontend, FrontendKey};
use std::io;
use std::mem::size_of;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, IntoBytes};

/// A backend's record from its words.
pub(super) fn backend_of(words: &[AtomicU64]) -> Backend {
    let words: [u64; 4] = std::array::from_fn(|word| words[word].load(Ordering::Acquire));
    zerocopy::transmute!(words)
}

/// Every frontend.
pub(super) fn read_frontends(fd: BorrowedFd<'_>) -> io::Result<Vec<(FrontendKey, Frontend)>> {
    let mut frontends = Vec::new();
    sys::map_each(
        fd,
        size_of::<FrontendKey>(),
        size_of::<Frontend>(),
        |key, value| {
            if let (Ok(key), Ok(value)) = (
                FrontendKey::read_from_bytes(key),
                Frontend::read_from_bytes(value),
            ) {
                frontends.push((key, value));
            }
        },
    )?;
    Ok(frontends)
}

/// Counters of a backend, over all CPUs.
pub(super) fn read_backend_counters(
    fd: BorrowedFd<'_>,
    id: BackendId,
    cpus: usize,
) -> io::Result<BackendCounters> {
    let mut sum = BackendCounters::default();
    read_per_cpu(fd, id.as_bytes(), cpus, |one: &BackendCounters| {
        sum.socket_opened += one.socket_opened;
        sum.socket_closed += one.socket_closed;
    })?;
    Ok(sum)
}

/// The values of a per-CPU entry, one for each CPU.
pub(super) fn read_per_cpu<T: FromBytes>(
    fd: BorrowedFd<'_>,
    key: &[u8],
    cpus: usize,
    mut each: impl FnMut(&T),
) -> io::Result<()> {
    // The kernel rounds every CPU's value up to eight bytes; ours are multiples of it.
    let mut bytes = vec![0; size_of::<T>() * cpus];
    sys::map_lookup(fd, key, &mut bytes)?;
    for value in bytes.chunks_exact(size_of::<T>()) {
        if let Ok(value) = T::read_from_bytes(value) {
            each(&value);
        }
    }
    Ok(())
}
