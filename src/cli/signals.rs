//! Ctrl-C and its kin.

#![expect(unsafe_code, reason = "ignoring a signal takes a system call")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

static CANCEL: AtomicBool = AtomicBool::new(false);

/// Installs the handler: the first signal asks the merge to stop at the next tile, the second ends
/// the program at once. Returns the flag that the merge looks at.
pub(super) fn install() -> &'static AtomicBool {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let handler = || {
        CANCEL.store(true, Ordering::Relaxed);
        if COUNT.fetch_add(1, Ordering::Relaxed) > 0 {
            // SAFETY: ends the process; nothing of it is used afterwards.
            unsafe { libc::_exit(130) };
        }
    };
    // Without a handler the signal ends the program, which does no harm either.
    let _default_action = ctrlc::set_handler(handler);
    &CANCEL
}

/// Makes a write beyond the file size limit an error (EFBIG) instead of a death.
pub(super) fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours, and no other thread exists yet.
    let _old = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
