//! What the C library's allocator should know of this program. Here because to tell it is unsafe,
//! and only the datapath may be.
//!
//! The agent's largest work is its first: everything there is gets read, planned and written. What
//! follows are changes of a few kilobytes. By itself glibc would keep what the first work has freed:
//! each thread's own heap with its holes, and blocks of megabytes, which it learns to keep for the
//! next of their size once one was freed. With 10,000 services of ten endpoints that was more than
//! half of the agent's memory.

/// To be called before the first thread starts: one heap for all threads, and large blocks straight
/// from the kernel and back to it.
pub fn settle() {
    #[cfg(target_env = "gnu")]
    {
        /// From this size on a block is a mapping of its own; glibc's own starting value, which
        /// stays what it is once it is set.
        const LARGE: libc::c_int = 128 << 10;
        for (parameter, value) in [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, LARGE),
            (libc::M_TRIM_THRESHOLD, LARGE),
        ] {
            // SAFETY: takes two numbers; no other thread allocates yet. A refusal changes nothing.
            unsafe { libc::mallopt(parameter, value) };
        }
    }
}

/// Lets the kernel take back the pages of something that was read once out of the program's own file:
/// some megabytes that would count as ours for ever. Read again, they come from the file again.
pub(super) fn unread(part: &'static [u8]) {
    const PAGE: usize = 4096;
    let start = part.as_ptr() as usize;
    let (first, end) = (start.next_multiple_of(PAGE), start + part.len());
    let length = end.saturating_sub(first) / PAGE * PAGE;
    // SAFETY: the whole pages within `part`, which is constant data of the program's file: nobody can
    // have written there, so what is read after this is what was there before. Where pages are larger
    // the call fails, and nothing is lost.
    unsafe { libc::madvise(first as *mut libc::c_void, length, libc::MADV_DONTNEED) };
}

/// Returns what is free to the kernel, also from between what is in use.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    {
        // SAFETY: takes a number and locks the heap.
        unsafe { libc::malloc_trim(0) };
    }
}
