//! Replacing one end of a packet, with every checksum that covers it.

use super::{Covers, Failed, Headers, Packet, Part};
use crate::addr::{Addr, Endpoint, Protocol};
use crate::wire::{Difference, Ipv4, Ipv6, Ports, Sctp, Tcp, Udp};
use zerocopy::{Immutable, IntoBytes};

/// Replaces the source, in the packet and in `headers`.
#[inline(always)]
pub(super) fn replace_source(
    packet: &mut impl Packet,
    headers: &mut Headers,
    to: &Endpoint,
) -> Result<(), Failed> {
    let old = headers.source;
    change_transport_checksum::<true>(packet, headers, &old, to)?;
    headers.source = *to;
    if headers.destination.addr.is_v4() {
        return store_v4::<true>(packet, headers, &old, to);
    }
    store_v6_address(packet, Ipv6::SOURCE_AT, &to.addr)?;
    store_port(packet, headers, Ports::SOURCE_AT, &old, to)
}

/// Replaces the destination, in the packet and in `headers`.
#[inline(always)]
pub(super) fn replace_destination(
    packet: &mut impl Packet,
    headers: &mut Headers,
    to: &Endpoint,
) -> Result<(), Failed> {
    let old = headers.destination;
    change_transport_checksum::<false>(packet, headers, &old, to)?;
    headers.destination = *to;
    if headers.source.addr.is_v4() {
        return store_v4::<false>(packet, headers, &old, to);
    }
    if headers.transport == Ipv6::LENGTH && !matches!(headers.part, Part::Later) {
        // Address and ports lie side by side: one write.
        return packet.store(
            Ipv6::DESTINATION_AT,
            &V6Tail {
                destination: to.addr.words(),
                ports: ports_word(headers),
            },
        );
    }
    store_v6_address(packet, Ipv6::DESTINATION_AT, &to.addr)?;
    store_port(packet, headers, Ports::DESTINATION_AT, &old, to)
}

/// The end of an IPv6 header without extensions, and what follows it.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct V6Tail {
    destination: [u32; 4],
    ports: u32,
}

/// Both ports as the first word of a transport header.
#[inline(always)]
const fn ports_word(headers: &Headers) -> u32 {
    let (s, d) = (
        headers.source.port.0.to_ne_bytes(),
        headers.destination.port.0.to_ne_bytes(),
    );
    u32::from_ne_bytes([s[0], s[1], d[0], d[1]])
}

/// Tells the transport checksum of the new end. Later fragments have none, the whole datagram's is
/// in the first.
#[inline(always)]
fn change_transport_checksum<const SOURCE: bool>(
    packet: &mut impl Packet,
    headers: &Headers,
    old: &Endpoint,
    new: &Endpoint,
) -> Result<(), Failed> {
    if matches!(headers.part, Part::Later) {
        return Ok(());
    }
    if headers.protocol.0 == Protocol::SCTP.0 {
        return change_crc::<SOURCE>(packet, headers, old, new);
    }
    let udp = headers.protocol.0 == Protocol::UDP.0;
    let at = headers.transport
        + if udp {
            Udp::CHECKSUM_AT
        } else {
            Tcp::CHECKSUM_AT
        };
    if old.addr != new.addr {
        let covers = if old.addr.is_v4() {
            Covers::PseudoHeaderV4
        } else {
            Covers::PseudoHeaderV6
        };
        let address = Difference::NONE.replace_address(&old.addr, &new.addr);
        packet.change_checksum(at, address, covers, udp)?;
    }
    if old.port != new.port {
        let port = Difference::NONE.replace_port(old.port, new.port);
        packet.change_checksum(at, port, Covers::Payload, udp)?;
    }
    Ok(())
}

/// Tells SCTP's checksum of a new port. Zero stands for one that a device is yet to compute, or for
/// none (RFC 9653), and stays.
#[inline(always)]
fn change_crc<const SOURCE: bool>(
    packet: &mut impl Packet,
    headers: &Headers,
    old: &Endpoint,
    new: &Endpoint,
) -> Result<(), Failed> {
    if old.port == new.port {
        return Ok(());
    }
    if !matches!(headers.part, Part::Whole) {
        // It covers fragments that are not here, and a length that nobody knows yet.
        return Err(Failed);
    }
    let at = headers.transport + Sctp::CHECKSUM_AT;
    let checksum = packet.load::<u32>(at).ok_or(Failed)?;
    if checksum == 0 {
        return Ok(());
    }
    let length = headers
        .length
        .checked_sub(headers.transport)
        .ok_or(Failed)?;
    let change = packet.advance_crc32c(Sctp::port_change::<SOURCE>(old.port, new.port), length);
    packet.store(at, &(checksum ^ change.to_le()))
}

/// Writes one end of an IPv4 packet, with the header's checksum (which no device ever computes, so
/// it is safe to be written as it is).
#[inline(always)]
fn store_v4<const SOURCE: bool>(
    packet: &mut impl Packet,
    headers: &mut Headers,
    old: &Endpoint,
    new: &Endpoint,
) -> Result<(), Failed> {
    let difference = Difference::NONE.replace_address(&old.addr, &new.addr);
    let checksum = difference.apply(Ipv4::checksum_of(headers.ipv4_word));
    headers.ipv4_word = Ipv4::with_checksum(headers.ipv4_word, checksum);
    let words = [
        headers.ipv4_word,
        headers.source.addr.v4_word(),
        headers.destination.addr.v4_word(),
    ];
    if headers.transport == Ipv4::LENGTH && !matches!(headers.part, Part::Later) {
        // Checksum, addresses and ports lie side by side: one write.
        let [a, b, c] = words;
        return packet.store(Ipv4::WORD_AT, &[a, b, c, ports_word(headers)]);
    }
    packet.store(Ipv4::WORD_AT, &words)?;
    let at = if SOURCE {
        Ports::SOURCE_AT
    } else {
        Ports::DESTINATION_AT
    };
    store_port(packet, headers, at, old, new)
}

#[inline(always)]
fn store_v6_address(packet: &mut impl Packet, at: u32, addr: &Addr) -> Result<(), Failed> {
    packet.store(at, &addr.words())
}

#[inline(always)]
fn store_port(
    packet: &mut impl Packet,
    headers: &Headers,
    at: u32,
    old: &Endpoint,
    new: &Endpoint,
) -> Result<(), Failed> {
    if matches!(headers.part, Part::Later) || old.port == new.port {
        return Ok(());
    }
    packet.store(headers.transport + at, &new.port.0)
}
