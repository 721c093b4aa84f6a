//! Asking for bytes before they are worked on.
//!
//! Blocks are taken from several files in turn, a few KiB of each: too little for a CPU to find out by itself where it will go
//! on, and so each block would begin with waits for memory.

#![expect(unsafe_code, reason = "a hint that no loop compiles to")]

/// How far ahead: what is behind the block at hand, and likely the beginning of the next one.
const AHEAD: usize = 8 << 10;

/// Bytes that come into a cache together.
const LINE: usize = 64;

/// Has the bytes [`AHEAD`] of these brought near. There need not be any.
#[inline(always)]
pub(super) fn ask(bytes: &[u8]) {
    for at in (0..bytes.len()).step_by(LINE) {
        near(bytes.as_ptr().wrapping_add(at + AHEAD));
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn near(at: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a hint: nothing is read, and it is ignored where nothing is mapped. SSE is there on all of x86_64.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn near(_at: *const u8) {}
