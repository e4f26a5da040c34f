//! Refusing: the packet is turned into the answer to itself. TCP gets a reset (RFC 9293 section
//! 3.10.7.1), SCTP an ABORT (RFC 9260 section 8.4), UDP "port unreachable" (RFC 792, RFC 4443), all
//! from the end that was asked.
//!
//! The packet's checksum may be one that a device is yet to compute, and there is no way to tell
//! the kernel otherwise. So the reset's checksum is changed, never written; and the ICMP error,
//! whose quote keeps that checksum, counts on what the device will make of it.

use super::{Covers, Failed, Headers, Next, Packet, Part};
use crate::addr::Protocol;
use crate::wire::{Difference, Icmp, Ipv4, Ipv6, Ports, Sctp, Tcp, TcpFlags, Udp, icmpv4, icmpv6};

/// Time to live of an answer.
const LIFETIME: u8 = 64;

/// Refuses a packet. Fragments and packets with options get no answer.
#[inline(always)]
pub(super) fn answer<P: Packet>(packet: &mut P, headers: &Headers) -> Next {
    let plain = if headers.source.addr.is_v4() {
        Ipv4::LENGTH
    } else {
        Ipv6::LENGTH
    };
    if headers.transport != plain || !matches!(headers.part, Part::Whole) {
        return Next::Drop;
    }
    let done = if headers.protocol.0 == Protocol::TCP.0 {
        reset(packet, headers)
    } else if headers.protocol.0 == Protocol::SCTP.0 {
        abort(packet, headers)
    } else {
        port_unreachable(packet, headers)
    };
    match done {
        Ok(()) => Next::Answer,
        Err(Failed) => Next::Drop,
    }
}

#[inline(always)]
fn reset<P: Packet>(packet: &mut P, headers: &Headers) -> Result<(), Failed> {
    let at = headers.transport;
    let old = packet.load::<Tcp>(at).ok_or(Failed)?;
    if old.flags & TcpFlags::RST != 0 {
        return Err(Failed);
    }
    let old_length = headers.length.checked_sub(at).ok_or(Failed)?;
    let mut new = Tcp {
        ports: exchanged(&old.ports),
        sequence: 0,
        acknowledgment: 0,
        data_offset: 5 << 4,
        flags: TcpFlags::RST,
        window: 0,
        checksum: 0,
        urgent: 0,
    };
    if old.flags & TcpFlags::ACK != 0 {
        new.sequence = old.acknowledgment;
    } else {
        // All that was sent is acknowledged; SYN and FIN count as one byte each.
        let data = old_length.wrapping_sub(u32::from(old.data_offset >> 4) * 4);
        let flags =
            u32::from(old.flags & TcpFlags::SYN != 0) + u32::from(old.flags & TcpFlags::FIN != 0);
        let next = u32::from_be(old.sequence)
            .wrapping_add(data)
            .wrapping_add(flags);
        new.acknowledgment = next.to_be();
        new.flags |= TcpFlags::ACK;
    }
    packet.resize(at + Tcp::LENGTH)?;

    // Addresses and ports only change places. A pending checksum wants the new length, and nothing
    // else is done to it.
    let length = Difference::NONE.replace_word(old_length.to_be(), Tcp::LENGTH.to_be());
    let checksum_at = at + Tcp::CHECKSUM_AT;
    packet.change_checksum(checksum_at, length, Covers::PseudoHeaderV6, false)?;
    // A complete one becomes that of the new segment, by way of what it is now.
    let wanted = pseudo_header(headers, Protocol::TCP, Tcp::LENGTH)
        .plus(sum_of_tcp(&new))
        .checksum();
    let now = length.apply(old.checksum);
    let change = Difference::NONE
        .plus_word(u32::from(!wanted))
        .plus_word(u32::from(now));
    packet.change_checksum(checksum_at, change, Covers::Payload, false)?;

    packet.store(at, &words_of_tcp(&new))?;
    packet.store(checksum_at + 2, &new.urgent)?;
    store_ip_header(packet, headers, Protocol::TCP, Tcp::LENGTH)
}

/// Answers an INIT as an end that nobody listens on does.
#[inline(always)]
fn abort<P: Packet>(packet: &mut P, headers: &Headers) -> Result<(), Failed> {
    let at = headers.transport;
    let old = packet.load::<Sctp>(at).ok_or(Failed)?;
    if old.chunk != Sctp::INIT {
        return Err(Failed);
    }
    let [length_high, length_low] = 4_u16.to_be_bytes();
    let mut words = [
        word(old.ports.destination.0, old.ports.source.0),
        old.initiate_tag,
        0,
        u32::from_ne_bytes([Sctp::ABORT, 0, length_high, length_low]),
    ];
    // Zero stands for a checksum that a device is yet to compute, or for none.
    if old.checksum != 0 {
        let mut register = u32::MAX;
        for word in words {
            register = packet.advance_crc32c(register ^ u32::from_le(word), 4);
        }
        words[2] = (!register).to_le();
    }
    packet.resize(at + Sctp::SHORTEST)?;
    packet.store(at, &words)?;
    store_ip_header(packet, headers, Protocol::SCTP, Sctp::SHORTEST)
}

/// A TCP header before its checksum.
#[inline(always)]
const fn words_of_tcp(tcp: &Tcp) -> [u32; 4] {
    let window = tcp.window.to_ne_bytes();
    [
        word(tcp.ports.source.0, tcp.ports.destination.0),
        tcp.sequence,
        tcp.acknowledgment,
        u32::from_ne_bytes([tcp.data_offset, tcp.flags, window[0], window[1]]),
    ]
}

#[inline(always)]
const fn sum_of_tcp(tcp: &Tcp) -> Difference {
    let [a, b, c, d] = words_of_tcp(tcp);
    Difference::NONE
        .plus_word(a)
        .plus_word(b)
        .plus_word(c)
        .plus_word(d)
        .plus_word(tcp.urgent as u32)
}

#[inline(always)]
const fn word(first: u16, second: u16) -> u32 {
    let (a, b) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a[0], a[1], b[0], b[1]])
}

#[inline(always)]
const fn exchanged(ports: &Ports) -> Ports {
    Ports {
        source: ports.destination,
        destination: ports.source,
    }
}

/// The pseudo header of either direction (the sum does not see the order of the addresses).
#[inline(always)]
const fn pseudo_header(headers: &Headers, protocol: Protocol, length: u32) -> Difference {
    Difference::NONE
        .plus_address(&headers.source.addr)
        .plus_address(&headers.destination.addr)
        .plus_word((protocol.0 as u32).to_be())
        .plus_word(length.to_be())
}

/// Writes the IP header of the answer: from the destination to the source.
#[inline(always)]
fn store_ip_header<P: Packet>(
    packet: &mut P,
    headers: &Headers,
    protocol: Protocol,
    length: u32,
) -> Result<(), Failed> {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "answers are shorter than 100 bytes"
    )]
    let length = length as u16;
    let (from, to) = (&headers.destination.addr, &headers.source.addr);
    if from.is_v4() {
        #[expect(clippy::cast_possible_truncation, reason = "a constant")]
        let total = (length + Ipv4::LENGTH as u16).to_be();
        let mut words = [
            word(u16::from_ne_bytes([Ipv4::PLAIN, 0]), total),
            word(0, Ipv4::DONT_FRAGMENT),
            u32::from_ne_bytes([LIFETIME, protocol.0, 0, 0]),
            from.v4_word(),
            to.v4_word(),
        ];
        let checksum = Difference::NONE
            .plus_word(words[0])
            .plus_word(words[1])
            .plus_word(words[2])
            .plus_word(words[3])
            .plus_word(words[4])
            .checksum();
        words[2] = Ipv4::with_checksum(words[2], checksum);
        return packet.store(0, &words);
    }
    let length = length.to_be_bytes();
    packet.store(
        0,
        &[
            Ipv6::PLAIN,
            u32::from_ne_bytes([length[0], length[1], protocol.0, LIFETIME]),
        ],
    )?;
    packet.store(Ipv6::SOURCE_AT, &from.words())?;
    packet.store(Ipv6::DESTINATION_AT, &to.words())
}

/// Quotes the IP header and eight bytes: what the sender needs to find its socket.
#[inline(always)]
fn port_unreachable<P: Packet>(packet: &mut P, headers: &Headers) -> Result<(), Failed> {
    let at = headers.transport;
    let udp = packet.load::<Udp>(at).ok_or(Failed)?;
    let v4 = headers.source.addr.is_v4();
    let quoted_ip = if v4 {
        sum_of_words(&packet.load::<[u32; 5]>(0).ok_or(Failed)?)
    } else {
        sum_of_words(&packet.load::<[u32; 10]>(0).ok_or(Failed)?)
    };
    let quoted_udp = if packet.is_checksum_pending(at + Udp::CHECKSUM_AT) {
        // Whatever the device computes over the quote, it makes it the complement of this.
        Difference::NONE.plus_word(u32::from(!udp.checksum))
    } else {
        Difference::NONE
            .plus_word(u32::from(udp.ports.source.0))
            .plus_word(u32::from(udp.ports.destination.0))
            .plus_word(u32::from(udp.length))
            .plus_word(u32::from(udp.checksum))
    };
    packet.resize(at + Udp::LENGTH)?;
    packet.prepend(at + Icmp::LENGTH)?;

    let length = Icmp::LENGTH + at + Udp::LENGTH;
    let (protocol, kind, code) = if v4 {
        (
            Protocol::ICMP,
            icmpv4::DESTINATION_UNREACHABLE,
            icmpv4::PORT_UNREACHABLE,
        )
    } else {
        (
            Protocol::ICMPV6,
            icmpv6::DESTINATION_UNREACHABLE,
            icmpv6::PORT_UNREACHABLE,
        )
    };
    let mut sum = Difference::NONE
        .plus_word(u32::from_ne_bytes([kind, code, 0, 0]))
        .plus(quoted_ip)
        .plus(quoted_udp);
    if !v4 {
        sum = sum.plus(pseudo_header(headers, protocol, length));
    }
    let [a, b] = sum.checksum().to_ne_bytes();
    packet.store(at, &[u32::from_ne_bytes([kind, code, a, b]), 0])?;
    store_ip_header(packet, headers, protocol, length)
}

#[inline(always)]
fn sum_of_words<const N: usize>(words: &[u32; N]) -> Difference {
    let mut sum = Difference::NONE;
    for word in words {
        sum = sum.plus_word(*word);
    }
    sum
}
