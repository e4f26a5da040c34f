//! What a packet meets as it arrives: DNAT of requests to frontends, un-SNAT of replies to the SNAT
//! end of a flow.

use super::parse::{Ordinary, Thorough, ordinary_v4, ordinary_v6, thorough};
use super::pass::{give_up, keep, kept};
use super::{
    Failed, Headers, Next, Packet, Part, Question, Stage, World, fragment, icmp, nat, node, open,
    reject, snat,
};
use crate::addr::{Endpoint, Protocol, ServiceId, Tick};
use crate::balance::may_be_unserved;
use crate::env::{Env, PacketTables, Tables};
use crate::flow::{Flow, FlowState, Flows};
use crate::table::{BackendState, Config, ConfigFlags, Filter};
use crate::verdict::Reason;
use crate::wire::TcpFlags;

/// One stage of treating a packet that has arrived.
#[inline(always)]
pub fn ingress<P: Packet, W: World>(stage: Stage, packet: &mut P, world: &W) -> Next {
    let Some(config) = world.tables().config() else {
        return Next::Continue;
    };
    match stage {
        Stage::OrdinaryV4 => ordinary(packet, world, config, ordinary_v4(packet)),
        Stage::OrdinaryV6 => ordinary(packet, world, config, ordinary_v6(packet)),
        Stage::Rare => rare(packet, world, config),
        Stage::Parsed => match kept(world) {
            // Rare packets do without the filter, which only saves time: it is one look at the flow
            // table more for those that are not ours, and less stack for those that are.
            Some(mut headers) => segment(packet, world, config, None, &mut headers),
            None => Next::Continue,
        },
        Stage::Icmp => match kept(world) {
            Some(headers) => icmp::treat(Question::Ingress, packet, world, config, &headers),
            None => Next::Continue,
        },
        Stage::Open => match kept(world) {
            Some(headers) => open::choose(packet, world, config, &headers),
            None => Next::Continue,
        },
        // In place: it is the stage that needs the most stack.
        Stage::Begin => world
            .with_scratch(|scratch| open::begin(packet, world, config, scratch))
            .unwrap_or(Next::Continue),
        Stage::Refuse => match kept(world) {
            Some(headers) => reject::answer(packet, &headers),
            None => Next::Drop,
        },
        Stage::Return => match kept(world) {
            Some(mut headers) => node::returned(packet, world, config, &mut headers),
            None => Next::Continue,
        },
        Stage::Mark => {
            world.with_scratch(|scratch| mark_reply(packet, world, config, &scratch.headers));
            Next::Continue
        }
    }
}

/// Goes on with what the quick look has found.
#[inline(always)]
#[expect(
    clippy::needless_pass_by_value,
    reason = "inlined: the headers stay where they are"
)]
fn ordinary<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    found: Ordinary,
) -> Next {
    match found {
        Ordinary::Segment(mut headers) => match world.tables().filter(config) {
            Some(filter) => segment(packet, world, config, Some(filter), &mut headers),
            None => Next::Continue,
        },
        Ordinary::Rare => Next::Rare,
        Ordinary::Foreign => Next::Continue,
    }
}

/// Fragments, options, extension headers, ICMP.
#[inline(always)]
fn rare<P: Packet, W: World>(packet: &mut P, world: &W, config: &Config) -> Next {
    match thorough(packet, 0) {
        Thorough::Segment(mut headers) => {
            if !fragment::complete(world.tables(), &mut headers, fragment::Hook::Ingress) {
                world.tables().count(Reason::FragmentWithoutFirst);
                return Next::Continue;
            }
            if config.has(ConfigFlags::MARK_REPLIES) {
                mark_reply(packet, world, config, &headers);
            }
            keep(world, &headers, Next::Parsed)
        }
        Thorough::Icmp(headers) => keep(world, &headers, Next::Icmp),
        Thorough::Foreign => Next::Continue,
        Thorough::Unparsable => {
            world.tables().count(Reason::Unparsable);
            Next::Continue
        }
    }
}

#[inline(always)]
fn segment<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    filter: Option<Filter<'_>>,
    headers: &mut Headers,
) -> Next {
    let (protocol, port) = (headers.protocol, headers.destination.port);
    if snat::is_snat_port(config, port) {
        let source = &headers.source;
        if filter.is_none_or(|filter| filter.may_be_backend(&source.addr, source.port, protocol))
            && let Some(next) = reply(packet, world, config, headers)
        {
            return next;
        }
    }
    let to = &headers.destination.addr;
    let may_be_request = filter.is_none_or(|filter| {
        filter.may_be_node_port(port)
            || filter.may_be_frontend(to, port, protocol)
            // What an address refuses are first packets.
            || headers.may_begin() && may_be_unserved(&filter, config, to)
    });
    if may_be_request {
        return request(packet, world, config, headers);
    }
    if let Some(filter) = filter
        && config.has(ConfigFlags::MARK_REPLIES)
        && filter.may_be_backend(&headers.source.addr, headers.source.port, protocol)
    {
        return keep(world, headers, Next::Mark);
    }
    Next::Continue
}

/// A reply that is translated as it leaves. Routing comes before that, and may want to know.
#[inline(always)]
fn mark_reply<P: Packet, W: World>(packet: &mut P, world: &W, config: &Config, headers: &Headers) {
    let flows = world.flows(config);
    let found = flows.by_backend(&headers.destination, &headers.source, headers.protocol);
    if found.is_some() {
        packet.mark(config.masquerade_mark, 0);
    }
}

/// What is to become of a flow that a request has found.
enum Fate {
    /// It goes on to its backend.
    Goes(Endpoint, ServiceId),
    /// It is forgotten, and the packet begins a new one.
    Ends(Reason),
    /// The tables do not know its backend.
    Orphaned,
}

/// A request to what may be a frontend.
#[inline(always)]
fn request<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
) -> Next {
    let flows = world.flows(config);
    let Some(flow) = flows.by_frontend(&headers.source, &headers.destination, headers.protocol)
    else {
        return keep(world, headers, Next::Open);
    };
    let now = world.env().now();
    match fate(world.tables(), headers, &flow, now) {
        // Another CPU is just about to reserve its port.
        Fate::Goes(..) if flow.needs_port() => keep(world, headers, Next::Open),
        Fate::Goes(backend, service) => {
            // A SYN that comes again does not make an attempt younger.
            if !TcpFlags::opens(headers.flags) {
                flows.note(&flow, state_after_request(headers.flags), now);
            }
            translate(packet, world, headers, &flow, &backend, service)
        }
        Fate::Ends(reason) => {
            flows.remove(&flow);
            world.tables().count(reason);
            keep(world, headers, Next::Open)
        }
        Fate::Orphaned => {
            world.tables().count(Reason::TableInconsistent);
            Next::Continue
        }
    }
}

/// How long a SYN that comes again is taken for a retransmission of the first, which must meet the
/// same backend: RFC 6298 sends it again after one second and after three. A later one may as well
/// be a new attempt from the same port, and the backend has had its time: another one is tried.
/// (Linux keeps such an attempt in nf_conntrack for 120 s, and with it every later connection from
/// that port.)
const SYN_RETRANSMISSION_SECONDS: u32 = 5;

#[inline(always)]
fn fate(tables: &impl Tables, headers: &Headers, flow: &Flow, now: Tick) -> Fate {
    let Some(backend) = tables.backend(flow.backend) else {
        return Fate::Orphaned;
    };
    if headers.protocol.0 == Protocol::UDP.0 {
        // A datagram flow has no end of its own: it must not outlive its backend.
        if !backend.is_usable() && !matches!(headers.part, Part::Later) {
            return Fate::Ends(Reason::MovedFromGoneBackend);
        }
    } else if TcpFlags::opens(headers.flags) {
        let unanswered = flow.state & FlowState::REPLIED == 0
            && now.since(flow.seen) >= const { Tick::seconds(SYN_RETRANSMISSION_SECONDS) };
        if !backend.is_usable() || unanswered || flow.is_closing() {
            return Fate::Ends(Reason::Rebalanced);
        }
    }
    if backend.state == BackendState::Free as u8 {
        return Fate::Orphaned;
    }
    Fate::Goes(
        Endpoint {
            addr: backend.addr,
            port: backend.port,
        },
        backend.service,
    )
}

#[inline(always)]
const fn state_after_request(flags: u8) -> u16 {
    let mut state = 0;
    if flags & TcpFlags::FIN != 0 {
        state |= FlowState::FIN_FORWARD;
    }
    if flags & TcpFlags::RST != 0 {
        state |= FlowState::RESET;
    }
    state
}

/// Marks a packet. The configuration is looked up again: held on to until here, it would need stack.
#[inline(always)]
fn mark<P: Packet, W: World>(packet: &mut P, world: &W) {
    if let Some(config) = world.tables().config() {
        packet.mark(config.masquerade_mark, 0);
    }
}

/// Sends a request on to its backend.
#[inline(always)]
pub(super) fn translate<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    headers: &mut Headers,
    flow: &Flow,
    backend: &Endpoint,
    service: ServiceId,
) -> Next {
    let tables = world.tables();
    if flow.state & (FlowState::WANTS_SNAT | FlowState::SNAT_PORT_ONLY) == FlowState::WANTS_SNAT {
        mark(packet, world);
    }
    // With the client's own address the port can be replaced here, and must: at egress the packet
    // could not be told from one of the other flow.
    let mut replaced = Ok(());
    if flow.state & FlowState::SNAT_PORT_ONLY != 0 {
        replaced = match snat::end_at_ingress(tables, flow, &headers.source) {
            Some(end) => nat::replace_source(packet, headers, &end),
            None => Err(Failed),
        };
    }
    let segments = u64::from(packet.segments());
    tables.count_service(service, |counters| {
        counters.packets_in = counters.packets_in.wrapping_add(segments);
        counters.bytes_in = counters.bytes_in.wrapping_add(u64::from(headers.length));
    });
    if replaced.is_err() || nat::replace_destination(packet, headers, backend).is_err() {
        return give_up(world);
    }
    if flow.state & FlowState::OF_NODE != 0 {
        return Next::Route;
    }
    Next::Continue
}

/// A reply to the SNAT end of a flow: it goes to the client. Its source is translated at egress.
/// `None` if the packet is no such reply.
#[inline(always)]
fn reply<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    headers: &mut Headers,
) -> Option<Next> {
    let flow =
        world
            .flows(config)
            .by_alias(&headers.destination, &headers.source, headers.protocol)?;
    if flow.state & FlowState::OF_NODE != 0 {
        return Some(keep(world, headers, Next::Return));
    }
    if config.has(ConfigFlags::MARK_REPLIES) {
        mark(packet, world);
    }
    // A flow that kept the client's address is translated back in one step at egress.
    if flow.state & FlowState::SNAT_PORT_ONLY == 0
        && nat::replace_destination(packet, headers, &flow.client).is_err()
    {
        return Some(give_up(world));
    }
    Some(Next::Continue)
}
