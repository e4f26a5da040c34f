//! Clients: they connect all the time, some of them keep talking, and each is told whether what it
//! got can be right.

use super::beliefs::{Asked, Beliefs, Got, is_pod};
use super::cluster::Cluster;
use super::race::Race;
use crate::host_path::{First, Kind, send};
use fastrand::Rng;
use lb_agent::model::desired::ServicePortName;
use lb_agent::plan::Op;
use lb_common::addr::{Endpoint, Protocol};
use lb_common::balance::{Asker, Decision, Origin, decide, find_frontend};
use lb_common::host::{HostSocket, PacketWorld};
use lb_common::socket::SocketVerdict;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Conversations that are kept.
const CONVERSATIONS: usize = 24;
/// A conversation is given up that has been silent for this long, milliseconds: the shortest time
/// that a flow which was not answered lives is longer.
const SILENCE: u64 = 25_000;
/// Milliseconds that the clock of the tables may be behind.
const TICK: u64 = 70;

/// A connection or a run of datagrams.
#[derive(Clone, Debug)]
struct Conversation {
    client: SocketAddr,
    asked: Asked,
    backend: SocketAddr,
    owner: Option<ServicePortName>,
    /// When it was last heard of.
    last: u64,
}

/// What a client was sent to when it last connected to a service port with session affinity.
#[derive(Clone, Copy, Debug)]
struct Remembered {
    backend: SocketAddr,
    epoch: u64,
    at: u64,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    conversations: Vec<Conversation>,
    remembered: HashMap<(ServicePortName, IpAddr), Remembered>,
    next_port: u16,
    /// What was seen, so that nobody has to believe that there was something to see.
    pub(super) seen: Seen,
}

/// How often something was seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// New connections.
    pub connections: u64,
    /// Those that got a backend.
    pub served: u64,
    /// Those that were refused or met silence.
    pub refused: u64,
    /// Packets of conversations under way.
    pub packets: u64,
    /// Datagrams that went to another backend than the one before.
    pub moved: u64,
    /// Connections of clients that are remembered.
    pub remembered: u64,
    /// Decisions made while the agent was writing.
    pub races: u64,
}

impl Seen {
    /// Adds what another run has seen.
    pub fn add(&mut self, other: &Self) {
        self.connections += other.connections;
        self.served += other.served;
        self.refused += other.refused;
        self.packets += other.packets;
        self.moved += other.moved;
        self.remembered += other.remembered;
        self.races += other.races;
    }
}

/// An address of a client: a pod here, or somebody outside.
fn client(rng: &mut Rng, v6: bool) -> IpAddr {
    let number = rng.u8(1..5);
    match (rng.bool(), v6) {
        (true, false) => Ipv4Addr::new(10, 1, 200, number).into(),
        (true, true) => Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 200, number.into()).into(),
        (false, false) => Ipv4Addr::new(203, 0, 113, number).into(),
        (false, true) => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn asked(cluster: &Cluster, rng: &mut Rng) -> (IpAddr, Asked) {
    let (to, port, protocol) = cluster.destination(rng);
    let from = client(rng, to.is_ipv6());
    let asked = Asked {
        to: SocketAddr::new(to, port),
        protocol: if protocol == "UDP" {
            Protocol::UDP
        } else {
            Protocol::TCP
        },
        origin: if is_pod(from) {
            Origin::Pod
        } else {
            Origin::Other
        },
        is_node: port >= 30_000,
    };
    (from, asked)
}

/// What is told, if what the client got can be right.
fn judged(beliefs: &Beliefs, asked: &Asked, got: Got, told: String) -> Result<String, String> {
    match beliefs.judge(asked, got) {
        Ok(()) => Ok(told),
        Err(wrong) => Err(format!("{told}: {wrong}")),
    }
}

fn first_kind(protocol: Protocol) -> Kind {
    if protocol == Protocol::UDP {
        Kind::Datagram
    } else {
        Kind::Syn
    }
}

impl Clients {
    /// A new connection, by the packet path.
    pub(super) fn connect(
        &mut self,
        packets: &PacketWorld,
        (cluster, beliefs): (&Cluster, &Beliefs),
        rng: &mut Rng,
        now: u64,
    ) -> Result<String, String> {
        let (from, asked) = asked(cluster, rng);
        self.next_port = if self.next_port < 1024 {
            1024
        } else {
            self.next_port + 1
        } % 60_000;
        let client = SocketAddr::new(from, self.next_port.max(1024));
        let (first, _) = send(packets, client, asked.to, first_kind(asked.protocol))
            .map_err(|error| format!("{client} to {}: {error}", asked.to))?;
        let got = Got::from(first);
        self.count(got);
        let told = format!(
            "{client} asks {} ({:?}) and gets {got:?}",
            asked.to, asked.protocol
        );
        let told = judged(beliefs, &asked, got, told)?;
        if let Got::Backend(backend) = got {
            let owner = beliefs.sole_owner(&asked);
            if let Some((owner, epoch)) = owner {
                self.check_affinity(beliefs, (owner, epoch), (from, &asked), backend, now)
                    .map_err(|wrong| format!("{told}: {wrong}"))?;
            }
            if self.conversations.len() == CONVERSATIONS {
                self.conversations.swap_remove(rng.usize(..CONVERSATIONS));
            }
            self.conversations.push(Conversation {
                client,
                asked,
                backend,
                owner: owner.map(|(name, _)| name.clone()),
                last: now,
            });
        }
        Ok(told)
    }

    fn count(&mut self, got: Got) {
        self.seen.connections += 1;
        match got {
            Got::Backend(_) => self.seen.served += 1,
            Got::Reject | Got::Silence => self.seen.refused += 1,
            Got::Nothing => {}
        }
    }

    /// A client that is remembered goes where it went before, as long as nothing of the service has
    /// changed.
    fn check_affinity(
        &mut self,
        beliefs: &Beliefs,
        (name, epoch): (&ServicePortName, u64),
        (client, asked): (IpAddr, &Asked),
        backend: SocketAddr,
        now: u64,
    ) -> Result<(), String> {
        let Some(seconds) = beliefs.affinity(name) else {
            return Ok(());
        };
        let key = (name.clone(), client);
        let latest = Remembered {
            backend,
            epoch,
            at: now,
        };
        let before = self.remembered.insert(key, latest);
        let in_time = |one: &Remembered| now + TICK < one.at + u64::from(seconds) * 1000;
        let is_good = |one: &Remembered| beliefs.serves(name, asked, &one.backend);
        match before.filter(|one| one.epoch == epoch && in_time(one) && is_good(one)) {
            Some(one) if one.backend != backend => Err(format!(
                "{} ms ago {client} was sent to {} and should be again",
                now - one.at,
                one.backend
            )),
            Some(_) => {
                self.seen.remembered += 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// A connection by the socket path, from a pod: it has no other packet to send.
    pub(super) fn connect_socket(
        &mut self,
        packets: &PacketWorld,
        (cluster, beliefs): (&Cluster, &Beliefs),
        rng: &mut Rng,
    ) -> Result<String, String> {
        let (_, mut asked) = asked(cluster, rng);
        asked.origin = Origin::Pod;
        let socket = HostSocket::new(&packets.tables, &packets.env, 2);
        let got = match socket.connect(Endpoint::from(asked.to), asked.protocol) {
            SocketVerdict::Translate(end) => {
                Got::Backend(SocketAddr::new(end.addr.into(), end.port.number()))
            }
            SocketVerdict::Refuse => Got::Reject,
            // A socket can only fail at once: silence is left to the packet path.
            SocketVerdict::Untouched => Got::Silence,
        };
        self.count(got);
        let told = format!("a socket asks {} and gets {got:?}", asked.to);
        judged(beliefs, &asked, got, told)
    }

    /// A connection that is decided while these stores are done.
    pub(super) fn race(
        &mut self,
        packets: &PacketWorld,
        (cluster, beliefs): (&Cluster, &Beliefs),
        rng: &mut Rng,
        stores: &[Op],
    ) -> Result<String, String> {
        let (from, asked) = asked(cluster, rng);
        self.seen.races += 1;
        let race = Race::new(&packets.tables, stores, rng.fork());
        let config = &packets.tables.config;
        let to = Endpoint::from(asked.to);
        let who = Asker {
            origin: asked.origin,
            client: None,
            source: from.into(),
        };
        let decision = find_frontend(&race, config, &to, asked.protocol)
            .map(|frontend| decide(&race, &packets.env, config, &frontend, &who, &to.addr));
        let got = match decision {
            None => Got::Nothing,
            Some(Decision::Forward(choice)) => Got::Backend(SocketAddr::new(
                choice.endpoint.addr.into(),
                choice.endpoint.port.number(),
            )),
            Some(Decision::Reject(_)) => Got::Reject,
            Some(Decision::Drop(_) | Decision::Forbid(_)) => Got::Silence,
            // A dropped packet, which is sent again.
            Some(Decision::Unstable) => return Ok("too many changes at once".to_owned()),
        };
        let told = format!(
            "while {} stores are done, {from} asks {} and gets {got:?}",
            stores.len(),
            asked.to
        );
        judged(beliefs, &asked, got, told)
    }

    /// A packet of a conversation under way.
    pub(super) fn talk(
        &mut self,
        packets: &PacketWorld,
        beliefs: &Beliefs,
        rng: &mut Rng,
        now: u64,
    ) -> Result<String, String> {
        self.conversations.retain(|one| now < one.last + SILENCE);
        if self.conversations.is_empty() {
            return Ok(String::new());
        }
        let place = rng.usize(..self.conversations.len());
        let one = &mut self.conversations[place];
        let kind = if one.asked.protocol == Protocol::UDP {
            Kind::Datagram
        } else {
            Kind::Segment
        };
        let (first, _) = send(packets, one.client, one.asked.to, kind)
            .map_err(|error| format!("{one:?}: {error}"))?;
        self.seen.packets += 1;
        let told = format!(
            "{} says more to {} and gets {first:?}",
            one.client, one.asked.to
        );
        one.last = now;
        match first {
            First::Backend(backend, _) if backend == one.backend => {
                // A datagram must not go on to an endpoint that was removed.
                let owner = one.owner.as_ref().filter(|_| kind == Kind::Datagram);
                match owner {
                    Some(owner)
                        if beliefs
                            .sole_owner(&one.asked)
                            .is_some_and(|(o, _)| o == owner)
                            && !beliefs.has(owner, &backend) =>
                    {
                        Err(format!("{told}, which was removed"))
                    }
                    _ => Ok(told),
                }
            }
            First::Backend(backend, _) if kind == Kind::Datagram => {
                one.backend = backend;
                one.owner = beliefs.sole_owner(&one.asked).map(|(name, _)| name.clone());
                self.seen.moved += 1;
                judged(beliefs, &one.asked, Got::Backend(backend), told)
            }
            // A datagram that begins anew, and finds nobody.
            other if kind == Kind::Datagram => {
                let judged = judged(beliefs, &one.asked, other.into(), told);
                self.conversations.swap_remove(place);
                judged
            }
            _ => Err(format!("{told}: its connection was to {}", one.backend)),
        }
    }

    /// A conversation ends: nothing is left to be said.
    pub(super) fn hang_up(&mut self) {
        self.conversations.clear();
    }
}
