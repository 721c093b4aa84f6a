//! Competition scores, chunk by chunk: all that is computed on the way stays in the first-level cache, and each chunk
//! takes the shortest forms of exp and tanh that give the bits of the full ones on its values.

use std::ops::Range;

use super::super::math::{EXP_SHORT, TanhForm, exp, exp_short, tanh, tanh_to_one};
use super::{Bounds, CHUNK, Inter, SHIFT_ABOVE, Scratch, sign_of, sum_rows};

/// Where the scores of a chunk go: one run of `len` values per expert, `stride` apart, the first one at `at`.
pub(super) struct Target<'a> {
    pub(super) values: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) at: usize,
    pub(super) len: usize,
}

impl Target<'_> {
    #[inline(always)]
    fn row(&mut self, i: usize) -> &mut [f32] {
        &mut self.values[i * self.stride + self.at..][..self.len]
    }

    /// Rows i < j.
    #[inline(always)]
    fn two_rows(&mut self, i: usize, j: usize) -> (&mut [f32], &mut [f32]) {
        let (head, tail) = self.values.split_at_mut(j * self.stride + self.at);
        (&mut head[i * self.stride + self.at..][..self.len], &mut tail[..self.len])
    }
}

#[inline(always)]
pub(in super::super) fn scores(
    inter: Inter,
    taus: &[&[f32]],
    bounds: &[Bounds],
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let len = taus.first().map_or(0, |row| row.len());
    scratch.resize(taus.len());
    for at in (0..len).step_by(CHUNK) {
        let range = at..len.min(at + CHUNK);
        let target = Target { values: &mut *out, stride: len, at, len: range.len() };
        chunk(inter, taus, range, bounds, &mut scratch.rows, target);
    }
}

/// Scores of up to [`CHUNK`] elements. `signed` has room for that many of each expert.
#[inline(always)]
pub(super) fn chunk(
    inter: Inter,
    taus: &[&[f32]],
    range: Range<usize>,
    bounds: &[Bounds],
    signed: &mut [f32],
    mut out: Target<'_>,
) {
    let (n, len) = (taus.len(), range.len());
    let mut sum = [0.0; CHUNK];
    let sum = &mut sum[..len];
    if inter == Inter::Raw {
        sum_rows(taus.iter().map(|tau| &tau[range.clone()]), sum);
    } else {
        for ((tau, bounds), signed) in taus.iter().zip(bounds).zip(signed.chunks_mut(CHUNK)) {
            let (lo, width) = (bounds.lo, bounds.width());
            for (signed, &tau) in signed.iter_mut().zip(&tau[range.clone()]) {
                *signed = sign_of(tau) * ((bounds.clamped(tau) - lo) / width);
            }
        }
    }
    match inter {
        Inter::Raw => {
            for (i, (tau, bounds)) in taus.iter().zip(bounds).enumerate() {
                let (tau, lo, width) = (&tau[range.clone()], bounds.lo, bounds.width());
                let z = |tau: f32| (bounds.clamped(tau) - lo) / width;
                weigh(n, tau, sum, tau, z, out.row(i));
            }
        }
        Inter::Half => {
            sum_rows(signed.chunks(CHUNK).take(n).map(|row| &row[..len]), sum);
            for (i, (tau, signed)) in taus.iter().zip(signed.chunks(CHUNK)).enumerate() {
                weigh(n, &tau[range.clone()], sum, signed, f32::abs, out.row(i));
            }
        }
        Inter::Pairs => pairs(n, signed, &mut out),
    }
}

/// out = tanh(tau sum) exp(n z^2), with z computed from `own`.
#[inline(always)]
fn weigh(n: usize, tau: &[f32], sum: &[f32], own: &[f32], z: impl Fn(f32) -> f32, out: &mut [f32]) {
    macro_rules! fill {
        ($tanh:expr, $exp:expr) => {
            for (((out, tau), sum), &own) in out.iter_mut().zip(tau).zip(sum).zip(own) {
                *out = $tanh(tau * sum) * $exp(z(own));
            }
        };
    }
    let factor = n as f32;
    if n > SHIFT_ABOVE {
        fill!(tanh, |z: f32| exp(factor * (z * z - 1.0)));
        return;
    }
    // z is at most 1.
    const { assert!(SHIFT_ABOVE as f32 <= EXP_SHORT) };
    let largest = tau
        .iter()
        .zip(sum)
        .fold(0, |largest: u32, (tau, sum)| largest.max((tau * sum).to_bits() & 0x7fff_ffff));
    let exp = |z: f32| exp_short(factor * (z * z));
    match TanhForm::for_magnitudes_to(largest) {
        TanhForm::Identity => fill!(|x: f32| x, exp),
        TanhForm::ToOne => fill!(tanh_to_one, exp),
        TanhForm::Full => fill!(tanh, exp),
    }
}

/// out_i = exp(n z_i^2) sum_j tanh(signed_i signed_j). No product is above 1, and each serves two experts: the terms
/// come to each of them in the order of j.
#[inline(always)]
fn pairs(n: usize, signed: &[f32], out: &mut Target<'_>) {
    let row = |i: usize| &signed[i * CHUNK..(i + 1) * CHUNK];
    for i in 0..n {
        out.row(i).fill(0.0);
    }
    for i in 0..n {
        for (out, own) in out.row(i).iter_mut().zip(row(i)) {
            *out += tanh_to_one(own * own);
        }
        for j in i + 1..n {
            let (ours, theirs) = out.two_rows(i, j);
            for (((ours, theirs), own), other) in
                ours.iter_mut().zip(theirs).zip(row(i)).zip(row(j))
            {
                let term = tanh_to_one(own * other);
                *ours += term;
                *theirs += term;
            }
        }
    }
    let (factor, shift) = (n as f32, if n > SHIFT_ABOVE { 1.0 } else { 0.0 });
    for i in 0..n {
        for (out, z) in out.row(i).iter_mut().zip(row(i)) {
            *out *= exp(factor * (z * z - shift));
        }
    }
}
