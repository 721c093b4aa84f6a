//! Scores where few elements have any weight: a cheap bound sorts out the others, and only what is left is scored.

use super::super::dispatch::Lanes;
use super::super::pack::{GROUP, Mask, mask, pack, unpack};
use super::{Bounds, Cut};

/// Elements that are sorted out at a time.
pub(in super::super) const PIECE: usize = 2048;

/// Experts up to which the bound is sure to be one: its error grows with exp(n).
pub(in super::super) const MOST: usize = 16;

/// Thresholds below this are left alone: scores there may be subnormal, whose errors are not relative.
pub(in super::super) const LEAST: f32 = 1e-30;

/// Relative slack, a hundred times all rounding of score and bound together.
const GUARD: f64 = 1.001;

/// An upper bound for scores tanh(tau sum) exp(n z^2) of one expert: tanh(x) <= x for x >= 0, and exp(m y) lies below
/// the parabola that it touches in 0 and meets in 1, for y = z^2 from 0 to 1. With m = n / 8 the two are close, and the
/// eighth power takes three multiplications.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Ceiling {
    bounds: Bounds,
    /// The parabola over (z width)^2.
    parabola: [f32; 3],
}

impl Ceiling {
    pub(in super::super) fn new(n: usize, bounds: Bounds) -> Self {
        let (m, square) = (n as f64 / 8.0, f64::from(bounds.width()).powi(2));
        let guard = GUARD.powf(0.125);
        let parabola = [1.0, m / square, (m.exp() - 1.0 - m) / (square * square)];
        Self { bounds, parabola: parabola.map(|c| (c * guard) as f32) }
    }

    #[inline(always)]
    fn of(&self, tau: f32, sum: f32) -> f32 {
        let above = self.bounds.clamped(tau) - self.bounds.lo;
        let square = above * above;
        let [c0, c1, c2] = self.parabola;
        // NaN, where a coefficient is infinite, stays.
        let root = c0 + square * (c1 + square * c2);
        let (second, product) = (root * root, tau * sum);
        let fourth = second * second;
        product * (fourth * fourth)
    }
}

/// Whether the bound may be used.
pub(super) fn fits(n: usize, cuts: &[Cut]) -> bool {
    n <= MOST && cuts.iter().all(|cut| !cut.active || cut.threshold >= LEAST)
}

/// Space for the elements that are left of a piece.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Left {
    /// Which elements of each group they are.
    masks: Vec<Mask>,
    /// Rows of their values, [`STRIDE`] apart.
    values: Vec<f32>,
    /// How many there are.
    count: usize,
}

/// A group is stored whole behind what is left of those before it.
const STRIDE: usize = PIECE + GROUP;

/// A group that is not whole, with zeros behind its end.
#[cold]
fn padded(rest: &[f32]) -> [f32; GROUP] {
    let mut group = [0.0; GROUP];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// The elements of a group whose bound is not below or at the limit. What is not a number is among them.
#[inline(always)]
fn mark(
    ceiling: &Ceiling,
    limit: f32,
    tau: &[f32; GROUP],
    sum: &[f32; GROUP],
    flags: &mut [u32; GROUP],
) {
    for ((flag, &tau), &sum) in flags.iter_mut().zip(tau).zip(sum) {
        let out = ceiling.of(tau, sum) <= limit;
        *flag |= u32::from(!out);
    }
}

/// The elements of group `at` (rows of task vectors, then the base) in which an expert may have weight.
//
// Functions, not closures: a closure that the compiler does not inline is compiled without the CPU's features.
#[inline(always)]
fn wanted(lanes: Lanes, rows: &[&[f32]], at: usize, ceilings: &[Ceiling], cuts: &[Cut]) -> Mask {
    let taus = &rows[..rows.len() - 1];
    let mut sum = [0.0; GROUP];
    for tau in taus {
        for (sum, tau) in sum.iter_mut().zip(&tau.as_chunks::<GROUP>().0[at]) {
            *sum += tau;
        }
    }
    let mut flags = [0; GROUP];
    for ((tau, ceiling), cut) in taus.iter().zip(ceilings).zip(cuts) {
        if cut.active {
            mark(ceiling, cut.threshold, &tau.as_chunks().0[at], &sum, &mut flags);
        }
    }
    mask(lanes, &flags)
}

/// The elements of a group of one expert whose scores may be above a limit.
#[inline(always)]
fn above(
    lanes: Lanes,
    ceiling: &Ceiling,
    limit: f32,
    tau: &[f32; GROUP],
    sum: &[f32; GROUP],
) -> Mask {
    let mut flags = [0; GROUP];
    mark(ceiling, limit, tau, sum, &mut flags);
    mask(lanes, &flags)
}

/// Writes those elements of a group that a mask wants, even if there are none: a branch that cannot be foretold
/// costs more.
#[inline(always)]
fn keep(lanes: Lanes, mask: Mask, group: &[f32; GROUP], to: &mut [f32]) {
    if let Some(to) = to.first_chunk_mut() {
        pack(lanes, mask, group, to);
    }
}

/// The first so many elements of a group that is not whole.
#[inline(always)]
fn within(len: usize) -> Mask {
    (1 << len) - 1
}

impl Left {
    /// Makes room for a piece of so many rows.
    #[inline(always)]
    fn begin(&mut self, rows: usize) {
        self.values.resize(rows * STRIDE, 0.0);
        self.masks.clear();
        self.count = 0;
    }

    /// The elements of `row` that are left.
    #[inline(always)]
    pub(in super::super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * STRIDE..][..self.count]
    }

    /// How many elements are left.
    #[inline(always)]
    pub(in super::super) fn count(&self) -> usize {
        self.count
    }

    /// Finds the elements of a piece (rows of task vectors, then the base) in which an expert may have weight.
    #[inline(always)]
    pub(super) fn find(
        &mut self,
        lanes: Lanes,
        rows: &[&[f32]],
        ceilings: &[Ceiling],
        cuts: &[Cut],
    ) {
        self.begin(rows.len() + 1);
        let (whole, rest) = (rows[0].len() / GROUP, rows[0].len() % GROUP);
        // Kept out of `self`, and so in registers.
        let (values, mut count) = (&mut self.values[..], 0);
        for at in 0..whole {
            let mask = wanted(lanes, rows, at, ceilings, cuts);
            for (i, row) in rows.iter().enumerate() {
                keep(lanes, mask, &row.as_chunks().0[at], &mut values[i * STRIDE + count..]);
            }
            self.masks.push(mask);
            count += mask.count_ones() as usize;
        }
        if rest > 0 {
            let groups: Vec<_> = rows.iter().map(|row| padded(&row[whole * GROUP..])).collect();
            let mut padded: [&[f32]; MOST + 1] = [&[]; MOST + 1];
            padded.iter_mut().zip(&groups).for_each(|(row, group)| *row = group);
            let mask = wanted(lanes, &padded[..rows.len()], 0, ceilings, cuts) & within(rest);
            for (i, group) in groups.iter().enumerate() {
                keep(lanes, mask, group, &mut values[i * STRIDE + count..]);
            }
            self.masks.push(mask);
            count += mask.count_ones() as usize;
        }
        self.count = count;
    }

    /// Finds the elements of one expert whose scores may be above a limit: rows of task vector and sum.
    #[inline(always)]
    pub(in super::super) fn find_above(
        &mut self,
        lanes: Lanes,
        tau: &[f32],
        sum: &[f32],
        ceiling: &Ceiling,
        limit: f32,
    ) {
        self.begin(2);
        let (taus, sums) = self.values.split_at_mut(STRIDE);
        let mut count = 0;
        let ((tau, tau_rest), (sum, sum_rest)) = (tau.as_chunks(), sum.as_chunks());
        for (tau, sum) in tau.iter().zip(sum) {
            let mask = above(lanes, ceiling, limit, tau, sum);
            keep(lanes, mask, tau, &mut taus[count..]);
            keep(lanes, mask, sum, &mut sums[count..]);
            count += mask.count_ones() as usize;
        }
        if !tau_rest.is_empty() {
            let (tau, sum) = (padded(tau_rest), padded(sum_rest));
            let mask = above(lanes, ceiling, limit, &tau, &sum) & within(tau_rest.len());
            keep(lanes, mask, &tau, &mut taus[count..]);
            keep(lanes, mask, &sum, &mut sums[count..]);
            count += mask.count_ones() as usize;
        }
        self.count = count;
    }

    /// The rows, and room for one more: what becomes of them.
    #[inline(always)]
    pub(super) fn split(&mut self, rows: usize) -> (impl Iterator<Item = &[f32]>, &mut [f32]) {
        let count = self.count;
        let (values, results) = self.values.split_at_mut(rows * STRIDE);
        (values.chunks(STRIDE).map(move |row| &row[..count]), &mut results[..count])
    }

    /// Puts what the last row holds where its elements were found.
    #[inline(always)]
    pub(super) fn put_back(&self, lanes: Lanes, row: usize, to: &mut [f32]) {
        let mut from = &self.values[row * STRIDE..][..STRIDE];
        let (groups, rest) = to.as_chunks_mut();
        for (&mask, to) in self.masks.iter().zip(groups) {
            let Some(values) = from.first_chunk() else { return };
            unpack(lanes, mask, values, to);
            from = &from[mask.count_ones() as usize..];
        }
        if let (Some(&mask), Some(values), false) =
            (self.masks.last(), from.first_chunk(), rest.is_empty())
        {
            let mut last = padded(rest);
            unpack(lanes, mask, values, &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Inter, Scratch, Tally};
    use super::*;
    use crate::kernel::Kernels;

    #[test]
    fn the_ceiling_lies_above_all_scores_and_not_far_above_them() {
        let bounds = Bounds { lo: 1e-5, hi: 0.02 };
        for n in 1..=MOST {
            let ceiling = Ceiling::new(n, bounds);
            for step in 0..4000 {
                let (tau, sum) = (step as f32 * 6e-6, 1e-3);
                let z = f64::from((bounds.clamped(tau) - bounds.lo) / bounds.width());
                let x = f64::from(tau) * f64::from(sum);
                let score = x.tanh() * (n as f64 * z * z).exp();
                let bound = f64::from(ceiling.of(tau, sum));
                assert!(score * 1.0005 <= bound || score == 0.0, "{n} {tau}: {score} {bound}");
                assert!(n > 8 || bound <= score * 1.2, "{n} {tau}: {score} {bound}");
            }
        }
    }

    proptest! {
        #[test]
        fn sorting_out_changes_no_bit_of_a_merge(
            seed in any::<u32>(), n in 1usize..6, len in 1usize..5000, power in -9f32..-1.0, off in any::<bool>(),
        ) {
            let mut x = seed | 1;
            let mut next = || {
                x ^= x << 13;
                x ^= x >> 17;
                x ^= x << 5;
                let value = x as i32 as f32 / i32::MAX as f32;
                if x.is_multiple_of(5) { 0.0 } else { value * value.abs() * 0.1 }
            };
            let rows: Vec<Vec<f32>> = (0..=n).map(|_| (0..len).map(|_| next()).collect()).collect();
            let taus: Vec<&[f32]> = rows[1..].iter().map(Vec::as_slice).collect();
            let bounds = vec![Bounds { lo: 1e-6, hi: 0.05 }; n];
            let mut cuts = vec![Cut { threshold: 10f32.powf(power), span: 0.5, active: true }; n];
            cuts[0].active = off;
            prop_assert!(fits(n, &cuts));
            let lambdas = vec![1.1; n];
            let (mut scratch, mut scores) = (Scratch::default(), vec![0.0; n * len]);
            for kernels in Kernels::available() {
                let (mut expected, mut counted) = (vec![0.0; len], vec![Tally::default(); n]);
                kernels.pcb_scores(Inter::Raw, &taus, &bounds, &mut scratch, &mut scores);
                kernels.pcb_merge(
                    &rows[0], &taus, &scores, &bounds, &cuts, &lambdas, &mut scratch, &mut expected, &mut counted,
                );
                let (mut merged, mut tallies) = (vec![7.0; len], vec![Tally::default(); n]);
                kernels.pcb_map(
                    Inter::Raw, &rows[0], &taus, &bounds, &cuts, &lambdas, &mut scratch, &mut merged, &mut tallies,
                );
                prop_assert_eq!(&tallies, &counted);
                prop_assert!(merged.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}
