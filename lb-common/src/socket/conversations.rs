//! The list of conversations in an unconnected UDP socket's record: search, begin, end.
//!
//! Nothing here asks a table: the caller holds the record's lock, under which the kernel allows no
//! calls. At most one entry names a given backend address and port, so an answer has one owner.

use crate::addr::{BackendId, Endpoint, ServiceId, Tick};
use crate::table::{Conversation, UnconnectedSocket};

/// What [`begin`] did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Begun {
    /// It stands; these two had their place or their backend and have ended (backend 0: nobody).
    Yes([(ServiceId, BackendId); 2]),
    /// Another live conversation of the socket uses this backend for another frontend.
    Ambiguous,
    /// Every entry is in a live conversation.
    Full,
}

/// The number of the first used entry that `matches`, or one past the last place.
#[inline(always)]
fn search(table: &mut UnconnectedSocket, matches: impl Fn(&Conversation) -> bool) -> usize {
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
    core::hint::black_box(&mut *table).found as usize
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

/// The conversation with `frontend` as it was, and marks it as used now.
#[inline(always)]
pub(super) fn touch(
    table: &mut UnconnectedSocket,
    frontend: &Endpoint,
    now: Tick,
) -> Option<Conversation> {
    let index = search(table, |entry| is_frontend(entry, frontend));
    let entry = table.entries.get_mut(index)?;
    let before = *entry;
    entry.last_use = now;
    Some(before)
}

/// The frontend whose answers come from `backend`, and marks the conversation as used now.
#[inline(always)]
pub(super) fn answered(
    table: &mut UnconnectedSocket,
    backend: &Endpoint,
    now: Tick,
) -> Option<Endpoint> {
    let index = search(table, |entry| is_backend(entry, backend));
    let entry = table.entries.get_mut(index)?;
    entry.last_use = now;
    Some(Endpoint {
        addr: entry.frontend,
        port: entry.frontend_port,
    })
}

/// Enters a conversation: in the place of the one with the same frontend, else of an idle one,
/// else in a new place.
#[inline(always)]
pub(super) fn begin(
    table: &mut UnconnectedSocket,
    new: &Conversation,
    now: Tick,
    idle_ticks: u32,
) -> Begun {
    let frontend = Endpoint {
        addr: new.frontend,
        port: new.frontend_port,
    };
    let backend = Endpoint {
        addr: new.backend_addr,
        port: new.backend_port,
    };
    let mut ended = [(ServiceId(0), BackendId(0)); 2];

    let rival = search(table, |entry| is_backend(entry, &backend));
    if let Some(entry) = table.entries.get_mut(rival)
        && !is_frontend(entry, &frontend)
    {
        if now.since(entry.last_use) < idle_ticks {
            return Begun::Ambiguous;
        }
        ended[0] = (entry.service, entry.backend);
        entry.backend = BackendId(0);
    }

    let mut place = search(table, |entry| is_frontend(entry, &frontend));
    if place >= table.entries.len() {
        place = search(table, |entry| {
            entry.backend == BackendId(0) || now.since(entry.last_use) >= idle_ticks
        });
    }
    if place >= table.entries.len() {
        place = table.used as usize;
        if place < table.entries.len() {
            table.used += 1;
        }
    }
    let Some(entry) = table.entries.get_mut(place) else {
        return Begun::Full;
    };
    ended[1] = (entry.service, entry.backend);
    *entry = *new;
    Begun::Yes(ended)
}
