//! How a recipe is run. Nothing here changes a byte of the output.

use super::Words;
use crate::method::Strategy;

/// How inputs are to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoRequest {
    /// Whatever fits: `mmap` on local disks, else `pread`. Never `direct`.
    #[default]
    Auto,
    /// Mapped windows.
    Mmap,
    /// Copies into reused buffers.
    Pread,
    /// Reads past the page cache.
    Direct,
}

impl Words for IoRequest {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", IoRequest::Auto),
        ("mmap", IoRequest::Mmap),
        ("pread", IoRequest::Pread),
        ("direct", IoRequest::Direct),
    ];
}

/// How output shards are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WriteRequest {
    /// Past the page cache on local disks, except small shards; else through it.
    #[default]
    Auto,
    /// Through the page cache.
    Buffered,
    /// Past the page cache wherever the system lets one.
    Direct,
}

impl Words for WriteRequest {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", WriteRequest::Auto),
        ("buffered", WriteRequest::Buffered),
        ("direct", WriteRequest::Direct),
    ];
}

impl Words for Strategy {
    const WORDS: &'static [(&'static str, Self)] =
        &[("fused", Strategy::Fused), ("radix", Strategy::Radix)];
}

/// Where a run stops by itself, to see what it has left: before so many calls that write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failpoint {
    /// How.
    pub how: Stop,
    /// Calls that still happen.
    pub after: u64,
}

/// How a run stops by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// For good, as by `kill -9`.
    Kill,
    /// Until somebody lets it go on (SIGCONT).
    Pause,
}

/// Limits and choices of one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of memory, page cache included.
    pub memory: Option<u64>,
    /// Worker threads.
    pub threads: Option<usize>,
    /// How inputs are read.
    pub io: IoRequest,
    /// How output is written.
    pub write: WriteRequest,
    /// How order statistics are found.
    pub strategy: Strategy,
    /// Elements per tile.
    pub tile: Option<usize>,
    /// Bytes between two records of progress, if not the usual.
    pub checkpoint: Option<u64>,
    /// Bytes of an earlier attempt's output that are read back before going on, if not the usual.
    pub reread: Option<u64>,
    /// Read everything once more before it is published.
    pub verify: bool,
    /// The command line, for those who find the staging directory.
    pub command: Option<String>,
    /// Stop at one of the calls that write.
    pub failpoint: Option<Failpoint>,
    /// Keep the shares of all experts in this directory, from which other lambdas make other outputs.
    pub components: Option<std::path::PathBuf>,
    /// Gather statistics about the tensors that are merged, for `reflow report`.
    pub statistics: bool,
    /// Start over, whatever an earlier attempt has left.
    pub restart: bool,
}
