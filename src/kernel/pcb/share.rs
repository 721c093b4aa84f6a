//! Weights from scores, and the weighted mean of the clamped task vectors, chunk by chunk.
//!
//! Where no expert has a score above its threshold, which in a real model is so in long runs of small changes, there is
//! nothing to divide and the base remains.

use super::super::dispatch::Lanes;
use super::score::{self, Target};
use super::sparse::{self, Ceiling, PIECE};
use super::{Bounds, CHUNK, Cut, Inter, Scratch, Tally, WEIGHT_ONE, sign_of, sum_rows};

/// Weights whose sum in units of [`WEIGHT_ONE`] is sure to fit in 32 bits.
const COUNTED: usize = 256;

/// Adding it leaves a number from 0 to [`WEIGHT_ONE`], rounded to an integer, in the low bits of the sum: a cast would be
/// done element by element, since it must tell NaN and overflow.
const MAGIC: f32 = 12_582_912.0;

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "rows and scalars of one loop")]
pub(in super::super) fn merge(
    base: &[f32],
    taus: &[&[f32]],
    scores: &[f32],
    bounds: &[Bounds],
    cuts: &[Cut],
    lambdas: &[f32],
    scratch: &mut Scratch,
    out: &mut [f32],
    tallies: &mut [Tally],
) {
    let len = base.len();
    scratch.resize(taus.len());
    for (at, (base, out)) in (0..).step_by(CHUNK).zip(base.chunks(CHUNK).zip(out.chunks_mut(CHUNK)))
    {
        let chunk = Chunk { base, taus, at, scores, stride: len, first: at };
        chunk.merge(bounds, cuts, lambdas, &mut scratch.rows, out, tallies);
    }
}

/// Scores and merge in one: the scores of a chunk do not leave the cache, and where a bound tells that no expert has
/// weight, there are none.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "rows and scalars of one loop")]
pub(in super::super) fn map(
    lanes: Lanes,
    inter: Inter,
    base: &[f32],
    taus: &[&[f32]],
    bounds: &[Bounds],
    cuts: &[Cut],
    lambdas: &[f32],
    scratch: &mut Scratch,
    out: &mut [f32],
    tallies: &mut [Tally],
) {
    let n = taus.len();
    scratch.resize(n);
    if inter != Inter::Raw || !sparse::fits(n, cuts) {
        return dense(inter, base, taus, bounds, cuts, lambdas, scratch, out, tallies);
    }
    let mut ceilings = [Ceiling::new(n, bounds[0]); sparse::MOST];
    for (ceiling, bounds) in ceilings.iter_mut().zip(bounds).skip(1) {
        *ceiling = Ceiling::new(n, *bounds);
    }
    let mut left = std::mem::take(&mut scratch.left);
    for (at, (base, out)) in (0..).step_by(PIECE).zip(base.chunks(PIECE).zip(out.chunks_mut(PIECE)))
    {
        let mut rows: [&[f32]; sparse::MOST + 1] = [&[]; sparse::MOST + 1];
        for (row, tau) in rows.iter_mut().zip(taus) {
            *row = &tau[at..at + base.len()];
        }
        rows[n] = base;
        left.find(lanes, &rows[..=n], &ceilings[..n], cuts);
        keep_base(base, out);
        if left.count() == 0 {
            continue;
        }
        let (found, merged) = left.split(n + 1);
        for (row, found) in rows.iter_mut().zip(found) {
            *row = found;
        }
        dense(inter, rows[n], &rows[..n], bounds, cuts, lambdas, scratch, merged, tallies);
        left.put_back(lanes, n + 1, out);
    }
    scratch.left = left;
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "rows and scalars of one loop")]
fn dense(
    inter: Inter,
    base: &[f32],
    taus: &[&[f32]],
    bounds: &[Bounds],
    cuts: &[Cut],
    lambdas: &[f32],
    scratch: &mut Scratch,
    out: &mut [f32],
    tallies: &mut [Tally],
) {
    let Scratch { rows, scores, .. } = scratch;
    for (at, (base, out)) in (0..).step_by(CHUNK).zip(base.chunks(CHUNK).zip(out.chunks_mut(CHUNK)))
    {
        let len = base.len();
        let target = Target { values: scores, stride: CHUNK, at: 0, len };
        score::chunk(inter, taus, at..at + len, bounds, rows, target);
        let chunk = Chunk { base, taus, at, scores, stride: CHUNK, first: 0 };
        chunk.merge(bounds, cuts, lambdas, rows, out, tallies);
    }
}

/// As the sum of nothing but zeros and the base: -0.0 becomes 0.0.
#[inline(always)]
fn keep_base(base: &[f32], out: &mut [f32]) {
    for (out, base) in out.iter_mut().zip(base) {
        *out = 0.0 + base;
    }
}

/// Up to [`CHUNK`] elements: `base`, elements from `at` of each of `taus`, and scores in runs `stride` apart, the first
/// one at `first`.
struct Chunk<'a> {
    base: &'a [f32],
    taus: &'a [&'a [f32]],
    at: usize,
    scores: &'a [f32],
    stride: usize,
    first: usize,
}

impl Chunk<'_> {
    #[inline(always)]
    fn scores(&self, i: usize) -> &[f32] {
        &self.scores[i * self.stride + self.first..][..self.base.len()]
    }

    #[inline(always)]
    fn merge(
        &self,
        bounds: &[Bounds],
        cuts: &[Cut],
        lambdas: &[f32],
        weights: &mut [f32],
        out: &mut [f32],
        tallies: &mut [Tally],
    ) {
        let (n, len) = (self.taus.len(), self.base.len());
        let mut sum = [0.0; CHUNK];
        let sum = &mut sum[..len];
        if !self.weigh(cuts, weights, sum, tallies) {
            return keep_base(self.base, out);
        }
        out.fill(0.0);
        for (i, weights) in weights.chunks(CHUNK).enumerate().take(n) {
            let (bounds, lambda) = (bounds[i], lambdas[i]);
            let row = weights.iter().zip(&self.taus[i][self.at..]).zip(&*sum);
            for (out, ((&weight, &tau), &sum)) in out.iter_mut().zip(row) {
                *out += lambda * share(weight, tau, bounds, sum);
            }
        }
        for (out, base) in out.iter_mut().zip(self.base) {
            *out += base;
        }
    }

    /// Fills in the weights of all experts, [`CHUNK`] apart, and what they are divided by; tells whether any expert has
    /// one, and does nothing if not.
    #[inline(always)]
    fn weigh(
        &self,
        cuts: &[Cut],
        weights: &mut [f32],
        sum: &mut [f32],
        tallies: &mut [Tally],
    ) -> bool {
        let (n, len) = (self.taus.len(), self.base.len());
        let mut any = false;
        for (i, cut) in cuts.iter().enumerate().take(n) {
            any |= cut.active && is_any_above(self.scores(i), cut.threshold);
        }
        if !any {
            return false;
        }
        for (i, weights) in weights.chunks_mut(CHUNK).enumerate().take(n) {
            let weights = &mut weights[..len];
            if cuts[i].active {
                tallies[i].merge(weigh(self.scores(i), cuts[i], weights));
            } else {
                weights.fill(0.0);
            }
        }
        sum_rows(weights.chunks(CHUNK).take(n).map(|row| &row[..len]), sum);
        for sum in &mut *sum {
            *sum = if *sum < 1e-12 { 1e-12 } else { *sum };
        }
        true
    }
}

/// The share of an expert in a merged value, without lambda: any lambdas combine the same shares.
#[inline(always)]
fn share(weight: f32, tau: f32, bounds: Bounds, sum: f32) -> f32 {
    weight * (sign_of(tau) * bounds.clamped(tau)) / sum
}

/// The shares of all experts: `out` holds one row of the block's length for each.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "rows and scalars of one loop")]
pub(in super::super) fn shares(
    inter: Inter,
    base: &[f32],
    taus: &[&[f32]],
    bounds: &[Bounds],
    cuts: &[Cut],
    scratch: &mut Scratch,
    out: &mut [f32],
    tallies: &mut [Tally],
) {
    let (n, stride) = (taus.len(), base.len());
    scratch.resize(n);
    let Scratch { rows, scores, .. } = scratch;
    out.fill(0.0);
    for (at, base) in (0..).step_by(CHUNK).zip(base.chunks(CHUNK)) {
        let len = base.len();
        let target = Target { values: scores, stride: CHUNK, at: 0, len };
        score::chunk(inter, taus, at..at + len, bounds, rows, target);
        let chunk = Chunk { base, taus, at, scores, stride: CHUNK, first: 0 };
        let mut sum = [0.0; CHUNK];
        let sum = &mut sum[..len];
        if !chunk.weigh(cuts, rows, sum, tallies) {
            continue;
        }
        for (i, weights) in rows.chunks(CHUNK).enumerate().take(n) {
            let row = weights.iter().zip(&taus[i][at..]).zip(&*sum);
            for (out, ((&weight, &tau), &sum)) in out[i * stride + at..][..len].iter_mut().zip(row)
            {
                *out = share(weight, tau, bounds[i], sum);
            }
        }
    }
}

#[inline(always)]
fn is_any_above(scores: &[f32], threshold: f32) -> bool {
    scores.iter().fold(0, |any, &score| any | u32::from(score - threshold > 0.0)) != 0
}

/// Fills in the weights of one expert.
#[inline(always)]
fn weigh(scores: &[f32], cut: Cut, weights: &mut [f32]) -> Tally {
    let mut tally = Tally::default();
    for (scores, weights) in scores.chunks(COUNTED).zip(weights.chunks_mut(COUNTED)) {
        let (mut kept, mut total) = (0u32, 0u32);
        for (weight, &score) in weights.iter_mut().zip(scores) {
            let above = score - cut.threshold;
            *weight = if above > 0.0 { above } else { 0.0 } / cut.span;
            kept += u32::from(*weight > 0.0);
            let units = (*weight * WEIGHT_ONE as f32 + MAGIC).to_bits();
            total = total.wrapping_add(units.wrapping_sub(MAGIC.to_bits()));
        }
        tally.merge(Tally { kept: u64::from(kept), weight: u64::from(total) });
    }
    tally
}
