//! One open input file: descriptor, map, and the blocks of it that are in use.

use std::fs::File;
use std::io;
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::before::{Before, Found};
use super::blocks::{Blocks, Runs};
use super::cached::Cached;
use super::map::Map;
use super::maps::Maps;
use super::{Grain, InputFile, Mode, SourceError, advice};

/// How files of a source are opened.
#[derive(Clone)]
pub(super) struct Opening {
    pub(super) mode: Mode,
    pub(super) grain: Grain,
    pub(super) keep_cache: bool,
    /// Where what is in the cache already is read from it, and left there.
    pub(super) before: Option<Arc<Before>>,
    /// Set when faults turn out to read single pages although huge blocks were promised.
    pub(super) single_pages: Arc<AtomicBool>,
    /// Bytes of the blocks that are in use, of all files.
    pub(super) held: Arc<AtomicU64>,
}

/// An open input file.
pub(super) struct OpenFile {
    pub(super) input: Arc<InputFile>,
    pub(super) file: File,
    /// Only in `mmap` mode, and not for empty files. Taken when the file is closed.
    maps: Option<Maps>,
    /// Faults fill whole blocks, so a block may be populated without asking for it first.
    fills_blocks: bool,
    opening: Opening,
    blocks: Mutex<Blocks>,
    found: Option<Found>,
    cached: Cached,
}

impl OpenFile {
    pub(super) fn open(input: Arc<InputFile>, opening: &Opening) -> Result<Self, SourceError> {
        let mut options = File::options();
        options.read(true);
        #[cfg(any(target_os = "linux", target_os = "android"))]
        if opening.mode == Mode::Direct {
            options.custom_flags(libc::O_DIRECT);
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        options.custom_flags(0);
        let file = options.open(&input.path).map_err(|e| input.open_error(e))?;
        input.check_open(&file)?;
        if opening.mode != Mode::Direct {
            advice::no_readahead(&file);
        }
        let (mut maps, mut fills_blocks) = (None, false);
        if opening.mode == Mode::Mmap && input.len > 0 {
            let huge = opening.grain == Grain::Huge;
            let (made, whole) = Maps::new(&file, input.len, huge)
                .map_err(|source| SourceError::Map { path: input.path.clone(), source })?;
            (maps, fills_blocks) = (Some(made), whole);
        }
        let found = opening.before.as_ref().map(|before| before.of(&input));
        let (opening, blocks) = (opening.clone(), Mutex::default());
        let cached = Cached::default();
        Ok(Self { input, file, maps, fills_blocks, opening, blocks, found, cached })
    }

    /// The map to use from now on; none in the other modes.
    fn map(&self) -> Option<Arc<Map>> {
        Some(self.maps.as_ref()?.current(&self.file))
    }

    pub(super) fn fills_blocks(&self) -> bool {
        self.fills_blocks && !self.opening.single_pages.load(Ordering::Relaxed)
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        // The bookkeeping stays usable after a panic elsewhere: at worst a block is read twice.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blocks_of(&self, offset: u64, len: u64) -> RangeInclusive<u64> {
        let size = self.opening.grain.block();
        offset / size..=(offset + len.max(1) - 1) / size
    }

    /// Bytes `[offset, len)` of a run of blocks, cut at the end of the file.
    fn span(&self, run: &RangeInclusive<u64>) -> (u64, u64) {
        let size = self.opening.grain.block();
        let start = run.start() * size;
        (start, ((run.end() + 1) * size).min(self.input.len).saturating_sub(start))
    }

    /// Bytes `[offset, len)` of each block of a run.
    fn each(&self, run: &RangeInclusive<u64>) -> impl Iterator<Item = (u64, u64)> {
        run.clone().map(|index| self.span(&(index..=index)))
    }

    /// Whether all of a range was in the page cache before this run.
    fn is_theirs(&self, offset: u64, len: u64) -> bool {
        self.found.as_ref().is_some_and(|found| found.is_theirs(offset, len))
    }

    /// Whether all of a range was in the page cache before this run, looking now if nobody has.
    pub(super) fn is_at_hand(&self, offset: u64, len: u64) -> bool {
        let Some(found) = &self.found else { return false };
        found.look(&self.file, offset, len);
        found.is_theirs(offset, len)
    }

    /// Fills `into` from the page cache, where it was before. False if not all of it is there still.
    pub(super) fn copy_cached(&self, offset: u64, into: &mut [u8]) -> bool {
        let len = into.len() as u64;
        let copied = advice::is_cached(&self.file, offset, len)
            && self.cached.copy(&self.file, self.input.len, offset, into).is_ok();
        if !copied && let Some(found) = &self.found {
            found.lose(offset, len);
        }
        copied
    }

    /// Holds the blocks of a range until the returned value is dropped.
    pub(super) fn hold(self: &Arc<Self>, offset: u64, len: u64) -> Hold {
        let range = self.blocks_of(offset, len);
        let fresh = self.blocks().hold(range.clone());
        let _before = self.opening.held.fetch_add(self.bytes_of(&fresh), Ordering::Relaxed);
        if let Some(found) = &self.found {
            for (start, len) in fresh.iter().flat_map(|run| self.each(run)) {
                found.look_again(&self.file, start, len);
            }
        }
        Hold { file: Arc::clone(self), map: self.map(), range }
    }

    /// Bytes of the blocks of a range that nobody holds yet.
    pub(super) fn anew(&self, offset: u64, len: u64) -> u64 {
        self.blocks().anew(self.blocks_of(offset, len)) * self.opening.grain.block()
    }

    /// Fills one block, in the map of whoever holds it, if somebody still waits for it. After an error the block counts as
    /// missing, and whoever reads it meets the same error.
    pub(super) fn fill_ahead(&self, map: &Weak<Map>, index: u64) {
        if !self.blocks().wanted(index) {
            return;
        }
        // Without its map nobody is there to wait.
        let Some(map) = map.upgrade() else { return };
        let filled = self.populate(Some(&map), &(index..=index)).is_ok();
        if filled && self.input.check_open(&self.file).is_ok() {
            let late = self.blocks().ready(index..=index);
            self.drop_runs(&late);
        }
    }

    fn populate(&self, map: Option<&Map>, run: &RangeInclusive<u64>) -> io::Result<()> {
        let (start, len) = self.span(run);
        let (Some(maps), Some(map)) = (&self.maps, map) else { return Ok(()) };
        if !self.fills_blocks() {
            return maps.populate(map, start, len);
        }
        let before = advice::major_faults();
        maps.populate(map, start, len)?;
        // A kernel that keeps its promise waits once or twice per block; one that reads page by page
        // waits 512 times. From then on blocks are asked for by WILLNEED first.
        let blocks = run.end() - run.start() + 1;
        if advice::major_faults() - before > 64 * blocks {
            self.opening.single_pages.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Drops blocks that were held, and counts them as gone only when they are.
    fn give_back(&self, runs: &Runs) {
        self.drop_runs(runs);
        let _before = self.opening.held.fetch_sub(self.bytes_of(runs), Ordering::Relaxed);
    }

    /// As many bytes as whole blocks have, also the last one of the file.
    fn bytes_of(&self, runs: &Runs) -> u64 {
        let blocks: u64 = runs.iter().map(|run| run.end() - run.start() + 1).sum();
        blocks * self.opening.grain.block()
    }

    fn drop_runs(&self, runs: &Runs) {
        if self.opening.keep_cache {
            return;
        }
        for run in runs {
            let (start, len) = self.span(run);
            if len == 0 {
                continue;
            }
            if let Some(maps) = &self.maps {
                maps.release(start, len);
            }
            // Most often nothing was there.
            if !self.found.as_ref().is_some_and(|found| found.has_theirs(start, len)) {
                advice::drop_cache(&self.file, start, len);
                continue;
            }
            for (start, len) in self.each(run).filter(|&(start, len)| !self.is_theirs(start, len)) {
                advice::drop_cache(&self.file, start, len);
            }
        }
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.maps = None;
        if self.opening.mode != Mode::Direct {
            let rest = self.blocks().clear();
            self.give_back(&rest);
        }
    }
}

/// Keeps the blocks of one range from being dropped.
pub(super) struct Hold {
    /// Before `file`, so that the map is gone when the file drops the page cache that is left.
    map: Option<Arc<Map>>,
    pub(super) file: Arc<OpenFile>,
    range: RangeInclusive<u64>,
}

impl Hold {
    /// Starts reading what has not been asked for: at once by `WILLNEED`, or by `fill` per block.
    pub(super) fn start(&self, mut fill: impl FnMut(&Arc<OpenFile>, Weak<Map>, u64)) {
        let runs = self.file.blocks().start(self.range.clone());
        for run in runs {
            if let Some(map) = self.map.as_ref().filter(|_| self.file.fills_blocks()) {
                run.for_each(|index| fill(&self.file, Arc::downgrade(map), index));
            } else {
                let (start, len) = self.file.span(&run);
                if !self.file.is_theirs(start, len) {
                    advice::will_need(&self.file.file, start, len);
                }
            }
        }
    }

    /// Waits until the mapped bytes of the range are resident. Costs nothing if they are known to be.
    pub(super) fn fill(&self, offset: u64, len: usize) -> Result<(), SourceError> {
        let file = &self.file;
        let runs = file.blocks().missing(self.range.clone());
        if runs.is_empty() {
            return Ok(());
        }
        for run in runs {
            file.populate(self.map.as_deref(), &run)
                .map_err(|e| file.input.read_error(&file.file, offset, len, e))?;
            // The blocks are held here, so none of them can have been released meanwhile.
            drop(file.blocks().ready(run));
        }
        file.input.check_open(&file.file)
    }

    /// The mapped bytes of the whole file; empty in the other modes.
    pub(super) fn mapped(&self) -> &[u8] {
        self.map.as_deref().map_or(&[], Map::bytes)
    }

    /// Waits for reads that were started and will not be used: pages under I/O cannot be dropped.
    pub(super) fn settle(&self) {
        let missing = self.file.blocks().missing(self.range.clone());
        for index in missing.into_iter().flatten() {
            let (start, len) = self.file.span(&(index..=index));
            // Of what was there before nothing is under way, and reading it may make the kernel read ahead: see `cached`.
            if self.file.is_theirs(start, len) {
                continue;
            }
            for at in [start, (start + len).saturating_sub(1)] {
                // An error here is an error of bytes that nobody wants.
                drop(self.file.file.read_at(&mut [0], at));
            }
        }
    }

    /// Moves the file's cursor to the end of the range.
    pub(super) fn move_cursor(&self) {
        let (start, len) = self.file.span(&self.range);
        let at_end = start + len >= self.file.input.len;
        // Nothing follows the last block, so it need not wait for the cursor to move on.
        let to = Some(*self.range.end()).filter(|_| !at_end);
        let left = self.file.blocks().move_cursor(to);
        self.file.give_back(&left);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let unused = self.file.blocks().release(self.range.clone());
        self.file.give_back(&unused);
    }
}
