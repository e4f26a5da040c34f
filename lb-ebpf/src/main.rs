//! The hooks: kernel context → core → verdict. One file per hook, adapters only.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[cfg(feature = "atomics")]
mod atomic;
mod env;
mod flows;
mod maps;
mod route;
mod socket;
mod sockops;
mod tc;
mod view;

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
