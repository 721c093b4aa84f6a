//! Waiting for file descriptors, and going on after signals.

use std::io;
use std::time::{Duration, Instant};

/// Waits while the process has too many files open: tiles in flight give theirs back.
pub(crate) struct Patience(Instant);

impl Patience {
    const LIMIT: Duration = Duration::from_secs(10);

    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Whether to try again after `error`: too many open files, or a signal in between. Waits a moment before it
    /// says yes.
    pub(crate) fn again(&self, error: &io::Error) -> bool {
        let passing =
            matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::EINTR));
        let again = passing && self.0.elapsed() < Self::LIMIT;
        if again {
            std::thread::sleep(Duration::from_millis(1));
        }
        again
    }
}

/// Opens a file, or does something else that takes a descriptor, with patience.
///
/// # Errors
/// Those of `open`; EMFILE only if no descriptor has come free for some seconds.
pub(crate) fn patiently<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let patience = Patience::new();
    loop {
        match open() {
            Err(error) if patience.again(&error) => {}
            done => return done,
        }
    }
}
