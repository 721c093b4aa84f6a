//! What the allocator does with memory that is given back to it.

/// Has large blocks go back to the system when they are freed, from now on and in the whole process.
///
/// glibc learns from the first such block that is freed to keep the next ones on its heaps. Buffers of many sizes, of many
/// threads, then leave holes there into which others do not fit: `ties` in 64 MiB by direct reads took 54 to 72 MiB of anonymous
/// memory, and 44 with this, as planned. Costs zeroed pages for each block: a tenth of `ties` with all memory there is.
pub fn return_large_blocks() {
    imp::return_large_blocks();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod imp {
    #![expect(unsafe_code, reason = "mallopt has no safe wrapper among the dependencies")]

    /// glibc's own threshold at the start; setting it ends the learning. With 1 MiB there were 49 MiB instead of 44.
    const LARGE: libc::c_int = 128 << 10;

    pub(super) fn return_large_blocks() {
        // SAFETY: takes two integers and changes a parameter of the allocator under its lock.
        let _taken = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
mod imp {
    pub(super) fn return_large_blocks() {}
}
