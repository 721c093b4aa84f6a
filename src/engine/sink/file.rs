//! The file of a shard: how bytes get into it, and what is known of them until they are durable.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::{Ranges, SinkConfig, SinkError, StoredFile, durable};
use crate::engine::buffer::PAGE;
use crate::engine::host::disk::{FileSystem, file_system};
use crate::recipe::WriteRequest;

/// Where writeback cannot be started by range, everything is synced after this many bytes. Dirty pages
/// of NFS that could not be reclaimed got a process of 35 MB killed (pixeloven/ComfyUI-Docker#66).
const SYNC_EACH: u64 = 64 << 20;

/// Smaller shards gain nothing from passing the page cache by.
const SMALL_SHARD: u64 = 4 << 20;

/// Nor do shorter runs of bytes: each waits for the disk.
const SHORT_RUN: usize = 64 << 10;

#[derive(Default)]
struct State {
    dirty: Ranges,
    /// Chunks on their way to disk: waited for when the next one is started.
    under_way: Vec<(u64, u64)>,
    /// Writeback failed once: what the file holds is unknown for good.
    failed: bool,
    /// The failure of a chunk that another thread was given, until somebody is told.
    untold: Option<SinkError>,
    /// Chunks that another thread was given and has not written yet.
    queued: usize,
}

/// One shard's file.
pub(super) struct ShardFile {
    pub(super) path: PathBuf,
    pub(super) len: u64,
    file: Box<dyn StoredFile>,
    chunk: u64,
    by_range: bool,
    keep_cache: bool,
    /// Whether chunks are tried past the page cache; no longer once the system has refused.
    past_cache: AtomicBool,
    /// The shortest run that is written so.
    shortest: usize,
    state: Mutex<State>,
    /// The last chunk that was queued has been written.
    idle: Condvar,
    /// Held over calls that can report a failed write, until the failure is noted: the kernel reports
    /// it once, and a sync that comes between would call the file good.
    pushing: Mutex<()>,
}

impl ShardFile {
    pub(super) fn new(
        path: PathBuf,
        file: Box<dyn StoredFile>,
        len: u64,
        config: &SinkConfig,
    ) -> Self {
        let system = file_system(&path);
        let by_range = system.as_ref().is_ok_and(|system| system.has_write_behind());
        let (past_cache, shortest) = match config.write {
            WriteRequest::Auto => {
                let worth = system.is_ok_and(FileSystem::is_worth_direct_writes);
                (worth && len >= SMALL_SHARD, SHORT_RUN)
            }
            WriteRequest::Buffered => (false, 0),
            WriteRequest::Direct => (true, PAGE),
        };
        Self {
            path,
            len,
            file,
            chunk: if by_range { config.chunk.max(1) } else { SYNC_EACH },
            by_range,
            keep_cache: config.keep_cache,
            past_cache: AtomicBool::new(past_cache),
            shortest,
            state: Mutex::default(),
            idle: Condvar::new(),
            pushing: Mutex::default(),
        }
    }

    /// Whether chunks of it are tried past the page cache.
    pub(super) fn passes_cache(&self) -> bool {
        self.past_cache.load(Ordering::Relaxed)
    }

    /// Writes through the page cache, and pushes to disk what is more than a chunk.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        durable::write_fully(&*self.file, &self.path, offset, bytes)?;
        let (batch, previous) = {
            let mut state = self.state();
            state.dirty.add(offset, offset + bytes.len() as u64);
            if state.dirty.bytes() < self.chunk {
                return Ok(());
            }
            let batch = state.dirty.take();
            (batch.clone(), std::mem::replace(&mut state.under_way, batch))
        };
        // The state is free while the disk works: other threads go on writing.
        let _pushing = self.pushing();
        self.push(&batch, &previous).map_err(|e| self.fail(e))
    }

    /// Writes a chunk: its whole pages past the page cache, what is before and behind them through it.
    ///
    /// For one thread at a time, which nobody writes beside: a page that is in the cache and dirty, and a write
    /// past the cache, must not meet. One after the other is what the kernel keeps in order. The chunk lies in
    /// memory as it does in the file: whole pages begin at addresses that are multiples of one.
    pub(super) fn write_chunk(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let head = (offset.next_multiple_of(PAGE as u64) - offset) as usize;
        let whole = bytes.len().saturating_sub(head) / PAGE * PAGE;
        if !self.passes_cache() || whole < self.shortest.max(PAGE) {
            return self.write(offset, bytes);
        }
        let (head, rest) = bytes.split_at(head);
        let (whole, tail) = rest.split_at(whole);
        let from = offset + head.len() as u64;
        if !head.is_empty() {
            self.write(offset, head)?;
        }
        self.write_pages(from, whole)?;
        if !tail.is_empty() {
            self.write(from + whole.len() as u64, tail)?;
        }
        Ok(())
    }

    /// Writes whole pages past the page cache; where the system refuses that, through it.
    fn write_pages(&self, mut offset: u64, mut pages: &[u8]) -> Result<(), SinkError> {
        while !pages.is_empty() {
            let error = match self.file.write_past_cache(pages, offset) {
                Ok(n) if n >= PAGE => {
                    // What was written of a page is written again: the next write begins with a whole one.
                    let n = n / PAGE * PAGE;
                    offset += n as u64;
                    pages = pages.get(n..).unwrap_or_default();
                    continue;
                }
                // What stopped it shows on the way through the cache.
                Ok(_) => return self.write(offset, pages),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => e,
            };
            return match error.raw_os_error() {
                Some(libc::EINVAL | libc::EOPNOTSUPP) => {
                    self.past_cache.store(false, Ordering::Relaxed);
                    self.write(offset, pages)
                }
                Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                    Err(SinkError::of("write", &self.path, pages.len() as u64, error))
                }
                // The disk itself: through the cache it would have shown when the pages were written back.
                _ => Err(self.fail(error)),
            };
        }
        Ok(())
    }

    fn push(&self, batch: &[(u64, u64)], previous: &[(u64, u64)]) -> io::Result<()> {
        if !self.by_range {
            self.file.sync()?;
            self.drop_cache(batch);
            return Ok(());
        }
        batch.iter().try_for_each(|&range| self.file.start_writeback(range))?;
        // Waiting here is what bounds the dirty pages: never more than two chunks.
        previous.iter().try_for_each(|&range| self.file.await_writeback(range))?;
        self.drop_cache(previous);
        Ok(())
    }

    /// Drops what was written from the page cache, unless it is to stay there.
    pub(super) fn drop_cache(&self, ranges: &[(u64, u64)]) {
        if !self.keep_cache {
            for &range in ranges {
                self.file.drop_cache(range);
            }
        }
    }

    /// Makes everything durable that was written, not what is queued.
    pub(super) fn sync(&self) -> Result<(), SinkError> {
        let _pushing = self.pushing();
        self.check_failed()?;
        let ranges = {
            let mut state = self.state();
            let mut ranges = std::mem::take(&mut state.under_way);
            ranges.extend(state.dirty.take());
            ranges
        };
        self.file.sync().map_err(|e| self.fail(e))?;
        self.drop_cache(&ranges);
        Ok(())
    }

    /// Another thread is about to get a chunk.
    pub(super) fn queue(&self) {
        self.state().queued += 1;
    }

    /// The other thread is done with a chunk.
    pub(super) fn unqueue(&self, outcome: Result<(), SinkError>) {
        let mut state = self.state();
        state.queued -= 1;
        if let Err(error) = outcome {
            // Bytes are missing that the caller takes for written.
            state.failed = true;
            state.untold.get_or_insert(error);
        }
        drop(state);
        self.idle.notify_all();
    }

    /// Waits until all queued chunks are written, or have failed.
    pub(super) fn await_queued(&self) {
        let state = self.state();
        drop(
            self.idle
                .wait_while(state, |state| state.queued > 0)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Notes that what the file holds is unknown for good.
    pub(super) fn fail(&self, source: io::Error) -> SinkError {
        self.state().failed = true;
        SinkError::sync(&self.path, self.len, source)
    }

    /// Whether a write has failed for good.
    pub(super) fn has_failed(&self) -> bool {
        self.state().failed
    }

    /// Waits for queued chunks where one has failed: why is known when that one is done with.
    ///
    /// # Errors
    /// If a write has failed for good: why, the first time.
    pub(super) fn check_failed(&self) -> Result<(), SinkError> {
        let mut state = self
            .idle
            .wait_while(self.state(), |state| state.failed && state.queued > 0)
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.untold.take() {
            return Err(error);
        }
        if state.failed {
            let source = io::Error::other("an earlier write to disk failed");
            return Err(SinkError::sync(&self.path, self.len, source));
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing inside can be left half done by a panic: the sync at the end covers the whole file.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pushing(&self) -> MutexGuard<'_, ()> {
        self.pushing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
