//! Tables of which only the keys count.

use super::sys;
use std::collections::BTreeSet;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A table that holds exactly the keys it was told, each with the value 1.
#[derive(Debug)]
pub(super) struct KeySet<K> {
    table: OwnedFd,
    /// What is in the table.
    written: BTreeSet<K>,
}

impl<K: Copy + Ord + FromBytes + IntoBytes + Immutable> KeySet<K> {
    /// Learns what the table holds.
    pub(super) fn open(table: OwnedFd) -> io::Result<Self> {
        let mut written = BTreeSet::new();
        sys::map_each(table.as_fd(), size_of::<K>(), size_of::<u32>(), |key, _| {
            written.extend(K::read_from_bytes(key));
        })?;
        Ok(Self { table, written })
    }

    /// Makes these keys the ones in the table.
    pub(super) fn set(&mut self, wanted: &BTreeSet<K>) -> io::Result<()> {
        let new: Vec<K> = wanted.difference(&self.written).copied().collect();
        for key in new {
            sys::map_update(self.table.as_fd(), key.as_bytes(), 1_u32.as_bytes())?;
            self.written.insert(key);
        }
        let gone: Vec<K> = self.written.difference(wanted).copied().collect();
        for key in gone {
            sys::map_delete(self.table.as_fd(), key.as_bytes())?;
            self.written.remove(&key);
        }
        Ok(())
    }
}
