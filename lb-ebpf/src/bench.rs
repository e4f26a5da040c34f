//! Programs for tests and measurements: an object of its own, which the agent never loads.

#![no_std]
#![no_main]
#![cfg_attr(feature = "atomics", feature(asm_experimental_arch))]
#![expect(
    dead_code,
    reason = "the modules are the real object's, which uses all of them"
)]

#[cfg(feature = "atomics")]
mod atomic;
mod env;
mod flows;
mod maps;

use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use lb_common::flow::script::{Op, Step};

/// How many steps a packet holds at most.
const STEPS: usize = 32;

/// Runs the flow table operations that the packet's bytes are, and writes each one's answer over it.
/// The first 16 bytes are left alone (a test run takes them for an Ethernet header).
#[classifier]
pub fn flow_script(ctx: TcContext) -> i32 {
    let mut index = 0;
    while index < STEPS {
        let offset = 16 + index * size_of::<Step>();
        let Ok(mut step) = ctx.load::<Step>(offset) else {
            break;
        };
        if step.op == Op::END {
            break;
        }
        step.run(&flows::KernelFlows);
        if ctx.store(offset, &step, 0).is_err() {
            return -1;
        }
        index += 1;
    }
    index as i32
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
