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
#[path = "bench/measure.rs"]
mod measure;
#[path = "bench/script.rs"]
mod script;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
