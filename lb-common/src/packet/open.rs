//! The first packet of a conversation: balance, begin a flow.

use super::ingress::translate;
use super::{Headers, Next, Packet, Part, Scratch, World, node, snat};
use crate::addr::{Endpoint, Protocol, ServiceId};
use crate::balance::{
    Asker, Client, Decision, Origin, Unserved, decide, find_frontend, is_hairpin, unserved,
};
use crate::env::{Env, PacketTables, Tables};
use crate::flow::{FlowState, Flows, Lifetime, NewFlow};
use crate::table::{Config, Frontend};
use crate::verdict::Reason;
use crate::wire::TcpFlags;

/// Chooses a backend for a packet without a flow.
#[inline(always)]
pub(super) fn choose<P: Packet, W: World>(
    packet: &P,
    world: &W,
    config: &Config,
    headers: &Headers,
) -> Next {
    let tables = world.tables();
    if headers.destination.addr.is_loopback() && !packet.is_made_here() {
        // A martian: node ports on loopback addresses are for the node itself only.
        return Next::Continue;
    }
    let Some(frontend) = find_frontend(tables, config, &headers.destination, headers.protocol)
    else {
        return without_frontend(tables, config, headers);
    };
    if headers.protocol.0 != Protocol::UDP.0 {
        if !TcpFlags::opens(headers.flags) {
            tables.count(Reason::MidFlowWithoutRecord);
            return Next::Continue;
        }
    } else if config.in_node_port_range(headers.destination.port)
        && packet.has_host_socket(&headers.source, &headers.destination)
    {
        tables.count(Reason::HostSocket);
        return Next::Continue;
    }
    if matches!(headers.part, Part::Later) {
        return Next::Continue;
    }
    balance(packet, world, config, headers, &frontend)
}

/// First packets to the addresses of services that are nobody's frontends.
#[inline(always)]
fn without_frontend(tables: &impl Tables, config: &Config, headers: &Headers) -> Next {
    if !headers.may_begin() || matches!(headers.part, Part::Later) {
        return Next::Continue;
    }
    match unserved(tables, config, &headers.destination.addr) {
        None => Next::Continue,
        Some(Unserved::Port) => {
            tables.count(Reason::RejectedUndefinedPort);
            Next::Refuse
        }
        Some(Unserved::Address) => {
            tables.count(Reason::DroppedUnusedAddress);
            Next::Drop
        }
    }
}

#[inline(always)]
fn balance<P: Packet, W: World>(
    packet: &P,
    world: &W,
    config: &Config,
    headers: &Headers,
    frontend: &Frontend,
) -> Next {
    let tables = world.tables();
    let source = headers.source.addr;
    let device = || (!packet.is_made_here()).then(|| packet.device());
    let asker = Asker {
        origin: match Origin::of_packet(tables, config, &source, device) {
            Origin::Other if packet.is_made_here() => Origin::Node,
            origin => origin,
        },
        client: Some(Client::Address(source)),
        source,
    };
    let decision = decide(tables, world.env(), config, frontend, &asker, &source);
    match decision {
        Decision::Forward(choice) => match world.with_scratch(|scratch| scratch.choice = choice) {
            Some(()) => Next::Begin,
            None => Next::Continue,
        },
        Decision::Reject(service) => {
            tables.count_service(service, |counters| {
                counters.tc_rejected = counters.tc_rejected.wrapping_add(1);
            });
            tables.count(Reason::RejectedNoEndpoint);
            Next::Refuse
        }
        Decision::Drop(service) => dropped(tables, service, Reason::DroppedNoLocalEndpoint),
        Decision::Forbid(service) => dropped(tables, service, Reason::DroppedSourceRange),
        Decision::Unstable => {
            tables.count(Reason::WindowUnstable);
            Next::Drop
        }
    }
}

#[inline(always)]
fn dropped(tables: &impl PacketTables, service: ServiceId, reason: Reason) -> Next {
    tables.count_service(service, |counters| {
        counters.tc_dropped = counters.tc_dropped.wrapping_add(1);
    });
    tables.count(reason);
    Next::Drop
}

/// Begins the flow and sends its first packet.
#[inline(always)]
pub(super) fn begin<P: Packet, W: World>(
    packet: &mut P,
    world: &W,
    config: &Config,
    scratch: &mut Scratch,
) -> Next {
    let tables = world.tables();
    let Scratch { headers, choice } = scratch;
    let Some(backend) = tables.backend(choice.backend) else {
        tables.count(Reason::TableInconsistent);
        return Next::Continue;
    };
    let mut state = 0;
    if choice.masquerade || is_hairpin(backend, &headers.source.addr) {
        state = FlowState::WANTS_SNAT;
    }
    if is_taken(world, config, headers, &choice.endpoint) {
        if state != 0 {
            // Two masqueraded flows from one client port to one backend are alike at egress.
            tables.count(Reason::SnatPortsExhausted);
            return Next::Drop;
        }
        state = FlowState::WANTS_SNAT | FlowState::SNAT_PORT_ONLY;
    }
    if packet.is_made_here() {
        state = node::state_of_own(state, &headers.source.addr);
    }
    let new = NewFlow {
        client: headers.source,
        frontend: headers.destination,
        protocol: headers.protocol,
        backend: choice.backend,
        state,
    };
    let Ok(flow) = world.flows(config).insert(&new, world.env().now()) else {
        tables.count(Reason::FlowTableFull);
        return Next::Drop;
    };
    // Another packet of the same conversation may have been quicker, on another CPU: then its
    // choice counts.
    let mut endpoint = choice.endpoint;
    let mut service = choice.service;
    if flow.backend != choice.backend {
        let Some(backend) = tables.backend(flow.backend) else {
            tables.count(Reason::TableInconsistent);
            return Next::Continue;
        };
        endpoint = Endpoint {
            addr: backend.addr,
            port: backend.port,
        };
        service = backend.service;
    }
    tables.count_service(service, |counters| {
        counters.tc_opened = counters.tc_opened.wrapping_add(1);
    });
    tables.count(Reason::Opened);
    let flow = if flow.state & FlowState::SNAT_PORT_ONLY == 0 {
        flow
    } else {
        match snat::reserve_port(
            world,
            config,
            headers,
            &flow,
            &endpoint,
            packet.is_made_here(),
        ) {
            Ok(flow) => flow,
            Err(reason) => {
                tables.count(reason);
                return Next::Drop;
            }
        }
    };
    translate(packet, world, headers, &flow, &endpoint, service)
}

/// True if the client's end already talks to this backend: through another frontend, or because
/// another flow was given this very end by SNAT. A conversation that is over is in nobody's way:
/// clients use a port again for another destination long before its record's time has come.
#[inline(always)]
fn is_taken<W: World>(world: &W, config: &Config, headers: &Headers, backend: &Endpoint) -> bool {
    let flows = world.flows(config);
    let (source, protocol) = (&headers.source, headers.protocol);
    if let Some(flow) = flows.by_backend(source, backend, protocol) {
        let now = world.env().now();
        let is_over = Lifetime::is_closed(protocol, flow.state)
            || Lifetime::is_expired(protocol, flow.state, flow.seen, now);
        if !is_over {
            return true;
        }
        flows.remove(&flow);
    }
    snat::is_snat_port(config, source.port) && flows.by_alias(source, backend, protocol).is_some()
}
