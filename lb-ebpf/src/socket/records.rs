//! The records that live with a socket (socket storage), the namespaces' addresses, and the core's
//! socket tables over them.

use crate::env::{Kernel, count_backend};
use crate::maps;
use aya_ebpf::bindings::{
    BPF_ANY, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_spin_lock as SpinLock,
};
use aya_ebpf::btf_maps::{HashMap, LruHashMap, SkStorage};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_sk_storage_get, bpf_spin_lock, bpf_spin_unlock,
};
use aya_ebpf::macros::btf_map;
use core::ffi::c_void;
use core::ops::{Deref, DerefMut};
use core::ptr;
use lb_common::addr::{BackendId, ServiceId};
use lb_common::socket::{Count, Peer, Records, SocketTables};
use lb_common::table::{ConnectedSocket, NamespaceAddresses, UnconnectedSocket};

#[btf_map(name = "lb_sock")]
static CONNECTED: SkStorage<ConnectedSocket> = SkStorage::new();

#[btf_map(name = "lb_udp")]
static UNCONNECTED: SkStorage<LockedConversations> = SkStorage::new();

/// Memory is taken as sockets come.
#[btf_map(name = "lb_peers")]
static PEERS: HashMap<u64, BackendId, 262_144, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map(name = "lb_netns")]
static NAMESPACES: LruHashMap<u64, NamespaceAddresses, 4_096> = LruHashMap::new();

/// Threads that send on one socket run the hook at the same time.
#[repr(C)]
struct LockedConversations {
    lock: SpinLock,
    reserved: u32,
    table: UnconnectedSocket,
}

/// The storage of the socket behind a pointer that `bpf_sk_storage_get` accepts: `ctx->sk` of a
/// sock_addr or sock_ops program, or the context itself of a sock program.
#[derive(Clone, Copy)]
pub(crate) struct Storage(pub(crate) *mut c_void);

impl Storage {
    #[inline(always)]
    fn find<T>(self, map: &SkStorage<T>, create: bool) -> Option<*mut T> {
        let flags = if create {
            u64::from(BPF_SK_STORAGE_GET_F_CREATE)
        } else {
            0
        };
        let map = ptr::from_ref(map).cast_mut().cast();
        // SAFETY: `map` is a socket storage map and `self.0` a socket (see the type); a null value
        // means zeroed.
        let value: *mut T =
            unsafe { bpf_sk_storage_get(map, self.0, ptr::null_mut(), flags) }.cast();
        (!value.is_null()).then_some(value)
    }
}

/// The conversations of a socket under their lock, until it is dropped.
struct Locked<'a>(&'a mut LockedConversations);

impl Deref for Locked<'_> {
    type Target = UnconnectedSocket;

    #[inline(always)]
    fn deref(&self) -> &UnconnectedSocket {
        &self.0.table
    }
}

impl DerefMut for Locked<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut UnconnectedSocket {
        &mut self.0.table
    }
}

impl Drop for Locked<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the lock of this map's value, taken in `conversations`.
        unsafe { bpf_spin_unlock(&raw mut self.0.lock) };
    }
}

impl Records for Storage {
    #[inline(always)]
    fn record(&self, create: bool) -> Option<impl DerefMut<Target = ConnectedSocket>> {
        let record = self.find(&CONNECTED, create)?;
        // SAFETY: the element lives as long as the socket. Two hooks on one socket can meet only
        // while its program connects it anew in one thread and receives in another, which then
        // gets the address of one of its two peers.
        Some(unsafe { &mut *record })
    }

    #[inline(always)]
    fn conversations(&self, create: bool) -> Option<impl DerefMut<Target = UnconnectedSocket>> {
        let record = self.find(&UNCONNECTED, create)?;
        // SAFETY: the lock is the first field of a live element.
        let lock = unsafe { &raw mut (*record).lock };
        // SAFETY: `lock` is the lock of this map's value; whoever holds the guard calls nothing.
        unsafe { bpf_spin_lock(lock) };
        // SAFETY: the lock makes this the only reference.
        Some(Locked(unsafe { &mut *record }))
    }

    #[inline(always)]
    fn last_conversations(&self) -> Option<impl Deref<Target = UnconnectedSocket>> {
        let record = self.find(&UNCONNECTED, false)?;
        // SAFETY: the last descriptor is closed, no other hook runs for this socket any more.
        Some(unsafe { &(*record).table })
    }
}

/// Enters a socket into [`PEERS`], by the context of the program that runs for it.
#[inline(always)]
pub(super) fn enter_peer(ctx: *mut c_void, backend: BackendId) -> bool {
    // SAFETY: the helper takes the context of a sock_addr or sock program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx) };
    PEERS.insert(cookie, backend, u64::from(BPF_ANY)).is_ok()
}

/// Removes its entry.
#[inline(always)]
pub(super) fn remove_peer(ctx: *mut c_void) {
    // SAFETY: as in `enter_peer`.
    let cookie = unsafe { bpf_get_socket_cookie(ctx) };
    // It may never have had one.
    let _ = PEERS.remove(cookie);
}

/// The socket of a program that runs when its last descriptor is closed: context and socket in one.
#[derive(Clone, Copy)]
pub(super) struct Released(pub(super) Storage);

impl Records for Released {
    #[inline(always)]
    fn record(&self, create: bool) -> Option<impl DerefMut<Target = ConnectedSocket>> {
        self.0.record(create)
    }

    #[inline(always)]
    fn conversations(&self, create: bool) -> Option<impl DerefMut<Target = UnconnectedSocket>> {
        self.0.conversations(create)
    }

    #[inline(always)]
    fn last_conversations(&self) -> Option<impl Deref<Target = UnconnectedSocket>> {
        self.0.last_conversations()
    }
}

impl Peer for Released {
    #[inline(always)]
    fn enter_peer(&self, backend: BackendId) -> bool {
        enter_peer(self.0.0, backend)
    }

    #[inline(always)]
    fn remove_peer(&self) {
        remove_peer(self.0.0);
    }
}

impl SocketTables for Kernel {
    #[inline(always)]
    fn namespace_addresses(&self, cookie: u64) -> Option<NamespaceAddresses> {
        // SAFETY: copied at once; the element of an evicted namespace that was recycled under the
        // read would have to be reused and filled within these few instructions.
        unsafe { NAMESPACES.get(cookie) }.copied()
    }

    #[inline(always)]
    fn learn_namespace(&self, cookie: u64, addresses: &NamespaceAddresses) {
        // If it fails the next connection teaches it.
        let _ = NAMESPACES.insert(cookie, addresses, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn count_connection(&self, service: ServiceId, backend: BackendId, what: Count) {
        if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(service.0) {
            // SAFETY: the element is this CPU's own; a nested program on the same CPU may at worst
            // lose one count.
            let counters = unsafe { &mut *counters };
            match what {
                Count::Opened => counters.socket_opened = counters.socket_opened.wrapping_add(1),
                Count::Closed => counters.socket_closed = counters.socket_closed.wrapping_add(1),
            }
        }
        count_backend(backend, |counters| match what {
            Count::Opened => counters.socket_opened = counters.socket_opened.wrapping_add(1),
            Count::Closed => counters.socket_closed = counters.socket_closed.wrapping_add(1),
        });
    }

    #[inline(always)]
    fn count_refusal(&self, service: ServiceId) {
        if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(service.0) {
            // SAFETY: as in `count_connection`.
            let counters = unsafe { &mut *counters };
            counters.socket_rejected = counters.socket_rejected.wrapping_add(1);
        }
    }
}
