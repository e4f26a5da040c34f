//! The hooks of the packet path: TCX or clsact, ingress and egress of every device. Of the loopback
//! device it is egress that counts, what the node sends to itself.
//!
//! Each hook exists twice: for devices with an Ethernet header and for those without (tunnels,
//! WireGuard), because the header is part of a tc program's packet.

use crate::env::Kernel;
use crate::flows::KernelFlows;
use crate::route;
use crate::view::{ETHERNET, TcPacket, is_own};
use aya_ebpf::bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::flow::Flows;
use lb_common::packet::{
    Next, Packet, Question, Scratch, Stage, World, egress, in_stages, ingress, leaving,
};
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
    ($name:ident, $hook:ident, $stage:ident, $packet:ty, $world:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff) -> u32 {
            let mut packet = <$packet>::new::<{ Stage::$stage.headers() }>(skb);
            $hook(Stage::$stage, &mut packet, &$world) as u32
        }
    };
}

stage!(
    lb_in_v4,
    ingress,
    OrdinaryV4,
    TcPacket<ETHERNET>,
    ORDINARY_V4
);
stage!(lb_in_v6, ingress, OrdinaryV6, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_rare, ingress, Rare, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_parsed, ingress, Parsed, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_icmp, ingress, Icmp, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_open, ingress, Open, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_begin, ingress, Begin, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_refuse, ingress, Refuse, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_mark, ingress, Mark, TcPacket<ETHERNET>, WORLD);
stage!(lb_in_return, ingress, Return, TcPacket<ETHERNET>, WORLD);
stage!(lb_own_open, ingress, Open, TcPacket<ETHERNET, true>, WORLD);
stage!(lb_own_begin, ingress, Begin, TcPacket<ETHERNET, true>, WORLD);
stage!(
    lb_out_v4,
    egress,
    OrdinaryV4,
    TcPacket<ETHERNET>,
    ORDINARY_V4
);
stage!(lb_out_v6, egress, OrdinaryV6, TcPacket<ETHERNET>, WORLD);
stage!(lb_out_rare, egress, Rare, TcPacket<ETHERNET>, WORLD);
stage!(lb_out_parsed, egress, Parsed, TcPacket<ETHERNET>, WORLD);
stage!(lb_out_icmp, egress, Icmp, TcPacket<ETHERNET>, WORLD);
stage!(lb_out_open, egress, Open, TcPacket<ETHERNET>, WORLD);

stage!(lb_in_v4_l3, ingress, OrdinaryV4, TcPacket<0>, ORDINARY_V4);
stage!(lb_in_v6_l3, ingress, OrdinaryV6, TcPacket<0>, WORLD);
stage!(lb_in_rare_l3, ingress, Rare, TcPacket<0>, WORLD);
stage!(lb_in_parsed_l3, ingress, Parsed, TcPacket<0>, WORLD);
stage!(lb_in_icmp_l3, ingress, Icmp, TcPacket<0>, WORLD);
stage!(lb_in_open_l3, ingress, Open, TcPacket<0>, WORLD);
stage!(lb_in_begin_l3, ingress, Begin, TcPacket<0>, WORLD);
stage!(lb_in_refuse_l3, ingress, Refuse, TcPacket<0>, WORLD);
stage!(lb_in_mark_l3, ingress, Mark, TcPacket<0>, WORLD);
stage!(lb_in_return_l3, ingress, Return, TcPacket<0>, WORLD);
stage!(lb_own_open_l3, ingress, Open, TcPacket<0, true>, WORLD);
stage!(lb_own_begin_l3, ingress, Begin, TcPacket<0, true>, WORLD);
stage!(lb_out_v4_l3, egress, OrdinaryV4, TcPacket<0>, ORDINARY_V4);
stage!(lb_out_v6_l3, egress, OrdinaryV6, TcPacket<0>, WORLD);
stage!(lb_out_rare_l3, egress, Rare, TcPacket<0>, WORLD);
stage!(lb_out_parsed_l3, egress, Parsed, TcPacket<0>, WORLD);
stage!(lb_out_icmp_l3, egress, Icmp, TcPacket<0>, WORLD);
stage!(lb_out_open_l3, egress, Open, TcPacket<0>, WORLD);

/// What the verdict means to tc. "Continue" lets the next program and the stack decide (`TCX_NEXT`
/// is the same number): "ok" would jump over other people's filters.
#[inline(always)]
fn act<const LINK: usize>(skb: *mut __sk_buff, verdict: Verdict, arrived: bool) -> i32 {
    match verdict {
        Verdict::Continue => TC_ACT_UNSPEC,
        Verdict::Drop => TC_ACT_SHOT,
        Verdict::Answer => route::answer::<LINK>(skb, arrived),
        Verdict::Route if LINK == ETHERNET => lb_route(skb),
        Verdict::Route => lb_route_l3(skb),
        Verdict::Deliver if LINK == ETHERNET => lb_deliver(skb),
        Verdict::Deliver => lb_deliver_l3(skb),
    }
}

/// A way out as a function with a stack of its own.
macro_rules! way {
    ($name:ident, $way:ident, $link:expr) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(skb: *mut __sk_buff) -> i32 {
            route::$way::<{ $link }>(skb)
        }
    };
}

way!(lb_route, route, ETHERNET);
way!(lb_route_l3, route, 0);
way!(lb_deliver, deliver, ETHERNET);
way!(lb_deliver_l3, deliver, 0);

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
            Stage::Return => lb_in_return(skb),
            Stage::Mark => lb_in_mark(skb),
        })
    });
    act::<ETHERNET>(skb, verdict, true)
}

/// A device with Ethernet headers: what leaves.
#[classifier]
pub fn tc_egress(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let family = TcPacket::<ETHERNET>::of(skb).family();
    let verdict = leaving(is_own(skb), family, |question, stage| {
        Next::from_number(match (question, stage) {
            (Question::Ingress, Stage::OrdinaryV4) => lb_in_v4(skb),
            (Question::Ingress, Stage::OrdinaryV6) => lb_in_v6(skb),
            (Question::Ingress, Stage::Rare) => lb_in_rare(skb),
            (Question::Ingress, Stage::Parsed) => lb_in_parsed(skb),
            (Question::Ingress, Stage::Icmp) => lb_in_icmp(skb),
            (Question::Ingress, Stage::Open) => lb_own_open(skb),
            (Question::Ingress, Stage::Begin) => lb_own_begin(skb),
            (Question::Ingress, Stage::Refuse) => lb_in_refuse(skb),
            (Question::Ingress, Stage::Return) => lb_in_return(skb),
            (_, Stage::OrdinaryV4) => lb_out_v4(skb),
            (_, Stage::OrdinaryV6) => lb_out_v6(skb),
            (_, Stage::Rare) => lb_out_rare(skb),
            (_, Stage::Parsed) => lb_out_parsed(skb),
            (_, Stage::Icmp) => lb_out_icmp(skb),
            (_, Stage::Open) => lb_out_open(skb),
            (_, Stage::Begin | Stage::Refuse | Stage::Return | Stage::Mark) => 0,
        })
    });
    act::<ETHERNET>(skb, verdict, false)
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
            Stage::Return => lb_in_return_l3(skb),
            Stage::Mark => lb_in_mark_l3(skb),
        })
    });
    act::<0>(skb, verdict, true)
}

/// A device without link-layer header: what leaves.
#[classifier]
pub fn tc_egress_l3(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let family = TcPacket::<0>::of(skb).family();
    let verdict = leaving(is_own(skb), family, |question, stage| {
        Next::from_number(match (question, stage) {
            (Question::Ingress, Stage::OrdinaryV4) => lb_in_v4_l3(skb),
            (Question::Ingress, Stage::OrdinaryV6) => lb_in_v6_l3(skb),
            (Question::Ingress, Stage::Rare) => lb_in_rare_l3(skb),
            (Question::Ingress, Stage::Parsed) => lb_in_parsed_l3(skb),
            (Question::Ingress, Stage::Icmp) => lb_in_icmp_l3(skb),
            (Question::Ingress, Stage::Open) => lb_own_open_l3(skb),
            (Question::Ingress, Stage::Begin) => lb_own_begin_l3(skb),
            (Question::Ingress, Stage::Refuse) => lb_in_refuse_l3(skb),
            (Question::Ingress, Stage::Return) => lb_in_return_l3(skb),
            (_, Stage::OrdinaryV4) => lb_out_v4_l3(skb),
            (_, Stage::OrdinaryV6) => lb_out_v6_l3(skb),
            (_, Stage::Rare) => lb_out_rare_l3(skb),
            (_, Stage::Parsed) => lb_out_parsed_l3(skb),
            (_, Stage::Icmp) => lb_out_icmp_l3(skb),
            (_, Stage::Open) => lb_out_open_l3(skb),
            (_, Stage::Begin | Stage::Refuse | Stage::Return | Stage::Mark) => 0,
        })
    });
    act::<0>(skb, verdict, false)
}

/// The loopback device: what arrives there on its way to somewhere else.
#[classifier]
pub fn tc_loopback(ctx: TcContext) -> i32 {
    route::send_on(ctx.skb.skb)
}
