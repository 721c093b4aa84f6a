//! Memory that statistics about a merge take.

use crate::method::BLOCK;
use crate::stats::{Magnitudes, TensorStats};

/// Bytes of rows of finished tensors that are held between two records.
pub(crate) const ROWS_HELD: u64 = 1 << 20;

/// Bytes of the row of a tensor in which so many experts meet, at most but for long names.
pub(crate) fn row_bytes(experts: u64) -> u64 {
    let rows = experts + 1;
    // A product, a count, an exponent.
    let magnitudes = 64 + Magnitudes::BINS as u64 * 14;
    1024 + rows * (rows + 1) / 2 * 25 + rows * (magnitudes + 60)
}

/// For each worker: what was seen of tiles, and space to see in that of a block with so many elements more than usual.
pub(super) fn worker_bytes(experts: u64, block: u64) -> u64 {
    let rows = 2 * experts + 3;
    2 * seen_bytes(experts) + rows * (BLOCK as u64 + block) * 4
}

/// In all: the tensor under way and its copy to be saved, and rows, as they are, packed and on their way to the disk.
pub(super) fn common_bytes(experts: u64) -> u64 {
    3 * (ROWS_HELD + row_bytes(experts)) + 2 * seen_bytes(experts)
}

fn seen_bytes(experts: u64) -> u64 {
    TensorStats::bytes(experts, true) + experts * 16 + 128
}
