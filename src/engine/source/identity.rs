//! What the plan recorded of an input file, and whether that still holds.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::SourceError;

/// An input file as the plan recorded it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// Length in bytes.
    pub len: u64,
    /// Inode number: another one means that the file was replaced.
    pub inode: u64,
    /// Time of the last change in nanoseconds since 1970.
    pub mtime_ns: i128,
}

impl InputFile {
    /// Records a file as it is now.
    ///
    /// # Errors
    /// What `stat` said when the file cannot be inspected.
    pub fn record(path: &Path) -> io::Result<Self> {
        Ok(Self::of(path, &std::fs::metadata(path)?))
    }

    fn of(path: &Path, meta: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            len: meta.len(),
            inode: meta.ino(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
        }
    }

    /// Checks the file behind an open descriptor.
    pub(super) fn check_open(&self, file: &File) -> Result<(), SourceError> {
        let meta = file.metadata().map_err(|e| self.open_error(e))?;
        self.compare(&meta)
    }

    /// Checks whatever the path names now, which also finds a file that was renamed over it.
    pub(super) fn check_path(&self) -> Result<(), SourceError> {
        let meta = std::fs::metadata(&self.path).map_err(|e| self.open_error(e))?;
        self.compare(&meta)
    }

    fn compare(&self, meta: &Metadata) -> Result<(), SourceError> {
        let now = Self::of(&self.path, meta);
        let fields = [
            ("length", i128::from(self.len), i128::from(now.len)),
            ("inode", i128::from(self.inode), i128::from(now.inode)),
            ("mtime (ns)", self.mtime_ns, now.mtime_ns),
        ];
        match fields.into_iter().find(|(_, was, now)| was != now) {
            None => Ok(()),
            Some((field, was, now)) => {
                Err(SourceError::Changed { path: self.path.clone(), field, was, now })
            }
        }
    }

    pub(super) fn open_error(&self, source: io::Error) -> SourceError {
        SourceError::Open { path: self.path.clone(), source }
    }

    /// The error for a read that ended early or faulted: a change if one is visible, else `source`.
    pub(super) fn read_error(
        &self,
        file: &File,
        offset: u64,
        len: usize,
        source: io::Error,
    ) -> SourceError {
        match self.check_open(file) {
            Err(changed) => changed,
            Ok(()) => SourceError::Read { path: self.path.clone(), offset, len, source },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_is_compared_and_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, b"12345").unwrap();
        let good = InputFile::record(&path).unwrap();
        good.check_path().unwrap();
        let wrong = [
            ("length", InputFile { len: 6, ..good.clone() }),
            ("inode", InputFile { inode: good.inode + 1, ..good.clone() }),
            ("mtime (ns)", InputFile { mtime_ns: good.mtime_ns - 1, ..good.clone() }),
        ];
        for (name, input) in wrong {
            match input.check_path() {
                Err(SourceError::Changed { field, was, now, .. }) => {
                    assert_eq!(field, name);
                    assert_ne!(was, now);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
