//! Reads byte ranges of many input files in plan order, holding exactly the memory it was given.
//!
//! ```text
//! prefetch(next tile) --> kernel or helper threads start reading these ranges and no others
//! read(this tile)     --> waits, hands out owned bytes: mapped (no copy) or in a pooled buffer
//! drop(bytes)         --> once no tile and no prefetch needs a block, and the cursor has left it,
//!                         it is unmapped and its page cache dropped
//! ```
//! What was in the page cache before the run is read from there in every mode, and stays ([`Before`]).
//!
//! Invariants: the same bytes in every mode; page cache charged to this process stays within
//! [`Grain::footprint`]; a file that is not what the plan recorded is an error, never data.

mod advice;
mod before;
mod blocks;
mod cached;
mod choose;
mod copy;
mod error;
mod file;
mod files;
mod helper;
mod identity;
mod map;
mod maps;
mod sigbus;
#[cfg(test)]
mod tests;
mod tile;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use before::Before;
pub use choose::{choose, for_samples};
pub use error::SourceError;
pub use files::max_open_files;
pub use identity::InputFile;
pub use sigbus::{EXIT_INPUT_CHANGED, install_sigbus_handler};
pub use tile::TileBytes;

use copy::{Filler, Slot};
use file::{Hold, Opening};
use files::Files;
use helper::Helpers;

use crate::engine::buffer::BufferPool;
use crate::plan::{Grain, Mode};

/// A run of bytes of one input file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// Which file: an index into the list that the source was opened with.
    pub file: u32,
    /// First byte, from the start of the file. Need not be aligned.
    pub offset: u64,
    /// Number of bytes. May be 0.
    pub len: usize,
}

/// How a [`Source`] reads.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The way of reading, see [`choose()`].
    pub mode: Mode,
    /// The unit of filling and dropping page cache (`mmap`, `pread`).
    pub grain: Grain,
    /// Leaves everything in the page cache, for hosts with room to keep all inputs for the next pass.
    pub keep_cache: bool,
    /// Tells what was in the page cache before from what this run brought there: the same for all sources of a run. Without,
    /// all that is read is dropped, and `direct` mode reads nothing from there.
    pub before: Option<Arc<Before>>,
    /// Threads that read ahead in `mmap` (huge grain) and `direct` mode. With 0 nothing overlaps there.
    pub helpers: usize,
    /// Most page cache that may be in use for more to be asked for, see [`Source::has_room`]. Direct reads have none.
    pub reach: u64,
    /// Most files open at a time; None for half of `RLIMIT_NOFILE`.
    pub max_open: Option<usize>,
}

impl SourceConfig {
    /// The settings measured best for a sequential pass.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            grain: Grain::Huge,
            keep_cache: false,
            before: Some(Arc::default()),
            helpers: 2,
            reach: 0,
            max_open: None,
        }
    }
}

/// What is under way for a range that has been asked for.
enum Ahead {
    /// Blocks held in the page cache.
    Held(Hold),
    /// A buffer that a helper thread fills.
    Buffer(Arc<Slot>),
    /// Nothing can be done before the read itself.
    Nothing,
}

/// Reads the ranges of one pass. One thread drives it; what it hands out may go to any thread.
pub struct Source {
    mode: Mode,
    files: Files,
    pool: Arc<BufferPool>,
    ahead: HashMap<ByteRange, Ahead>,
    read_by_file: Vec<u64>,
    /// Bytes of the blocks that are in use.
    held: Arc<AtomicU64>,
    reach: u64,
    // Last: its threads are joined after everything they work on has been given up.
    helpers: Helpers,
}

impl Source {
    /// Prepares to read these files. Opens none of them yet.
    ///
    /// # Errors
    /// [`SourceError::Threads`] when the reading threads cannot be started.
    pub fn open(inputs: Vec<InputFile>, config: &SourceConfig) -> Result<Self, SourceError> {
        let wants_helpers = match config.mode {
            Mode::Mmap => config.grain == Grain::Huge,
            Mode::Pread => false,
            Mode::Direct => true,
        };
        let helpers = Helpers::start(if wants_helpers { config.helpers } else { 0 })
            .map_err(SourceError::Threads)?;
        // Copies are released as soon as they are made, so `pread` gains nothing from huge blocks.
        let grain = match (config.mode, config.grain) {
            (Mode::Pread, Grain::Huge) => Grain::Exact,
            (_, grain) => grain,
        };
        let held = Arc::<AtomicU64>::default();
        let opening = Opening {
            held: Arc::clone(&held),
            mode: config.mode,
            grain,
            keep_cache: config.keep_cache,
            before: config.before.clone().filter(|_| !config.keep_cache),
            single_pages: Arc::default(),
        };
        let max_open = config.max_open.unwrap_or_else(files::max_open_files);
        let read_by_file = vec![0; inputs.len()];
        let files = Files::new(inputs, opening, max_open);
        let (pool, ahead) = (Arc::default(), HashMap::new());
        let (mode, reach) = (config.mode, config.reach);
        Ok(Self { mode, files, pool, ahead, read_by_file, held, reach, helpers })
    }

    /// How this source reads.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the blocks of these ranges may be in use beside all that are, so that they may be asked for although nobody
    /// has a permit for them.
    pub fn has_room(&self, ranges: &[ByteRange]) -> bool {
        if self.mode == Mode::Direct || self.reach == 0 {
            return false;
        }
        let held = self.held.load(Ordering::Relaxed);
        self.files.anew(ranges).is_some_and(|anew| held.saturating_add(anew) <= self.reach)
    }

    /// Starts reading ranges that will be read soon, and returns at once.
    ///
    /// From now until they are read and dropped they take memory: call this when the tile has its permit.
    /// Errors show when the range is read. Asking twice is asking once.
    pub fn prefetch(&mut self, ranges: &[ByteRange]) {
        for range in ranges.iter().filter(|r| r.len > 0) {
            if !self.ahead.contains_key(range)
                && let Ok(ahead) = self.start(range)
            {
                self.ahead.insert(*range, ahead);
            }
        }
    }

    /// Gives up every range that was prefetched and not read.
    pub fn cancel_prefetch(&mut self) {
        for ahead in std::mem::take(&mut self.ahead).into_values() {
            if let Ahead::Held(hold) = &ahead {
                hold.settle();
            }
        }
    }

    /// Reads ranges, usually one tile in base and all experts; the result is in the order asked.
    ///
    /// # Errors
    /// [`SourceError::Changed`] when a file is not what the plan recorded; otherwise what failed, with
    /// file and offset.
    pub fn read(&mut self, ranges: &[ByteRange]) -> Result<Vec<TileBytes>, SourceError> {
        // All are started before the first is waited for: the inputs overlap even without prefetch.
        let mut started = Vec::with_capacity(ranges.len());
        for range in ranges {
            let ahead = match self.ahead.remove(range) {
                Some(ahead) => ahead,
                None => self.start(range)?,
            };
            started.push(ahead);
        }
        let mut tiles = Vec::with_capacity(ranges.len());
        for (range, ahead) in ranges.iter().zip(started) {
            tiles.push(self.finish(range, ahead)?);
            if let Some(count) = self.read_by_file.get_mut(range.file as usize) {
                *count += range.len as u64;
            }
        }
        self.files.close_idle(ranges.len());
        Ok(tiles)
    }

    fn start(&mut self, range: &ByteRange) -> Result<Ahead, SourceError> {
        let file = self.files.of(range)?;
        if range.len == 0 {
            return Ok(Ahead::Nothing);
        }
        if self.mode != Mode::Direct {
            let hold = file.hold(range.offset, range.len as u64);
            hold.start(|file, map, block| {
                let file = Arc::clone(file);
                self.helpers.submit(move || file.fill_ahead(&map, block));
            });
            return Ok(Ahead::Held(hold));
        }
        if self.helpers.is_empty() || file.is_at_hand(range.offset, range.len as u64) {
            return Ok(Ahead::Nothing);
        }
        let slot = Arc::new(Slot::default());
        let (filler, pool, range) = (Filler(Arc::clone(&slot)), Arc::clone(&self.pool), *range);
        self.helpers.submit(move || filler.run(|| copy::around(&file, &range, &pool)));
        Ok(Ahead::Buffer(slot))
    }

    fn finish(&mut self, range: &ByteRange, ahead: Ahead) -> Result<TileBytes, SourceError> {
        if range.len == 0 {
            return Ok(TileBytes::empty());
        }
        let copied = match ahead {
            Ahead::Held(hold) if self.mode == Mode::Mmap => {
                hold.fill(range.offset, range.len)?;
                hold.move_cursor();
                return Ok(TileBytes::mapped(hold, range));
            }
            Ahead::Held(hold) => {
                let copied = copy::buffered(&hold.file, range, &self.pool)?;
                hold.move_cursor();
                copied
            }
            Ahead::Buffer(slot) => match slot.wait() {
                Some(outcome) => outcome?,
                None => copy::around(&*self.files.of(range)?, range, &self.pool)?,
            },
            Ahead::Nothing => copy::around(&*self.files.of(range)?, range, &self.pool)?,
        };
        Ok(TileBytes::copied(copied, range.len))
    }

    /// Ends a pass: gives up prefetches, closes the files and drops their page cache as soon as the
    /// last tile of each is dropped. The source may be used again.
    pub fn finish_pass(&mut self) {
        self.cancel_prefetch();
        self.files.close();
    }

    /// Ends a pass that was stopped amid its work, without waiting for reads under way: what they bring stays in the page cache
    /// until it is needed for something else.
    pub fn give_up(&mut self) {
        self.ahead.clear();
        self.files.close();
    }

    /// Checks that every input file still is what the plan recorded. Call at the end of each pass,
    /// before anything computed from it is kept.
    ///
    /// # Errors
    /// [`SourceError::Changed`] or [`SourceError::Open`] for the first file that differs.
    pub fn verify_unchanged(&self) -> Result<(), SourceError> {
        self.files.inputs().iter().try_for_each(|input| input.check_path())
    }

    /// Bytes handed out since the source was opened.
    pub fn bytes_read(&self) -> u64 {
        self.read_by_file.iter().sum()
    }

    /// Bytes handed out per file, in the order of the list that the source was opened with.
    pub fn bytes_read_by_file(&self) -> &[u64] {
        &self.read_by_file
    }
}
