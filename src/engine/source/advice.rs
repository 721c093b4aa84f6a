//! Thin wrappers of the hints that Linux takes, with honest stand-ins for other systems.
//!
//! A hint that fails changes speed or footprint, never bytes, so its errors are dropped here.

use std::fs::File;

/// Asks the kernel to start reading `[offset, offset + len)` and returns at once.
pub(super) fn will_need(file: &File, offset: u64, len: u64) {
    imp::fadvise(file, offset, len, imp::Hint::WillNeed);
}

/// Drops clean, unmapped page cache in `[offset, offset + len)`; `len` 0 means to the end.
pub(super) fn drop_cache(file: &File, offset: u64, len: u64) {
    imp::fadvise(file, offset, len, imp::Hint::DontNeed);
}

/// Turns off the kernel's own readahead: what is read is then exactly what is asked for.
pub(super) fn no_readahead(file: &File) {
    imp::fadvise(file, 0, 0, imp::Hint::Random);
}

/// Whether every page of `[offset, offset + len)` is in the page cache. Says no where the kernel does not tell: before
/// Linux 6.5, or of a file that is somebody else's and may not be written.
pub(super) fn is_cached(file: &File, offset: u64, len: u64) -> bool {
    imp::is_cached(file, offset, len)
}

/// Major faults of the calling thread so far: how often it had to wait for a disk read.
pub(super) fn major_faults() -> u64 {
    imp::major_faults()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod imp {
    #![expect(
        unsafe_code,
        reason = "getrusage and cachestat have no safe wrappers among the dependencies"
    )]
    use std::fs::File;
    use std::num::NonZeroU64;
    use std::os::fd::AsRawFd;

    pub(super) use rustix::fs::Advice as Hint;

    pub(super) fn fadvise(file: &File, offset: u64, len: u64, hint: Hint) {
        let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(len), hint);
    }

    /// The same on every architecture but MIPS, where nothing has this number and the call is refused.
    const SYS_CACHESTAT: libc::c_long = 451;

    #[repr(C)]
    struct CachestatRange {
        offset: u64,
        len: u64,
    }

    #[repr(C)]
    #[derive(Default)]
    struct Cachestat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }

    pub(super) fn is_cached(file: &File, offset: u64, len: u64) -> bool {
        if len == 0 {
            return true;
        }
        let range = CachestatRange { offset, len };
        let mut found = Cachestat::default();
        // SAFETY: both structs are laid out as the kernel has them and live for the whole call, which reads one and
        // fills in the other; flags must be 0.
        let code = unsafe {
            libc::syscall(
                SYS_CACHESTAT,
                file.as_raw_fd(),
                &raw const range,
                &raw mut found,
                0 as libc::c_uint,
            )
        };
        let page = rustix::param::page_size() as u64;
        let pages = (offset + len).div_ceil(page) - offset / page;
        code == 0 && found.cached >= pages
    }

    pub(super) fn major_faults() -> u64 {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: the pointer is valid for writes of one `rusage` for the whole call.
        let code = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
        if code != 0 {
            return 0;
        }
        // SAFETY: zeroed above, and all-zero is a valid `rusage`; the call only filled it in.
        let usage = unsafe { usage.assume_init() };
        u64::try_from(usage.ru_majflt).unwrap_or(0)
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
mod imp {
    use std::fs::File;

    pub(super) enum Hint {
        WillNeed,
        DontNeed,
        Random,
    }

    pub(super) fn fadvise(_file: &File, _offset: u64, _len: u64, _hint: Hint) {}

    pub(super) fn is_cached(_file: &File, _offset: u64, _len: u64) -> bool {
        false
    }

    pub(super) fn major_faults() -> u64 {
        0
    }
}
