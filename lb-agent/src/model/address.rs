//! Addresses as people and old API objects write them, and the classes of address that may serve
//! nothing.

use super::refusal::Reason;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr};

/// Reads an address the way Kubernetes reads those of existing objects: leading zeros in IPv4 are
/// decimal (section 2), an IPv4-mapped IPv6 address is the IPv4 address.
pub(super) fn parse(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
    }
    let mut octets = [0_u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        // Leading zeros could be many; the number behind them decides.
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts
        .next()
        .is_none()
        .then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

/// Reads a prefix; blanks around it are tolerated and host bits are cleared (section 6).
pub(super) fn parse_prefix(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let address = parse(address)?;
    IpNet::new(address, length.parse().ok()?)
        .ok()
        .map(|net| net.trunc())
}

/// Why no frontend and no endpoint may have this address, if so: traffic sent there would be the
/// node's own, a neighbour's on the link, or a group's.
pub(super) fn unusable(address: IpAddr) -> Option<Reason> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() {
        Some(Reason::Unspecified)
    } else if address.is_loopback() {
        Some(Reason::Loopback)
    } else if link_local {
        Some(Reason::LinkLocal)
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some(Reason::Multicast)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_zeros_are_decimal() {
        for (text, expected) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.010.010.010", Some("10.10.10.10")),
            ("000.0.00.0008", Some("0.0.0.8")),
            ("256.0.0.1", None),
            ("1.2.3", None),
            ("1.2.3.4.5", None),
            ("1.2.3.+4", None),
            ("1..2.3", None),
            ("nonsense", None),
            ("", None),
            ("::ffff:10.1.2.3", Some("10.1.2.3")),
            ("fd00::1", Some("fd00::1")),
            ("fd00::1%eth0", None),
        ] {
            assert_eq!(
                parse(text),
                expected.map(|e| e.parse().expect("a test address")),
                "{text}"
            );
        }
    }

    #[test]
    fn prefixes_lose_blanks_and_host_bits() {
        for (text, expected) in [
            (" 10.1.2.3/28 ", Some("10.1.2.0/28")),
            ("010.0.0.0/8", Some("10.0.0.0/8")),
            ("2001:db8::1/32", Some("2001:db8::/32")),
            ("10.0.0.0/33", None),
            ("10.0.0.0", None),
        ] {
            assert_eq!(
                parse_prefix(text),
                expected.map(|e| e.parse().expect("a test prefix")),
                "{text}"
            );
        }
    }

    #[test]
    fn dangerous_addresses_have_a_reason() {
        for (text, expected) in [
            ("127.0.0.1", Some(Reason::Loopback)),
            ("127.255.0.1", Some(Reason::Loopback)),
            ("::1", Some(Reason::Loopback)),
            ("169.254.169.254", Some(Reason::LinkLocal)),
            ("fe80::1", Some(Reason::LinkLocal)),
            ("febf::1", Some(Reason::LinkLocal)),
            ("224.0.0.1", Some(Reason::Multicast)),
            ("239.255.255.255", Some(Reason::Multicast)),
            ("ff02::1", Some(Reason::Multicast)),
            ("255.255.255.255", Some(Reason::Multicast)),
            ("0.0.0.0", Some(Reason::Unspecified)),
            ("::", Some(Reason::Unspecified)),
            ("10.0.0.1", None),
            ("fec0::1", None),
            ("fd00::1", None),
        ] {
            assert_eq!(
                unusable(text.parse().expect("a test address")),
                expected,
                "{text}"
            );
        }
    }
}
