//! Datagrams of sockets without a peer: each goes to a service of its own, and each answer must
//! come from the address that was asked.

use super::client::Caller;
use super::conversations::{AMBIGUOUS, ENTERED, IDLE_SECONDS, answered, touch};
use super::{
    Answer, Asked, Count, Request, Socket, SocketTables, SocketVerdict, answer_unserved, balance,
    client, find, recorded, stays_on_packet_path,
};
use crate::addr::{Addr, BackendId, Endpoint, Protocol, Tick};
use crate::balance::{Choice, policy, slot_at};
use crate::env::Env;
use crate::table::{CONVERSATIONS, Config, Conversation, Frontend, FrontendKind, Membership};
use crate::verdict::Reason;

/// `sendmsg()` with an address, on a socket with or without a peer.
#[inline(always)]
pub fn sendmsg<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    request: &Request,
) -> SocketVerdict {
    let (config, frontend, host) = match find(tables, socket, request) {
        Some(Asked::Frontend(config, frontend, host)) => (config, frontend, host),
        Some(Asked::Unserved(unserved, _)) => {
            return match answer_unserved(tables, socket, unserved) {
                Answer::Refuse => SocketVerdict::Refuse,
                _ => SocketVerdict::Untouched,
            };
        }
        None => return SocketVerdict::Untouched,
    };
    // A connected socket hears its peer only: the service it is connected to is that peer.
    if socket.is_connected()
        && let Some(record) = socket.record(false).map(|record| *record)
        && record.backend != BackendId(0)
        && record.frontend == request.to.addr
        && record.frontend_port == request.to.port
    {
        return SocketVerdict::Translate(Endpoint {
            addr: record.backend_addr,
            port: record.backend_port,
        });
    }
    // What it connected to untranslated it must go on hearing by that name.
    if socket.is_connected() && stays_on_packet_path(config, request, host) {
        return SocketVerdict::Untouched;
    }
    let place = socket.place_of(&request.to);
    let now = env.now();
    let mut earlier = Conversation::default();
    if (place as usize) < CONVERSATIONS
        && let Some(mut table) = socket.conversations(false)
    {
        earlier = touch(&mut table, place, &request.to, now);
    }
    let idle = now.since(earlier.last_use) >= Tick::seconds(IDLE_SECONDS);
    if earlier.backend == Conversation::OTHER_ASKED && !idle {
        tables.count(Reason::HostSocket);
        return SocketVerdict::Untouched;
    }
    let Some(caller) = Caller::identify(tables, env, socket, request, config, frontend, host)
    else {
        return SocketVerdict::Untouched;
    };
    let local = uses_local_set(tables, config, &frontend, &caller, request);
    if earlier.backend != BackendId(0) && !idle && still_serves(tables, &earlier, &frontend, local)
    {
        return SocketVerdict::Translate(Endpoint {
            addr: earlier.backend_addr,
            port: earlier.backend_port,
        });
    }
    match balance(tables, env, socket, request, config, &frontend, &caller) {
        Answer::Leave => SocketVerdict::Untouched,
        Answer::Refuse => SocketVerdict::Refuse,
        Answer::Send(choice, _) => converse(
            tables,
            env,
            socket,
            request,
            &choice,
            local,
            caller.client.is_none(),
        ),
    }
}

#[inline(always)]
fn uses_local_set<T: SocketTables>(
    tables: &T,
    config: &Config,
    frontend: &Frontend,
    caller: &Caller,
    request: &Request,
) -> bool {
    match tables.service(frontend.service) {
        Some(service) => policy(config, frontend, service, caller.origin, &request.to.addr).0,
        None => false,
    }
}

/// A conversation stays with its backend while that may get new ones on this path.
#[inline(always)]
fn still_serves<T: SocketTables>(
    tables: &T,
    entry: &Conversation,
    frontend: &Frontend,
    local: bool,
) -> bool {
    let Some(backend) = tables.backend(entry.backend) else {
        return false;
    };
    let wanted = if local {
        Membership::LOCAL
    } else {
        Membership::CLUSTER
    };
    entry.service == frontend.service
        && backend.service == entry.service
        && backend.is_usable()
        && backend.member & wanted != 0
        && backend.addr == entry.backend_addr
        && backend.port == entry.backend_port
}

/// Enters the choice in the socket's record, with another backend where this one already answers
/// the socket for another frontend (`may_differ`: no affinity binds the client to the choice).
#[inline(always)]
fn converse<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    request: &Request,
    choice: &Choice,
    local: bool,
    may_differ: bool,
) -> SocketVerdict {
    let service = choice.service;
    let mut chosen = (choice.backend, choice.endpoint);
    let mut result = socket.enter(&request.to, chosen.0);
    if may_differ {
        let start = env.random() >> 1;
        // Not a loop: kernels before 6.4 take a call at a loop's end for an endless loop.
        let mut other = |index| {
            if result == AMBIGUOUS {
                chosen = slot_at(tables, service, local, start + index).unwrap_or(chosen);
                result = socket.enter(&request.to, chosen.0);
            }
        };
        other(0);
        other(1);
        other(2);
        other(3);
    }
    match result {
        ENTERED => {
            tables.count(Reason::Opened);
            tables.count_connection(service, chosen.0, Count::Opened);
            SocketVerdict::Translate(chosen.1)
        }
        AMBIGUOUS => {
            tables.count(Reason::SocketAmbiguous);
            SocketVerdict::Untouched
        }
        _ => {
            tables.count(Reason::SocketStorageExhausted);
            SocketVerdict::Untouched
        }
    }
}

/// `recvmsg()` is about to show that a datagram came from `source`: what it should show instead.
#[inline(always)]
pub fn recvmsg<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    source: &Endpoint,
) -> Option<Endpoint> {
    if socket.is_connected()
        && let Some(record) = recorded(socket, source)
    {
        client::adopt(tables, env, socket, &record, &socket.source(), || {
            socket.namespace()
        });
        return Some(Endpoint {
            addr: record.frontend,
            port: record.frontend_port,
        });
    }
    let now = env.now();
    let mut asked = None;
    if let Some(mut table) = socket.conversations(false) {
        asked = answered(&mut table, source, now);
    }
    if asked.is_none() && !socket.is_connected() {
        remember_asker(tables, socket, source);
    }
    asked
}

/// Somebody on this node asks from what is also a node port: the answer that this socket will send
/// there has no other mark to tell it from a request to the service.
#[inline(always)]
fn remember_asker<T: SocketTables, S: Socket>(tables: &T, socket: &S, source: &Endpoint) {
    let in_range = |config: &Config| config.in_node_port_range(source.port);
    if !tables.config().is_some_and(in_range) {
        return;
    }
    let request = Request {
        to: *source,
        protocol: Protocol::UDP,
        source: Addr::UNSPECIFIED,
    };
    // The compiler must not ask for the kind before it is known that there is a frontend: what lies
    // in its place then may be a pointer, which the verifier lets nobody calculate with.
    if let Some(Asked::Frontend(_, frontend, _)) = find(tables, socket, &request)
        && core::hint::black_box(frontend.kind) == FrontendKind::NodePort as u8
    {
        // Where the store is full the answer goes to the service: as without this record.
        let _ = socket.enter(source, Conversation::OTHER_ASKED);
    }
}
