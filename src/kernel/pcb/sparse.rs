//! Scores where few elements have any weight: a cheap bound sorts out the others, and only what is left is scored.

use super::{Bounds, CHUNK, Cut, sum_rows};

/// Elements that are sorted out at a time.
pub(in super::super) const PIECE: usize = 2048;

/// Experts up to which the bound is sure to be one: its error grows with exp(n).
pub(in super::super) const MOST: usize = 16;

/// Thresholds below this are left alone: scores there may be subnormal, whose errors are not relative.
pub(in super::super) const LEAST: f32 = 1e-30;

const SEGMENTS: usize = 4;

/// Relative slack, a hundred times all rounding of score and bound together.
const GUARD: f64 = 1.001;

/// An upper bound for scores tanh(tau sum) exp(n z^2) of one expert: tanh(x) <= x for x >= 0, and exp(n z^2), which is
/// convex in z^2, lies below its secants. Of the secants of neighbouring segments the largest is the one that holds.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Ceiling {
    bounds: Bounds,
    /// Value at z = 0 and slope over (z width)^2.
    lines: [(f32, f32); SEGMENTS],
}

impl Ceiling {
    pub(in super::super) fn new(n: usize, bounds: Bounds) -> Self {
        let width = f64::from(bounds.width());
        let at = |k: usize| (n as f64 * (k as f64 / SEGMENTS as f64)).exp() * GUARD;
        let line = |k: usize| {
            let slope = (at(k + 1) - at(k)) * SEGMENTS as f64;
            let start = at(k) - slope * (k as f64 / SEGMENTS as f64);
            (start as f32, (slope / (width * width)) as f32)
        };
        Self { bounds, lines: std::array::from_fn(line) }
    }

    #[inline(always)]
    fn of(&self, tau: f32, sum: f32) -> f32 {
        let above = self.bounds.clamped(tau) - self.bounds.lo;
        let square = above * above;
        let mut most = self.lines[0].0 + self.lines[0].1 * square;
        for (start, slope) in &self.lines[1..] {
            let line = start + slope * square;
            // NaN, where a slope is infinite, stays.
            most = if most > line { most } else { line };
        }
        tau * sum * most
    }
}

/// Whether the bound may be used.
pub(super) fn fits(n: usize, cuts: &[Cut]) -> bool {
    n <= MOST && cuts.iter().all(|cut| !cut.active || cut.threshold >= LEAST)
}

/// Space for the elements that are left.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Left {
    /// Where they are in the piece, ascending.
    pub(in super::super) places: Vec<u16>,
    /// Rows of their values, [`PIECE`] apart.
    pub(in super::super) values: Vec<f32>,
}

/// Flags elements whose bound is not below or at the limit. What is not a number is flagged, too.
#[inline(always)]
fn mark(ceiling: &Ceiling, limit: f32, tau: &[f32], sum: &[f32], flags: &mut [u32]) {
    for ((flag, &tau), &sum) in flags.iter_mut().zip(tau).zip(sum) {
        let out = ceiling.of(tau, sum) <= limit;
        *flag |= u32::from(!out);
    }
}

impl Left {
    /// Makes room for a piece of so many rows.
    #[inline(always)]
    pub(in super::super) fn resize(&mut self, rows: usize) {
        self.places.resize(PIECE + 1, 0);
        self.values.resize(rows * PIECE, 0.0);
    }

    /// Finds the elements among `at..at + len` in which an expert may have weight; their number.
    #[inline(always)]
    pub(super) fn find(
        &mut self,
        taus: &[&[f32]],
        at: usize,
        len: usize,
        ceilings: &[Ceiling],
        cuts: &[Cut],
    ) -> usize {
        let mut left = 0;
        for first in (0..len).step_by(CHUNK) {
            let chunk = at + first..at + len.min(first + CHUNK);
            let (mut sum, mut flags) = ([0.0; CHUNK], [0; CHUNK]);
            let (sum, flags) = (&mut sum[..chunk.len()], &mut flags[..chunk.len()]);
            sum_rows(taus.iter().map(|tau| &tau[chunk.clone()]), sum);
            for ((tau, ceiling), cut) in taus.iter().zip(ceilings).zip(cuts) {
                if cut.active {
                    mark(ceiling, cut.threshold, &tau[chunk.clone()], sum, flags);
                }
            }
            left = self.list(first, flags, left);
        }
        left
    }

    /// Finds the elements of one expert whose scores may be above a limit; their number.
    #[inline(always)]
    pub(in super::super) fn above(
        &mut self,
        tau: &[f32],
        sum: &[f32],
        ceiling: &Ceiling,
        limit: f32,
    ) -> usize {
        let mut left = 0;
        for ((first, tau), sum) in
            (0..).step_by(CHUNK).zip(tau.chunks(CHUNK)).zip(sum.chunks(CHUNK))
        {
            let mut flags = [0; CHUNK];
            let flags = &mut flags[..tau.len()];
            mark(ceiling, limit, tau, sum, flags);
            left = self.list(first, flags, left);
        }
        left
    }

    /// Appends the places of flags behind the first `left`, without a branch.
    #[inline(always)]
    fn list(&mut self, first: usize, flags: &[u32], mut left: usize) -> usize {
        let places = &mut self.places[..];
        for (place, &flag) in (first..).zip(flags) {
            places[left] = place as u16;
            left += flag as usize;
        }
        left
    }

    /// Copies one row of what was found.
    #[inline(always)]
    pub(in super::super) fn gather(&mut self, row: usize, from: &[f32], left: usize) {
        let (places, to) = (&self.places[..left], &mut self.values[row * PIECE..][..left]);
        for (to, &place) in to.iter_mut().zip(places) {
            *to = from[usize::from(place)];
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
                assert!(n > 4 || bound <= score * 1.2, "{n} {tau}: {score} {bound}");
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
