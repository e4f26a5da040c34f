//! A hook's work in pieces, of which an ordinary packet of a known flow needs the first only.
//!
//! The kernel gives a program 512 bytes of stack for a whole chain of calls, and its verifier walks
//! what is called as often as it is reached, with all that is known of the values at that place. So
//! the rare work is not called from the depth of the hot path: a stage returns what is to be done
//! next, and leaves what it has found out in the [`Scratch`]. Each stage can be verified by itself.

use super::{Family, Headers};
use crate::addr::{BackendId, Endpoint, ServiceId};
use crate::balance::Choice;
use crate::verdict::Verdict;
use crate::wire::{Ipv4, Ipv6, Tcp};

/// A piece of a hook's work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stage {
    /// Ordinary IPv4 packets of known flows, and packets that are not ours. One stage for each family:
    /// half of what is done with an IPv4-mapped address is then known beforehand.
    OrdinaryV4,
    /// The same for IPv6.
    OrdinaryV6,
    /// Looks into fragments, IPv4 options, IPv6 extension headers and ICMP.
    Rare,
    /// What the ordinary stages do, for what `Rare` has found.
    Parsed,
    /// ICMP errors.
    Icmp,
    /// What a flow needs once: at ingress a backend is chosen, at egress an SNAT end.
    Open,
    /// Ingress: the flow to the chosen backend begins.
    Begin,
    /// Ingress: the packet is turned into the refusal of itself.
    Refuse,
    /// Ingress: a reply to the node itself is translated back.
    Return,
    /// Ingress: a reply that needs no translation yet gets its mark.
    Mark,
}

/// What is asked of a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Question {
    /// [`ingress`](super::ingress()).
    Ingress,
    /// [`egress`](super::egress()).
    Egress,
}

impl Stage {
    /// How many bytes from the IP header on it may read at fixed offsets, by
    /// [`Packet::read`](super::Packet::read): a plain IP header and TCP's.
    #[inline(always)]
    pub const fn headers(self) -> usize {
        match self {
            Self::OrdinaryV4 => size_of::<Ipv4>() + size_of::<Tcp>(),
            _ => size_of::<Ipv6>() + size_of::<Tcp>(),
        }
    }
}

/// What a stage has found to be done next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
#[repr(u32)]
pub enum Next {
    /// Done: [`Verdict::Continue`].
    Continue = 0,
    /// Done: [`Verdict::Drop`].
    Drop = 1,
    /// Done: [`Verdict::Answer`].
    Answer = 2,
    /// [`Stage::Rare`].
    Rare = 3,
    /// [`Stage::Parsed`].
    Parsed = 4,
    /// [`Stage::Icmp`].
    Icmp = 5,
    /// [`Stage::Open`].
    Open = 6,
    /// [`Stage::Begin`].
    Begin = 7,
    /// [`Stage::Refuse`].
    Refuse = 8,
    /// Done: [`Verdict::Route`].
    Route = 9,
    /// Done: [`Verdict::Deliver`].
    Deliver = 10,
    /// [`Stage::Return`].
    Return = 11,
    /// [`Stage::Mark`].
    Mark = 12,
}

impl Next {
    /// From its number; the numbers cross a function boundary in the kernel.
    #[inline(always)]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Drop,
            2 => Self::Answer,
            3 => Self::Rare,
            4 => Self::Parsed,
            5 => Self::Icmp,
            6 => Self::Open,
            7 => Self::Begin,
            8 => Self::Refuse,
            9 => Self::Route,
            10 => Self::Deliver,
            11 => Self::Return,
            12 => Self::Mark,
            _ => Self::Continue,
        }
    }
}

/// What one stage leaves to the next. Means nothing between packets.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// What is known of the packet.
    pub headers: Headers,
    /// The chosen backend.
    pub choice: Choice,
}

impl Scratch {
    /// Nothing is known yet.
    pub const EMPTY: Self = Self {
        headers: Headers::NONE,
        choice: Choice {
            backend: BackendId(0),
            endpoint: Endpoint::NONE,
            service: ServiceId(0),
            masquerade: false,
        },
    };
}

/// Runs the stages a packet of this family needs.
#[inline(always)]
pub fn in_stages(family: Family, mut run: impl FnMut(Stage) -> Next) -> Verdict {
    let mut next = match family {
        Family::V4 => run(Stage::OrdinaryV4),
        Family::V6 => run(Stage::OrdinaryV6),
        Family::Other => Next::Continue,
    };
    if matches!(next, Next::Rare) {
        next = run(Stage::Rare);
        if matches!(next, Next::Icmp) {
            next = run(Stage::Icmp);
        } else if matches!(next, Next::Parsed) {
            next = run(Stage::Parsed);
        }
    }
    if matches!(next, Next::Return) {
        next = run(Stage::Return);
    } else if matches!(next, Next::Open) {
        next = run(Stage::Open);
        if matches!(next, Next::Begin) {
            next = run(Stage::Begin);
        } else if matches!(next, Next::Refuse) {
            next = run(Stage::Refuse);
        }
    }
    if matches!(next, Next::Mark) {
        next = run(Stage::Mark);
    }
    match next {
        Next::Drop => Verdict::Drop,
        Next::Answer => Verdict::Answer,
        Next::Route => Verdict::Route,
        Next::Deliver => Verdict::Deliver,
        // A stage never asks for an earlier one.
        _ => Verdict::Continue,
    }
}

/// Runs the stages of a packet that is about to leave. What the node itself has made has passed no
/// ingress, so ingress's question comes first, as netfilter's OUTPUT does what PREROUTING did not.
#[inline(always)]
pub fn leaving(
    made_here: bool,
    family: Family,
    mut run: impl FnMut(Question, Stage) -> Next,
) -> Verdict {
    if made_here {
        let verdict = in_stages(family, |stage| run(Question::Ingress, stage));
        if !matches!(verdict, Verdict::Continue) {
            return verdict;
        }
    }
    in_stages(family, |stage| run(Question::Egress, stage))
}
