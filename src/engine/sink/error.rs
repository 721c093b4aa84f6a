//! What can go wrong while output is written.

use std::io;
use std::path::{Path, PathBuf};

/// An output could not be written or made durable.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file system, a quota or a file size limit has no room.
    #[error(
        "no space for {path}: {needed} bytes more are needed ({source}); free that much space or raise the \
         quota or file size limit (ulimit -f), then run the same command again to resume"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes that were to be reserved or written.
        needed: u64,
        /// What the system said.
        source: io::Error,
    },
    /// There is something of that name already.
    #[error("{path} exists already and is not overwritten; remove it or choose another place")]
    Exists {
        /// The name that is taken.
        path: PathBuf,
    },
    /// A write was asked for outside of the file: the plan is wrong.
    #[error(
        "{len} bytes at offset {offset} do not fit into {path} of {file_len} bytes: plan again"
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: usize,
        /// Length of the file.
        file_len: u64,
    },
    /// Data could not be made durable. What the file holds is unknown from now on: the call is never
    /// repeated, since Linux may forget the pages that failed and call the second try a success.
    #[error(
        "cannot make {path} durable: {source}; its contents are not to be trusted: it has to be written \
         again, check the disk first"
    )]
    Sync {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Bytes that were written and made durable are not there any more: somebody changed the file, or the
    /// disk lies.
    #[error(
        "{path} has changed since it was written: {len} bytes at offset {offset} are not what they were"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// First byte of the run that was checked.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// Anything else.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried: `create`, `write`, ...
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl SinkError {
    /// Sorts an error of an operation that needs `needed` bytes of room.
    pub(crate) fn of(operation: &'static str, path: &Path, needed: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => {
                Self::NoSpace { path, needed, source }
            }
            Some(libc::EEXIST) => Self::Exists { path },
            _ => Self::Io { operation, path, source },
        }
    }

    /// Sorts an error of a sync. File systems that allocate late find out only now that they are full;
    /// the bytes are lost all the same, but more room is the cure.
    pub(crate) fn sync(path: &Path, needed: u64, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::NoSpace { path, needed, source },
            _ => Self::Sync { path, source },
        }
    }
}
