//! The filter asked before any table, which proves of most packets of other people's conversations that
//! they are not ours.

use super::FrontendKey;
use crate::addr::{Addr, Port, Protocol};
use crate::hash::HashKeys;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of bits in either hashed half of [`AddressBits`]: with 10,000 services of ten endpoints
/// each, one foreign address in fifty is taken for a frontend, and one in ten for a backend.
const HALF: u32 = 1 << 20;
/// The word the ports begin at.
const PORTS: u32 = 2 * HALF / 64;
/// How many ports share a word.
const PORTS_IN_WORD: u32 = 16;
/// Number of words.
const WORDS: usize = (PORTS + (1 << 16) / PORTS_IN_WORD) as usize;

/// Bits of a port, of whatever protocol.
struct PortBits;

impl PortBits {
    /// It is a frontend's that has an address of its own.
    const FRONTEND: u64 = 1;
    /// It is a node port.
    const NODE_PORT: u64 = 1 << 1;
    /// It is a backend's.
    const BACKEND: u64 = 1 << 2;
}

/// Where a bit lies: index and mask of its word.
pub type Bit = (usize, u64);

/// What may be a frontend or a backend: four bits for each port, and one hashed bit for each
/// {address, port, protocol} that is a frontend, and for each that is a backend. Ports are asked first: they need no
/// hash, and lie in 32 KiB, whereas every address is another line of memory. Most packets of other people's
/// conversations are to or from ports that nobody serves.
///
/// A clear bit proves "not ours"; a set bit proves nothing. Adding sets bits before anything can be
/// found by them; they are cleared only by a rebuild that takes the live flows into account (flows
/// outlive the frontend and the backend they began with). So a bit that nobody needs any more
/// costs time, and no packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AddressBits {
    /// The frontends', the backends', the ports'.
    pub words: [u64; WORDS],
}

impl AddressBits {
    /// No address is served.
    #[expect(
        clippy::large_stack_arrays,
        reason = "a constant; the agent's copies live on the heap"
    )]
    pub const EMPTY: Self = Self { words: [0; WORDS] };

    /// The bits of what is found under `key`.
    pub fn of_frontend(keys: &HashKeys, key: &FrontendKey) -> [Bit; 2] {
        if key.is_node_port() {
            // On which addresses is asked of a table.
            return [Self::port_bit(keys, key.port, PortBits::NODE_PORT); 2];
        }
        let hashed = Self::frontend_bit(keys, &key.addr, key.port, key.protocol);
        if key.is_any_port() {
            return [hashed; 2];
        }
        [hashed, Self::port_bit(keys, key.port, PortBits::FRONTEND)]
    }

    /// The bits of a backend.
    pub fn of_backend(keys: &HashKeys, addr: &Addr, port: Port, protocol: Protocol) -> [Bit; 2] {
        [
            Self::backend_bit(keys, addr, port, protocol),
            Self::port_bit(keys, port, PortBits::BACKEND),
        ]
    }

    /// Sets bits.
    pub fn add(&mut self, bits: impl IntoIterator<Item = Bit>) {
        for (word, mask) in bits {
            if let Some(word) = self.words.get_mut(word) {
                *word |= mask;
            }
        }
    }

    /// True if all of these are set.
    pub fn has_all(&self, bits: impl IntoIterator<Item = Bit>) -> bool {
        bits.into_iter().all(|bit| self.has(bit))
    }

    #[inline(always)]
    fn frontend_bit(keys: &HashKeys, addr: &Addr, port: Port, protocol: Protocol) -> Bit {
        Self::position((keys.hash(addr, port, protocol) >> 32) as u32 & (HALF - 1))
    }

    #[inline(always)]
    fn backend_bit(keys: &HashKeys, addr: &Addr, port: Port, protocol: Protocol) -> Bit {
        Self::position(HALF | ((keys.hash(addr, port, protocol) >> 32) as u32 & (HALF - 1)))
    }

    /// Neighbours lie side by side, so that the ports clients use one after the other share a line of memory.
    #[inline(always)]
    fn port_bit(keys: &HashKeys, port: Port, bit: u64) -> Bit {
        // Verifiers know nothing of a number whose bytes were swapped, and the compiler knows too
        // much to leave the mask in; of the key it knows nothing.
        let place = (u32::from(port.number()) ^ keys.words[4]) & 0xffff;
        (
            (PORTS + place / PORTS_IN_WORD) as usize,
            bit << (place % PORTS_IN_WORD * 4),
        )
    }

    #[inline(always)]
    const fn position(bit: u32) -> Bit {
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    #[inline(always)]
    fn has(&self, (word, mask): Bit) -> bool {
        self.words.get(word).is_some_and(|word| word & mask != 0)
    }
}

/// [`AddressBits`] with the keys they were made with.
#[derive(Clone, Copy, Debug)]
pub struct Filter<'a> {
    pub(crate) bits: &'a AddressBits,
    pub(crate) keys: &'a HashKeys,
}

impl Filter<'_> {
    /// True if it is not excluded that {address, port, protocol} is a frontend with an address of its own.
    #[inline(always)]
    pub fn may_be_frontend(&self, addr: &Addr, port: Port, protocol: Protocol) -> bool {
        self.has_port(port, PortBits::FRONTEND)
            && self
                .bits
                .has(AddressBits::frontend_bit(self.keys, addr, port, protocol))
    }

    /// True if it is not excluded that the port is a node port.
    #[inline(always)]
    pub fn may_be_node_port(&self, port: Port) -> bool {
        self.has_port(port, PortBits::NODE_PORT)
    }

    /// True if it is not excluded that the address refuses all ports but its own.
    #[inline(always)]
    pub fn may_refuse(&self, addr: &Addr) -> bool {
        let FrontendKey { port, protocol, .. } = FrontendKey::any_port(*addr);
        self.bits
            .has(AddressBits::frontend_bit(self.keys, addr, port, protocol))
    }

    /// True if it is not excluded that {address, port, protocol} is a backend.
    #[inline(always)]
    pub fn may_be_backend(&self, addr: &Addr, port: Port, protocol: Protocol) -> bool {
        self.has_port(port, PortBits::BACKEND)
            && self
                .bits
                .has(AddressBits::backend_bit(self.keys, addr, port, protocol))
    }

    #[inline(always)]
    fn has_port(&self, port: Port, bit: u64) -> bool {
        self.bits.has(AddressBits::port_bit(self.keys, port, bit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::boxed::Box;

    const KEYS: HashKeys = HashKeys::from_random([1, 2, 3, 4, 5, 6, 0xdead_beef, 8]);

    fn addr(text: &str) -> Addr {
        Addr::from(text.parse::<std::net::IpAddr>().expect("a test address"))
    }

    #[test]
    fn every_port_has_bits_of_its_own() {
        let mut bits = Box::new(AddressBits::EMPTY);
        let node_port = |port| FrontendKey::node_port(&addr("192.0.2.1"), port, Protocol::TCP);
        for port in (0..=u16::MAX).filter(|port| port % 3 == 0) {
            bits.add(AddressBits::of_frontend(&KEYS, &node_port(Port::new(port))));
        }
        let filter = Filter {
            bits: &bits,
            keys: &KEYS,
        };
        for port in 0..=u16::MAX {
            assert_eq!(filter.may_be_node_port(Port::new(port)), port % 3 == 0);
            assert!(!filter.has_port(Port::new(port), PortBits::FRONTEND));
            assert!(!filter.has_port(Port::new(port), PortBits::BACKEND));
        }
    }

    #[test]
    fn what_is_added_may_be_found_and_nothing_else_at_its_port_or_address() {
        let (ours, theirs) = (addr("10.96.0.1"), addr("10.96.0.2"));
        let (port, protocol) = (Port::new(443), Protocol::TCP);
        let mut bits = Box::new(AddressBits::EMPTY);
        let key = FrontendKey::exact(ours, port, protocol);
        bits.add(AddressBits::of_frontend(&KEYS, &key));
        bits.add(AddressBits::of_frontend(
            &KEYS,
            &FrontendKey::any_port(ours),
        ));
        bits.add(AddressBits::of_backend(&KEYS, &theirs, port, protocol));
        let filter = Filter {
            bits: &bits,
            keys: &KEYS,
        };
        assert!(filter.may_be_frontend(&ours, port, protocol));
        assert!(!filter.may_be_frontend(&theirs, port, protocol));
        assert!(!filter.may_be_frontend(&ours, Port::new(80), protocol));
        assert!(filter.may_refuse(&ours) && !filter.may_refuse(&theirs));
        assert!(filter.may_be_backend(&theirs, port, protocol));
        assert!(!filter.may_be_backend(&ours, port, protocol));
        assert!(!filter.may_be_node_port(port));
    }
}
