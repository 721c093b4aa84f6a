//! The bytes of one range, owned by whoever works on them.

use std::ops::{Deref, Range};

use super::ByteRange;
use super::copy::Copied;
use super::file::Hold;

enum Kind {
    Empty,
    Mapped(Hold),
    Copied(Copied),
}

/// The bytes of one range. Dropping it gives the memory back: a buffer to its pool, mapped blocks and
/// their page cache to the kernel.
pub struct TileBytes {
    kind: Kind,
    at: Range<usize>,
}

impl TileBytes {
    pub(super) fn empty() -> Self {
        Self { kind: Kind::Empty, at: 0..0 }
    }

    pub(super) fn mapped(hold: Hold, range: &ByteRange) -> Self {
        let start = range.offset as usize;
        Self { kind: Kind::Mapped(hold), at: start..start + range.len }
    }

    pub(super) fn copied(copied: Copied, len: usize) -> Self {
        let at = copied.head..copied.head + len;
        Self { kind: Kind::Copied(copied), at }
    }
}

impl Deref for TileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let whole = match &self.kind {
            Kind::Empty => &[],
            Kind::Mapped(hold) => hold.mapped(),
            Kind::Copied(copied) => copied.buffer.bytes(),
        };
        // Every constructor's range lies inside: it was checked against the recorded length, which the
        // map and the buffer have.
        whole.get(self.at.clone()).unwrap_or_default()
    }
}

impl std::fmt::Debug for TileBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TileBytes({} bytes)", self.at.len())
    }
}
