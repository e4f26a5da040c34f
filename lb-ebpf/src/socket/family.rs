//! The fields of a hook's context, which differ between IPv4 and IPv6.

use super::{lb_udp_enter4, lb_udp_enter6, lb_udp_place4, lb_udp_place6};
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::programs::SockAddrContext;
use lb_common::addr::{Addr, Endpoint, Port};

/// Reads a field of a context or of its socket: exactly one load of the field's width, as the
/// verifier demands; the compiler may not join it with its neighbour's.
macro_rules! field {
    ($object:expr, $($field:tt)+) => {
        // SAFETY: the object is the program's context or the socket it points to, both live for
        // the whole program.
        unsafe { (&raw const (*$object).$($field)+).read_volatile() }
    };
}

/// Writes a field of a context, likewise.
macro_rules! set_field {
    ($object:expr, $value:expr, $($field:tt)+) => {
        // SAFETY: as in `field`; the hook may write this field.
        unsafe { (&raw mut (*$object).$($field)+).write_volatile($value) }
    };
}

/// Which of the pair of hooks runs: the context's fields of the other family cannot be read.
pub(super) trait Family {
    /// The address the caller asks for or is about to see.
    fn user(ctx: *mut bpf_sock_addr) -> Addr;
    /// Replaces it.
    fn set_user(ctx: *mut bpf_sock_addr, addr: &Addr);
    /// The source asked for one datagram.
    fn message_source(ctx: *mut bpf_sock_addr) -> Addr;
    /// The source the socket is bound to.
    fn bound(sk: *mut bpf_sock) -> Addr;
    /// [`lb_common::socket::place_of`] as a global function.
    fn place_of(ctx: *mut bpf_sock_addr) -> u32;
    /// [`lb_common::socket::enter`] as a global function.
    fn enter(ctx: *mut bpf_sock_addr, backend: u32) -> u32;
}

/// The hooks of IPv4.
pub(super) struct V4;
/// The hooks of IPv6, which see IPv4-mapped addresses too.
pub(super) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn user(ctx: *mut bpf_sock_addr) -> Addr {
        Addr::from_v4_word(field!(ctx, user_ip4))
    }

    #[inline(always)]
    fn set_user(ctx: *mut bpf_sock_addr, addr: &Addr) {
        set_field!(ctx, addr.v4_word(), user_ip4);
    }

    #[inline(always)]
    fn message_source(ctx: *mut bpf_sock_addr) -> Addr {
        Addr::from_v4_word(field!(ctx, msg_src_ip4))
    }

    #[inline(always)]
    fn bound(sk: *mut bpf_sock) -> Addr {
        Addr::from_v4_word(field!(sk, src_ip4))
    }

    #[inline(always)]
    fn place_of(ctx: *mut bpf_sock_addr) -> u32 {
        lb_udp_place4(ctx)
    }

    #[inline(always)]
    fn enter(ctx: *mut bpf_sock_addr, backend: u32) -> u32 {
        lb_udp_enter4(ctx, backend)
    }
}

impl Family for V6 {
    #[inline(always)]
    fn user(ctx: *mut bpf_sock_addr) -> Addr {
        Addr::from_v6_words([
            field!(ctx, user_ip6[0]),
            field!(ctx, user_ip6[1]),
            field!(ctx, user_ip6[2]),
            field!(ctx, user_ip6[3]),
        ])
    }

    #[inline(always)]
    fn set_user(ctx: *mut bpf_sock_addr, addr: &Addr) {
        let [a, b, c, d] = addr.words();
        set_field!(ctx, a, user_ip6[0]);
        set_field!(ctx, b, user_ip6[1]);
        set_field!(ctx, c, user_ip6[2]);
        set_field!(ctx, d, user_ip6[3]);
    }

    #[inline(always)]
    fn message_source(ctx: *mut bpf_sock_addr) -> Addr {
        Addr::from_v6_words([
            field!(ctx, msg_src_ip6[0]),
            field!(ctx, msg_src_ip6[1]),
            field!(ctx, msg_src_ip6[2]),
            field!(ctx, msg_src_ip6[3]),
        ])
    }

    #[inline(always)]
    fn bound(sk: *mut bpf_sock) -> Addr {
        Addr::from_v6_words([
            field!(sk, src_ip6[0]),
            field!(sk, src_ip6[1]),
            field!(sk, src_ip6[2]),
            field!(sk, src_ip6[3]),
        ])
    }

    #[inline(always)]
    fn place_of(ctx: *mut bpf_sock_addr) -> u32 {
        lb_udp_place6(ctx)
    }

    #[inline(always)]
    fn enter(ctx: *mut bpf_sock_addr, backend: u32) -> u32 {
        lb_udp_enter6(ctx, backend)
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the port is the low half")]
fn user_port(ctx: *mut bpf_sock_addr) -> Port {
    Port(field!(ctx, user_port) as u16)
}

#[inline(always)]
pub(super) fn user<F: Family>(ctx: *mut bpf_sock_addr) -> Endpoint {
    Endpoint {
        addr: F::user(ctx),
        port: user_port(ctx),
    }
}

#[inline(always)]
pub(super) fn set_user<F: Family>(ctx: &SockAddrContext, endpoint: &Endpoint) {
    F::set_user(ctx.sock_addr, &endpoint.addr);
    set_field!(ctx.sock_addr, u32::from(endpoint.port.0), user_port);
}
