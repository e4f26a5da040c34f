//! The core's answer to one flow.

use super::traffic::{Endpoints, Flow};
use super::world::World;
use crate::host_path::{First, Kind, send};
use lb_common::addr::Protocol;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

/// What happens to the first packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Forward {
        endpoints: BTreeSet<SocketAddr>,
        masquerade: bool,
    },
    Drop,
    Reject,
    Untouched,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forward {
                endpoints,
                masquerade,
            } => {
                let with = if *masquerade { "with" } else { "without" };
                let endpoints: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
                write!(f, "one of [{}] {with} SNAT", endpoints.join(", "))
            }
            Self::Drop => f.write_str("drop"),
            Self::Reject => f.write_str("reject"),
            Self::Untouched => f.write_str("untouched"),
        }
    }
}

/// A protocol as cases write it.
fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        _ => Err(format!("{text} is no protocol")),
    }
}

/// How often each endpoint is to be drawn on average.
const DRAWS: u32 = 100;

/// Sends first packets, as many as it takes to see every endpoint that may be chosen.
pub(super) fn answer(world: &mut World, flow: &Flow) -> Result<Answer, String> {
    let protocol = protocol(&flow.protocol)?;
    let draws = match &flow.expect.endpoints {
        Endpoints::List(list) => DRAWS * u32::try_from(list.len().max(1)).unwrap_or(1),
        Endpoints::Word(_) => 1,
    };
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut masqueraded = BTreeSet::new();
    for draw in 0..draws {
        // The table of these worlds is small.
        if draw % 64 == 0 {
            world.forget_flows();
        }
        let port = 10_000 + u16::try_from(draw).unwrap_or(u16::MAX / 2);
        // Each draw is another client as far as affinity is concerned.
        world.packets.tables.affinity.borrow_mut().clear();
        let from = SocketAddr::new(flow.source, port);
        let to = SocketAddr::new(flow.destination, flow.dest_port);
        match first_packet(world, from, to, protocol)? {
            First::Backend(address, with) => {
                *seen.entry(address).or_default() += 1;
                masqueraded.insert(with);
            }
            First::Drop => return Ok(Answer::Drop),
            First::Reject => return Ok(Answer::Reject),
            First::Untouched => return Ok(Answer::Untouched),
        }
    }
    let average = draws / u32::try_from(seen.len()).unwrap_or(1).max(1);
    if let Some((address, count)) = seen
        .iter()
        .find(|(_, count)| **count * 2 < average || **count > average * 2)
    {
        return Err(format!(
            "{address} was chosen {count} times of {draws}: not about equal"
        ));
    }
    if masqueraded.len() > 1 {
        return Err("some draws are SNATed and some are not".to_owned());
    }
    Ok(Answer::Forward {
        endpoints: seen.into_keys().collect(),
        masquerade: masqueraded.contains(&true),
    })
}

/// Sends the first packet of a conversation.
pub(super) fn first_packet(
    world: &World,
    from: SocketAddr,
    to: SocketAddr,
    protocol: Protocol,
) -> Result<First, String> {
    let kind = match protocol {
        Protocol::TCP => Kind::Syn,
        Protocol::UDP => Kind::Datagram,
        Protocol::SCTP => Kind::Init,
        other => return Err(format!("there are no services of protocol {}", other.0)),
    };
    send(&world.packets, from, to, kind).map(|(first, _)| first)
}
