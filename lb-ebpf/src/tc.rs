//! The hooks of the packet path: TCX or clsact, ingress and egress of every device but loopback.
//!
//! Each hook exists twice: for devices with an Ethernet header and for those without (tunnels,
//! WireGuard), because the header is part of a tc program's packet.

use crate::env::Kernel;
use crate::flows::KernelFlows;
use crate::view::{ETHERNET, TcPacket};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::flow::Flows;
use lb_common::packet::{Next, Packet, Scratch, Stage, World, egress, in_stages, ingress};
use lb_common::table::Config;
use lb_common::verdict::Verdict;

/// What the stages of one packet leave to each other.
#[btf_map(name = "lb_scratch")]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The packet path's world: maps and helpers. With `QUICK`, what is looked up in the flow table is
/// looked for in the caller's own code first: for the stage that most packets need. The others do
/// without, for they need their stack for themselves; IPv6 addresses alone take 64 bytes more.
struct PacketPath<const QUICK: bool> {
    kernel: Kernel,
}

const WORLD: PacketPath<false> = PacketPath { kernel: Kernel };
const ORDINARY_V4: PacketPath<true> = PacketPath { kernel: Kernel };

impl<const QUICK: bool> World for PacketPath<QUICK> {
    type Tables = Kernel;
    type Env = Kernel;

    #[inline(always)]
    fn tables(&self) -> &Kernel {
        &self.kernel
    }

    #[inline(always)]
    fn env(&self) -> &Kernel {
        &self.kernel
    }

    #[inline(always)]
    fn flows<'a>(&'a self, config: &'a Config) -> impl Flows + 'a {
        KernelFlows::<QUICK> { config }
    }

    #[inline(always)]
    fn with_scratch<R>(&self, work: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the element is this CPU's own, programs of the packet path do not interrupt each
        // other on a CPU, and no reference outlives `work`.
        Some(work(unsafe { &mut *scratch }))
    }
}

/// One stage of a hook as a function the verifier checks by itself, with a stack of its own.
macro_rules! stage {
    ($name:ident, $hook:ident, $stage:ident, $link:expr) => {
        stage!($name, $hook, $stage, $link, WORLD);
    };
    ($name:ident, $hook:ident, $stage:ident, $link:expr, $world:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
            let mut packet = TcPacket::<{ $link }>::new(skb);
            $hook(Stage::$stage, &mut packet, &$world) as u32
        }
    };
}

stage!(lb_in_v4, ingress, OrdinaryV4, ETHERNET, ORDINARY_V4);
stage!(lb_in_v6, ingress, OrdinaryV6, ETHERNET);
stage!(lb_in_rare, ingress, Rare, ETHERNET);
stage!(lb_in_parsed, ingress, Parsed, ETHERNET);
stage!(lb_in_icmp, ingress, Icmp, ETHERNET);
stage!(lb_in_open, ingress, Open, ETHERNET);
stage!(lb_in_begin, ingress, Begin, ETHERNET);
stage!(lb_in_refuse, ingress, Refuse, ETHERNET);
stage!(lb_out_v4, egress, OrdinaryV4, ETHERNET, ORDINARY_V4);
stage!(lb_out_v6, egress, OrdinaryV6, ETHERNET);
stage!(lb_out_rare, egress, Rare, ETHERNET);
stage!(lb_out_parsed, egress, Parsed, ETHERNET);
stage!(lb_out_icmp, egress, Icmp, ETHERNET);
stage!(lb_out_open, egress, Open, ETHERNET);

stage!(lb_in_v4_l3, ingress, OrdinaryV4, 0, ORDINARY_V4);
stage!(lb_in_v6_l3, ingress, OrdinaryV6, 0);
stage!(lb_in_rare_l3, ingress, Rare, 0);
stage!(lb_in_parsed_l3, ingress, Parsed, 0);
stage!(lb_in_icmp_l3, ingress, Icmp, 0);
stage!(lb_in_open_l3, ingress, Open, 0);
stage!(lb_in_begin_l3, ingress, Begin, 0);
stage!(lb_in_refuse_l3, ingress, Refuse, 0);
stage!(lb_out_v4_l3, egress, OrdinaryV4, 0, ORDINARY_V4);
stage!(lb_out_v6_l3, egress, OrdinaryV6, 0);
stage!(lb_out_rare_l3, egress, Rare, 0);
stage!(lb_out_parsed_l3, egress, Parsed, 0);
stage!(lb_out_icmp_l3, egress, Icmp, 0);
stage!(lb_out_open_l3, egress, Open, 0);

/// What the verdict means to tc. "Continue" lets the next program and the stack decide (`TCX_NEXT`
/// is the same number): "ok" would jump over other people's filters.
#[inline(always)]
fn act<const LINK: usize>(skb: *mut __sk_buff, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Continue => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Answer => send_back::<LINK>(skb),
    }
}

/// Sends the packet out of the device it came from, to the neighbour it came from.
#[inline(always)]
fn send_back<const LINK: usize>(skb: *mut __sk_buff) -> i32 {
    if LINK == ETHERNET && exchange_neighbours(skb).is_none() {
        return TC_ACT_SHOT;
    }
    let device = TcPacket::<LINK>::of(skb).device();
    // SAFETY: the helper takes numbers only.
    unsafe { bpf_redirect(device, 0) as i32 }
}

#[inline(always)]
fn exchange_neighbours(skb: *mut __sk_buff) -> Option<()> {
    // The link-layer header lies before what the core calls a packet.
    let mut frame = TcPacket::<0>::of(skb);
    let [a, b, c, d, e, f]: [u16; 6] = frame.load(0)?;
    frame.store(0, &[d, e, f, a, b, c]).ok()
}

/// A device with Ethernet headers: what arrives.
#[classifier]
pub fn tc_ingress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = in_stages(TcPacket::<ETHERNET>::of(skb).family(), |stage| {
        Next::from_number(match stage {
            Stage::OrdinaryV4 => lb_in_v4(skb),
            Stage::OrdinaryV6 => lb_in_v6(skb),
            Stage::Rare => lb_in_rare(skb),
            Stage::Parsed => lb_in_parsed(skb),
            Stage::Icmp => lb_in_icmp(skb),
            Stage::Open => lb_in_open(skb),
            Stage::Begin => lb_in_begin(skb),
            Stage::Refuse => lb_in_refuse(skb),
        })
    });
    act::<ETHERNET>(skb, verdict)
}

/// A device with Ethernet headers: what leaves.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = in_stages(TcPacket::<ETHERNET>::of(skb).family(), |stage| {
        Next::from_number(match stage {
            Stage::OrdinaryV4 => lb_out_v4(skb),
            Stage::OrdinaryV6 => lb_out_v6(skb),
            Stage::Rare => lb_out_rare(skb),
            Stage::Parsed => lb_out_parsed(skb),
            Stage::Icmp => lb_out_icmp(skb),
            Stage::Open => lb_out_open(skb),
            Stage::Begin | Stage::Refuse => 0,
        })
    });
    act::<ETHERNET>(skb, verdict)
}

/// A device without link-layer header: what arrives.
#[classifier]
pub fn tc_ingress_l3(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = in_stages(TcPacket::<0>::of(skb).family(), |stage| {
        Next::from_number(match stage {
            Stage::OrdinaryV4 => lb_in_v4_l3(skb),
            Stage::OrdinaryV6 => lb_in_v6_l3(skb),
            Stage::Rare => lb_in_rare_l3(skb),
            Stage::Parsed => lb_in_parsed_l3(skb),
            Stage::Icmp => lb_in_icmp_l3(skb),
            Stage::Open => lb_in_open_l3(skb),
            Stage::Begin => lb_in_begin_l3(skb),
            Stage::Refuse => lb_in_refuse_l3(skb),
        })
    });
    act::<0>(skb, verdict)
}

/// A device without link-layer header: what leaves.
#[classifier]
pub fn tc_egress_l3(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let verdict = in_stages(TcPacket::<0>::of(skb).family(), |stage| {
        Next::from_number(match stage {
            Stage::OrdinaryV4 => lb_out_v4_l3(skb),
            Stage::OrdinaryV6 => lb_out_v6_l3(skb),
            Stage::Rare => lb_out_rare_l3(skb),
            Stage::Parsed => lb_out_parsed_l3(skb),
            Stage::Icmp => lb_out_icmp_l3(skb),
            Stage::Open => lb_out_open_l3(skb),
            Stage::Begin | Stage::Refuse => 0,
        })
    });
    act::<0>(skb, verdict)
}
