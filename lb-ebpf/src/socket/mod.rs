//! The cgroup hooks of addresses: `connect`, `sendmsg`, `recvmsg`, `getpeername`, and the release
//! of a socket. All of them let the call proceed (1); refusing sets the errno and returns 0.

#[macro_use]
mod family;
pub(crate) mod records;

use crate::env::{Kernel, has};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_set_retval,
};
use aya_ebpf::macros::{btf_map, cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr;
use family::{Family, V4, V6, set_user, user};
use lb_common::addr::{Addr, BackendId, Endpoint, Protocol};
use lb_common::feature::Feature;
use lb_common::socket::{self, Peer, Records, Request, Socket, SocketVerdict};
use lb_common::table::{ConnectedSocket, POD_CGROUP_DEPTH, UnconnectedSocket};
use records::{Released, Storage};

/// The kernel's return values of these hooks.
const PROCEED: i32 = 1;
const FAIL: i32 = 0;

/// `ECONNREFUSED`, the same number on every architecture BPF runs on but MIPS and Alpha.
const ECONNREFUSED: i32 = 111;
/// `AF_INET6`.
const AF_INET6: u32 = 10;
/// The state of a socket that has a peer (`TCP_ESTABLISHED`, for UDP as well).
const ESTABLISHED: u32 = 1;
/// `IPPROTO_MPTCP`: its first subflow connects as TCP.
const MPTCP: u32 = 262;

/// Cgroups whose processes' sockets are not balanced.
#[btf_map(name = "lb_optout")]
static OPTED_OUT: HashMap<u64, u32, 4_096> = HashMap::new();

/// The socket of a sock_addr program.
struct AddressedSocket<F> {
    ctx: *mut bpf_sock_addr,
    sk: *mut bpf_sock,
    storage: Storage,
    family: PhantomData<F>,
}

impl<F: Family> AddressedSocket<F> {
    #[inline(always)]
    fn new(ctx: *mut bpf_sock_addr) -> Self {
        let sk: *mut bpf_sock = field!(ctx, __bindgen_anon_1.sk);
        Self {
            ctx,
            sk,
            storage: Storage(sk.cast()),
            family: PhantomData,
        }
    }
}

impl<F: Family> Records for AddressedSocket<F> {
    #[inline(always)]
    fn record(&self, create: bool) -> Option<impl DerefMut<Target = ConnectedSocket>> {
        self.storage.record(create)
    }

    #[inline(always)]
    fn conversations(&self, create: bool) -> Option<impl DerefMut<Target = UnconnectedSocket>> {
        self.storage.conversations(create)
    }

    #[inline(always)]
    fn last_conversations(&self) -> Option<impl Deref<Target = UnconnectedSocket>> {
        self.storage.last_conversations()
    }
}

impl<F: Family> Peer for AddressedSocket<F> {
    #[inline(always)]
    fn enter_peer(&self, backend: BackendId) -> bool {
        records::enter_peer(self.ctx.cast(), backend)
    }

    #[inline(always)]
    fn remove_peer(&self) {
        records::remove_peer(self.ctx.cast());
    }
}

impl<F: Family> Socket for AddressedSocket<F> {
    #[inline(always)]
    fn place_of(&self, _frontend: &Endpoint) -> u32 {
        // The function reads the frontend from the context.
        F::place_of(self.ctx)
    }

    #[inline(always)]
    fn enter(&self, _frontend: &Endpoint, backend: BackendId) -> u32 {
        F::enter(self.ctx, backend.0)
    }

    #[inline(always)]
    fn source(&self) -> Addr {
        F::bound(self.sk)
    }

    #[inline(always)]
    fn is_connected(&self) -> bool {
        field!(self.sk, state) == ESTABLISHED
    }

    #[inline(always)]
    fn namespace(&self) -> u64 {
        // SAFETY: the helper takes this program's context.
        unsafe { bpf_get_netns_cookie(self.ctx.cast()) }
    }

    #[inline(always)]
    fn is_in_first_namespace(&self) -> bool {
        // SAFETY: without a context the helper answers for the first namespace.
        self.namespace() == unsafe { bpf_get_netns_cookie(ptr::null_mut()) }
    }

    #[inline(always)]
    fn is_opted_out(&self) -> bool {
        is_opted_out()
    }

    #[inline(always)]
    fn kernel_has(&self, feature: u32) -> bool {
        has(feature)
    }
}

/// Walks down from the root cgroup to that of the calling process.
#[inline(always)]
fn is_opted_out() -> bool {
    let mut level = 1;
    while level <= POD_CGROUP_DEPTH.into() {
        // SAFETY: the helper takes a number and only returns one.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if cgroup == 0 {
            return false;
        }
        // SAFETY: the value is not read.
        if unsafe { OPTED_OUT.get(cgroup) }.is_some() {
            return true;
        }
        level += 1;
    }
    false
}

/// The socket's protocol; anything that is neither TCP nor UDP comes out as 0.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "only numbers below 256 are cast"
)]
fn protocol(ctx: &SockAddrContext) -> Protocol {
    match field!(ctx.sock_addr, protocol) {
        MPTCP => Protocol::TCP,
        number if number == u32::from(Protocol::TCP.0) || number == u32::from(Protocol::UDP.0) => {
            Protocol(number as u8)
        }
        _ => Protocol(0),
    }
}

/// Carries out a verdict on a destination.
#[inline(always)]
fn carry_out<F: Family>(ctx: &SockAddrContext, verdict: SocketVerdict) -> i32 {
    match verdict {
        SocketVerdict::Untouched => PROCEED,
        SocketVerdict::Translate(endpoint) => {
            set_user::<F>(ctx, &endpoint);
            PROCEED
        }
        SocketVerdict::Refuse => {
            // The core refuses only where the kernel has the helper; asked again, so that it is
            // not even verified elsewhere.
            if !has(Feature::SET_RETVAL) {
                return PROCEED;
            }
            // SAFETY: the helper takes a number.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
    }
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let request = Request {
        to: user::<F>(ctx.sock_addr),
        protocol: protocol(ctx),
        source: Addr::UNSPECIFIED,
    };
    let verdict = socket::connect(
        &Kernel,
        &Kernel,
        &AddressedSocket::<F>::new(ctx.sock_addr),
        &request,
    );
    carry_out::<F>(ctx, verdict)
}

#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let request = Request {
        to: user::<F>(ctx.sock_addr),
        protocol: protocol(ctx),
        source: F::message_source(ctx.sock_addr),
    };
    let verdict = socket::sendmsg(
        &Kernel,
        &Kernel,
        &AddressedSocket::<F>::new(ctx.sock_addr),
        &request,
    );
    carry_out::<F>(ctx, verdict)
}

#[inline(always)]
fn recvmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let socket = AddressedSocket::<F>::new(ctx.sock_addr);
    if let Some(asked) = socket::recvmsg(&Kernel, &Kernel, &socket, &user::<F>(ctx.sock_addr)) {
        set_user::<F>(ctx, &asked);
    }
    PROCEED
}

#[inline(always)]
fn getpeername<F: Family>(ctx: &SockAddrContext) -> i32 {
    let socket = AddressedSocket::<F>::new(ctx.sock_addr);
    if let Some(asked) = socket::getpeername(&socket, &user::<F>(ctx.sock_addr)) {
        set_user::<F>(ctx, &asked);
    }
    PROCEED
}

#[inline(always)]
fn place_of<F: Family>(ctx: *mut bpf_sock_addr) -> u32 {
    socket::place_of(&AddressedSocket::<F>::new(ctx).storage, &user::<F>(ctx))
}

#[inline(always)]
fn enter<F: Family>(ctx: *mut bpf_sock_addr, backend: u32) -> u32 {
    socket::enter(
        &Kernel,
        &Kernel,
        &AddressedSocket::<F>::new(ctx).storage,
        &user::<F>(ctx),
        BackendId(backend),
    )
}

// Global functions: verified once, each on its own.

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_udp_place4(ctx: *mut bpf_sock_addr) -> u32 {
    place_of::<V4>(ctx)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_udp_place6(ctx: *mut bpf_sock_addr) -> u32 {
    place_of::<V6>(ctx)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_udp_enter4(ctx: *mut bpf_sock_addr, backend: u32) -> u32 {
    enter::<V4>(ctx, backend)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_udp_enter6(ctx: *mut bpf_sock_addr, backend: u32) -> u32 {
    enter::<V6>(ctx, backend)
}

/// `connect()` to an IPv4 address, TCP Fast Open and io_uring included.
#[cgroup_sock_addr(connect4)]
pub(crate) fn lb_connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

/// `connect()` on an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub(crate) fn lb_connect6(ctx: SockAddrContext) -> i32 {
    // The kernel refuses other families only after this hook.
    if field!(ctx.sock_addr, user_family) != AF_INET6 {
        return PROCEED;
    }
    connect::<V6>(&ctx)
}

/// `sendmsg()` with an IPv4 address, also an IPv4-mapped one.
#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn lb_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(&ctx)
}

/// `sendmsg()` with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn lb_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(&ctx)
}

/// `recvmsg()` on an IPv4 UDP socket.
#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn lb_recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg::<V4>(&ctx)
}

/// `recvmsg()` on an IPv6 UDP socket, which shows IPv4 sources IPv4-mapped.
#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn lb_recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg::<V6>(&ctx)
}

/// `getpeername()` on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub(crate) fn lb_getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername::<V4>(&ctx)
}

/// `getpeername()` on an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub(crate) fn lb_getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername::<V6>(&ctx)
}

/// The last descriptor of a socket is closed.
#[cgroup_sock(sock_release)]
pub(crate) fn lb_sock_release(ctx: SockContext) -> i32 {
    socket::release(&Kernel, &Released(Storage(ctx.sock.cast())));
    PROCEED
}
