//! What adapters add to the tensors of a checkpoint, as a pass finds it.

use super::Segment;
use crate::checkpoint;
use crate::kernel::{self, Float};

/// A product of two small matrices that is added to a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// As many rows as the tensor, as many columns as the rank.
    pub left: Factor,
    /// As many rows as the rank, as many columns as the tensor.
    pub right: Factor,
    /// The rank.
    pub rank: usize,
    /// What the product is multiplied by.
    pub scale: f32,
}

/// A stored matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Its name in the adapter's file.
    pub name: Box<str>,
    /// Index among the files of all checkpoints.
    pub file: u32,
    /// Absolute offset of the first element, in bytes.
    pub offset: u64,
    /// How elements are stored.
    pub float: Float,
    /// Rows as they are stored.
    pub rows: u64,
    /// Elements per row as they are stored.
    pub columns: u64,
    /// Whether rows are stored as columns.
    pub transposed: bool,
}

impl Factor {
    fn new(of: &checkpoint::Factor, file: impl Fn(u32) -> u32) -> Option<Self> {
        Some(Self {
            name: of.name.clone(),
            file: file(of.file),
            offset: of.offset,
            float: Float::from_dtype(of.dtype)?,
            rows: of.shape[0],
            columns: of.shape[1],
            transposed: of.transposed,
        })
    }

    /// Bytes that a stored row takes.
    pub fn row_bytes(&self) -> u64 {
        self.columns * self.float.size() as u64
    }

    /// Rows as they are multiplied.
    fn height(&self) -> u64 {
        if self.transposed { self.columns } else { self.rows }
    }

    fn width(&self) -> u64 {
        if self.transposed { self.rows } else { self.columns }
    }
}

impl LowRank {
    /// What a catalog says, with the numbers that files have among those of all checkpoints.
    pub(super) fn new(of: &checkpoint::LowRank, file: impl Fn(u32) -> u32 + Copy) -> Option<Self> {
        Some(Self {
            left: Factor::new(&of.left, file)?,
            right: Factor::new(&of.right, file)?,
            rank: usize::try_from(of.rank).ok()?,
            scale: of.scale,
        })
    }

    /// Rows of the tensor.
    pub fn rows(&self) -> u64 {
        self.left.height()
    }

    /// Columns of the tensor.
    pub fn columns(&self) -> u64 {
        self.right.width()
    }

    /// Bytes that both matrices take in memory.
    pub fn memory(&self) -> u64 {
        kernel::LowRank::bytes(self.rows(), self.columns(), self.rank as u64)
    }

    /// Bytes that both matrices take in their file.
    pub fn stored(&self) -> u64 {
        let bytes = |factor: &Factor| factor.rows * factor.row_bytes();
        bytes(&self.left) + bytes(&self.right)
    }
}

/// Bytes of stored rows that are read in one go: whole rows, at least one.
pub const CHUNK: u64 = 256 << 10;

/// Memory that the matrices of a plan take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Need {
    /// For each segment that has some: bytes of all its matrices, and its elements.
    segments: Vec<(u64, u64)>,
    /// Bytes of the largest read.
    pub(super) chunk: u64,
    /// Files of adapters and of tables whose rows move.
    pub(super) files: u64,
    /// Bytes of the means of rows of one tensor, and of making one more.
    pub(super) means: u64,
}

impl Need {
    pub(super) fn new(segments: &[Segment]) -> Self {
        let (mut need, mut files) = (Self::default(), Vec::new());
        for segment in segments {
            let mut bytes = 0;
            for product in segment.sources.iter().filter_map(|s| s.low_rank.as_deref()) {
                bytes += product.memory();
                for factor in [&product.left, &product.right] {
                    need.chunk = need.chunk.max(factor.row_bytes()).max(CHUNK);
                    files.push(factor.file);
                }
            }
            let mut means = 0;
            for map in segment.sources.iter().filter_map(|s| s.rows.as_ref()) {
                need.chunk = need.chunk.max(CHUNK);
                files.extend(map.tables.iter().map(|table| table.file));
                if map.has_mean() {
                    means = means.max(8 * map.columns) + 4 * map.columns;
                }
            }
            need.means = need.means.max(means);
            if bytes > 0 {
                need.segments.push((bytes, segment.elements));
            }
        }
        files.sort_unstable();
        files.dedup();
        need.files = files.len() as u64;
        need
    }

    /// Most bytes of matrices that are in memory with `tiles` neighbouring tiles of `tile` elements, each with those of
    /// its segment: either one set for each tile, or what a tile has in it on average, and a set cut off at either end.
    pub(super) fn live(&self, tiles: usize, tile: u32) -> u64 {
        let most = self.segments.iter().map(|&(bytes, _)| bytes).max().unwrap_or(0);
        let per_tile =
            |&(bytes, elements): &(u64, u64)| bytes.div_ceil(elements.div_ceil(tile.into()).max(1));
        let dense = self.segments.iter().map(per_tile).max().unwrap_or(0);
        let tiles = tiles as u64;
        (tiles * most).min(tiles * dense + 2 * most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrices_are_held_by_the_tiles_that_need_them() {
        let need = Need { segments: vec![(1000, 5000), (10, 100), (600, 100)], ..Need::default() };
        // All tensors are smaller than a tile: each may have its own.
        assert_eq!(need.live(4, 10_000), 4000);
        // 50 tiles of the largest, one of the last.
        assert_eq!(need.live(4, 100), 4000);
        assert_eq!(need.live(40, 100), 40 * 600 + 2000);
        assert_eq!(Need::default().live(4, 100), 0);
    }
}
