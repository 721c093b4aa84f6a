//! Ctrl-C and its kin.

#![expect(unsafe_code, reason = "ignoring a signal takes a system call")]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// What signals have asked for.
pub(super) struct Signals {
    /// Set by the first signal: the merge stops at the next tile.
    pub(super) cancel: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers. The second signal ends the program at once.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn install() -> io::Result<Self> {
        let signals = Self { cancel: Arc::default(), terminated: Arc::default() };
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            // In this order: the first signal finds the flag unset and sets it.
            let _id = flag::register_conditional_shutdown(signal, code, signals.cancel.clone())?;
            let _id = flag::register(signal, signals.cancel.clone())?;
        }
        let _id = flag::register(SIGTERM, signals.terminated.clone())?;
        Ok(signals)
    }

    /// Whether it was SIGTERM.
    pub(super) fn terminated(&self) -> bool {
        self.terminated.load(Ordering::Relaxed)
    }
}

/// Makes a write beyond the file size limit an error (EFBIG) instead of a death.
pub(super) fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours, and no other thread exists yet.
    let _old = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
