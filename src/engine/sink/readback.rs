//! Reading what was written.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::SinkError;
use crate::patience::patiently;

/// Bytes read at a time.
const STEP: u64 = 1 << 20;

/// Reads a range of a file that was written, and hands it on piece by piece. Leaves nothing in the page
/// cache.
///
/// # Errors
/// [`SinkError::Damaged`] if the file is not there or too short; else what the system said.
pub fn read_back(
    path: &Path,
    range: Range<u64>,
    mut take: impl FnMut(&[u8]),
) -> Result<(), SinkError> {
    let fail = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => SinkError::Damaged {
            path: path.to_owned(),
            offset: range.start,
            len: range.end - range.start,
        },
        _ => SinkError::of("read back", path, 0, e),
    };
    let file = patiently(|| File::open(path)).map_err(fail)?;
    let mut buffer = vec![0; STEP.min(range.end.saturating_sub(range.start)) as usize];
    let mut at = range.start;
    while at < range.end {
        let buffer = &mut buffer[..STEP.min(range.end - at) as usize];
        file.read_exact_at(buffer, at).map_err(fail)?;
        take(buffer);
        forget(&file, at, buffer.len() as u64);
        at += buffer.len() as u64;
    }
    Ok(())
}

/// Drops a range from the page cache; all behind `at` for 0.
fn forget(file: &File, at: u64, len: u64) {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let len = std::num::NonZeroU64::new(len);
        // A hint: when it fails, memory is used and nothing else happens.
        let _hint = rustix::fs::fadvise(file, at, len, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let _nothing = (file, at, len);
}

/// A file that is read from its start once, and leaves nothing in the page cache.
pub struct ReadOnce {
    file: File,
    at: u64,
    forgotten: u64,
}

impl ReadOnce {
    /// Opens a file.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { file: patiently(|| File::open(path))?, at: 0, forgotten: 0 })
    }
}

impl io::Read for ReadOnce {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.at += read as u64;
        if self.at - self.forgotten >= STEP {
            // From the start: large pages of the cache that lie across the last end go with this one.
            forget(&self.file, 0, self.at);
            self.forgotten = self.at;
        }
        Ok(read)
    }
}

impl Drop for ReadOnce {
    fn drop(&mut self) {
        // With what was read ahead.
        forget(&self.file, 0, 0);
    }
}
