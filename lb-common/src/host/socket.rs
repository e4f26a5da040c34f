//! A socket in memory, with the records that the kernel keeps beside one.

use super::{HostEnv, HostTables};
use crate::addr::{Addr, BackendId, Endpoint, Protocol, ServiceId};
use crate::env::PacketTables;
use crate::feature::Feature;
use crate::socket::{
    Count, Peer, Records, Request, Socket, SocketTables, SocketVerdict, connect, enter, place_of,
    recvmsg, sendmsg,
};
use crate::table::{ConnectedSocket, NamespaceAddresses, UnconnectedSocket};
use std::cell::{Cell, Ref, RefCell, RefMut};
use std::ops::{Deref, DerefMut};
use zerocopy::FromZeros;

/// A socket; fields say what the kernel would know of it.
#[derive(Debug)]
pub struct HostSocket<'a> {
    tables: &'a HostTables,
    env: &'a HostEnv,
    /// The record of its connection, once made.
    pub record: RefCell<Option<ConnectedSocket>>,
    /// Its conversations, once made.
    pub conversations: RefCell<Option<Box<UnconnectedSocket>>>,
    /// What [`Socket::source`] answers.
    pub source: Cell<Addr>,
    /// What [`Socket::is_connected`] answers.
    pub connected: Cell<bool>,
    /// The cookie of its namespace; 1 is the kernel's first.
    pub namespace: u64,
    /// What [`Socket::is_opted_out`] answers.
    pub opted_out: Cell<bool>,
    /// The features of the kernel.
    pub features: Cell<u32>,
    /// Whether the kernel has room for another record.
    pub room: Cell<bool>,
    /// The entry in `lb_peers`.
    pub peer: Cell<Option<BackendId>>,
    /// Whether `lb_peers` has room.
    pub room_for_peer: Cell<bool>,
}

impl<'a> HostSocket<'a> {
    /// A new socket in the namespace with this cookie, on a kernel that can do everything.
    pub fn new(tables: &'a HostTables, env: &'a HostEnv, namespace: u64) -> Self {
        Self {
            tables,
            env,
            record: RefCell::default(),
            conversations: RefCell::default(),
            source: Cell::new(Addr::UNSPECIFIED),
            connected: Cell::new(false),
            namespace,
            opted_out: Cell::new(false),
            features: Cell::new(Feature::SET_RETVAL | Feature::NETNS_COOKIE_IN_SOCKOPS),
            room: Cell::new(true),
            peer: Cell::new(None),
            room_for_peer: Cell::new(true),
        }
    }

    /// `connect`, up to the point where the kernel would take the address.
    pub fn connect(&self, to: Endpoint, protocol: Protocol) -> SocketVerdict {
        let request = Request {
            to,
            protocol,
            source: Addr::UNSPECIFIED,
        };
        connect(self.tables, self.env, self, &request)
    }

    /// `sendmsg` of a datagram from `source`, unspecified if the caller names none.
    pub fn send_from(&self, source: Addr, to: Endpoint) -> SocketVerdict {
        let request = Request {
            to,
            protocol: Protocol::UDP,
            source,
        };
        sendmsg(self.tables, self.env, self, &request)
    }

    /// `sendmsg` of a datagram.
    pub fn send(&self, to: Endpoint) -> SocketVerdict {
        self.send_from(Addr::UNSPECIFIED, to)
    }

    /// `recvmsg` of a datagram from `source`: what it shows.
    pub fn receive(&self, source: Endpoint) -> Endpoint {
        recvmsg(self.tables, self.env, self, &source).unwrap_or(source)
    }
}

impl Records for HostSocket<'_> {
    fn record(&self, create: bool) -> Option<impl DerefMut<Target = ConnectedSocket>> {
        let mut record = self.record.borrow_mut();
        if create && self.room.get() {
            record.get_or_insert_default();
        }
        RefMut::filter_map(record, Option::as_mut).ok()
    }

    fn conversations(&self, create: bool) -> Option<impl DerefMut<Target = UnconnectedSocket>> {
        let mut conversations = self.conversations.borrow_mut();
        if create && self.room.get() {
            conversations.get_or_insert_with(|| Box::new(UnconnectedSocket::new_zeroed()));
        }
        RefMut::filter_map(conversations, Option::as_deref_mut).ok()
    }

    fn last_conversations(&self) -> Option<impl Deref<Target = UnconnectedSocket>> {
        Ref::filter_map(self.conversations.borrow(), Option::as_deref).ok()
    }
}

impl Peer for HostSocket<'_> {
    fn enter_peer(&self, backend: BackendId) -> bool {
        if self.room_for_peer.get() {
            self.peer.set(Some(backend));
        }
        self.room_for_peer.get()
    }

    fn remove_peer(&self) {
        self.peer.set(None);
    }
}

impl Socket for HostSocket<'_> {
    fn place_of(&self, frontend: &Endpoint) -> u32 {
        place_of(self, frontend)
    }

    fn enter(&self, frontend: &Endpoint, backend: BackendId) -> u32 {
        enter(self.tables, self.env, self, frontend, backend)
    }

    fn source(&self) -> Addr {
        self.source.get()
    }

    fn is_connected(&self) -> bool {
        self.connected.get()
    }

    fn namespace(&self) -> u64 {
        self.namespace
    }

    fn is_in_first_namespace(&self) -> bool {
        self.namespace == 1
    }

    fn is_opted_out(&self) -> bool {
        self.opted_out.get()
    }

    fn kernel_has(&self, feature: u32) -> bool {
        self.features.get() & feature != 0
    }
}

impl SocketTables for HostTables {
    fn namespace_addresses(&self, cookie: u64) -> Option<NamespaceAddresses> {
        self.namespaces.borrow().get(&cookie).copied()
    }

    fn learn_namespace(&self, cookie: u64, addresses: &NamespaceAddresses) {
        self.namespaces.borrow_mut().insert(cookie, *addresses);
    }

    fn count_connection(&self, service: ServiceId, backend: BackendId, what: Count) {
        let mut backends = self.backend_counters.borrow_mut();
        let of_backend = backends.entry(backend).or_default();
        match what {
            Count::Opened => of_backend.socket_opened += 1,
            Count::Closed => of_backend.socket_closed += 1,
        }
        self.count_service(service, |of_service| match what {
            Count::Opened => of_service.socket_opened += 1,
            Count::Closed => of_service.socket_closed += 1,
        });
    }

    fn count_refusal(&self, service: ServiceId) {
        self.count_service(service, |counters| counters.socket_rejected += 1);
    }
}
