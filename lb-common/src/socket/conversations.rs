//! The list of conversations in an unconnected UDP socket's record: search, begin, end.
//!
//! While the record's guard lives no table is asked: the kernel allows no calls under the lock. At
//! most one entry names a given backend address and port, so an answer has one owner.

use super::{Records, SocketTables, close};
use crate::addr::{BackendId, Endpoint, ServiceId, Tick};
use crate::env::Env;
use crate::table::{Conversation, UnconnectedSocket};

/// [`enter`]: the conversation is in the record.
pub const ENTERED: u32 = 0;
/// [`enter`]: another live conversation of the socket uses the backend for another frontend.
pub const AMBIGUOUS: u32 = 1;
/// [`enter`]: there is no record, or every entry of it is in a live conversation.
pub const FULL: u32 = 2;

/// After this time without a datagram a conversation has ended, in seconds (nf_conntrack's default
/// for UDP streams, which kube-proxy's UDP flows live by).
pub const IDLE_SECONDS: u32 = 120;

/// The number of the first used entry that `matches`, or one past the last place.
#[inline(always)]
fn search(table: &mut UnconnectedSocket, matches: impl Fn(&Conversation) -> bool) -> u32 {
    let used = table.used as usize;
    let mut found = table.entries.len();
    let mut index = 0;
    while let Some(entry) = table.entries.get(index) {
        if index >= used {
            break;
        }
        if matches(entry) {
            found = index;
            break;
        }
        index += 1;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "at most the table's length"
    )]
    {
        table.found = found as u32;
    }
    core::hint::black_box(&mut *table).found
}

#[inline(always)]
fn is_frontend(entry: &Conversation, frontend: &Endpoint) -> bool {
    entry.frontend_port == frontend.port
        && entry.frontend == frontend.addr
        && entry.backend != BackendId(0)
}

#[inline(always)]
fn is_backend(entry: &Conversation, backend: &Endpoint) -> bool {
    entry.backend_port == backend.port
        && entry.backend_addr == backend.addr
        && entry.backend != BackendId(0)
}

/// The number of the conversation with `frontend`, or one past the last place.
///
/// In the kernel a function of its own, verified once: see [`Socket`](super::Socket).
#[inline(always)]
pub fn place_of<S: Records>(socket: &S, frontend: &Endpoint) -> u32 {
    match socket.conversations(false) {
        Some(mut table) => search(&mut table, |entry| is_frontend(entry, frontend)),
        None => u32::MAX,
    }
}

/// The conversation in `place` as it was, if it is the one with `frontend`; marks it as used now.
/// An empty one otherwise: an `Option` would leave the copy unwritten, which kernels before 6.3
/// do not let a program read, even where it throws the value away.
#[inline(always)]
pub(super) fn touch(
    table: &mut UnconnectedSocket,
    place: u32,
    frontend: &Endpoint,
    now: Tick,
) -> Conversation {
    let mut before = Conversation::default();
    if let Some(entry) = table.entries.get_mut(place as usize)
        && is_frontend(entry, frontend)
    {
        before = *entry;
        entry.last_use = now;
    }
    before
}

/// The frontend whose answers come from `backend`, and marks the conversation as used now.
#[inline(always)]
pub(super) fn answered(
    table: &mut UnconnectedSocket,
    backend: &Endpoint,
    now: Tick,
) -> Option<Endpoint> {
    let place = search(table, |entry| is_backend(entry, backend));
    let entry = table.entries.get_mut(place as usize)?;
    entry.last_use = now;
    Some(Endpoint {
        addr: entry.frontend,
        port: entry.frontend_port,
    })
}

/// Enters a conversation in the socket's record, which is made if need be. Returns [`ENTERED`],
/// [`AMBIGUOUS`] or [`FULL`]. The conversations whose place or backend it got have ended. With
/// [`Conversation::OTHER_ASKED`] in place of a backend, `frontend` is the end that asked.
///
/// In the kernel a function of its own, verified once: see [`Socket`](super::Socket).
#[inline(always)]
pub fn enter<T: SocketTables, E: Env, S: Records>(
    tables: &T,
    env: &E,
    socket: &S,
    frontend: &Endpoint,
    backend: BackendId,
) -> u32 {
    let now = env.now();
    let mut new = Conversation {
        frontend: frontend.addr,
        backend_addr: frontend.addr,
        frontend_port: frontend.port,
        backend_port: frontend.port,
        backend,
        service: ServiceId(0),
        last_use: now,
    };
    if backend != Conversation::OTHER_ASKED {
        let Some(record) = tables.backend(backend) else {
            return AMBIGUOUS;
        };
        new.backend_addr = record.addr;
        new.backend_port = record.port;
        new.service = record.service;
    }
    let Some(mut table) = socket.conversations(true) else {
        return FULL;
    };
    let mut ended = [(ServiceId(0), BackendId(0)); 2];
    let result = begin(&mut table, &new, now, &mut ended);
    drop(table);
    close(tables, ended[0]);
    close(tables, ended[1]);
    result
}

#[inline(always)]
fn begin(
    table: &mut UnconnectedSocket,
    new: &Conversation,
    now: Tick,
    ended: &mut [(ServiceId, BackendId); 2],
) -> u32 {
    let idle = Tick::seconds(IDLE_SECONDS);
    let frontend = Endpoint {
        addr: new.frontend,
        port: new.frontend_port,
    };
    let backend = Endpoint {
        addr: new.backend_addr,
        port: new.backend_port,
    };
    let rival = search(table, |entry| is_backend(entry, &backend));
    if let Some(entry) = table.entries.get_mut(rival as usize)
        && !is_frontend(entry, &frontend)
    {
        if now.since(entry.last_use) < idle {
            return AMBIGUOUS;
        }
        ended[0] = (entry.service, entry.backend);
        entry.backend = BackendId(0);
    }

    let places = table.entries.len();
    let mut place = search(table, |entry| is_frontend(entry, &frontend)) as usize;
    if place >= places {
        place = search(table, |entry| {
            entry.backend == BackendId(0) || now.since(entry.last_use) >= idle
        }) as usize;
    }
    if place >= places {
        place = table.used as usize;
        if place < places {
            table.used += 1;
        }
    }
    let Some(entry) = table.entries.get_mut(place) else {
        return FULL;
    };
    ended[1] = (entry.service, entry.backend);
    *entry = *new;
    ENTERED
}
