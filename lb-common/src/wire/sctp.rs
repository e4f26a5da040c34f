//! SCTP (RFC 9260) and its CRC32c checksum, which covers the packet from the SCTP header on and no
//! pseudo header: another address changes nothing in it.

use super::{Ports, TcpFlags};
use crate::addr::Port;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The common header, the header of the first chunk and, of an INIT, the tag that answers carry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed(2))]
pub struct Sctp {
    /// Both ports.
    pub ports: Ports,
    /// The verification tag.
    pub tag: u32,
    /// CRC32c, in little-endian order.
    pub checksum: u32,
    /// Type of the first chunk.
    pub chunk: u8,
    /// Its flags.
    pub chunk_flags: u8,
    /// Its length.
    pub chunk_length: u16,
    /// The initiate tag of an INIT.
    pub initiate_tag: u32,
}

impl Sctp {
    /// Offset of the checksum.
    pub const CHECKSUM_AT: u32 = 8;
    /// Offset of the first chunk's type.
    pub const CHUNK_AT: u32 = 12;
    /// Length of a packet of one chunk that says nothing but its type.
    pub const SHORTEST: u32 = 16;
    /// Chunk: begins an association.
    pub const INIT: u8 = 1;
    /// Chunk: answers INIT.
    pub const INIT_ACK: u8 = 2;
    /// Chunk: ends an association at once.
    pub const ABORT: u8 = 6;
    /// Chunk: the sender is done.
    pub const SHUTDOWN: u8 = 7;
    /// Chunk: so is the other side.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Chunk: both know it.
    pub const SHUTDOWN_COMPLETE: u8 = 14;

    /// What a first chunk means in terms of TCP: an association begins, ends and is reset as a
    /// connection does.
    #[inline(always)]
    pub const fn flags(chunk: u8) -> u8 {
        match chunk {
            Self::INIT => TcpFlags::SYN,
            Self::INIT_ACK => TcpFlags::SYN | TcpFlags::ACK,
            Self::ABORT => TcpFlags::RST,
            Self::SHUTDOWN | Self::SHUTDOWN_ACK | Self::SHUTDOWN_COMPLETE => {
                TcpFlags::FIN | TcpFlags::ACK
            }
            _ => TcpFlags::ACK,
        }
    }

    /// What changes of a packet's first word, as [`Crc32c`] has it, when the source port or (`SOURCE`
    /// false) the destination port becomes another.
    #[inline(always)]
    pub const fn port_change<const SOURCE: bool>(old: Port, new: Port) -> u32 {
        let change = u16::from_le(old.0 ^ new.0) as u32;
        if SOURCE { change } else { change << 16 }
    }
}

/// CRC32c (RFC 9260 appendix A) by difference.
///
/// The checksum is linear: when some bits change, it changes by what those bits alone, followed by
/// zeroes, would give. And that is a multiplication in the field of polynomials, for any number of
/// zeroes: nobody has to read the packet.
pub struct Crc32c;

impl Crc32c {
    /// The polynomial, lowest power in the highest bit, as all values here.
    const POLYNOMIAL: u32 = 0x82f6_3b78;

    /// `POWERS[n]` is x to the power of 8 · 2ⁿ: a register is multiplied with it by 2ⁿ zero bytes.
    const POWERS: [u32; 17] = {
        let mut powers = [0x0080_0000; 17];
        let mut n = 1;
        while n < 17 {
            powers[n] = Self::multiply(powers[n - 1], powers[n - 1]);
            n += 1;
        }
        powers
    };

    /// The product of two polynomials. Without branches, which the verifier would all follow.
    #[inline(always)]
    const fn multiply(a: u32, b: u32) -> u32 {
        let (mut a, mut b) = (a, b);
        let mut product = 0;
        let mut bit = 0;
        while bit < 32 {
            product ^= b & (a >> 31).wrapping_neg();
            a <<= 1;
            b = (b >> 1) ^ (Self::POLYNOMIAL & (b & 1).wrapping_neg());
            bit += 1;
        }
        product
    }

    /// The register after `bytes` (below 128 KiB) zero bytes.
    #[inline(always)]
    pub const fn advance(register: u32, bytes: u32) -> u32 {
        let (mut register, mut left) = (register, bytes);
        let mut n = 0;
        while n < Self::POWERS.len() {
            let power = Self::POWERS[n];
            if left & 1 != 0 {
                register = Self::multiply(register, power);
            }
            left >>= 1;
            n += 1;
        }
        register
    }
}

const _: () = assert!(size_of::<Sctp>() == 20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::craft::crc32c;
    use proptest::prelude::*;

    #[test]
    fn the_example_of_rfc_3720_holds() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    proptest! {
        #[test]
        fn a_changed_word_changes_the_checksum_by_its_own(
            mut bytes in proptest::collection::vec(any::<u8>(), 4..3000),
            word in any::<[u8; 4]>(),
        ) {
            let before = crc32c(&bytes);
            let mut change = [0; 4];
            for ((old, new), change) in bytes.iter_mut().zip(word).zip(&mut change) {
                *change = *old ^ new;
                *old = new;
            }
            let length = u32::try_from(bytes.len()).unwrap();
            let change = Crc32c::advance(u32::from_le_bytes(change), length);
            prop_assert_eq!(before ^ change, crc32c(&bytes));
        }
    }
}
