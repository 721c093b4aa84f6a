//! What there is to tell about one tensor in a base, task vectors and possibly their merge.

use super::{DotSum, Reader, Writer};
use crate::kernel::{Kernels, keys};

/// Statistics of one tensor, or of several added up. Mergeable in any order to the same bits.
///
/// Its rows are differences from the base: the task vectors, then (if there is one) that of the merge.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorStats {
    /// Elements seen.
    pub elements: u64,
    /// Elements that are NaN or infinite somewhere; they count as zero in all that follows.
    pub nonfinite: u64,
    /// Elements that at least two task vectors change.
    pub shared: u64,
    /// Elements that task vectors change in both directions.
    pub clashes: u64,
    /// Number of rows that are task vectors: the first ones.
    experts: usize,
    base: DotSum,
    magnitudes: Vec<Magnitudes>,
    /// Upper triangle of the products of all rows, row by row.
    products: Vec<DotSum>,
}

/// How large the elements of one row are.
#[derive(Clone, Debug, PartialEq)]
pub struct Magnitudes {
    /// The largest one.
    pub largest: f32,
    /// Number of elements that are zero.
    pub zeros: u64,
    /// Number of the other ones, by power of two: those in `2^(LEAST + i)..2^(LEAST + i + 1)`. The first
    /// and the last bin take all that is smaller and larger.
    pub bins: [u64; Magnitudes::BINS],
}

impl Magnitudes {
    /// Number of bins.
    pub const BINS: usize = 48;
    /// Binary exponent of the first bin.
    pub const LEAST: i32 = -40;

    fn add(&mut self, kernels: &Kernels, values: &[f32], largest: f32) {
        self.largest = self.largest.max(largest);
        let zeros = kernels.zeros(values);
        self.zeros += zeros;
        if zeros == values.len() as u64 {
            return;
        }
        // Four tables, so that a run of equal exponents does not wait for its own last store.
        let mut tables = [[0u32; 256]; 4];
        let mut count = |k: usize, value: f32| {
            tables[k][(value.to_bits() >> 23 & 0xff) as usize] += 1;
        };
        let quads = values.chunks_exact(4);
        quads.remainder().iter().for_each(|&value| count(0, value));
        for quad in quads {
            for (k, &value) in quad.iter().enumerate() {
                count(k, value);
            }
        }
        for exponent in 0..256 {
            let count: u32 = tables.iter().map(|table| table[exponent]).sum();
            let bin = exponent as i32 - 127 - Self::LEAST;
            self.bins[bin.clamp(0, Self::BINS as i32 - 1) as usize] += u64::from(count);
        }
        // Zeros have the exponent of subnormal numbers.
        self.bins[0] -= zeros;
    }

    fn merge(&mut self, other: &Self) {
        self.largest = self.largest.max(other.largest);
        self.zeros += other.zeros;
        for (bin, more) in self.bins.iter_mut().zip(other.bins) {
            *bin += more;
        }
    }
}

impl Default for Magnitudes {
    fn default() -> Self {
        Self { largest: 0.0, zeros: 0, bins: [0; Self::BINS] }
    }
}

impl TensorStats {
    /// Nothing seen yet of `experts` task vectors and, if it is `merged`, one merge.
    pub fn new(experts: usize, merged: bool) -> Self {
        let rows = experts + usize::from(merged);
        Self {
            elements: 0,
            nonfinite: 0,
            shared: 0,
            clashes: 0,
            experts,
            base: DotSum::default(),
            magnitudes: vec![Magnitudes::default(); rows],
            products: vec![DotSum::default(); rows * (rows + 1) / 2],
        }
    }

    /// Adds elements: the base's values and one row of differences from them for each expert, then for
    /// the merge. All rows have the length of `base`.
    pub fn add(&mut self, kernels: &Kernels, base: &[f32], rows: &[&[f32]]) {
        let largest = |row: &[f32]| kernels.max_magnitude_bits(row);
        let bits: Vec<u32> = rows.iter().map(|row| largest(row)).collect();
        let base_bits = largest(base);
        if base_bits.max(bits.iter().copied().max().unwrap_or(0)) >= keys::INFINITY {
            return self.add_finite(kernels, base, rows);
        }
        self.elements += base.len() as u64;
        let of_base = keys::magnitude(base_bits);
        self.base.add(kernels, (base, base), (of_base, of_base));
        let largest: Vec<f32> = bits.into_iter().map(keys::magnitude).collect();
        let mut products = self.products.iter_mut();
        for (i, row) in rows.iter().enumerate() {
            for (j, other) in rows.iter().enumerate().skip(i) {
                if let Some(product) = products.next() {
                    product.add(kernels, (row, other), (largest[i], largest[j]));
                }
            }
        }
        for ((magnitudes, row), largest) in self.magnitudes.iter_mut().zip(rows).zip(largest) {
            magnitudes.add(kernels, row, largest);
        }
        if self.experts > 1 {
            let [shared, clashes] = kernels.clashes(&rows[..self.experts]);
            self.shared += shared;
            self.clashes += clashes;
        }
    }

    /// Adds elements of which some are not finite: these are counted and count as zero everywhere.
    #[cold]
    fn add_finite(&mut self, kernels: &Kernels, base: &[f32], rows: &[&[f32]]) {
        let finite: Vec<bool> = (0..base.len())
            .map(|k| base[k].is_finite() && rows.iter().all(|row| row[k].is_finite()))
            .collect();
        let clean = |row: &[f32]| -> Vec<f32> {
            row.iter().zip(&finite).map(|(&value, &keep)| if keep { value } else { 0.0 }).collect()
        };
        let rows: Vec<Vec<f32>> = rows.iter().map(|row| clean(row)).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        self.nonfinite += finite.iter().filter(|&&finite| !finite).count() as u64;
        self.add(kernels, &clean(base), &rows);
    }

    /// Adds what was seen elsewhere, of the same number of rows.
    pub fn merge(&mut self, other: &Self) {
        self.elements += other.elements;
        self.nonfinite += other.nonfinite;
        self.shared += other.shared;
        self.clashes += other.clashes;
        self.base.merge(other.base);
        for (magnitudes, more) in self.magnitudes.iter_mut().zip(&other.magnitudes) {
            magnitudes.merge(more);
        }
        for (product, more) in self.products.iter_mut().zip(&other.products) {
            product.merge(*more);
        }
    }

    /// The squared norm of the base.
    pub fn base_square(&self) -> f64 {
        self.base.value()
    }

    /// The products of all rows: the upper triangle of their matrix, row by row.
    pub fn products(&self) -> impl Iterator<Item = f64> {
        self.products.iter().map(DotSum::value)
    }

    /// The norm of the base.
    pub fn base_norm(&self) -> f64 {
        self.base.value().sqrt()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.magnitudes.len()
    }

    /// How large the elements of a row are.
    pub fn magnitudes(&self, row: usize) -> &Magnitudes {
        &self.magnitudes[row]
    }

    /// The norm of a row.
    pub fn norm(&self, row: usize) -> f64 {
        self.product(row, row).sqrt()
    }

    /// The cosine of the angle between two rows; `None` if one of them is zero.
    pub fn cosine(&self, a: usize, b: usize) -> Option<f64> {
        let norms = self.norm(a) * self.norm(b);
        (norms > 0.0).then(|| (self.product(a, b) / norms).clamp(-1.0, 1.0))
    }

    /// The norm of the difference of two rows. Taken from sums over the rows themselves: what is below
    /// about 10^-6 of their norms is not told apart from zero.
    pub fn distance(&self, a: usize, b: usize) -> f64 {
        let square = self.product(a, a) + self.product(b, b) - 2.0 * self.product(a, b);
        square.max(0.0).sqrt()
    }

    fn product(&self, a: usize, b: usize) -> f64 {
        let (a, b) = (a.min(b), a.max(b));
        let before = a * self.rows() - a * a.saturating_sub(1) / 2;
        self.products[before + b - a].value()
    }

    /// Bytes that one of these takes.
    pub fn bytes(experts: u64, merged: bool) -> u64 {
        let rows = experts + u64::from(merged);
        let each = size_of::<Self>() as u64;
        each + rows * size_of::<Magnitudes>() as u64
            + rows * (rows + 1) / 2 * size_of::<DotSum>() as u64
    }

    /// Adds the statistics to what is saved.
    pub fn save(&self, out: &mut Writer) {
        [self.elements, self.nonfinite, self.shared, self.clashes]
            .into_iter()
            .for_each(|count| out.u64(count));
        self.base.save(out);
        for magnitudes in &self.magnitudes {
            out.u32(magnitudes.largest.to_bits());
            out.u64(magnitudes.zeros);
            magnitudes.bins.iter().for_each(|&bin| out.u64(bin));
        }
        self.products.iter().for_each(|product| product.save(out));
    }

    /// Saved statistics of as many rows.
    pub fn load(experts: usize, merged: bool, saved: &mut Reader<'_>) -> Option<Self> {
        let mut stats = Self::new(experts, merged);
        for count in
            [&mut stats.elements, &mut stats.nonfinite, &mut stats.shared, &mut stats.clashes]
        {
            *count = saved.u64()?;
        }
        stats.base = DotSum::load(saved)?;
        for magnitudes in &mut stats.magnitudes {
            magnitudes.largest = f32::from_bits(saved.u32()?);
            magnitudes.zeros = saved.u64()?;
            saved.fill(&mut magnitudes.bins)?;
        }
        for product in &mut stats.products {
            *product = DotSum::load(saved)?;
        }
        Some(stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXPERTS: usize = 3;

    /// A base, three task vectors and a merge, with zeros, ties, both signs and sizes far apart.
    fn rows(len: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let value = ((x >> 40) as f32 / 16_777_216.0 - 0.5) * 10f32.powi((x % 9) as i32 - 6);
            if x.is_multiple_of(5) { 0.0 } else { value }
        };
        (0..=EXPERTS + 1).map(|_| (0..len).map(|_| next()).collect()).collect()
    }

    fn stats(rows: &[Vec<f32>], cuts: &[usize], kernels: &Kernels) -> TensorStats {
        let len = rows[0].len();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).chain([len]).collect();
        ends.sort_unstable();
        let (mut parts, mut start) = (Vec::new(), 0);
        for end in ends {
            let part: Vec<&[f32]> = rows.iter().map(|row| &row[start..end]).collect();
            let mut stats = TensorStats::new(EXPERTS, true);
            stats.add(kernels, part[0], &part[1..]);
            parts.push(stats);
            start = end;
        }
        let mut all = TensorStats::new(EXPERTS, true);
        parts.iter().rev().for_each(|part| all.merge(part));
        all
    }

    proptest! {
        #[test]
        fn any_cut_on_any_path_gives_the_same_and_saving_loses_nothing(
            len in 1usize..9000,
            seed in any::<u64>(),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let rows = rows(len, seed);
            let scalar = Kernels::available().next().unwrap();
            let whole = stats(&rows, &[], scalar);
            for kernels in Kernels::available() {
                prop_assert_eq!(&stats(&rows, &cuts, kernels), &whole);
            }
            let mut out = Writer::default();
            whole.save(&mut out);
            let saved = out.finish();
            let mut reader = Reader::new(&saved);
            let back = TensorStats::load(EXPERTS, true, &mut reader);
            prop_assert_eq!(back, Some(whole));
            prop_assert!(reader.end().is_some());
        }
    }

    #[test]
    fn they_are_what_plain_loops_give() {
        let rows = rows(5000, 3);
        let stats = stats(&rows, &[17, 4096], Kernels::available().last().unwrap());
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
        };
        let close = |got: f64, plain: f64| {
            assert!((got - plain).abs() <= 1e-9 * plain.abs(), "{got} {plain}");
        };
        let tau = &rows[1..];
        close(stats.base_norm(), dot(&rows[0], &rows[0]).sqrt());
        for a in 0..=EXPERTS {
            let largest = tau[a].iter().fold(0f32, |most, value| most.max(value.abs()));
            assert_eq!(stats.magnitudes(a).largest, largest);
            let zeros = tau[a].iter().filter(|&&value| value == 0.0).count() as u64;
            assert_eq!(stats.magnitudes(a).zeros, zeros);
            for (i, &count) in stats.magnitudes(a).bins.iter().enumerate() {
                let from = 2f64.powi(Magnitudes::LEAST + i as i32);
                let inside = |v: &&f32| (from..2.0 * from).contains(&f64::from(v.abs()));
                assert_eq!(count, tau[a].iter().filter(inside).count() as u64, "bin {i}");
            }
            close(stats.norm(a), dot(&tau[a], &tau[a]).sqrt());
            for b in 0..=EXPERTS {
                let cosine = dot(&tau[a], &tau[b]) / (stats.norm(a) * stats.norm(b));
                assert!((stats.cosine(a, b).unwrap() - cosine).abs() < 1e-9);
                let between: Vec<f32> = tau[a].iter().zip(&tau[b]).map(|(a, b)| a - b).collect();
                let plain = dot(&between, &between).sqrt();
                assert!((stats.distance(a, b) - plain).abs() <= 1e-6 * plain, "{a} {b}");
            }
        }
        let column = |k: usize| tau[..EXPERTS].iter().map(move |row| row[k]);
        let moved = |k: &usize| column(*k).filter(|&v| v != 0.0).count() >= 2;
        let both = |k: &usize| column(*k).any(|v| v > 0.0) && column(*k).any(|v| v < 0.0);
        assert_eq!(stats.shared, (0..5000).filter(moved).count() as u64);
        assert_eq!(stats.clashes, (0..5000).filter(both).count() as u64);
    }

    #[test]
    fn the_ends_of_the_range_go_to_the_outer_bins() {
        let row = [1e-45, -1e-30, 0.0, -0.0, 1e30, f32::MAX];
        let mut stats = TensorStats::new(1, false);
        stats.add(Kernels::available().next().unwrap(), &[0.0; 6], &[&row]);
        let magnitudes = stats.magnitudes(0);
        let bins = &magnitudes.bins;
        assert_eq!((bins[0], bins[Magnitudes::BINS - 1], magnitudes.zeros), (2, 2, 2));
        assert_eq!((stats.base_norm(), stats.cosine(0, 0)), (0.0, Some(1.0)));
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let kernels = Kernels::available().last().unwrap();
        let base = [1.0, f32::NAN, 2.0, 4.0];
        let tau = [0.5, 0.0, f32::INFINITY, -1.0];
        let mut stats = TensorStats::new(1, false);
        stats.add(kernels, &base, &[&tau]);
        assert_eq!((stats.elements, stats.nonfinite), (4, 2));
        assert_eq!(stats.base_norm(), 17f64.sqrt());
        assert_eq!(stats.norm(0), 1.25f64.sqrt());
        assert_eq!(stats.magnitudes(0).zeros, 2);
    }

    #[test]
    fn equal_rows_have_no_distance_and_zero_rows_no_cosine() {
        let row = [3e-4, -0.1, 7.0];
        let mut stats = TensorStats::new(2, true);
        stats.add(Kernels::available().next().unwrap(), &row, &[&row, &[0.0; 3], &row]);
        assert_eq!(stats.distance(0, 2), 0.0);
        assert_eq!((stats.cosine(0, 1), stats.cosine(2, 0)), (None, Some(1.0)));
    }
}
