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
        // With a handler, a write beyond the file size limit is an error instead of a death.
        let _id = flag::register(SIGXFSZ, Arc::default())?;
        Ok(signals)
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
