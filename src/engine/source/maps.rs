//! The map of one file, renewed from time to time so that its page tables stay small.
//!
//! `MADV_DONTNEED` frees pages but not the page tables above them: 4 KiB for every 2 MiB that was ever
//! mapped in small pages. Reading 8.8 GB through one map per file left 17 MiB behind, and a model of
//! 560 GB would leave a gigabyte. Unmapping frees them, so a fresh map takes over after every
//! [`RENEW_AFTER`] bytes, and the old one goes with the last tile that uses it.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::map::Map;

/// Bytes mapped before a map is renewed: half a MiB of page tables per input at most.
const RENEW_AFTER: u64 = 256 << 20;

struct State {
    current: Arc<Map>,
    /// The map before, as long as a tile uses it: its pages must go too when a block is dropped.
    previous: Weak<Map>,
    /// Bytes populated in `current`.
    populated: u64,
}

/// The current map of a file and the one before.
pub(super) struct Maps {
    len: u64,
    huge: bool,
    state: Mutex<State>,
}

impl Maps {
    /// Maps `len` bytes of a file. The flag says whether faults fill aligned 2 MiB blocks.
    pub(super) fn new(file: &File, len: u64, huge: bool) -> io::Result<(Self, bool)> {
        let (map, huge) = Map::new(file, len, huge)?;
        let state = State { current: Arc::new(map), previous: Weak::new(), populated: 0 };
        Ok((Self { len, huge, state: Mutex::new(state) }, huge))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No step in between leaves the state unusable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The map to use from now on.
    pub(super) fn current(&self, file: &File) -> Arc<Map> {
        let mut state = self.state();
        // Only two generations are known, so the one before the current must be gone first.
        if state.populated >= RENEW_AFTER
            && state.previous.strong_count() == 0
            // If there is no room for another map the old one goes on.
            && let Ok((map, _)) = Map::new(file, self.len, self.huge)
        {
            let old = std::mem::replace(&mut state.current, Arc::new(map));
            state.previous = Arc::downgrade(&old);
            state.populated = 0;
            drop(state);
            // Perhaps the last reference: unmapping takes a while, so not under the lock.
            drop(old);
            return Arc::clone(&self.state().current);
        }
        Arc::clone(&state.current)
    }

    /// Makes a range resident in one of the maps.
    ///
    /// # Errors
    /// As [`Map::populate`].
    pub(super) fn populate(&self, map: &Map, offset: u64, len: u64) -> io::Result<()> {
        self.state().populated += len;
        map.populate(offset, len)
    }

    /// Unmaps the pages of a range everywhere, so that its page cache can be dropped.
    pub(super) fn release(&self, offset: u64, len: u64) {
        let (current, previous) = {
            let state = self.state();
            (Arc::clone(&state.current), state.previous.upgrade())
        };
        current.release(offset, len);
        if let Some(previous) = previous {
            previous.release(offset, len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_renewed_and_the_old_one_lives_as_long_as_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [7u8; 5000]).unwrap();
        let file = File::open(&path).unwrap();
        let (maps, _) = Maps::new(&file, 5000, true).unwrap();
        let first = maps.current(&file);
        maps.populate(&first, 0, 5000).unwrap();
        assert!(Arc::ptr_eq(&first, &maps.current(&file)));
        maps.state().populated = RENEW_AFTER;
        let second = maps.current(&file);
        assert!(!Arc::ptr_eq(&first, &second));
        maps.release(0, 5000);
        assert_eq!((first.bytes()[4999], second.bytes()[4999]), (7, 7));
        maps.state().populated = RENEW_AFTER;
        assert!(Arc::ptr_eq(&second, &maps.current(&file)), "not while the first is in use");
        drop(first);
        assert!(!Arc::ptr_eq(&second, &maps.current(&file)));
    }
}
