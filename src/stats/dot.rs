//! Sums of products of floats that do not depend on the order of their terms.

use super::{Reader, Writer};
use crate::kernel::Kernels;
use crate::kernel::moments::{DOT_MOST, GRID, power_of_two, top};

/// The sum of x_k y_k over any number of `f32` pairs: a dot product, or a squared norm.
///
/// Each product is rounded to a multiple of a fixed fraction of the largest possible one (that of the largest
/// magnitudes), between 2^-79 and 2^-39 of it, and the rounded terms are added as integers. Which fraction
/// follows from the largest magnitudes alone, so the sum is the same for any order, tiling and number of
/// threads. Up to 2^40 terms fit.
///
/// Only two grids of 40 bits are kept. A grid that turns out to be too fine is given up: what lies on the
/// upper one is what rounding to it would have given at once.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DotSum {
    /// The largest magnitudes of x and of y. They choose the grids.
    largest: (f32, f32),
    /// Multiples of 2^(40 top).
    hi: i128,
    /// Multiples of 2^(40 (top - 1)).
    lo: i128,
}

impl DotSum {
    /// Adds the products of two equally long rows of finite values, whose largest magnitudes are
    /// `largest`.
    pub fn add(&mut self, kernels: &Kernels, (x, y): (&[f32], &[f32]), largest: (f32, f32)) {
        let mut sum = Self { largest, hi: 0, lo: 0 };
        if largest.0 > 0.0 && largest.1 > 0.0 {
            for (x, y) in x.chunks(DOT_MOST).zip(y.chunks(DOT_MOST)) {
                let [hi, lo] = kernels.dot(x, y, sum.top());
                sum.hi += i128::from(hi);
                sum.lo += i128::from(lo);
            }
        }
        self.merge(sum);
    }

    /// Adds the magnitudes of a row of finite values, the largest of which is `largest`: products of them and ones.
    pub fn add_magnitudes(&mut self, kernels: &Kernels, x: &[f32], largest: f32) {
        let mut sum = Self { largest: (largest, 1.0), hi: 0, lo: 0 };
        if largest > 0.0 {
            for x in x.chunks(DOT_MOST) {
                let [hi, lo] = kernels.magnitude_sum(x, sum.top());
                sum.hi += i128::from(hi);
                sum.lo += i128::from(lo);
            }
        }
        self.merge(sum);
    }

    /// Adds the magnitudes of a row to the first of two sums, and of those elements that are noted in `kept`, a bit for each,
    /// to the second. `largest` are the largest of either. The same as [`Self::add_magnitudes`] of both, for which `space` is there.
    pub fn add_noted_magnitudes(
        sums: &mut [Self; 2],
        kernels: &Kernels,
        (x, kept): (&[f32], &[u16]),
        largest: [f32; 2],
        space: &mut Vec<f32>,
    ) {
        let mut parts = largest.map(|largest| Self { largest: (largest, 1.0), hi: 0, lo: 0 });
        let top = parts[0].top();
        // As a rule both have the same grids, and all terms lie on the coarse one.
        let mut easy = largest[1] > 0.0 && parts[1].top() == top;
        for (x, kept) in x.chunks(DOT_MOST).zip(kept.chunks(DOT_MOST / u16::BITS as usize)) {
            let Some(found) = kernels.magnitude_sums(x, kept, top).filter(|_| easy) else {
                easy = false;
                break;
            };
            parts.iter_mut().zip(found).for_each(|(part, hi)| part.hi += i128::from(hi));
        }
        if easy {
            sums.iter_mut().zip(parts).for_each(|(sum, part)| sum.merge(part));
        } else {
            space.resize(x.len(), 0.0);
            kernels.keep_noted(kept, 1.0, x, space);
            let [all, some] = sums;
            all.add_magnitudes(kernels, x, largest[0]);
            some.add_magnitudes(kernels, space, largest[1]);
        }
    }

    /// Adds the terms of `other`.
    pub fn merge(&mut self, other: Self) {
        let largest = (self.largest.0.max(other.largest.0), self.largest.1.max(other.largest.1));
        let [a, b] = [*self, other].map(|sum| sum.on_grids_of(largest));
        *self = Self { largest, hi: a.0 + b.0, lo: a.1 + b.1 };
    }

    fn top(&self) -> i32 {
        top(self.largest.0, self.largest.1)
    }

    /// Both parts on the grids that belong to magnitudes at least as large.
    fn on_grids_of(&self, largest: (f32, f32)) -> (i128, i128) {
        match top(largest.0, largest.1) - self.top() {
            0 => (self.hi, self.lo),
            1 => (0, self.hi),
            // All terms are at most half a step of the lower grid, if there are any: they round to zero.
            _ => (0, 0),
        }
    }

    /// The sum, rounded once.
    pub fn value(&self) -> f64 {
        let sum = (self.hi << GRID) + self.lo;
        if sum == 0 { 0.0 } else { sum as f64 * power_of_two(GRID * (self.top() - 1)) }
    }

    /// Adds the sum to what is saved.
    pub fn save(&self, out: &mut Writer) {
        out.u32(self.largest.0.to_bits());
        out.u32(self.largest.1.to_bits());
        out.u128(self.hi as u128);
        out.u128(self.lo as u128);
    }

    /// A saved sum.
    pub fn load(saved: &mut Reader<'_>) -> Option<Self> {
        let largest = (f32::from_bits(saved.u32()?), f32::from_bits(saved.u32()?));
        let sum = Self { largest, hi: saved.u128()? as i128, lo: saved.u128()? as i128 };
        (largest.0.is_finite() && largest.1.is_finite()).then_some(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn largest(row: &[f32]) -> f32 {
        row.iter().fold(0.0, |most, value| most.max(value.abs()))
    }

    /// The sum over parts of the given length, merged in an odd order.
    fn sum(x: &[f32], y: &[f32], part: usize) -> DotSum {
        let kernels = Kernels::available().last().unwrap();
        let mut sums = [DotSum::default(); 3];
        for (i, (x, y)) in x.chunks(part).zip(y.chunks(part)).enumerate() {
            sums[i * 7 % 3].add(kernels, (x, y), (largest(x), largest(y)));
        }
        let [mut a, b, mut c] = sums;
        c.merge(b);
        a.merge(c);
        a
    }

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            4 => -1.0f32..1.0,
            2 => (-149i32..126, -2.0f32..2.0).prop_map(|(k, m)| (f64::from(m) * 2f64.powi(k)) as f32),
            1 => prop::sample::select(vec![0.0, -0.0, 1e-45, f32::MAX, f32::MIN, 1.0, 3e-4]),
        ]
    }

    proptest! {
        #[test]
        fn the_cut_does_not_matter_and_the_sum_is_that_of_a_plain_loop(
            pairs in prop::collection::vec((value(), value()), 1..300),
            part in 1usize..320,
        ) {
            let (x, y): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let got = sum(&x, &y, part);
            prop_assert_eq!(got.value().to_bits(), sum(&x, &y, x.len()).value().to_bits());
            let terms = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y));
            let plain: f64 = terms.clone().sum();
            let bound = f64::from(largest(&x)) * f64::from(largest(&y));
            let size: f64 = terms.map(f64::abs).sum();
            let allowed = x.len() as f64 * (bound * 2f64.powi(-40) + size * f64::EPSILON);
            prop_assert!((got.value() - plain).abs() <= allowed, "{} {plain}", got.value());
        }

        #[test]
        fn a_saved_sum_comes_back(x in prop::collection::vec(value(), 0..40)) {
            let saved = sum(&x, &x, 3);
            let mut out = Writer::default();
            saved.save(&mut out);
            prop_assert_eq!(DotSum::load(&mut Reader::new(&out.finish())), Some(saved));
        }
    }

    #[test]
    fn sums_of_noted_magnitudes_are_those_of_two_rows() {
        // Differences of bf16, of which the smallest are off the coarse grid or not; and such that a few terms have other grids.
        let plain = |scale: f32| move |k: usize| (k as f32 - 2500.0) * scale;
        let rows: [Box<dyn Fn(usize) -> f32>; 6] = [
            Box::new(plain(2f32.powi(-20))),
            Box::new(plain(1e-9)),
            Box::new(plain(2f32.powi(-37))),
            Box::new(plain(3e35)),
            Box::new(plain(0.0)),
            Box::new(|k| if k % 512 == 3 { 1e25 } else { -1e-3 }),
        ];
        for (row, len) in rows.iter().zip([5001, 70, 4096, 300, 33, 4100]) {
            let x: Vec<f32> = (0..len).map(row).collect();
            let noted = |k: usize| k % 3 == 1;
            let mut kept = vec![0u16; len.div_ceil(16)];
            (0..len).filter(|&k| noted(k)).for_each(|k| kept[k / 16] |= 1 << (k % 16));
            let some: Vec<f32> =
                x.iter().enumerate().map(|(k, &x)| if noted(k) { x } else { 0.0 }).collect();
            for kernels in Kernels::available() {
                let (mut expected, mut got) = ([DotSum::default(); 2], [DotSum::default(); 2]);
                for _ in 0..2 {
                    expected[0].add_magnitudes(kernels, &x, largest(&x));
                    expected[1].add_magnitudes(kernels, &some, largest(&some));
                    let largest = [largest(&x), largest(&some)];
                    let space = &mut Vec::new();
                    DotSum::add_noted_magnitudes(&mut got, kernels, (&x, &kept), largest, space);
                }
                assert_eq!(got, expected, "{len}");
            }
        }
    }

    #[test]
    fn rows_of_zeros_and_no_rows_sum_to_zero() {
        assert_eq!(DotSum::default().value(), 0.0);
        assert_eq!(sum(&[0.0, -0.0], &[1.0, f32::MAX], 1).value(), 0.0);
    }

    #[test]
    fn whole_numbers_are_summed_exactly() {
        let x: Vec<f32> = (0..20_000).map(|i| (i % 701) as f32 - 350.0).collect();
        let exact: i64 = x.iter().map(|&v| v as i64 * v as i64).sum();
        assert_eq!(sum(&x, &x, 4096).value(), exact as f64);
    }
}
