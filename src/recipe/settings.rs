//! How a recipe is run. Nothing here changes a byte of the output.

use super::Words;

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

/// Limits and choices of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Bytes of memory, page cache included.
    pub memory: Option<u64>,
    /// Worker threads.
    pub threads: Option<usize>,
    /// How inputs are read.
    pub io: IoRequest,
    /// Elements per tile.
    pub tile: Option<usize>,
    /// Bytes between two records of progress, if not the usual.
    pub checkpoint: Option<u64>,
    /// Start over, whatever an earlier attempt has left.
    pub restart: bool,
}
