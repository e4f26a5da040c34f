//! Compare-and-swap on map memory: the one place that speaks BPF assembly.
//!
//! BPF has the instruction since kernel 5.12; the compiler's own atomics for this target need more
//! than that. The `atomics` feature leaves it out.

use core::arch::asm;

/// Stores `new` at `word` if it holds `expected`; true if it did. A full barrier.
///
/// # Safety
/// `word` points at an aligned 64-bit word of a live map element.
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, expected: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: the instruction touches the eight bytes at `word`, which the caller vouches for, and
    // r0, which is named.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({word} + 0, r0, {new})",
            word = in(reg) word,
            new = in(reg) new,
            inlateout("r0") expected => found,
        );
    }
    found == expected
}
