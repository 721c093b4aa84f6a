//! Ctrl-C and its kin.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;

use crate::engine::EngineError;
use crate::error::Error;

/// What signals have asked for.
pub(super) struct Signals {
    /// Set by the first signal: the merge stops at the next tile.
    pub(super) cancel: Arc<AtomicBool>,
    terminated: Arc<AtomicBool>,
    /// Whether the next signal ends the program.
    at_once: Arc<AtomicBool>,
}

impl Signals {
    /// Installs the handlers. A signal ends the program at once until there is [something to lose](Self::begin), and
    /// from the second on.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn install() -> io::Result<Self> {
        let at_once = Arc::new(AtomicBool::new(true));
        let signals = Self { cancel: Arc::default(), terminated: Arc::default(), at_once };
        for (signal, code) in [(SIGINT, 130), (SIGTERM, 143)] {
            // In this order: a signal finds the flag as it was, and sets it.
            let _id = flag::register_conditional_shutdown(signal, code, signals.at_once.clone())?;
            let _id = flag::register(signal, signals.at_once.clone())?;
            let _id = flag::register(signal, signals.cancel.clone())?;
        }
        let _id = flag::register(SIGTERM, signals.terminated.clone())?;
        // With a handler, a write beyond the file size limit is an error instead of a death.
        let _id = flag::register(SIGXFSZ, Arc::default())?;
        Ok(signals)
    }

    /// From now on the first signal asks the work to stop where it can go on.
    pub(super) fn begin(&self) {
        self.at_once.store(false, Ordering::Relaxed);
    }

    /// Says in an error which signal it was.
    pub(super) fn name(&self, error: Error) -> Error {
        let terminated = self.terminated.load(Ordering::Relaxed);
        match error {
            Error::Interrupted { staging, .. } => Error::Interrupted { staging, terminated },
            Error::Engine(EngineError::Interrupted) => Error::Stopped { terminated },
            error => error,
        }
    }
}
