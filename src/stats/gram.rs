//! The products of a few vectors with one another.

use super::{ExactSum, Reader, Writer};
use crate::kernel::Kernels;

/// The dot product of every pair of some vectors, those with themselves included.
#[derive(Clone, Debug, PartialEq)]
pub struct Products {
    vectors: usize,
    /// Upper triangle, row by row.
    values: Vec<f64>,
}

/// The same over all blocks of vectors that are seen one block at a time: exact sums of the blocks' products.
/// Mergeable in any order to the same bits; blocks must be the same in any run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gram {
    vectors: usize,
    sums: Vec<ExactSum>,
}

/// Number of pairs among so many vectors.
fn pairs(vectors: usize) -> usize {
    vectors * (vectors + 1) / 2
}

impl Products {
    /// The products of equally long vectors of finite values.
    pub fn of(kernels: &Kernels, vectors: &[&[f32]]) -> Self {
        if let [x, y] = vectors {
            return Self { vectors: 2, values: kernels.product_sums(x, y).to_vec() };
        }
        let of = |(i, x): (usize, &&[f32])| {
            let product = |y: &&[f32]| kernels.product_sum(x, y);
            vectors[i..].iter().map(product).collect::<Vec<f64>>()
        };
        let values = vectors.iter().enumerate().flat_map(of).collect();
        Self { vectors: vectors.len(), values }
    }

    /// From the upper triangle of their matrix, row by row.
    pub fn from_triangle(vectors: usize, values: Vec<f64>) -> Self {
        debug_assert_eq!(values.len(), pairs(vectors));
        Self { vectors, values }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> usize {
        self.vectors
    }

    /// The product of two of them.
    pub fn get(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (a.min(b), a.max(b));
        self.values[a * self.vectors - a * a.saturating_sub(1) / 2 + b - a]
    }

    /// The norm of one.
    pub fn norm(&self, a: usize) -> f64 {
        self.get(a, a).sqrt()
    }

    /// The product of a weighted sum of the vectors with one of them.
    pub fn with(&self, weights: &[f64], vector: usize) -> f64 {
        weights.iter().enumerate().map(|(other, weight)| weight * self.get(other, vector)).sum()
    }

    /// The length of a weighted sum of the vectors. Below about 1e-8 of what is added up, it is not told apart from
    /// zero.
    pub fn length(&self, weights: &[f64]) -> f64 {
        let terms = weights.iter().enumerate().map(|(k, weight)| weight * self.with(weights, k));
        let square: f64 = terms.sum();
        // Rounding may leave less than nothing; NaN stays.
        if square < 0.0 { 0.0 } else { square.sqrt() }
    }
}

impl Gram {
    /// Nothing seen yet.
    pub fn new(vectors: usize) -> Self {
        Self { vectors, sums: vec![ExactSum::default(); pairs(vectors)] }
    }

    /// Adds a block of all vectors.
    pub fn add(&mut self, kernels: &Kernels, block: &[&[f32]]) {
        let products = Products::of(kernels, block);
        self.sums.iter_mut().zip(products.values).for_each(|(sum, product)| sum.add(product));
    }

    /// Adds what was seen elsewhere, of as many vectors.
    pub fn merge(&mut self, other: &Self) {
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, more)| sum.merge(more));
    }

    /// The products.
    pub fn products(&self) -> Products {
        let values = self.sums.iter().map(ExactSum::value).collect();
        Products { vectors: self.vectors, values }
    }

    /// Bytes that one takes.
    pub fn bytes(vectors: usize) -> u64 {
        (size_of::<Self>() + pairs(vectors) * size_of::<ExactSum>()) as u64
    }

    /// Adds the sums to what is saved.
    pub fn save(&self, out: &mut Writer) {
        self.sums.iter().for_each(|sum| sum.save(out));
    }

    /// Saved sums of as many vectors.
    pub fn load(vectors: usize, saved: &mut Reader<'_>) -> Option<Self> {
        let sums = (0..pairs(vectors)).map(|_| ExactSum::load(saved)).collect::<Option<_>>()?;
        Some(Self { vectors, sums })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(count: usize, len: usize) -> Vec<Vec<f32>> {
        let value =
            |i: usize, k: usize| ((i * 37 + k) as f32 * 0.7).sin() * (k as f32 * 0.1).exp2();
        (0..count).map(|i| (0..len).map(|k| value(i, k % 90)).collect()).collect()
    }

    #[test]
    fn all_pairs_are_found_for_any_number_of_vectors() {
        for kernels in Kernels::available() {
            for count in 0..6 {
                let vectors = vectors(count, 100);
                let rows: Vec<&[f32]> = vectors.iter().map(Vec::as_slice).collect();
                let products = Products::of(kernels, &rows);
                let mut size = 0.0f64;
                for (a, x) in rows.iter().enumerate() {
                    for (b, y) in rows.iter().enumerate() {
                        let terms = x.iter().zip(*y).map(|(&x, &y)| f64::from(x) * f64::from(y));
                        let plain: f64 = terms.sum();
                        let allowed = 1e-12 * products.norm(a) * products.norm(b);
                        assert!((products.get(a, b) - plain).abs() <= allowed, "{count}: {a} {b}");
                        size += plain;
                    }
                }
                let length = products.length(&vec![1.0; count]);
                assert!((length - size.sqrt()).abs() <= 1e-12 * length, "{length} {size}");
            }
        }
    }

    #[test]
    fn the_blocks_order_and_the_path_do_not_matter_and_saving_loses_nothing() {
        let vectors = vectors(3, 5000);
        let blocks: Vec<Vec<&[f32]>> = (0..5)
            .map(|k| vectors.iter().map(|row| &row[k * 1000..(k + 1) * 1000]).collect())
            .collect();
        let all: Vec<Gram> = Kernels::available()
            .flat_map(|kernels| {
                let mut forward = Gram::new(3);
                blocks.iter().for_each(|block| forward.add(kernels, block));
                let mut halves = [Gram::new(3), Gram::new(3)];
                for (k, block) in blocks.iter().rev().enumerate() {
                    halves[k % 2].add(kernels, block);
                }
                let [mut merged, more] = halves;
                merged.merge(&more);
                [forward, merged]
            })
            .collect();
        assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
        let mut out = Writer::default();
        all[0].save(&mut out);
        assert_eq!(Gram::load(3, &mut Reader::new(&out.finish())), Some(all[0].clone()));
    }
}
