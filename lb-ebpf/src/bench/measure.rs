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

const IPV4: usize = 14;
const TCP: usize = IPV4 + 20;
const END: usize = TCP + 20;

/// The headers' start, if the packet is long enough for them.
#[inline(always)]
fn headers(ctx: &TcContext) -> Option<*mut u8> {
    let (data, end) = (ctx.data(), ctx.data_end());
    (data + END <= end).then_some(data as *mut u8)
}

/// Reads part of the headers.
#[inline(always)]
fn read<T>(headers: *mut u8, at: usize) -> T {
    // SAFETY: `headers` are `END` bytes, which every caller's offset stays below.
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
#[classifier]
pub fn generate(ctx: TcContext) -> i32 {
    let (Some(headers), Some(plan)) = (headers(&ctx), PLAN.get_ptr_mut(0)) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: one test run at a time, on one CPU.
    let plan = unsafe { &mut *plan };
    let client = plan.first + (plan.next.wrapping_mul(plan.multiplier) & plan.mask);
    plan.next += 1;
    write(
        headers,
        IPV4 + 12,
        (0x0a00_0000 + (client >> 4) as u32).to_be(),
    );
    write(headers, IPV4 + 16, plan.destination);
    write(
        headers,
        TCP,
        (0x8000 + ((client & 15) << 10) as u16).to_be(),
    );
    write(headers, TCP + 2, plan.port);
    write(headers, TCP + 13, plan.flags);
    // SAFETY: nothing is left to be dropped here.
    unsafe { TARGET.tail_call(&ctx, 0) };
    TC_ACT_UNSPEC
}

/// The ends of a TCP packet that this hook would look up.
struct Ends {
    source: u32,
    destination: u32,
    ports: u32,
}

/// What every load balancer must look at.
#[inline(always)]
fn parse(ctx: &TcContext) -> Option<Ends> {
    const TCP_OVER_IPV4: u8 = 6;
    let headers = headers(ctx)?;
    if read::<u16>(headers, 12) != 0x0800_u16.to_be()
        || read::<u8>(headers, IPV4) != 0x45
        || read::<u16>(headers, IPV4 + 6) & 0xff3f != 0
        || read::<u8>(headers, IPV4 + 9) != TCP_OVER_IPV4
    {
        return None;
    }
    Some(Ends {
        source: read(headers, IPV4 + 12),
        destination: read(headers, IPV4 + 16),
        ports: read(headers, TCP),
    })
}

/// Jumped to for the cost of the generator alone.
#[classifier]
pub fn nothing(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// Parse and return.
#[classifier]
pub fn floor(ctx: TcContext) -> i32 {
    match parse(&ctx) {
        // Uses what was parsed, so that it is parsed.
        Some(ends) if ends.source ^ ends.destination ^ ends.ports == 1 => 0,
        _ => TC_ACT_UNSPEC,
    }
}

/// Replaces the destination as the packet path does: one change of the transport checksum for the
/// address, one for the port, one write.
#[inline(always)]
fn rewrite(ctx: &TcContext, ends: &Ends, to: u32, port: u16) -> i32 {
    let skb = ctx.skb.skb;
    let old_port = (ends.ports >> 16) as u16;
    let address = u64::from(!ends.destination) + u64::from(to);
    let ports = u64::from(!old_port) + u64::from(port);
    let at = (TCP + 16) as u32;
    let flags = u64::from(BPF_F_PSEUDO_HDR);
    // SAFETY: the context is the program's own.
    let failed = unsafe { bpf_l4_csum_replace(skb, at, 0, address & 0xffff_ffff, flags) } != 0;
    // SAFETY: as above.
    let failed = failed || unsafe { bpf_l4_csum_replace(skb, at, 0, ports, 0) } != 0;
    let words = [
        0x4006_0000_u32.to_be(),
        ends.source,
        to,
        (ends.ports & 0xffff) | (u32::from(port) << 16),
    ];
    let (at, length) = ((IPV4 + 8) as u32, size_of_val(&words) as u32);
    // SAFETY: `words` is `length` bytes.
    let failed =
        failed || unsafe { bpf_skb_store_bytes(skb, at, words.as_ptr().cast(), length, 0) } != 0;
    if failed { 0 } else { TC_ACT_UNSPEC }
}

/// Parse and rewrite.
#[classifier]
pub fn rewrite_only(ctx: TcContext) -> i32 {
    match parse(&ctx) {
        Some(ends) => rewrite(&ctx, &ends, ends.source, 8080_u16.to_be()),
        None => TC_ACT_UNSPEC,
    }
}

/// Parse, one line of memory that the packet's source names, and a rewrite that needs it.
#[classifier]
pub fn rewrite_cold(ctx: TcContext) -> i32 {
    let Some(plan) = PLAN.get(0) else {
        return TC_ACT_UNSPEC;
    };
    let Some(ends) = parse(&ctx) else {
        return TC_ACT_UNSPEC;
    };
    let source = u64::from(ends.source) << 16 | u64::from(ends.ports & 0xffff);
    let line = (source.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) & plan.lines;
    let Some(line) = COLD.get_ptr(line as u32) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: a word of a live map element.
    let word = unsafe { line.cast::<u64>().read_volatile() };
    let to = ends.source ^ word as u32;
    rewrite(&ctx, &ends, to, 8080_u16.to_be())
}
