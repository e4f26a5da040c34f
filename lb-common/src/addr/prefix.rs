//! Address prefixes of both families.

use super::Addr;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address prefix, as a value and a mask of the same form (an IPv4 `/8` has a `/104` mask).
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Prefix {
    /// The network address.
    pub value: Addr,
    /// Ones where the address must equal `value`.
    pub mask: Addr,
}

impl Prefix {
    /// A prefix that no IPv4-mapped or routable IPv6 address is in: "not configured".
    pub const NONE: Self = Self {
        value: Addr([u64::MAX, u64::MAX]),
        mask: Addr([0, 0]),
    };

    /// From an address and a prefix length counted in the address's own family. Lengths beyond
    /// the family's width are taken as its width.
    pub fn new(addr: core::net::IpAddr, length: u8) -> Self {
        let bits = match addr {
            core::net::IpAddr::V4(_) => 96 + u32::from(length.min(32)),
            core::net::IpAddr::V6(_) => u32::from(length.min(128)),
        };
        let mask = if bits == 0 {
            0
        } else {
            u128::MAX << (128 - bits)
        };
        let mask = Addr::from_octets(mask.to_be_bytes());
        Self {
            value: Addr::from(addr).masked(&mask),
            mask,
        }
    }

    /// The smallest prefix that holds both.
    #[must_use = "neither prefix is changed"]
    pub fn around(&self, other: &Self) -> Self {
        let number = |addr: &Addr| u128::from_be_bytes(addr.octets());
        let differs = number(&self.value) ^ number(&other.value);
        let equal = u128::MAX
            .checked_shl(128 - differs.leading_zeros())
            .unwrap_or(0);
        let mask = number(&self.mask) & number(&other.mask) & equal;
        let mask = Addr::from_octets(mask.to_be_bytes());
        Self {
            value: self.value.masked(&mask),
            mask,
        }
    }

    /// True if `addr` is inside.
    #[inline(always)]
    pub const fn contains(&self, addr: &Addr) -> bool {
        let masked = addr.masked(&self.mask);
        masked.0[0] == self.value.0[0] && masked.0[1] == self.value.0[1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn a_prefix_holds_what_its_family_says() {
        let ten = Prefix::new("10.0.0.0".parse().unwrap(), 8);
        assert!(ten.contains(&"10.255.0.1".parse::<IpAddr>().unwrap().into()));
        assert!(!ten.contains(&"11.0.0.1".parse::<IpAddr>().unwrap().into()));
        assert!(!ten.contains(&"::10.0.0.1".parse::<IpAddr>().unwrap().into()));
        let all_v4 = Prefix::new("0.0.0.0".parse().unwrap(), 0);
        assert!(all_v4.contains(&"1.2.3.4".parse::<IpAddr>().unwrap().into()));
        assert!(!all_v4.contains(&"fd00::1".parse::<IpAddr>().unwrap().into()));
        assert!(!Prefix::NONE.contains(&"fd00::1".parse::<IpAddr>().unwrap().into()));
        assert!(!Prefix::NONE.contains(&Addr::UNSPECIFIED));
    }

    #[test]
    fn the_prefix_around_two_holds_both_and_no_more_than_it_must() {
        let net = |text: &str, length| Prefix::new(text.parse().unwrap(), length);
        for (one, other, around) in [
            (
                net("10.96.0.0", 16),
                net("10.97.0.0", 16),
                net("10.96.0.0", 15),
            ),
            (
                net("10.96.0.0", 12),
                net("10.96.0.0", 16),
                net("10.96.0.0", 12),
            ),
            (net("10.0.0.0", 8), net("200.0.0.0", 8), net("0.0.0.0", 0)),
            (
                net("fd00::", 112),
                net("fd00::1:0", 112),
                net("fd00::", 111),
            ),
            (net("::", 1), net("8000::", 1), net("::", 0)),
        ] {
            assert_eq!(one.around(&other), around);
            assert_eq!(other.around(&one), around);
        }
    }
}
