//! What can go wrong while input bytes are read.

use std::io;
use std::path::PathBuf;

/// An input could not be read, or is no longer the file that was planned for.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An input file differs from what the plan recorded. No result can be trusted after this.
    #[error(
        "input file {path} changed: its {field} was {was} when the merge was planned and is {now} now; \
         restore the file, or plan again with the new one"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// `length`, `inode` or `mtime (ns)`.
        field: &'static str,
        /// The value that the plan recorded.
        was: i128,
        /// The value found now.
        now: i128,
    },
    /// A file could not be opened or inspected.
    #[error("cannot open input file {path}: {source}; check that it exists and may be read")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file could not be mapped.
    #[error("cannot map input file {path} into memory: {source}; try --io pread")]
    Map {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A read failed although the file is unchanged: a bad disk, or a network that went away.
    #[error(
        "cannot read {len} bytes at offset {offset} of input file {path}: {source}; \
         check the disk or network, then run the same command again to resume"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A range reaches past the recorded end of its file: the plan is wrong.
    #[error(
        "{len} bytes at offset {offset} reach past the end of input file {path} ({file_len} bytes); \
         the plan does not fit its inputs: plan again"
    )]
    OutOfRange {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        len: usize,
        /// Recorded length of the file.
        file_len: u64,
    },
    /// A range names a file that the source was not opened with.
    #[error("the plan names input file number {file}, but only {count} are known: plan again")]
    UnknownFile {
        /// The number in the range.
        file: u32,
        /// How many files there are.
        count: usize,
    },
    /// The reading threads could not be started.
    #[error("cannot start a reading thread: {0}; raise the limit on processes (ulimit -u)")]
    Threads(io::Error),
}
