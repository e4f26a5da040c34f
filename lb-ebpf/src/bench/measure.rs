//! A generator of packets, and the programs that the packet path is measured against.
//!
//! A test run repeats a program on one packet, which the packet path would rewrite at the first
//! pass. So the generator writes the ends of the next packet and jumps to the program under
//! measurement: the real one or one of those below.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_PSEUDO_HDR, TC_ACT_UNSPEC};
use aya_ebpf::btf_maps::{Array, ProgramArray};
use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_store_bytes};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::measure::Plan;

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map(name = "lb_plan")]
static PLAN: Array<Plan, 1, MMAPABLE> = Array::new();

/// Lines of memory as many and as far apart as the flow table's.
#[btf_map(name = "lb_cold")]
static COLD: Array<[u64; 8], 65_536, MMAPABLE> = Array::new();

#[btf_map(name = "lb_target")]
static TARGET: ProgramArray<1> = ProgramArray::new();

/// Where things lie in the packets of one address family.
trait Family {
    /// EtherType, as it lies in a packet.
    const TYPE: u16;
    /// The source address, and behind it the destination.
    const SOURCE: usize;
    /// Length of an address.
    const ADDRESS: usize;
    /// The transport header.
    const TCP: usize;
    /// The headers' end.
    const END: usize = Self::TCP + 20;
}

struct V4;
impl Family for V4 {
    const TYPE: u16 = 0x0800_u16.to_be();
    const SOURCE: usize = IP + 12;
    const ADDRESS: usize = 4;
    const TCP: usize = IP + 20;
}

struct V6;
impl Family for V6 {
    const TYPE: u16 = 0x86dd_u16.to_be();
    const SOURCE: usize = IP + 8;
    const ADDRESS: usize = 16;
    const TCP: usize = IP + 40;
}

const IP: usize = 14;

/// The headers' start, if the packet is long enough for them.
#[inline(always)]
fn headers<F: Family>(ctx: &TcContext) -> Option<*mut u8> {
    let (data, end) = (ctx.data(), ctx.data_end());
    (data + F::END <= end).then_some(data as *mut u8)
}

/// Reads part of the headers.
#[inline(always)]
fn read<T>(headers: *mut u8, at: usize) -> T {
    // SAFETY: `headers` reach to `END`, which every caller's offset stays below.
    let at = unsafe { headers.add(at) };
    // SAFETY: as above; headers are any bytes.
    unsafe { at.cast::<T>().read_unaligned() }
}

/// Writes part of the headers.
#[inline(always)]
fn write<T>(headers: *mut u8, at: usize, value: T) {
    // SAFETY: as in `read`.
    let at = unsafe { headers.add(at) };
    // SAFETY: as in `read`.
    unsafe { at.cast::<T>().write_unaligned(value) }
}

/// Makes the next packet of the plan and jumps to the program under measurement.
///
/// With `AFTER` the packet's ends need what the program has made of the last packet, so that the
/// processor cannot begin with one before it is done with the other.
#[inline(always)]
fn next<F: Family, const AFTER: bool>(ctx: &TcContext) -> i32 {
    let (Some(headers), Some(plan)) = (headers::<F>(ctx), PLAN.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: one test run at a time, on one CPU.
    let plan = unsafe { &mut *plan };
    let mut number = plan.next.wrapping_mul(plan.multiplier);
    plan.next += 1;
    if AFTER {
        let last: u32 = read(headers, F::SOURCE + 2 * F::ADDRESS - 4);
        number += u64::from(last) & plan.zero;
    }
    let client = plan.first + (number & plan.mask);
    let end = F::SOURCE + F::ADDRESS;
    write(
        headers,
        end - 4,
        (0x0a00_0000 + (client >> 4) as u32).to_be(),
    );
    if F::ADDRESS == 4 {
        write(headers, end, plan.destination[3]);
    } else {
        write(headers, end, plan.destination);
    }
    write(
        headers,
        F::TCP,
        (0x8000 + ((client & 15) << 10) as u16).to_be(),
    );
    write(headers, F::TCP + 2, plan.port);
    write(headers, F::TCP + 13, plan.flags);
    // SAFETY: nothing is left to be dropped here.
    unsafe { TARGET.tail_call(ctx, 0) };
    TC_ACT_UNSPEC
}

/// The ends of a TCP packet that this hook would look up.
struct Ends {
    source: [u32; 4],
    destination: [u32; 4],
    ports: u32,
}

/// What every load balancer must look at.
#[inline(always)]
fn parse<F: Family>(ctx: &TcContext) -> Option<Ends> {
    const TCP: u8 = 6;
    let headers = headers::<F>(ctx)?;
    if read::<u16>(headers, 12) != F::TYPE {
        return None;
    }
    let v4 = F::ADDRESS == 4;
    if v4 {
        if read::<u8>(headers, IP) != 0x45
            || read::<u16>(headers, IP + 6) & 0xff3f != 0
            || read::<u8>(headers, IP + 9) != TCP
        {
            return None;
        }
    } else if read::<u8>(headers, IP + 6) != TCP {
        return None;
    }
    let end = F::SOURCE + F::ADDRESS;
    let [source, destination] = if v4 {
        [
            [0, 0, 0, read(headers, F::SOURCE)],
            [0, 0, 0, read(headers, end)],
        ]
    } else {
        [read(headers, F::SOURCE), read(headers, end)]
    };
    Some(Ends {
        source,
        destination,
        ports: read(headers, F::TCP),
    })
}

/// Parse and return.
#[inline(always)]
fn only_parse<F: Family>(ctx: &TcContext) -> i32 {
    let Some(ends) = parse::<F>(ctx) else {
        return 0;
    };
    let sum = ends
        .source
        .iter()
        .chain(&ends.destination)
        .fold(ends.ports, |sum, word| sum ^ word);
    // Uses what was parsed, so that it is parsed.
    if sum == 1 { 0 } else { TC_ACT_UNSPEC }
}

/// The end of an IPv4 header and the ports behind it.
#[repr(C)]
struct TailV4 {
    word: u32,
    source: u32,
    destination: u32,
    ports: u32,
}

/// The end of an IPv6 header and the ports behind it.
#[repr(C)]
struct TailV6 {
    destination: [u32; 4],
    ports: u32,
}

/// Replaces the destination as the packet path does: one change of the transport checksum for the
/// address, one for the port, one write.
#[inline(always)]
fn rewrite<F: Family>(ctx: &TcContext, ends: &Ends, to: [u32; 4], port: u16) -> i32 {
    let skb = ctx.skb.skb;
    let old_port = (ends.ports >> 16) as u16;
    let address = if F::ADDRESS == 4 {
        u64::from(!ends.destination[3]) + u64::from(to[3])
    } else {
        let old = ends.destination.map(|word| u64::from(!word));
        let new = to.map(u64::from);
        old.iter().chain(&new).sum()
    };
    let address = (address & 0xffff_ffff) + (address >> 32);
    let address = (address & 0xffff_ffff) + (address >> 32);
    let ports = u64::from(!old_port) + u64::from(port);
    let at = (F::TCP + 16) as u32;
    let flags = u64::from(BPF_F_PSEUDO_HDR);
    // SAFETY: the context is the program's own.
    let mut failed = unsafe { bpf_l4_csum_replace(skb, at, 0, address, flags) } != 0;
    // SAFETY: as above.
    failed = failed || unsafe { bpf_l4_csum_replace(skb, at, 0, ports, 0) } != 0;
    let ports = (ends.ports & 0xffff) | (u32::from(port) << 16);
    let code = if F::ADDRESS == 4 {
        let tail = TailV4 {
            word: 0x4006_0000_u32.to_be(),
            source: ends.source[3],
            destination: to[3],
            ports,
        };
        let (from, length) = ((&raw const tail).cast(), size_of::<TailV4>() as u32);
        // SAFETY: `tail` is `length` bytes.
        unsafe { bpf_skb_store_bytes(skb, (IP + 8) as u32, from, length, 0) }
    } else {
        let tail = TailV6 {
            destination: to,
            ports,
        };
        let (from, length) = ((&raw const tail).cast(), size_of::<TailV6>() as u32);
        // SAFETY: `tail` is `length` bytes.
        unsafe { bpf_skb_store_bytes(skb, (IP + 24) as u32, from, length, 0) }
    };
    failed = failed || code != 0;
    if failed { 0 } else { TC_ACT_UNSPEC }
}

/// Parse and rewrite.
#[inline(always)]
fn only_rewrite<F: Family>(ctx: &TcContext) -> i32 {
    match parse::<F>(ctx) {
        Some(ends) => rewrite::<F>(ctx, &ends, ends.source, 8080_u16.to_be()),
        None => TC_ACT_UNSPEC,
    }
}

/// Parse, one line of memory that the packet's source names, and a rewrite that needs it.
#[inline(always)]
fn rewrite_and_line<F: Family>(ctx: &TcContext) -> i32 {
    let Some(plan) = PLAN.get(0) else {
        return TC_ACT_UNSPEC;
    };
    let Some(ends) = parse::<F>(ctx) else {
        return TC_ACT_UNSPEC;
    };
    // Addresses lie in network order, so that what tells clients apart is in the upper bits: only
    // the product's uppermost bits depend on all of it.
    let source = u64::from(ends.source[3]) << 16 | u64::from(ends.ports & 0xffff);
    let line = (source.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) & plan.lines;
    let Some(line) = COLD.get_ptr(line as u32) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: a word of a live map element.
    let word = unsafe { line.cast::<u64>().read_volatile() };
    let mut to = ends.source;
    to[3] ^= word as u32;
    rewrite::<F>(ctx, &ends, to, 8080_u16.to_be())
}

/// Jumped to for the cost of a generator alone.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The programs of one family.
macro_rules! programs {
    ($family:ident, $next:ident, $after:ident, $floor:ident, $rewrite:ident, $line:ident) => {
        /// Makes packets that have nothing to do with each other.
        #[classifier]
        pub fn $next(ctx: TcContext) -> i32 {
            next::<$family, false>(&ctx)
        }

        /// Makes packets each of which needs the one before it.
        #[classifier]
        pub fn $after(ctx: TcContext) -> i32 {
            next::<$family, true>(&ctx)
        }

        /// Parse and return.
        #[classifier]
        pub fn $floor(ctx: TcContext) -> i32 {
            only_parse::<$family>(&ctx)
        }

        /// Parse and rewrite.
        #[classifier]
        pub fn $rewrite(ctx: TcContext) -> i32 {
            only_rewrite::<$family>(&ctx)
        }

        /// Parse, one line of memory, rewrite.
        #[classifier]
        pub fn $line(ctx: TcContext) -> i32 {
            rewrite_and_line::<$family>(&ctx)
        }
    };
}

programs!(V4, next_v4, after_v4, floor_v4, rewrite_v4, line_v4);
programs!(V6, next_v6, after_v6, floor_v6, rewrite_v6, line_v6);
