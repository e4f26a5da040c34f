//! Flow table operations on demand, for the tests of the table itself.

use crate::env::Kernel;
use crate::flows;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::macros::{btf_map, classifier};
use aya_ebpf::programs::TcContext;
use lb_common::env::Tables;
use lb_common::flow::script::{Op, Step};

/// How many steps a packet holds at most.
const STEPS: usize = 24;

/// The step being run: the stack has no room for it.
#[btf_map(name = "lb_step")]
static STEP: PerCpuArray<Step, 1> = PerCpuArray::new();

/// Runs the flow table operations that the packet's bytes are, and writes each one's answer over it.
/// The first 16 bytes are left alone: a test run takes them for an Ethernet header.
#[classifier]
pub fn flow_script(ctx: TcContext) -> i32 {
    const SIZE: u32 = size_of::<Step>() as u32;
    let skb = ctx.skb.skb;
    let (Some(step), Some(config)) = (STEP.get_ptr_mut(0), Kernel.config()) else {
        return -1;
    };
    let mut index = 0;
    while index < STEPS {
        let offset = 16 + index as u32 * SIZE;
        // SAFETY: `step` has room for `SIZE` bytes.
        if unsafe { bpf_skb_load_bytes(skb.cast(), offset, step.cast(), SIZE) } != 0 {
            break;
        }
        // SAFETY: the element is this CPU's own, and test runs do not nest.
        let current = unsafe { &mut *step };
        if current.op == Op::END {
            break;
        }
        current.run(&flows::KernelFlows::<true> { config });
        // SAFETY: `step` has `SIZE` bytes.
        if unsafe { bpf_skb_store_bytes(skb, offset, step.cast(), SIZE, 0) } != 0 {
            return -1;
        }
        index += 1;
    }
    index as i32
}
