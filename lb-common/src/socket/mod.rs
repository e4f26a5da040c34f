//! The socket path: where does this socket's connection or datagram go, and whom does it believe
//! to be talking to?
//!
//! Here live the rules of `connect`, `sendmsg`, `recvmsg`, `getpeername`, release and "source
//! chosen", over the traits [`Socket`] and [`SocketTables`]; the cgroup hooks only carry contexts
//! to them. What the hooks cannot do exactly (drop silently, replace the source) they leave
//! untranslated to the packet path, counted.

mod client;
mod conversations;
mod datagram;
#[cfg(test)]
mod tests;

pub use conversations::{AMBIGUOUS, ENTERED, FULL, IDLE_SECONDS, enter, place_of};
pub use datagram::{recvmsg, sendmsg};

use crate::addr::{Addr, BackendId, Endpoint, Protocol, ServiceId};
use crate::balance::{Asker, Choice, Decision, Unserved, decide, find_frontend, look_up, unserved};
use crate::env::{Env, Tables};
use crate::feature::Feature;
use crate::table::{
    Config, ConfigFlags, ConnectedSocket, Conversation, Frontend, FrontendKey, NamespaceAddresses,
    SocketMode, UnconnectedSocket,
};
use crate::verdict::Reason;
use client::Caller;
use core::ops::{Deref, DerefMut};

/// The records that live with one socket.
pub trait Records {
    /// The record of its connection, `None` if there is none (and, with `create`, none could be
    /// made). A new record is zeroed.
    fn record(&self, create: bool) -> Option<impl DerefMut<Target = ConnectedSocket>>;
    /// Its conversations, likewise. While the guard lives nobody else reads or writes them, and
    /// the kernel allows no calls: no table may be asked.
    fn conversations(&self, create: bool) -> Option<impl DerefMut<Target = UnconnectedSocket>>;
    /// A last look at its conversations while it is being released: nobody else has it.
    fn last_conversations(&self) -> Option<impl Deref<Target = UnconnectedSocket>>;
}

/// The entry by which the agent finds out where a connected UDP socket was sent: the kernel lists
/// sockets, but does not show what is stored with those of UDP.
pub trait Peer {
    /// Enters the backend; false if there is no room.
    fn enter_peer(&self, backend: BackendId) -> bool;
    /// Removes the entry.
    fn remove_peer(&self);
}

/// One socket, as the hooks of addresses see it.
///
/// [`place_of`] and [`enter`] search up to 128 conversations. The verifier follows a search once
/// for each state the program may be in when it begins, unless it is a function that it verifies
/// alone (a global function, kernel 5.6): so a socket says how they are called.
pub trait Socket: Records + Peer {
    /// Calls [`place_of`].
    fn place_of(&self, frontend: &Endpoint) -> u32;
    /// Calls [`enter`].
    fn enter(&self, frontend: &Endpoint, backend: BackendId) -> u32;
    /// The source address it is bound to (by `bind`, or by an earlier `connect`); unspecified if
    /// routing will choose.
    fn source(&self) -> Addr;
    /// True while the kernel has a peer for it. A record outlives `connect(AF_UNSPEC)`, which
    /// passes no hook; this does not.
    fn is_connected(&self) -> bool;
    /// The cookie of its network namespace.
    fn namespace(&self) -> u64;
    /// True if that is the kernel's first namespace.
    fn is_in_first_namespace(&self) -> bool;
    /// True if its process is in a cgroup, at any depth, whose sockets are not balanced.
    fn is_opted_out(&self) -> bool;
    /// True if the running kernel has this [`Feature`].
    fn kernel_has(&self, feature: u32) -> bool;
}

/// What a connection counts as.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Count {
    /// It begins.
    Opened,
    /// It ends.
    Closed,
}

/// The tables that only the socket path reads or writes.
pub trait SocketTables: Tables {
    /// The known addresses of the network namespace with this cookie.
    fn namespace_addresses(&self, cookie: u64) -> Option<NamespaceAddresses>;
    /// Remembers them.
    fn learn_namespace(&self, cookie: u64, addresses: &NamespaceAddresses);
    /// Counts a connection (or UDP conversation) for its service port and its backend.
    fn count_connection(&self, service: ServiceId, backend: BackendId, what: Count);
    /// Counts a refusal.
    fn count_refusal(&self, service: ServiceId);
}

/// What `connect` or `sendmsg` asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// The destination asked.
    pub to: Endpoint,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The source asked for this datagram (`IP_PKTINFO`), else unspecified.
    pub source: Addr,
}

/// What the hook does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[must_use]
pub enum SocketVerdict {
    /// Nothing: it is no service's, or the packet path decides.
    Untouched,
    /// Replace the address.
    Translate(Endpoint),
    /// Fail with `ECONNREFUSED`.
    Refuse,
}

/// What was found out about a request.
enum Answer {
    Leave,
    Refuse,
    Send(Choice, u32),
}

/// What a socket asks for.
enum Asked<'t> {
    /// A frontend; and whether the socket is one of the host's.
    Frontend(&'t Config, Frontend, bool),
    /// An address of services that is nobody's frontend; and whether the socket is the host's.
    Unserved(Unserved, bool),
}

/// What a socket asks for; `None` if it is no service's or sockets of this kind are not balanced
/// here.
#[inline(always)]
fn find<'t, T: SocketTables>(
    tables: &'t T,
    socket: &impl Socket,
    request: &Request,
) -> Option<Asked<'t>> {
    let config = tables.config()?;
    if request.protocol != Protocol::TCP && request.protocol != Protocol::UDP {
        return None;
    }
    if config.socket_mode == SocketMode::Off as u32 {
        return None;
    }
    let to = &request.to;
    // To the kernel 0.0.0.0 as a destination is this host.
    let loops = to.addr == Addr::from_v4_word(0) || to.addr.is_loopback();
    let frontend = if loops {
        // In a namespace that is not the host's, 127.0.0.1 is somebody else.
        if !config.has(ConfigFlags::LOCALHOST_NODE_PORTS)
            || !to.addr.is_v4()
            || !tables.filter(config)?.may_be_node_port(to.port)
            || !client::is_host(config, socket)
        {
            return None;
        }
        let key = FrontendKey::node_port(&to.addr, to.port, request.protocol);
        Some(look_up(tables, config, &key)?)
    } else {
        find_frontend(tables, config, to, request.protocol)
    };
    let unserved = match frontend {
        Some(_) => None,
        None => Some(unserved(tables, config, &to.addr)?),
    };
    let host = client::is_host(config, socket);
    if config.socket_mode == SocketMode::HostOnly as u32 && !host {
        return None;
    }
    if config.has(ConfigFlags::OPT_OUT) && socket.is_opted_out() {
        return None;
    }
    match (frontend, unserved) {
        (Some(frontend), _) => Some(Asked::Frontend(config, frontend, host)),
        (None, Some(unserved)) => Some(Asked::Unserved(unserved, host)),
        (None, None) => None,
    }
}

/// What a socket can be told about an address that nobody serves.
#[inline(always)]
fn answer_unserved<T: SocketTables>(
    tables: &T,
    socket: &impl Socket,
    unserved: Unserved,
) -> Answer {
    match unserved {
        Unserved::Port if socket.kernel_has(Feature::SET_RETVAL) => {
            tables.count(Reason::RejectedUndefinedPort);
            Answer::Refuse
        }
        Unserved::Port => {
            tables.count(Reason::SocketRejectLeftToPacketPath);
            Answer::Leave
        }
        Unserved::Address => {
            tables.count(Reason::SocketDropLeftToPacketPath);
            Answer::Leave
        }
    }
}

/// Asks the balancer, and says what of its answer a socket can carry out.
#[inline(always)]
fn balance<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    request: &Request,
    config: &Config,
    frontend: &Frontend,
    caller: &Caller,
) -> Answer {
    let decision = decide(
        tables,
        env,
        config,
        frontend,
        &Asker {
            origin: caller.origin,
            client: caller.client,
            source: caller.source,
        },
        &request.to.addr,
    );
    match decision {
        Decision::Forward(choice) => {
            if caller.source.is_loopback() && !choice.endpoint.addr.is_loopback() {
                tables.count(Reason::SocketLoopbackSource);
                return Answer::Leave;
            }
            Answer::Send(choice, caller.record_flags)
        }
        Decision::Reject(service) => {
            if !socket.kernel_has(Feature::SET_RETVAL) {
                tables.count(Reason::SocketRejectLeftToPacketPath);
                return Answer::Leave;
            }
            tables.count(Reason::RejectedNoEndpoint);
            tables.count_refusal(service);
            Answer::Refuse
        }
        Decision::Drop(_) | Decision::Forbid(_) => {
            tables.count(Reason::SocketDropLeftToPacketPath);
            Answer::Leave
        }
        Decision::Unstable => {
            tables.count(Reason::WindowUnstable);
            Answer::Leave
        }
    }
}

/// `connect()`, before the kernel chooses route and source. The record of an earlier connection
/// ends here, unless the call is refused: it must never speak for another one.
#[inline(always)]
pub fn connect<T: SocketTables, E: Env, S: Socket>(
    tables: &T,
    env: &E,
    socket: &S,
    request: &Request,
) -> SocketVerdict {
    let answer = match find(tables, socket, request) {
        Some(Asked::Frontend(config, _, host)) if stays_on_packet_path(config, request, host) => {
            tables.count(Reason::SocketUdpLeftToPacketPath);
            Answer::Leave
        }
        Some(Asked::Frontend(config, frontend, host)) => {
            match Caller::identify(tables, env, socket, request, config, frontend, host) {
                Some(caller) => balance(tables, env, socket, request, config, &frontend, &caller),
                None => Answer::Leave,
            }
        }
        // To connect a datagram socket sends nothing; resolvers do it to learn what route and
        // source a destination would have (RFC 6724). What is sent later the packet path refuses,
        // but for the host's own sockets, whose packets it does not see.
        Some(Asked::Unserved(_, false)) if request.protocol == Protocol::UDP => Answer::Leave,
        Some(Asked::Unserved(unserved, _)) => answer_unserved(tables, socket, unserved),
        None => Answer::Leave,
    };
    let (choice, mut flags) = match answer {
        Answer::Send(choice, flags) => (choice, flags),
        Answer::Leave => {
            forget(tables, socket);
            return SocketVerdict::Untouched;
        }
        Answer::Refuse => {
            // The call fails here, and a UDP socket keeps the peer that it has.
            if !socket.is_connected() {
                forget(tables, socket);
            }
            return SocketVerdict::Refuse;
        }
    };
    if request.protocol == Protocol::UDP {
        if !socket.enter_peer(choice.backend) {
            // It could not be closed when its backend goes: the packet path moves it then.
            tables.count(Reason::SocketStorageExhausted);
            forget(tables, socket);
            return SocketVerdict::Untouched;
        }
        flags |= ConnectedSocket::IN_PEERS;
    }
    let record = ConnectedSocket {
        frontend: request.to.addr,
        backend_addr: choice.endpoint.addr,
        frontend_port: request.to.port,
        backend_port: choice.endpoint.port,
        backend: choice.backend,
        service: choice.service,
        flags,
    };
    let Some(mut slot) = socket.record(true) else {
        if flags & ConnectedSocket::IN_PEERS != 0 {
            socket.remove_peer();
        }
        tables.count(Reason::SocketStorageExhausted);
        return SocketVerdict::Untouched;
    };
    let earlier = (slot.service, slot.backend);
    *slot = record;
    drop(slot);
    close(tables, earlier);
    tables.count(Reason::Opened);
    tables.count_connection(choice.service, choice.backend, Count::Opened);
    SocketVerdict::Translate(choice.endpoint)
}

/// True for connected UDP sockets of pods that the operator wants on the packet path. The host's own
/// are translated: the agent closes them when their endpoint is removed.
#[inline(always)]
fn stays_on_packet_path(config: &Config, request: &Request, host: bool) -> bool {
    !host && request.protocol == Protocol::UDP && config.leaves_udp(request.to.port)
}

/// Ends the record of an earlier connection, if there is one.
#[inline(always)]
fn forget<T: SocketTables, S: Records + Peer>(tables: &T, socket: &S) {
    if let Some(mut slot) = socket.record(false) {
        let earlier = (slot.service, slot.backend);
        let flags = slot.flags;
        slot.backend = BackendId(0);
        slot.flags = 0;
        drop(slot);
        if flags & ConnectedSocket::IN_PEERS != 0 {
            socket.remove_peer();
        }
        close(tables, earlier);
    }
}

#[inline(always)]
fn close<T: SocketTables>(tables: &T, (service, backend): (ServiceId, BackendId)) {
    if backend != BackendId(0) && backend != Conversation::OTHER_ASKED {
        tables.count_connection(service, backend, Count::Closed);
    }
}

/// `getpeername()` is about to show `peer`: what it should show instead.
#[inline(always)]
pub fn getpeername<S: Records>(socket: &S, peer: &Endpoint) -> Option<Endpoint> {
    recorded(socket, peer).map(|record| Endpoint {
        addr: record.frontend,
        port: record.frontend_port,
    })
}

/// The record of the connection, if its backend is `peer`.
#[inline(always)]
fn recorded<S: Records>(socket: &S, peer: &Endpoint) -> Option<ConnectedSocket> {
    let record = *socket.record(false)?;
    let ours = record.backend != BackendId(0)
        && record.backend_addr == peer.addr
        && record.backend_port == peer.port;
    ours.then_some(record)
}

/// The kernel has chosen the source of a TCP connection, and the SYN is not sent yet: the first
/// moment at which the address of a new namespace is known. `namespace` gives its cookie.
#[inline(always)]
pub fn source_chosen<T: SocketTables, E: Env, S: Records>(
    tables: &T,
    env: &E,
    socket: &S,
    source: &Addr,
    namespace: impl FnOnce() -> u64,
) {
    if let Some(record) = socket.record(false).map(|record| *record) {
        client::adopt(tables, env, socket, &record, source, namespace);
    }
}

/// The last descriptor of the socket is closed: what it had counted as active ends.
#[inline(always)]
pub fn release<T: SocketTables, S: Records + Peer>(tables: &T, socket: &S) {
    forget(tables, socket);
    let Some(table) = socket.last_conversations() else {
        return;
    };
    let mut index = 0;
    while let Some(entry) = table.entries.get(index) {
        if index >= table.used as usize {
            break;
        }
        close(tables, (entry.service, entry.backend));
        index += 1;
    }
}
