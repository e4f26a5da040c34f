//! The core's answer to one flow.

use super::traffic::{Endpoints, Flow};
use super::world::World;
use lb_agent::model::desired::Family;
use lb_common::addr::{Addr, Endpoint, Port, Protocol};
use lb_common::balance::{Client, Decision, Origin, decide, find_frontend, is_hairpin};
use lb_common::env::Tables;
use lb_common::host::HostEnv;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

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

/// Asks the core, as often as it takes to see every endpoint it may choose.
pub(super) fn answer(world: &World, flow: &Flow) -> Result<Answer, String> {
    let protocol = protocol(&flow.protocol)?;
    if protocol == Protocol::SCTP {
        // The packet path leaves SCTP alone until ports can be rewritten under CRC32c.
        return Ok(Answer::Untouched);
    }
    let env = HostEnv::new(0x5eed);
    let mut seen: BTreeMap<SocketAddr, u32> = BTreeMap::new();
    let mut masquerade = None;
    let draws = match &flow.expect.endpoints {
        Endpoints::List(list) => DRAWS * u32::try_from(list.len().max(1)).unwrap_or(1),
        Endpoints::Word(_) => 1,
    };
    for _ in 0..draws {
        // Each draw is another client as far as affinity is concerned.
        world.tables.affinity.borrow_mut().clear();
        match first_packet(
            world,
            &env,
            flow.source,
            (flow.destination, flow.dest_port),
            protocol,
        ) {
            First::Backend(address, with) => {
                *seen.entry(address).or_default() += 1;
                if *masquerade.get_or_insert(with) != with
                    // A client that is itself an endpoint: only its own choice is a hairpin.
                    && !seen.keys().any(|at| at.ip() == flow.source)
                {
                    return Err("SNAT differs between draws".to_owned());
                }
            }
            First::Drop => return Ok(Answer::Drop),
            First::Reject => return Ok(Answer::Reject),
            First::Untouched => return Ok(Answer::Untouched),
            First::Unstable => return Err("the tables do not fit together".to_owned()),
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
    Ok(Answer::Forward {
        endpoints: seen.into_keys().collect(),
        masquerade: masquerade.unwrap_or(false),
    })
}

/// The fate of one first packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum First {
    Backend(SocketAddr, bool),
    Drop,
    Reject,
    Untouched,
    Unstable,
}

/// Asks the core about one new connection.
pub(super) fn first_packet(
    world: &World,
    env: &HostEnv,
    source: IpAddr,
    to: (IpAddr, u16),
    protocol: Protocol,
) -> First {
    let tables = &world.tables;
    let config = &tables.config;
    let client = Addr::from(source);
    let to = Endpoint {
        addr: to.0.into(),
        port: Port::new(to.1),
    };
    let Some(frontend) = find_frontend(tables, config, &to, protocol) else {
        return First::Untouched;
    };
    let origin = Origin::of_packet(tables, config, &client);
    let who = Some(Client::Address(client));
    match decide(tables, env, config, &frontend, origin, who, &client) {
        Decision::Forward(choice) => {
            let hairpin = tables
                .backend(choice.backend)
                .is_some_and(|backend| is_hairpin(backend, &client));
            let endpoint =
                SocketAddr::new(choice.endpoint.addr.into(), choice.endpoint.port.number());
            First::Backend(endpoint, choice.masquerade || hairpin)
        }
        Decision::Reject(_) => First::Reject,
        Decision::Drop(_) => First::Drop,
        Decision::Unstable => First::Unstable,
    }
}

/// Why a flow's expectation lies outside of what this version serves, if so. Asked only where the
/// answer differs: it may excuse nothing else.
pub(super) fn not_yet_served(
    world: &World,
    flow: &Flow,
    expected: &Answer,
) -> Option<&'static str> {
    if flow.protocol == "SCTP" {
        return Some("SCTP is not yet served");
    }
    let family = Family::of(flow.destination);
    let mut services = world.state.services().map(|(_, service)| service);
    if services.any(|service| {
        service.is_guarded(family)
            && service
                .load_balancer_ips(family)
                .any(|ip| ip == flow.destination)
    }) {
        return Some("loadBalancerSourceRanges (section 6) is not yet served");
    }
    let mut services = world.state.services().map(|(_, service)| service);
    let is_cluster_ip =
        services.any(|service| service.cluster_ip(family) == Some(flow.destination));
    if is_cluster_ip && *expected == Answer::Reject && !is_frontend(world, flow) {
        return Some("refusing an undefined port of a ClusterIP (section 5.2) is not yet served");
    }
    let ranges = &world.state.options().service_cidrs;
    if !is_cluster_ip
        && *expected == Answer::Drop
        && ranges.iter().any(|range| range.contains(&flow.destination))
    {
        return Some(
            "dropping for a free address of a ServiceCIDR (section 5.2) is not yet served",
        );
    }
    None
}

fn is_frontend(world: &World, flow: &Flow) -> bool {
    let to = Endpoint {
        addr: flow.destination.into(),
        port: Port::new(flow.dest_port),
    };
    protocol(&flow.protocol).is_ok_and(|protocol| {
        find_frontend(&world.tables, &world.tables.config, &to, protocol).is_some()
    })
}
