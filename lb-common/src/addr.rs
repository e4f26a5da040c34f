//! Addresses, ports, protocols and ids: the words every table and every hook speaks.
//!
//! One address type serves both families. An IPv4 address is kept in its IPv4-mapped form
//! (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2), so the packet path, the socket path (where a
//! program may connect to an IPv4-mapped IPv6 address) and the tables need one code path only.

mod prefix;

pub use prefix::Prefix;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An IPv6 or IPv4-mapped address: 16 bytes in network order, held as two words as they lie in
/// memory. Word values are therefore meaningless on their own; compare them for equality only.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Addr(pub [u64; 2]);

/// The upper half of the second word of an IPv4-mapped address, as it lies in memory.
const V4_MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
/// Selects the four bytes of [`V4_MAPPED`].
const V4_MAPPED_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);

impl Addr {
    /// The unspecified address `::`, which stands for "any local address" in a node port frontend.
    pub const UNSPECIFIED: Self = Self([0, 0]);

    /// From the four bytes of an IPv4 address as they lie in a packet (a `u32` read from memory).
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        if cfg!(target_endian = "little") {
            Self([0, V4_MAPPED | ((word as u64) << 32)])
        } else {
            Self([0, V4_MAPPED | word as u64])
        }
    }

    /// From the four words of an IPv6 address as they lie in memory.
    #[inline(always)]
    pub const fn from_v6_words(w: [u32; 4]) -> Self {
        if cfg!(target_endian = "little") {
            Self([
                (w[0] as u64) | ((w[1] as u64) << 32),
                (w[2] as u64) | ((w[3] as u64) << 32),
            ])
        } else {
            Self([
                ((w[0] as u64) << 32) | (w[1] as u64),
                ((w[2] as u64) << 32) | (w[3] as u64),
            ])
        }
    }

    /// The four words of the address as they lie in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the halves of a u64 are wanted"
        )]
        if cfg!(target_endian = "little") {
            [
                self.0[0] as u32,
                (self.0[0] >> 32) as u32,
                self.0[1] as u32,
                (self.0[1] >> 32) as u32,
            ]
        } else {
            [
                (self.0[0] >> 32) as u32,
                self.0[0] as u32,
                (self.0[1] >> 32) as u32,
                self.0[1] as u32,
            ]
        }
    }

    /// The IPv4 address as a packet word, for an address that [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.words()[3]
    }

    /// True for IPv4-mapped addresses.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] & V4_MAPPED_MASK == V4_MAPPED
    }

    /// True for `::` and for 0.0.0.0: "no address", or "any".
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.0[0] == 0 && (self.0[1] == 0 || self.0[1] == V4_MAPPED)
    }

    /// True for 127.0.0.0/8 and `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        const V6: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
        const V4: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 127, 0, 0, 0]);
        const V4_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0]);
        self.0[0] == 0 && (self.0[1] == V6 || self.0[1] & V4_MASK == V4)
    }

    /// The address under a network mask of the same form; [`Prefix`] is how masks are made.
    #[inline(always)]
    #[must_use = "the address itself is not changed"]
    pub const fn masked(&self, mask: &Self) -> Self {
        Self([self.0[0] & mask.0[0], self.0[1] & mask.0[1]])
    }

    /// The 16 bytes in network order.
    pub const fn octets(&self) -> [u8; 16] {
        let (a, b) = (self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes());
        [
            a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], b[0], b[1], b[2], b[3], b[4], b[5],
            b[6], b[7],
        ]
    }

    /// From 16 bytes in network order.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
            u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
        ])
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        core::net::Ipv6Addr::from(addr.octets()).to_canonical()
    }
}

impl core::fmt::Display for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::IpAddr::from(*self).fmt(f)
    }
}

/// A transport port in network order, as it lies in a packet and in every table.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Port(pub u16);

impl Port {
    /// From a number as people write it.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// The number as people write it.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }
}

/// An IP protocol number (IANA).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
#[repr(transparent)]
pub struct Protocol(pub u8);

impl Protocol {
    /// ICMP for IPv4.
    pub const ICMP: Self = Self(1);
    /// ICMP for IPv6.
    pub const ICMPV6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
}

/// An address with a port: one end of a conversation.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// The address.
    pub addr: Addr,
    /// The port.
    pub port: Port,
}

impl Endpoint {
    /// No end.
    pub const NONE: Self = Self {
        addr: Addr::UNSPECIFIED,
        port: Port(0),
    };
}

impl From<core::net::SocketAddr> for Endpoint {
    fn from(end: core::net::SocketAddr) -> Self {
        Self {
            addr: end.ip().into(),
            port: Port::new(end.port()),
        }
    }
}

/// Index of a service port in the service table. "Service" is always one port of a Service object:
/// the unit that has frontends, endpoints and affinity of its own.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
#[repr(transparent)]
pub struct ServiceId(pub u32);

/// Index of a backend (one endpoint of one service port) in the backend table. Zero is never
/// given out, so a zeroed record points at nothing.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
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
#[repr(transparent)]
pub struct BackendId(pub u32);

/// A moment on the coarse monotonic clock, in ticks of 2^26 ns (67 ms): cheap to derive from
/// nanoseconds and good for nine years of uptime.
#[derive(
    Clone, Copy, Debug, Default, Eq, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(transparent)]
pub struct Tick(pub u32);

impl Tick {
    /// Nanoseconds of `CLOCK_MONOTONIC` to ticks.
    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "wraps after nine years by design"
    )]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self((nanos >> 26) as u32)
    }

    /// A duration of whole seconds in ticks, rounded up.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "u32::MAX seconds saturate")]
    pub const fn seconds(seconds: u32) -> u32 {
        let ticks = (seconds as u64 * 1_000_000_000).div_ceil(1 << 26);
        if ticks > u32::MAX as u64 / 2 {
            u32::MAX / 2
        } else {
            ticks as u32
        }
    }

    /// Ticks since `earlier`; zero if `earlier` lies in the future (another CPU's clock was read
    /// a moment later).
    #[inline(always)]
    pub const fn since(self, earlier: Self) -> u32 {
        let age = self.0.wrapping_sub(earlier.0);
        if age > u32::MAX / 2 { 0 } else { age }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in [
            "10.1.2.3",
            "0.0.0.0",
            "255.255.255.255",
            "fd00::1",
            "::1",
            "::",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            let addr = Addr::from(ip);
            assert_eq!(IpAddr::from(addr), ip);
            assert_eq!(addr.is_v4(), ip.is_ipv4(), "{text}");
            assert_eq!(Addr::from_v6_words(addr.words()), addr);
            if ip.is_ipv4() {
                assert_eq!(Addr::from_v4_word(addr.v4_word()), addr);
            }
        }
    }

    #[test]
    fn loopback_and_unspecified_are_known_in_both_families() {
        for (text, loopback, unspecified) in [
            ("127.0.0.1", true, false),
            ("127.255.1.2", true, false),
            ("::1", true, false),
            ("128.0.0.1", false, false),
            ("10.0.0.1", false, false),
            ("::2", false, false),
            ("0.0.0.0", false, true),
            ("::", false, true),
        ] {
            let addr = Addr::from(text.parse::<IpAddr>().unwrap());
            assert_eq!(addr.is_loopback(), loopback, "{text}");
            assert_eq!(addr.is_unspecified(), unspecified, "{text}");
        }
    }

    #[test]
    fn ticks_survive_their_wrap() {
        assert_eq!(Tick(5).since(Tick(u32::MAX - 4)), 10);
        assert_eq!(Tick(5).since(Tick(6)), 0);
        assert_eq!(Tick::seconds(0), 0);
        assert_eq!(Tick::seconds(10), 150);
    }
}
