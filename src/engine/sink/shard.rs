//! One output shard being written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Ranges, SinkError, Storage, StoredFile, durable};
use crate::engine::host::disk::{FileSystem, file_system};

/// Where writeback cannot be started by range, everything is synced after this many bytes. Dirty pages
/// of NFS that could not be reclaimed got a process of 35 MB killed (pixeloven/ComfyUI-Docker#66).
const SYNC_EACH: u64 = 64 << 20;

/// How shards are written.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Bytes written between two pushes to disk. About twice this is in memory per shard.
    pub chunk: u64,
    /// Leaves what was written in the page cache.
    pub keep_cache: bool,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self { chunk: 2 << 20, keep_cache: false }
    }
}

#[derive(Default)]
struct State {
    dirty: Ranges,
    /// Chunks on their way to disk: waited for when the next one is started.
    under_way: Vec<(u64, u64)>,
    /// Writeback failed once: what the file holds is unknown for good.
    failed: bool,
}

/// Writes one shard at any offsets, from any number of threads, pushing to disk behind itself.
///
/// 512 MiB in 1 MiB tiles, synced, on ext4 (`examples/write_shard.rs`): pushed each 2 MiB at 2.0-3.4 GB/s
/// with a peak charge of 5 MiB, each 8 MiB at 3.0-3.5 GB/s with 17 MiB. Left to the kernel 1.9-2.2 GB/s
/// with all of a 64 MiB limit, and 0.4 GB/s with 527 MiB when there is no limit.
pub struct ShardWriter {
    path: PathBuf,
    file: Box<dyn StoredFile>,
    len: u64,
    chunk: u64,
    by_range: bool,
    keep_cache: bool,
    state: Mutex<State>,
    /// Held over calls that can report a failed write, until the failure is noted: the kernel reports
    /// it once, and a sync that comes between would call the file good.
    pushing: Mutex<()>,
}

impl ShardWriter {
    /// Makes a new file of exactly `len` bytes, reserved on disk so that a full disk shows now.
    ///
    /// The mode is 0666 less the umask. Nothing is durable before [`ShardWriter::sync`]; the
    /// directory entry is the caller's to sync.
    ///
    /// # Errors
    /// [`SinkError::Exists`], [`SinkError::NoSpace`], or [`SinkError::Io`]. A file made here is removed.
    pub fn create(
        storage: &dyn Storage,
        path: &Path,
        len: u64,
        config: &SinkConfig,
    ) -> Result<Self, SinkError> {
        let file = storage.create(path).map_err(|e| SinkError::of("create", path, len, e))?;
        if let Err(e) = file.reserve(len) {
            // Ours and empty: made above, where nothing was.
            drop(storage.remove_file(path));
            return Err(SinkError::of("reserve space for", path, len, e));
        }
        Ok(Self::with(path, file, len, config))
    }

    /// Opens a file that an earlier run made, to go on writing. Its length is set to `len`.
    ///
    /// # Errors
    /// [`SinkError::NoSpace`] or [`SinkError::Io`].
    pub fn reopen(
        storage: &dyn Storage,
        path: &Path,
        len: u64,
        config: &SinkConfig,
    ) -> Result<Self, SinkError> {
        let file = storage.open(path).map_err(|e| SinkError::of("open", path, len, e))?;
        file.reserve(len).map_err(|e| SinkError::of("reserve space for", path, len, e))?;
        Ok(Self::with(path, file, len, config))
    }

    fn with(path: &Path, file: Box<dyn StoredFile>, len: u64, config: &SinkConfig) -> Self {
        let by_range = file_system(path).is_ok_and(FileSystem::has_write_behind);
        Self {
            path: path.to_owned(),
            file,
            len,
            chunk: if by_range { config.chunk.max(1) } else { SYNC_EACH },
            by_range,
            keep_cache: config.keep_cache,
            state: Mutex::default(),
            pushing: Mutex::default(),
        }
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes all of `bytes` at `offset`. May wait for the disk to take earlier bytes.
    ///
    /// # Errors
    /// [`SinkError::OutOfRange`], [`SinkError::NoSpace`], [`SinkError::Io`]; [`SinkError::Sync`] when
    /// earlier bytes could not be written out: what is not journaled of the shard is lost then.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let end = offset.checked_add(bytes.len() as u64).filter(|&end| end <= self.len);
        let Some(end) = end else {
            return Err(SinkError::OutOfRange {
                path: self.path.clone(),
                offset,
                len: bytes.len(),
                file_len: self.len,
            });
        };
        self.check_failed()?;
        durable::write_fully(&*self.file, &self.path, offset, bytes)?;
        let (batch, previous) = {
            let mut state = self.state();
            state.dirty.add(offset, end);
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

    fn drop_cache(&self, ranges: &[(u64, u64)]) {
        if !self.keep_cache {
            for &range in ranges {
                self.file.drop_cache(range);
            }
        }
    }

    /// Makes everything written so far durable: what a journal record may then vouch for.
    ///
    /// # Errors
    /// [`SinkError::Sync`], for good: the shard has to be written again. The kernel reports a failed
    /// write only once, also to `sync_file_range`, so a failure seen while pushing counts here too.
    pub fn sync(&self) -> Result<(), SinkError> {
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

    /// Makes the shard durable and closes it.
    ///
    /// # Errors
    /// As [`ShardWriter::sync`].
    pub fn finish(self) -> Result<(), SinkError> {
        self.sync()?;
        self.drop_cache(&[(0, self.len)]);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing inside can be left half done by a panic: the sync at the end covers the whole file.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pushing(&self) -> MutexGuard<'_, ()> {
        self.pushing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, source: io::Error) -> SinkError {
        self.state().failed = true;
        SinkError::sync(&self.path, self.len, source)
    }

    fn check_failed(&self) -> Result<(), SinkError> {
        if self.state().failed {
            let source = io::Error::other("an earlier write to disk failed");
            return Err(SinkError::sync(&self.path, self.len, source));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;

    fn bytes_at(offset: usize, len: usize) -> Vec<u8> {
        (offset..offset + len).map(|i| ((i * 131) >> 3) as u8).collect()
    }

    #[test]
    fn any_order_from_many_threads_gives_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let (len, tile) = (5_000_003usize, 70_001usize);
        for (i, (chunk, keep_cache)) in
            [(1, false), (200_000, false), (1 << 20, true)].into_iter().enumerate()
        {
            let path = dir.path().join(format!("{i}.part"));
            let config = SinkConfig { chunk, keep_cache };
            let writer = ShardWriter::create(&RealDisk, &path, len as u64, &config).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), len as u64);
            let starts: Vec<usize> = (0..len).step_by(tile).collect();
            std::thread::scope(|s| {
                for t in 0..3 {
                    let (writer, starts) = (&writer, &starts);
                    s.spawn(move || {
                        for start in starts.iter().rev().skip(t).step_by(3) {
                            let part = bytes_at(*start, tile.min(len - start));
                            writer.write_at(*start as u64, &part).unwrap();
                        }
                    });
                }
            });
            writer.sync().unwrap();
            writer.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes_at(0, len), "chunk {chunk}");
        }
    }

    #[test]
    fn a_file_that_exists_is_left_alone_and_can_be_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.part");
        let config = SinkConfig::default();
        let writer = ShardWriter::create(&RealDisk, &path, 10, &config).unwrap();
        writer.write_at(0, b"0123456789").unwrap();
        writer.finish().unwrap();
        assert!(matches!(
            ShardWriter::create(&RealDisk, &path, 10, &config),
            Err(SinkError::Exists { .. })
        ));
        let writer = ShardWriter::reopen(&RealDisk, &path, 12, &config).unwrap();
        writer.write_at(10, b"ab").unwrap();
        writer.write_at(12, b"").unwrap();
        for (offset, len) in [(11, 2), (13, 0), (u64::MAX, 1)] {
            let error = writer.write_at(offset, &vec![0; len]).unwrap_err();
            assert!(matches!(error, SinkError::OutOfRange { file_len: 12, .. }), "{error}");
        }
        writer.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789ab");
        assert!(matches!(
            ShardWriter::reopen(&RealDisk, &dir.path().join("b"), 1, &config),
            Err(SinkError::Io { .. })
        ));
        let empty = ShardWriter::create(&RealDisk, &dir.path().join("empty"), 0, &config).unwrap();
        assert!(empty.is_empty());
        empty.finish().unwrap();
    }

    #[test]
    fn the_mode_follows_the_umask() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (ours, plain) = (dir.path().join("ours"), dir.path().join("plain"));
        ShardWriter::create(&RealDisk, &ours, 1, &SinkConfig::default()).unwrap().finish().unwrap();
        std::fs::write(&plain, b"x").unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&plain));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_shows_before_the_first_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge.part");
        // Far more than root's reserve: nothing may be taken from the disk while this fails.
        let len = crate::engine::host::disk::free_bytes(dir.path()).unwrap().saturating_mul(4);
        match ShardWriter::create(&RealDisk, &path, len, &SinkConfig::default()) {
            Err(SinkError::NoSpace { needed, .. }) => assert_eq!(needed, len),
            other => panic!("{:?}", other.map(|w| w.len())),
        }
        assert!(!path.exists(), "nothing is left behind");
    }
}
