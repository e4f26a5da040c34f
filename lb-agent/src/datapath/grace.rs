//! Waiting until what ran before has ended.

use super::sys::{self, Geometry};
use aya_obj::generated::bpf_map_type;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use zerocopy::IntoBytes;

/// The map of maps whose update waits for every program that runs.
#[derive(Debug)]
pub struct Grace(pub(super) OwnedFd);

impl Grace {
    /// Returns when every program that ran when it was called has ended (some ten milliseconds):
    /// the kernel waits for an RCU grace period before it returns from this update (since 4.15).
    pub fn wait(&self) -> io::Result<()> {
        let inner = sys::map_create(
            "lb_grace.inner",
            Geometry {
                map_type: bpf_map_type::BPF_MAP_TYPE_ARRAY as u32,
                key_size: 4,
                value_size: 4,
                max_entries: 1,
                flags: 0,
            },
        )?;
        let value = inner.as_raw_fd();
        sys::map_update(self.0.as_fd(), &[0; 4], value.as_bytes())
    }
}
