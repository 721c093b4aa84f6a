//! What was in the page cache before this run came.
//!
//! Whoever put it there is charged for it already, so reading it adds nothing to what is; dropping it would send the next
//! reader to the disk: the next pass, or somebody else. So it is read from the cache in every mode, and left there.
//!
//! A file is judged in units, each when the run first comes near it and before anything of it is asked for: what is in
//! the cache then, was there before. A unit of which a page is missing is ours, now and later, and is dropped behind the
//! cursor like everything that we read.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{InputFile, advice};

/// Bytes per unit: a multiple of every grain's block, so that a block lies in one unit.
const UNIT: u64 = 2 << 20;

/// A unit is judged when it is first come near.
const UNKNOWN: u8 = 0;
const THEIRS: u8 = 1;
const OURS: u8 = 2;

/// Which parts of which files were in the page cache before: one for all sources of a run, since what one of them has
/// read is not to be taken by another for what was there. A byte for every 2 MiB of the files.
#[derive(Debug, Default)]
pub struct Before {
    files: Mutex<HashMap<PathBuf, Arc<[AtomicU8]>>>,
}

impl Before {
    /// Takes note of what is in the cache now, for somebody who is about to read a range in another way.
    pub fn look(&self, input: &InputFile, file: &File, offset: u64, len: u64) {
        self.of(input).look(file, offset, len);
    }

    /// What is known of one file.
    pub(super) fn of(&self, input: &InputFile) -> Found {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let units = files.entry(input.path.clone()).or_insert_with(|| {
            (0..input.len.div_ceil(UNIT)).map(|_| AtomicU8::new(UNKNOWN)).collect()
        });
        Found { units: Arc::clone(units), len: input.len }
    }
}

/// What is known of one file.
pub(super) struct Found {
    units: Arc<[AtomicU8]>,
    len: u64,
}

impl Found {
    /// Judges what is not known yet of a range. To be called before anything of it is asked for.
    pub(super) fn look(&self, file: &File, offset: u64, len: u64) {
        for (unit, start) in self.units_of(offset, len) {
            if unit.load(Ordering::Relaxed) == UNKNOWN {
                let size = UNIT.min(self.len.saturating_sub(start));
                let found = if advice::is_cached(file, start, size) { THEIRS } else { OURS };
                // Another source may have been faster, and have read of it since.
                let _known =
                    unit.compare_exchange(UNKNOWN, found, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Judges a range that is about to be brought into the cache: what was there before may have gone since, and comes
    /// back as ours.
    pub(super) fn look_again(&self, file: &File, offset: u64, len: u64) {
        self.look(file, offset, len);
        if self.is_theirs(offset, len) && !advice::is_cached(file, offset, len) {
            self.lose(offset, len);
        }
    }

    /// Whether all of a range was there before.
    pub(super) fn is_theirs(&self, offset: u64, len: u64) -> bool {
        self.units_of(offset, len).all(|(unit, _)| unit.load(Ordering::Relaxed) == THEIRS)
    }

    /// Whether some of a range was there before.
    pub(super) fn has_theirs(&self, offset: u64, len: u64) -> bool {
        self.units_of(offset, len).any(|(unit, _)| unit.load(Ordering::Relaxed) == THEIRS)
    }

    /// Takes note that a range is no longer there.
    pub(super) fn lose(&self, offset: u64, len: u64) {
        self.units_of(offset, len).for_each(|(unit, _)| unit.store(OURS, Ordering::Relaxed));
    }

    /// The units of a range, and where each begins.
    fn units_of(&self, offset: u64, len: u64) -> impl Iterator<Item = (&AtomicU8, u64)> {
        let units = offset / UNIT..(offset + len).div_ceil(UNIT);
        units.filter_map(|unit| Some((self.units.get(unit as usize)?, unit * UNIT)))
    }
}
