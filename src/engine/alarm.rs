//! Wakes whoever waits for a thread that has failed.

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::EngineError;

/// Rings when a thread of a pass fails. Without it, the reader would wait for tickets that are never given
/// back: those of tiles that the failed thread had, or that wait behind one of them for their turn.
pub(super) struct Alarm {
    /// Nothing is ever sent; that it is dropped is the message.
    line: Mutex<Option<Sender<Infallible>>>,
    heard: Receiver<Infallible>,
}

impl Alarm {
    pub(super) fn new() -> Self {
        let (line, heard) = bounded(0);
        Self { line: Mutex::new(Some(line)), heard }
    }

    pub(super) fn ring(&self) {
        *self.line.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Disconnected from the moment it rings.
    pub(super) fn heard(&self) -> &Receiver<Infallible> {
        &self.heard
    }

    /// Does what a thread is for, and rings if that fails or panics.
    pub(super) fn guard<T>(
        &self,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        struct Guard<'a>(Option<&'a Alarm>);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                if let Some(alarm) = self.0 {
                    alarm.ring();
                }
            }
        }
        let mut guard = Guard(Some(self));
        let done = work()?;
        guard.0 = None;
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::TryRecvError;

    #[test]
    fn it_rings_for_errors_and_panics_only() {
        let rings = |work: fn() -> Result<(), EngineError>| {
            let alarm = Alarm::new();
            let _ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                drop(alarm.guard(work));
            }));
            alarm.heard().try_recv() == Err(TryRecvError::Disconnected)
        };
        assert!(!rings(|| Ok(())));
        assert!(rings(|| Err(EngineError::Interrupted)));
        assert!(rings(|| panic!("a bug")));
    }
}
