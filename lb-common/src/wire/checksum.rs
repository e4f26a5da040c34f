//! Internet checksums by difference (RFC 1071, RFC 1624).

use crate::addr::{Addr, Port};

/// How much the data under a checksum has changed: the ones'-complement sum of what is there now
/// minus that of what was there before, over words as they lie in memory (the kernel's `__wsum`).
///
/// Only words at even offsets of the summed data may be added.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Difference(pub u32);

impl Difference {
    /// Nothing has changed.
    pub const NONE: Self = Self(0);

    /// Adds four bytes.
    #[inline(always)]
    #[must_use]
    pub const fn plus_word(self, word: u32) -> Self {
        let sum = self.0 as u64 + word as u64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the carry is added back: ones' complement"
        )]
        Self((sum as u32).wrapping_add((sum >> 32) as u32))
    }

    /// Adds another difference.
    #[inline(always)]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        self.plus_word(other.0)
    }

    /// Four bytes were replaced.
    #[inline(always)]
    #[must_use]
    pub const fn replace_word(self, old: u32, new: u32) -> Self {
        self.plus_word(!old).plus_word(new)
    }

    /// Two bytes were replaced.
    #[inline(always)]
    #[must_use]
    pub const fn replace_half(self, old: u16, new: u16) -> Self {
        self.plus_word(!old as u32).plus_word(new as u32)
    }

    /// A port was replaced.
    #[inline(always)]
    #[must_use]
    pub const fn replace_port(self, old: Port, new: Port) -> Self {
        self.replace_half(old.0, new.0)
    }

    /// An address was replaced by one of the same family.
    #[inline(always)]
    #[must_use]
    pub const fn replace_address(self, old: &Addr, new: &Addr) -> Self {
        if old.is_v4() {
            return self.replace_word(old.v4_word(), new.v4_word());
        }
        let (o, n) = (old.words(), new.words());
        self.replace_word(o[0], n[0])
            .replace_word(o[1], n[1])
            .replace_word(o[2], n[2])
            .replace_word(o[3], n[3])
    }

    /// Adds an address, as the pseudo header of its family does.
    #[inline(always)]
    #[must_use]
    pub const fn plus_address(self, addr: &Addr) -> Self {
        if addr.is_v4() {
            return self.plus_word(addr.v4_word());
        }
        let w = addr.words();
        self.plus_word(w[0])
            .plus_word(w[1])
            .plus_word(w[2])
            .plus_word(w[3])
    }

    /// The sum in sixteen bits.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "two folds leave sixteen bits"
    )]
    pub const fn fold(self) -> u16 {
        let sum = (self.0 & 0xffff) + (self.0 >> 16);
        ((sum & 0xffff) + (sum >> 16)) as u16
    }

    /// The checksum of data with this sum.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// The checksum that takes the place of `checksum` (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        !self.plus_word(!checksum as u32).fold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(words: &[u32]) -> Difference {
        words
            .iter()
            .fold(Difference::NONE, |sum, word| sum.plus_word(*word))
    }

    proptest! {
        #[test]
        fn a_difference_leads_to_the_checksum_of_the_changed_data(
            mut words in proptest::collection::vec(any::<u32>(), 1..20),
            index in any::<proptest::sample::Index>(),
            new in any::<u32>(),
        ) {
            let old_checksum = sum(&words).checksum();
            let index = index.index(words.len());
            let difference = Difference::NONE.replace_word(words[index], new);
            words[index] = new;
            // All-zero data has two representations of its sum; everything else has one.
            prop_assume!(words.iter().any(|word| *word != 0));
            prop_assert_eq!(difference.apply(old_checksum), sum(&words).checksum());
        }
    }

    #[test]
    fn the_example_of_rfc_1624_holds() {
        let difference = Difference::NONE.replace_half(0x5555, 0x3285);
        assert_eq!(difference.apply(0xdd2f), 0x0000);
    }
}
