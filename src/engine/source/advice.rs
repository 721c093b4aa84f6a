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

/// Major faults of the calling thread so far: how often it had to wait for a disk read.
pub(super) fn major_faults() -> u64 {
    imp::major_faults()
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod imp {
    #![expect(unsafe_code, reason = "getrusage has no safe wrapper among the dependencies")]
    use std::fs::File;
    use std::num::NonZeroU64;

    pub(super) use rustix::fs::Advice as Hint;

    pub(super) fn fadvise(file: &File, offset: u64, len: u64, hint: Hint) {
        let _ = rustix::fs::fadvise(file, offset, NonZeroU64::new(len), hint);
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

    pub(super) fn major_faults() -> u64 {
        0
    }
}
