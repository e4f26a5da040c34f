//! Source ranges: who may use a guarded frontend (`SERVICE-SEMANTICS` 6).

use crate::addr::{Addr, Prefix, ServiceId};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A key of `lb_ranges`, a trie that finds the longest prefix (`BPF_MAP_TYPE_LPM_TRIE`): the
/// service port and a range of sources that may use its guarded frontends. The first word is the
/// trie's own.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceRange {
    /// How many bits of what follows must be equal, host order: those of `service` and the prefix
    /// length, counted in IPv4-mapped form for IPv4.
    pub bits: u32,
    /// Who is asked.
    pub who: SourceOf,
}

/// What a packet is looked up by in `lb_ranges`.
#[derive(
    Clone,
    Copy,
    Debug,
    Eq,
    Hash,
    Ord,
    PartialEq,
    PartialOrd,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct SourceOf {
    /// The service port; always compared as a whole, so its byte order means nothing.
    pub service: ServiceId,
    /// The source (or the range's network address), as [`Addr::words`].
    pub source: [u32; 4],
}

impl SourceOf {
    /// All its bits: a packet's source is one address.
    pub const BITS: u32 = 160;

    /// A packet from `source` that asks for `service`.
    #[inline(always)]
    pub const fn new(service: ServiceId, source: &Addr) -> Self {
        Self {
            service,
            source: source.words(),
        }
    }
}

impl SourceRange {
    /// The range `prefix` of `service`.
    pub fn new(service: ServiceId, prefix: &Prefix) -> Self {
        let ones: u32 = prefix.mask.words().map(u32::count_ones).iter().sum();
        Self {
            bits: 32 + ones,
            who: SourceOf::new(service, &prefix.value),
        }
    }

    /// True if `who` is inside: what the trie finds out in the kernel.
    pub fn contains(&self, who: &SourceOf) -> bool {
        let ones = self.bits.saturating_sub(32).min(128);
        let mask = if ones == 0 {
            0
        } else {
            u128::MAX << (128 - ones)
        };
        let number =
            |words: [u32; 4]| u128::from_be_bytes(Addr::from_v6_words(words).octets()) & mask;
        self.who.service == who.service && number(self.who.source) == number(who.source)
    }
}

const _: () = {
    assert!(size_of::<SourceRange>() == 24);
    assert!(size_of::<SourceOf>() == 20);
};

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn range(service: u32, address: &str, length: u8) -> SourceRange {
        let address: IpAddr = address.parse().unwrap();
        SourceRange::new(ServiceId(service), &Prefix::new(address, length))
    }

    fn who(service: u32, address: &str) -> SourceOf {
        let address: IpAddr = address.parse().unwrap();
        SourceOf::new(ServiceId(service), &address.into())
    }

    #[test]
    fn a_range_holds_its_sources_for_its_service_only() {
        for (range, asks, expected) in [
            (range(1, "10.0.0.0", 8), who(1, "10.9.8.7"), true),
            (range(1, "10.0.0.0", 8), who(2, "10.9.8.7"), false),
            (range(1, "10.0.0.0", 8), who(1, "11.0.0.1"), false),
            (range(1, "10.0.0.1", 32), who(1, "10.0.0.1"), true),
            (range(1, "10.0.0.1", 32), who(1, "10.0.0.2"), false),
            (range(1, "fd00::", 16), who(1, "fd00:1::2"), true),
            (range(1, "fd00::", 16), who(1, "10.0.0.1"), false),
            (range(1, "fd00::1", 128), who(1, "fd00::1"), true),
        ] {
            assert_eq!(range.contains(&asks), expected, "{range:?} {asks:?}");
        }
    }

    #[test]
    fn prefix_lengths_count_the_service_and_the_mapped_form() {
        assert_eq!(range(1, "10.0.0.0", 8).bits, 32 + 96 + 8);
        assert_eq!(range(1, "fd00::", 16).bits, 32 + 16);
        assert_eq!(range(1, "fd00::1", 128).bits, SourceOf::BITS);
    }
}
