//! Datagrams of sockets without a peer: each goes to a service of its own, and each answer must
//! come from the address that was asked.

use super::client::Caller;
use super::conversations::{Begun, answered, begin, touch};
use super::{
    Answer, Count, Request, Socket, SocketTables, SocketVerdict, balance, client, close, find,
    recorded,
};
use crate::addr::{BackendId, Endpoint, Tick};
use crate::balance::{Choice, policy, slot_at};
use crate::env::Env;
use crate::table::{Config, Conversation, Frontend, Membership};
use crate::verdict::Reason;

/// After this time without a datagram a conversation has ended, in seconds (nf_conntrack's default
/// for UDP streams, which kube-proxy's UDP flows live by).
pub const IDLE_SECONDS: u32 = 120;

/// How many other backends are tried when the chosen one already answers this socket for another
/// frontend.
const OTHER_BACKENDS: u32 = 4;

/// `sendmsg()` with an address, on a socket with or without a peer.
#[inline(always)]
pub fn sendmsg<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    request: &Request,
) -> SocketVerdict {
    let Some((config, frontend, host)) = find(tables, socket, request) else {
        return SocketVerdict::Untouched;
    };
    // A connected socket hears its peer only: the service it is connected to is that peer.
    if socket.is_connected()
        && let Some(record) = socket.with_record(false, |record| *record)
        && record.backend != BackendId(0)
        && record.frontend == request.to.addr
        && record.frontend_port == request.to.port
    {
        return SocketVerdict::Translate(Endpoint {
            addr: record.backend_addr,
            port: record.backend_port,
        });
    }
    // Before anything that has many outcomes: the verifier follows the search once for each.
    let now = env.now();
    let earlier = socket.with_conversations(false, |table| touch(table, &request.to, now));
    let Some(caller) = Caller::identify(tables, env, socket, request, config, &frontend, host)
    else {
        return SocketVerdict::Untouched;
    };
    let local = uses_local_set(tables, config, &frontend, &caller, request);
    if let Some(Some(entry)) = earlier
        && now.since(entry.last_use) < Tick::seconds(IDLE_SECONDS)
        && still_serves(tables, &entry, &frontend, local)
    {
        return SocketVerdict::Translate(Endpoint {
            addr: entry.backend_addr,
            port: entry.backend_port,
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
    let now = env.now();
    let start = env.random();
    let (mut backend, mut endpoint) = (choice.backend, choice.endpoint);
    let mut tries = 0;
    loop {
        let new = Conversation {
            frontend: request.to.addr,
            backend_addr: endpoint.addr,
            frontend_port: request.to.port,
            backend_port: endpoint.port,
            backend,
            service: choice.service,
            last_use: now,
        };
        let begun = socket.with_conversations(true, |table| {
            begin(table, &new, now, Tick::seconds(IDLE_SECONDS))
        });
        match begun {
            Some(Begun::Yes(ended)) => {
                close(tables, ended[0]);
                close(tables, ended[1]);
                tables.count(Reason::Opened);
                tables.count_connection(choice.service, backend, Count::Opened);
                return SocketVerdict::Translate(endpoint);
            }
            Some(Begun::Ambiguous) => {}
            Some(Begun::Full) | None => {
                tables.count(Reason::SocketStorageExhausted);
                return SocketVerdict::Untouched;
            }
        }
        if !may_differ || tries == OTHER_BACKENDS {
            break;
        }
        let Some(other) = slot_at(tables, choice.service, local, (start >> 1) + tries) else {
            break;
        };
        (backend, endpoint) = other;
        tries += 1;
    }
    tables.count(Reason::SocketAmbiguous);
    SocketVerdict::Untouched
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
    socket.with_conversations(false, |table| answered(table, source, now))?
}
