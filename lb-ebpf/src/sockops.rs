//! The sockops hook: the source of a TCP connection is chosen and the SYN not sent yet, the first
//! moment at which the address of a new namespace is known.

use crate::env::{Kernel, has};
use crate::socket::records::Storage;
use aya_ebpf::bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops};
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use lb_common::addr::Addr;
use lb_common::feature::Feature;
use lb_common::socket;

const AF_INET: u32 = 2;

/// The return value of every callback that answers nothing.
const DONE: u32 = 1;

#[sock_ops]
pub(crate) fn lb_sockops(ctx: SockOpsContext) -> u32 {
    if !has(Feature::NETNS_COOKIE_IN_SOCKOPS) || ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return DONE;
    }
    let ops: *mut bpf_sock_ops = ctx.ops;
    // SAFETY: the context lives for the whole program.
    let sk = unsafe { (&raw const (*ops).__bindgen_anon_2.sk).read_volatile() };
    if sk.is_null() {
        return DONE;
    }
    let source = source(ops);
    socket::source_chosen(&Kernel, &Kernel, &Storage(sk.cast()), &source, || {
        // SAFETY: the helper takes this program's context.
        unsafe { bpf_get_netns_cookie(ops.cast()) }
    });
    DONE
}

/// The chosen source. All fields are read, one word at a time and before any branch: the compiler
/// joins two branches that read different fields into one read through a computed pointer, which
/// the verifier forbids for a context.
#[inline(always)]
fn source(ops: *mut bpf_sock_ops) -> Addr {
    // SAFETY: the context lives for the whole program; so for the following.
    let family = unsafe { (&raw const (*ops).family).read_volatile() };
    // SAFETY: see above.
    let v4 = unsafe { (&raw const (*ops).local_ip4).read_volatile() };
    // SAFETY: see above.
    let a = unsafe { (&raw const (*ops).local_ip6[0]).read_volatile() };
    // SAFETY: see above.
    let b = unsafe { (&raw const (*ops).local_ip6[1]).read_volatile() };
    // SAFETY: see above.
    let c = unsafe { (&raw const (*ops).local_ip6[2]).read_volatile() };
    // SAFETY: see above.
    let d = unsafe { (&raw const (*ops).local_ip6[3]).read_volatile() };
    if family == AF_INET {
        Addr::from_v4_word(v4)
    } else {
        Addr::from_v6_words([a, b, c, d])
    }
}
