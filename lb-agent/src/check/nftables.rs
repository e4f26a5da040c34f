//! Chains and rules of nf_tables, read over netlink (`nfnetlink`, linux/netfilter/nf_tables.h). What
//! iptables-nft has written is among them.

use super::expression::Expression;
use super::facts::{Chain, Hook};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    socket,
};
use std::io;
use std::os::fd::AsRawFd;

const SUBSYSTEM: u16 = 10 << 8;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const DUMP: u16 = 0x301;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// `NLM_F_DUMP_INTR`: the listing changed while it was read.
const INTERRUPTED: u16 = 0x10;
/// How often a listing that changed is begun anew.
const TRIES: usize = 5;

/// Every chain of this network namespace with its rules.
pub fn list() -> io::Result<Vec<Chain>> {
    let mut chains = Vec::new();
    each(
        GET_CHAIN,
        NEW_CHAIN,
        &mut chains,
        |chains, family, message| {
            chains.extend(chain(family, message));
        },
    )?;
    each(
        GET_RULE,
        NEW_RULE,
        &mut chains,
        |chains, family, message| {
            let (table, name) = (text(message, 1), text(message, 2));
            let of_rule = |chain: &&mut Chain| {
                family_name(family) == chain.family && table == chain.table && name == chain.name
            };
            if let Some(chain) = chains.iter_mut().find(of_rule) {
                chain.rules.push(rule(message));
            }
        },
    )?;
    Ok(chains)
}

/// Asks for a listing and hands over each message of it: its family and its attributes.
fn each<T: Clone>(
    ask: u16,
    answer: u16,
    into: &mut T,
    take: impl Fn(&mut T, u8, &[u8]),
) -> io::Result<()> {
    for _ in 0..TRIES {
        let mut listing = into.clone();
        if listed(ask, answer, |family, message| {
            take(&mut listing, family, message);
        })? {
            *into = listing;
            return Ok(());
        }
    }
    Err(io::Error::other("the rules change while they are listed"))
}

/// One listing; false if it changed meanwhile.
fn listed(ask: u16, answer: u16, mut take: impl FnMut(u8, &[u8])) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
    // nlmsghdr and nfgenmsg (any family).
    let mut request = Vec::with_capacity(20);
    request.extend(20_u32.to_ne_bytes());
    request.extend(ask.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 12]);
    sendto(
        socket.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; 1 << 16];
    let mut whole = true;
    loop {
        let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..length];
        while let Some((kind, flags, body, next)) = message(rest) {
            whole &= flags & INTERRUPTED == 0;
            match kind {
                DONE => return Ok(whole),
                ERROR => {
                    let code = body.get(..4).map_or(0, number);
                    return Err(io::Error::from_raw_os_error(
                        code.cast_signed().wrapping_neg(),
                    ));
                }
                kind if kind == answer => {
                    if let Some((header, attributes)) = body.split_at_checked(4) {
                        take(header[0], attributes);
                    }
                }
                _ => {}
            }
            rest = next;
        }
    }
}

/// The first message: its type, its flags, its body, and what follows.
fn message(bytes: &[u8]) -> Option<(u16, u16, &[u8], &[u8])> {
    let length = number(bytes.get(..4)?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let flags = u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((kind, flags, body, next))
}

/// The attributes of a message or of a nested attribute: type and value.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        // The upper two bits say how the value is to be read.
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(found, _)| *found == kind)
        .map(|(_, value)| value)
}

fn text(bytes: &[u8], kind: u16) -> String {
    let value = attribute(bytes, kind).unwrap_or_default();
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value).into_owned()
}

/// A number of this machine's byte order.
fn number(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// nf_tables writes its numbers in network order.
fn word(bytes: &[u8], kind: u16) -> Option<u32> {
    let value = attribute(bytes, kind)?.try_into().ok()?;
    Some(u32::from_be_bytes(value))
}

/// `NFPROTO_*` as `nft` writes it.
const fn family_name(family: u8) -> &'static str {
    match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "?",
    }
}

fn chain(family: u8, message: &[u8]) -> Option<Chain> {
    let policy = word(message, 5);
    let hook = attribute(message, 4).and_then(|hook| {
        Some(Hook {
            number: word(hook, 1)?,
            priority: word(hook, 2)?.cast_signed(),
            drops: policy == Some(0),
        })
    });
    let (table, name) = (text(message, 1), text(message, 3));
    (!name.is_empty()).then(|| Chain {
        family: family_name(family),
        table,
        name,
        hook,
        rules: Vec::new(),
    })
}

fn rule(message: &[u8]) -> Vec<Expression> {
    let list = attribute(message, 4).unwrap_or_default();
    let mut found = Vec::new();
    let mut state = false;
    for (_, element) in attributes(list) {
        let name = text(element, 1);
        let data = attribute(element, 2).unwrap_or_default();
        match name.as_str() {
            // State and the mask it is compared through are expressions of their own.
            "ct" if word(data, 2) == Some(0) && attribute(data, 1).is_some() => state = true,
            "bitwise" if state => {
                let mask = attribute(data, 4).and_then(|mask| attribute(mask, 1));
                let invalid = mask.is_some_and(|mask| mask.first().is_some_and(|m| m & 1 != 0));
                found.push(Expression::State { invalid });
                state = false;
            }
            _ => found.extend(expression(&name, data)),
        }
    }
    if state {
        found.push(Expression::State { invalid: false });
    }
    found
}

/// What one expression means here; `None` for what only prepares another, or counts.
fn expression(name: &str, data: &[u8]) -> Option<Expression> {
    Some(match name {
        "payload" if attribute(data, 1).is_some() => payload(data)?,
        // NFT_FIB_RESULT_ADDRTYPE of the destination.
        "fib" if word(data, 2) == Some(3) && word(data, 3)? & 2 != 0 => Expression::DestinationType,
        // NFT_META_MARK and NFT_CT_MARK: written where there is a source register.
        "meta" if word(data, 2) == Some(3) && attribute(data, 3).is_some() => Expression::Remember,
        "meta" if word(data, 2) == Some(3) => Expression::Mark,
        "ct" if attribute(data, 4).is_some() => Expression::Remember,
        "notrack" => Expression::Remember,
        "fib" | "meta" | "ct" | "lookup" | "limit" | "socket" | "rt" | "exthdr" => {
            Expression::Match
        }
        "immediate" => verdict(data)?,
        "reject" => Expression::Drop,
        "match" => old_match(&text(data, 1), attribute(data, 3).unwrap_or_default()),
        "target" => match text(data, 1).as_str() {
            "MARK" | "CONNMARK" | "CT" | "NOTRACK" => Expression::Remember,
            "REJECT" => Expression::Drop,
            _ => return None,
        },
        _ => return None,
    })
}

/// Which part of the packet is looked at.
fn payload(data: &[u8]) -> Option<Expression> {
    let (base, offset, length) = (word(data, 2)?, word(data, 3)?, word(data, 4)?);
    let covers = |at: u32, size: u32| offset <= at && offset + length >= at + size;
    Some(match base {
        1 if covers(16, 4) && length <= 8 || covers(24, 16) => Expression::DestinationAddress,
        2 if covers(2, 2) => Expression::DestinationPort,
        _ => Expression::Match,
    })
}

fn verdict(data: &[u8]) -> Option<Expression> {
    let verdict = attribute(attribute(data, 2)?, 2)?;
    match word(verdict, 1)?.cast_signed() {
        0 => Some(Expression::Drop),
        1 => Some(Expression::Accept),
        -4 | -3 => Some(Expression::Jump(text(verdict, 2))),
        _ => None,
    }
}

/// An extension of iptables.
fn old_match(name: &str, info: &[u8]) -> Expression {
    match name {
        "addrtype" => Expression::DestinationType,
        "tcp" | "udp" | "sctp" | "multiport" => Expression::DestinationPort,
        "mark" => Expression::Mark,
        // `state_mask` of xt_conntrack_mtinfo3.
        "conntrack" => Expression::State {
            invalid: info.get(150).is_some_and(|mask| mask & 1 != 0),
        },
        _ => Expression::Match,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = u16::try_from(value.len() + 4).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn number(kind: u16, value: u32) -> Vec<u8> {
        attr(kind, &value.to_be_bytes())
    }

    fn element(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
        attr(
            1,
            &[attr(1, name.as_bytes()), attr(2, &data.concat())].concat(),
        )
    }

    #[test]
    fn a_chain_is_read_with_its_hook() {
        let hook = [number(1, 2), number(2, (-150_i32).cast_unsigned())].concat();
        let bytes = [
            attr(1, b"filter\0"),
            attr(3, b"FORWARD\0"),
            attr(4, &hook),
            number(5, 0),
        ];
        let chain = chain(2, &bytes.concat()).unwrap();
        assert_eq!((chain.family, chain.table.as_str()), ("ip", "filter"));
        let hook = chain.hook.unwrap();
        assert_eq!((hook.number, hook.priority, hook.drops), (2, -150, true));
    }

    #[test]
    fn what_a_rule_looks_at_and_does_is_recognised() {
        let verdict = |code: i32, chain: &str| {
            let code = [number(1, code.cast_unsigned()), attr(2, chain.as_bytes())].concat();
            element("immediate", &[number(1, 0), attr(2, &attr(2, &code))])
        };
        let load = |base, offset, length| {
            [
                number(1, 8),
                number(2, base),
                number(3, offset),
                number(4, length),
            ]
        };
        let list = [
            element("ct", &[number(1, 8), number(2, 0)]),
            element(
                "bitwise",
                &[number(1, 8), attr(4, &attr(1, &1_u32.to_ne_bytes()))],
            ),
            element("payload", &load(2, 2, 2)),
            element("payload", &load(1, 16, 4)),
            element("payload", &load(1, 12, 4)),
            element("fib", &[number(1, 8), number(2, 3), number(3, 2)]),
            element("meta", &[number(1, 8), number(2, 3)]),
            element("meta", &[number(3, 8), number(2, 3)]),
            element("counter", &[]),
            verdict(0, ""),
            verdict(-3, "cali-FORWARD"),
        ];
        assert_eq!(
            rule(&attr(4, &list.concat())),
            [
                Expression::State { invalid: true },
                Expression::DestinationPort,
                Expression::DestinationAddress,
                Expression::Match,
                Expression::DestinationType,
                Expression::Mark,
                Expression::Remember,
                Expression::Drop,
                Expression::Jump("cali-FORWARD".to_owned()),
            ]
        );
    }

    #[test]
    fn what_is_cut_short_ends_the_listing_and_nothing_else() {
        assert_eq!(rule(&attr(4, &[9, 0, 1])), []);
        assert!(message(&[3, 0, 0, 0]).is_none());
        assert!(attributes(&[0, 0, 0, 0, 0]).next().is_none());
    }
}
