//! Everything that a merge does to the disk it writes to, behind one trait.
//!
//! [`RealDisk`] does it. Tests put a recorder in its place and try every state that a power cut could
//! leave; a failpoint counts the calls and stops the process at one of them. Reading is not part of it:
//! a crash takes back writes only.

mod real;

use std::io;
use std::path::Path;

pub use real::RealDisk;

/// Changes files and directories. Nothing is durable before it is synced.
pub trait Storage: Send + Sync {
    /// Makes a new file.
    ///
    /// # Errors
    /// What the system said; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>>;

    /// Opens a file to write on.
    ///
    /// # Errors
    /// What the system said.
    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>>;

    /// Makes a directory.
    ///
    /// # Errors
    /// What the system said; `AlreadyExists` if the name is taken.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the system said.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system said.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Renames a file; one that has the new name is replaced.
    ///
    /// # Errors
    /// What the system said.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file or directory and replaces nothing.
    ///
    /// File systems that cannot refuse by themselves get a check and a plain rename, which is as good as
    /// the lock that the caller holds.
    ///
    /// # Errors
    /// What the system said; `AlreadyExists` if the name is taken.
    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable: files made, renamed or removed in it.
    ///
    /// # Errors
    /// What the system said. A failed call is not to be repeated.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file open for writing.
pub trait StoredFile: Send + Sync {
    /// Writes some of `bytes` at an offset; returns how many.
    ///
    /// # Errors
    /// What the system said.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize>;

    /// Writes some of `bytes` at an offset, past the page cache where there is a way; returns how many. Gives
    /// no durability: the disk may have them in its own cache.
    ///
    /// Offset and length, and the place of `bytes` in memory, are to be multiples of a page, and nobody else
    /// may write to the file meanwhile.
    ///
    /// # Errors
    /// What the system said; `EINVAL` or `EOPNOTSUPP` where there is no such way.
    fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.write_at(bytes, offset)
    }

    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// What the system said.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Gives the file exactly `len` bytes, reserved on disk where the file system can do that.
    ///
    /// # Errors
    /// What the system said; `StorageFull` when less is free than the file still lacks.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Makes content and length durable.
    ///
    /// # Errors
    /// What the system said. A failed call is not to be repeated: Linux may have forgotten the pages.
    fn sync(&self) -> io::Result<()>;

    /// Starts writing a range to disk and returns. Gives no durability.
    ///
    /// # Errors
    /// What the system said, also of an earlier write that failed.
    fn start_writeback(&self, _range: (u64, u64)) -> io::Result<()> {
        Ok(())
    }

    /// Waits until a range has been written out. Gives no durability.
    ///
    /// # Errors
    /// What the system said, also of an earlier write that failed.
    fn await_writeback(&self, _range: (u64, u64)) -> io::Result<()> {
        Ok(())
    }

    /// Drops a written range from the page cache.
    fn drop_cache(&self, _range: (u64, u64)) {}
}
