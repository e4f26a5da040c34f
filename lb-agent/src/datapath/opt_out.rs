//! The table of processes whose sockets are not balanced.

use super::directory::Directory;
use super::sys;
use lb_common::table::name;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;
use zerocopy::IntoBytes;

/// Keeps the table in step.
#[derive(Debug, Default)]
pub(super) struct OptedOut {
    /// What is in the table; `None` until it was looked at.
    written: Option<BTreeSet<u64>>,
}

impl OptedOut {
    /// Makes these cgroups the ones in the table.
    pub(super) fn set(&mut self, directory: &Directory, wanted: BTreeSet<u64>) -> io::Result<()> {
        if self.written.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let table = sys::object_get(&directory.map(name::OPTED_OUT))?;
        let mut written = BTreeSet::new();
        sys::map_each(table.as_fd(), 8, 4, |key, _| {
            if let Ok(key) = key.try_into() {
                written.insert(u64::from_ne_bytes(key));
            }
        })?;
        for new in wanted.difference(&written) {
            sys::map_update(table.as_fd(), new.as_bytes(), 1_u32.as_bytes())?;
        }
        for gone in written.difference(&wanted) {
            sys::map_delete(table.as_fd(), gone.as_bytes())?;
        }
        self.written = Some(wanted);
        Ok(())
    }
}
