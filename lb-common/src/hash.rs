//! The keyed hash of flows and of the address filter.
//!
//! NH (Black et al., UMAC) with a multiply-shift finish: tuples chosen without the key collide with
//! probability at most 2^-32, at a latency of about one nanosecond. It hides nothing from somebody
//! who can time hits precisely; see `docs/performance.md` for the alternatives measured.

use crate::addr::{Addr, Port, Protocol};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Secret keys, drawn once when the tables are created and kept in the pinned configuration.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HashKeys {
    /// Odd multiplier of the finish.
    pub multiplier: u64,
    /// Added to the words of the input.
    pub words: [u32; 6],
}

impl HashKeys {
    /// Keys from 32 random bytes.
    pub const fn from_random(random: [u32; 8]) -> Self {
        Self {
            multiplier: (random[0] as u64) << 32 | random[1] as u64 | 1,
            words: [
                random[2], random[3], random[4], random[5], random[6], random[7],
            ],
        }
    }

    /// Hash of one end of a conversation. Use bits 32 and up.
    #[inline(always)]
    pub const fn hash(&self, addr: &Addr, port: Port, protocol: Protocol) -> u64 {
        let words = addr.words();
        let keys = &self.words;
        let hash = (words[0].wrapping_add(keys[0]) as u64)
            .wrapping_mul(words[1].wrapping_add(keys[1]) as u64)
            .wrapping_add(
                (words[2].wrapping_add(keys[2]) as u64)
                    .wrapping_mul(words[3].wrapping_add(keys[3]) as u64),
            )
            .wrapping_add(
                ((port.0 as u32).wrapping_add(keys[4]) as u64)
                    .wrapping_mul((protocol.0 as u32).wrapping_add(keys[5]) as u64),
            );
        let hash = (hash ^ (hash >> 32)).wrapping_mul(self.multiplier);
        hash ^ (hash >> 29)
    }
}
