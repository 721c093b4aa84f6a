//! One output shard being written.

use std::path::Path;
use std::sync::Arc;

use super::file::ShardFile;
use super::{Lane, SinkError, Storage, StoredFile};
use crate::recipe::WriteRequest;

/// How shards are written.
#[derive(Debug, Clone)]
pub struct SinkConfig {
    /// Bytes written between two pushes to disk. About twice this is in memory per shard, or for all shards
    /// that share a lane.
    pub chunk: u64,
    /// Leaves what was written in the page cache, if it was written through it.
    pub keep_cache: bool,
    /// Through the page cache or past it.
    pub write: WriteRequest,
}

impl Default for SinkConfig {
    fn default() -> Self {
        Self { chunk: 2 << 20, keep_cache: false, write: WriteRequest::Auto }
    }
}

/// Writes one shard at any offsets, from any number of threads, pushing to disk behind itself.
///
/// Through the page cache, 512 MiB in 1 MiB tiles, synced, on ext4 (`examples/write_shard.rs`): pushed each 2 MiB at 2.0-3.4 GB/s
/// with a peak charge of 5 MiB, each 8 MiB at 3.0-3.5 GB/s with 17 MiB. Left to the kernel 1.9-2.2 GB/s
/// with all of a 64 MiB limit, and 0.4 GB/s with 527 MiB when there is no limit.
pub struct ShardWriter {
    file: Arc<ShardFile>,
    /// Takes what is written, where the page cache can be passed by.
    lane: Option<Arc<Lane>>,
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
        let file = ShardFile::new(path.to_owned(), file, len, config);
        Self { file: Arc::new(file), lane: None }
    }

    /// The same, writing past the page cache by way of `lane` if this shard is one for that: see
    /// [`WriteRequest`].
    #[must_use]
    pub fn by_way_of(mut self, lane: &Arc<Lane>) -> Self {
        self.lane = self.file.passes_cache().then(|| Arc::clone(lane));
        self
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.file.len
    }

    /// Whether it has no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes all of `bytes` at `offset`, to write them before the next [`ShardWriter::flush`] or
    /// [`ShardWriter::sync`] returns. May wait for the disk to take earlier bytes.
    ///
    /// # Errors
    /// [`SinkError::OutOfRange`]; [`SinkError::NoSpace`] and [`SinkError::Io`], also of earlier bytes;
    /// [`SinkError::Sync`] when earlier bytes could not be written out: what is not journaled of the shard is
    /// lost then.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(SinkError::OutOfRange {
                path: self.path().to_owned(),
                offset,
                len: bytes.len(),
                file_len: self.len(),
            });
        }
        self.file.check_failed()?;
        match &self.lane {
            Some(lane) => lane.write(&self.file, offset, bytes),
            None => self.file.write(offset, bytes),
        }
    }

    /// Waits until whoever reads the file sees what was written to it. Gives no durability.
    ///
    /// # Errors
    /// As [`ShardWriter::write_at`] of what was taken before.
    pub fn flush(&self) -> Result<(), SinkError> {
        match &self.lane {
            Some(lane) => {
                lane.flush(&self.file);
                self.file.check_failed()
            }
            None => Ok(()),
        }
    }

    /// Makes everything written so far durable: what a journal record may then vouch for.
    ///
    /// # Errors
    /// [`SinkError::Sync`], for good: the shard has to be written again. The kernel reports a failed
    /// write only once, also to `sync_file_range`, so a failure seen while pushing counts here too.
    /// [`SinkError::NoSpace`] and [`SinkError::Io`] of bytes that were taken and not written before.
    pub fn sync(&self) -> Result<(), SinkError> {
        self.flush()?;
        self.file.sync()
    }

    /// Makes the shard durable and closes it.
    ///
    /// # Errors
    /// As [`ShardWriter::sync`].
    pub fn finish(self) -> Result<(), SinkError> {
        self.sync()?;
        self.file.drop_cache(&[(0, self.len())]);
        Ok(())
    }
}

impl Drop for ShardWriter {
    /// What was not synced may or may not be written; nothing is any more when this returns.
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.forget(&self.file);
            self.file.await_queued();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;
    use WriteRequest::{Buffered, Direct};

    fn bytes_at(offset: usize, len: usize) -> Vec<u8> {
        (offset..offset + len).map(|i| ((i * 131) >> 3) as u8).collect()
    }

    #[test]
    fn any_order_from_many_threads_gives_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let (len, tile) = (5_000_003usize, 70_001usize);
        let ways = [
            (1, false, Buffered),
            (200_000, false, Buffered),
            (1 << 20, true, Buffered),
            (1, false, Direct),
            (200_000, true, Direct),
        ];
        for (i, (chunk, keep_cache, write)) in ways.into_iter().enumerate() {
            let path = dir.path().join(format!("{i}.part"));
            let config = SinkConfig { chunk, keep_cache, write };
            let lane = Arc::new(Lane::new(chunk));
            let writer = ShardWriter::create(&RealDisk, &path, len as u64, &config).unwrap();
            let writer = writer.by_way_of(&lane);
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
