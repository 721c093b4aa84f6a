//! What a low-rank adapter adds to a matrix: `scale * left x right`, row by row.
//!
//! The definition, for element (i, j) of a matrix:
//!
//! ```text
//!  sum = 0;  for k in 0..rank { sum = sum + left[i][k] * right[k][j] }
//!  value = value + scale * sum
//! ```
//!
//! all in `f32`, one rounding for each operation. It says nothing about the elements beside it, so any cut of a
//! matrix into runs gives the same bits.

/// Columns of the right matrix that lie together: one run of each row after the other, so that the loop over the rank
/// reads memory in order.
const LANES: usize = 64;

/// Two small matrices whose product is added to a large one.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// `rows x rank`, by rows.
    left: Vec<f32>,
    /// `rank x columns` in groups of [`LANES`] columns, by rows within each; zeros where the last is not full.
    right: Vec<f32>,
    rank: usize,
    columns: usize,
    scale: f32,
}

impl LowRank {
    /// Both matrices zero, for a matrix of `rows` x `columns`.
    pub fn new(rows: usize, columns: usize, rank: usize, scale: f32) -> Self {
        let right = columns.div_ceil(LANES) * LANES * rank;
        Self { left: vec![0.0; rows * rank], right: vec![0.0; right], rank, columns, scale }
    }

    /// Bytes that the matrices take.
    pub fn bytes(rows: u64, columns: u64, rank: u64) -> u64 {
        let lanes = LANES as u64;
        4 * rank.saturating_mul(rows.saturating_add(columns.div_ceil(lanes) * lanes))
    }

    /// Sets element (i, k) of the left matrix.
    pub fn set_left(&mut self, i: usize, k: usize, value: f32) {
        self.left[i * self.rank + k] = value;
    }

    /// Sets element (k, j) of the right matrix.
    pub fn set_right(&mut self, k: usize, j: usize, value: f32) {
        self.right[(j / LANES * self.rank + k) * LANES + j % LANES] = value;
    }
}

/// Adds the product to a run of elements that begins with element `first` of the matrix.
#[inline(always)]
pub(super) fn add_low_rank(product: &LowRank, first: u64, values: &mut [f32]) {
    let LowRank { left, right, rank, columns, scale } = product;
    if *rank == 0 || *columns == 0 {
        return;
    }
    let (mut row, mut column) =
        ((first / *columns as u64) as usize, (first % *columns as u64) as usize);
    let mut rest = values;
    while !rest.is_empty() {
        let (now, later) = rest.split_at_mut(rest.len().min(columns - column));
        let weights = &left[row * rank..(row + 1) * rank];
        add_to_row(weights, right, *scale, column, now);
        (row, column, rest) = (row + 1, 0, later);
    }
}

/// Adds a row of the product, from `column` on.
#[inline(always)]
fn add_to_row(weights: &[f32], right: &[f32], scale: f32, column: usize, values: &mut [f32]) {
    let mut rest = values;
    let mut column = column;
    while !rest.is_empty() {
        let (group, begin) = (column / LANES, column % LANES);
        let (now, later) = rest.split_at_mut(rest.len().min(LANES - begin));
        let rows = &right[group * weights.len() * LANES..(group + 1) * weights.len() * LANES];
        let mut sums = [0.0f32; LANES];
        for (&weight, row) in weights.iter().zip(rows.as_chunks::<LANES>().0) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += weight * x;
            }
        }
        for (value, &sum) in now.iter_mut().zip(&sums[begin..]) {
            *value += scale * sum;
        }
        column += now.len();
        rest = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    /// Numbers of all signs and sizes.
    fn number(seed: usize) -> f32 {
        let x = (seed as u32).wrapping_mul(2_654_435_761) ^ 0x9e37;
        (((x >> 8) % 2001) as f32 - 1000.0) * 1.5f32.powi((x % 17) as i32 - 12)
    }

    fn product(rows: usize, columns: usize, rank: usize) -> LowRank {
        let mut product = LowRank::new(rows, columns, rank, 0.37);
        for k in 0..rank {
            (0..rows).for_each(|i| product.set_left(i, k, number(i * 31 + k)));
            (0..columns).for_each(|j| product.set_right(k, j, number(k * 1007 + j)));
        }
        product
    }

    fn plain(columns: usize, rank: usize, element: usize, value: f32) -> f32 {
        let (i, j) = (element / columns, element % columns);
        let mut sum = 0.0f32;
        for k in 0..rank {
            sum += number(i * 31 + k) * number(k * 1007 + j);
        }
        value + 0.37 * sum
    }

    #[test]
    fn every_path_and_every_cut_gives_the_bits_of_the_definition() {
        for (rows, columns, rank) in
            [(1, 1, 1), (3, 5, 2), (7, 64, 3), (4, 65, 8), (5, 63, 1), (2, 300, 17), (130, 1, 4)]
        {
            let product = product(rows, columns, rank);
            let all = rows * columns;
            let start: Vec<f32> = (0..all).map(|e| number(e + 77)).collect();
            let want: Vec<u32> =
                (0..all).map(|e| plain(columns, rank, e, start[e]).to_bits()).collect();
            for kernels in Kernels::available() {
                for step in [1, 2, 7, 63, 64, 65, 4096] {
                    let mut values = start.clone();
                    for (k, part) in values.chunks_mut(step).enumerate() {
                        kernels.add_low_rank(&product, (k * step) as u64, part);
                    }
                    let bits: Vec<u32> = values.iter().map(|v| v.to_bits()).collect();
                    assert_eq!(bits, want, "{rows} {columns} {rank} {step} {kernels:?}");
                }
            }
        }
    }

    #[test]
    fn its_size_is_what_it_takes() {
        for (rows, columns, rank) in [(3, 5, 2), (7, 64, 3), (4, 65, 8)] {
            let product = product(rows, columns, rank);
            let bytes = (product.left.len() + product.right.len()) as u64 * 4;
            assert_eq!(LowRank::bytes(rows as u64, columns as u64, rank as u64), bytes);
        }
    }
}
