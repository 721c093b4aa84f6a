//! Deciding on which side of a threshold elements lie while threshold and clamp bounds are only
//! known within brackets. What cannot be decided is flagged, to be looked at later.
//!
//! With u = 1 / (hi - lo)^2 and q = clamp(|tau|) - lo a score is B = x exp(min(n q^2 u, n)): its
//! logarithm is linear in u below the upper bound. So is the logarithm of the threshold, by
//! choice: T(u) = T exp(pivot r), with r the relative distance of u from the middle, |r| <= reach.
//! Then B(u) / T(u) differs from B / T in the middle by a factor of at most
//! exp(|n z^2 - pivot| reach), and one score decides for the whole bracket. Computed scores get a
//! guard on top that is far above any rounding; an element inside it is undecided, never wrong.

mod joint;

pub use joint::{Joint, Member, SHORT, Space, mark_rows};

pub(super) use joint::judge_together;

use super::dispatch::Lanes;
use super::math::{EXP_SHORT, TanhForm, exp, exp_short, tanh, tanh_all, tanh_to_one};
use super::pack::{GROUP, mask, places, sides};
use super::pcb::sparse::{Ceiling, LEAST, Left, MOST, PIECE};
use super::pcb::{Bounds, SHIFT_ABOVE};

/// The element's score may lie on either side of the threshold.
pub const UNDECIDED: u32 = 1;
/// The element's score may be the largest.
pub const TOP: u32 = 2;

/// What is known about the scores of one expert before they are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// Clamp bounds in the middle of their brackets.
    pub middle: Bounds,
    /// The threshold in the middle is at least this.
    pub low: f32,
    /// The threshold in the middle is at most this.
    pub high: f32,
    /// How the threshold moves: its logarithm by `pivot` times the relative change of u.
    pub pivot: f32,
    /// The largest relative change of u.
    pub reach: f32,
    /// Relative slack for each unit of z: the lower bound moves, too.
    pub lean: f32,
    /// Relative slack for everybody.
    pub guard: f32,
    /// Exponents from here on may be clamped for some of the bounds.
    pub edge: f32,
    /// What stands for |n z^2 - pivot| there.
    pub far: f32,
    /// Scores in the middle from here on may be the largest.
    pub top: f32,
}

/// An element that cannot be decided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// Its task vector's value.
    pub tau: f32,
    /// The sum over all experts' there.
    pub sum: f32,
    /// [`UNDECIDED`], [`TOP`] or both.
    pub flags: u32,
}

/// Where the scores of a number of elements lie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Certainly below the threshold.
    pub below: u32,
    /// Exactly zero, whatever the bounds; of those below not all.
    pub zeros: u32,
    /// The largest magnitude of a score that may be near a threshold or too large, as bits.
    pub largest: u32,
}

/// Space for intermediate rows. Grows to the largest block once.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    product: Vec<f32>,
    left: Left,
}

/// Elements worked on at a time: few enough to have much in common.
const CHUNK: usize = 256;

impl Guess {
    /// A bound for exp(slack) - 1 of all elements whose exponents are at most this.
    #[inline(always)]
    fn most_slack(&self, exponent: f32) -> f32 {
        let moved = self.pivot.abs().max((exponent - self.pivot).abs());
        let moved = if exponent < self.edge { moved } else { moved.max(self.far) };
        let slack = moved * self.reach + self.lean + self.guard;
        slack + slack * slack
    }

    /// Whether elements are sure to be below the threshold, and not the largest, with exponents and magnitudes
    /// of inter terms up to these. `doubt` is what these may be off by.
    #[inline(always)]
    fn is_above_all(&self, exponent: f32, inter: f32, doubt: f32) -> bool {
        let most = exp_short(exponent) * (inter + doubt) * (1.0 + self.most_slack(exponent));
        // Many times what rounding does to this and to single elements. Not so for NaN.
        most * 1.001 + 1e-43 < if self.low < self.top { self.low } else { self.top }
    }

    /// z in the middle for a magnitude.
    #[inline(always)]
    fn normed(&self, magnitude: f32) -> f32 {
        (self.middle.clamped(magnitude) - self.middle.lo) * (1.0 / self.middle.width())
    }

    /// Scores in the middle up to this are below the threshold whatever the bounds, and none of the largest. None if
    /// there is no such limit above the tiniest of numbers, or it cannot be told by a [`Ceiling`].
    fn limit(&self, n: f32) -> Option<f32> {
        let moved = self.far.max(self.pivot.abs()).max((n - self.pivot).abs());
        let slack = moved * self.reach + self.lean + self.guard;
        let limit = self.low.min(self.top) / (1.0 + slack + slack * slack) * (1.0 - 1e-5);
        // Slack of less than all of a score keeps those below zero there.
        (n <= MOST as f32 && slack < 0.5 && limit >= LEAST).then_some(limit)
    }
}

/// Judges the elements of one expert by its task vector and the sum of all experts' (`pcb_scores`
/// with `Inter::Raw`). Elements of score zero are none that cannot be decided.
///
/// Where a cheap bound tells that elements are below, zeros are not told from others.
#[inline(always)]
pub(super) fn judge(
    lanes: Lanes,
    factor: f32,
    tau: &[f32],
    sum: &[f32],
    guess: &Guess,
    rows: &mut Rows,
    found: &mut Vec<Found>,
) -> Judged {
    let Some(limit) = guess.limit(factor) else {
        return judge_each(lanes, factor, tau, sum, guess, found);
    };
    let ceiling = Ceiling::new(factor as usize, guess.middle);
    let left = &mut rows.left;
    let mut judged = Judged::default();
    for (tau, sum) in tau.chunks(PIECE).zip(sum.chunks(PIECE)) {
        left.find_above(lanes, tau, sum, &ceiling, limit);
        judged.below += (tau.len() - left.count()) as u32;
        judged.add(judge_each(lanes, factor, left.row(0), left.row(1), guess, found));
    }
    judged
}

impl Judged {
    #[inline(always)]
    fn add(&mut self, other: Self) {
        self.below += other.below;
        self.zeros += other.zeros;
        self.largest = self.largest.max(other.largest);
    }
}

/// Chunks of small changes are decided as a whole.
#[inline(always)]
fn judge_each(
    lanes: Lanes,
    factor: f32,
    tau: &[f32],
    sum: &[f32],
    guess: &Guess,
    found: &mut Vec<Found>,
) -> Judged {
    let mut judged = Judged::default();
    let mut inter = [0.0; CHUNK];
    for (tau, sum) in tau.chunks(CHUNK).zip(sum.chunks(CHUNK)) {
        let inter = &mut inter[..tau.len()];
        let (mut most, mut largest) = (0, 0);
        for ((inter, tau), sum) in inter.iter_mut().zip(tau).zip(sum) {
            *inter = tau * sum;
            most = most.max(inter.to_bits() & 0x7fff_ffff);
            largest = largest.max(tau.to_bits() & 0x7fff_ffff);
        }
        let z = guess.normed(f32::from_bits(largest));
        if guess.is_above_all(factor * (z * z), f32::from_bits(most), 0.0) {
            judged.below += tau.len() as u32;
            continue;
        }
        match TanhForm::for_magnitudes_to(most) {
            TanhForm::Identity => {}
            TanhForm::ToOne => inter.iter_mut().for_each(|x| *x = tanh_to_one(*x)),
            TanhForm::Full => inter.iter_mut().for_each(|x| *x = tanh(*x)),
        }
        let mut flags = [0; CHUNK];
        judge_chunk(factor, tau, inter, guess, &mut flags[..tau.len()], &mut judged);
        for (at, group) in (0..).step_by(GROUP).zip(flags.as_chunks::<GROUP>().0) {
            let mut left = mask(lanes, group);
            while left != 0 {
                let e = at + left.trailing_zeros() as usize;
                found.push(Found { tau: tau[e], sum: sum[e], flags: flags[e] });
                left &= left - 1;
            }
        }
    }
    judged
}

#[inline(always)]
fn judge_chunk(
    factor: f32,
    tau: &[f32],
    inter: &[f32],
    guess: &Guess,
    flags: &mut [u32],
    judged: &mut Judged,
) {
    let Guess { middle, low, high, pivot, reach, lean, guard, edge, far, top } = *guess;
    let (lo, hi, scale) = (middle.lo, middle.hi, 1.0 / middle.width());
    // z is at most 1, and no more experts than this are judged.
    const { assert!(SHIFT_ABOVE as f32 <= EXP_SHORT) };
    let (mut under, mut zeros, mut largest) = (0, 0, judged.largest);
    for ((flag, &x), &tau) in flags.iter_mut().zip(inter).zip(tau) {
        let magnitude = tau.abs();
        let raised = if magnitude < lo { lo } else { magnitude };
        let z = (if raised > hi { hi } else { raised } - lo) * scale;
        let exponent = factor * (z * z);
        let score = x * exp_short(exponent);
        let moved = if exponent < edge { (exponent - pivot).abs() } else { far };
        let slack = moved * reach + z * lean + guard;
        // exp(slack) - 1 <= slack + slack^2 up to 1.79, and products of subnormals round absolutely.
        let slack = (slack + slack * slack) * score.abs() + 1e-44;
        let below = score + slack < low;
        let above = score - slack > high;
        let zero = x == 0.0;
        under += u32::from(below);
        zeros += u32::from(zero);
        largest = largest.max(score.to_bits() & 0x7fff_ffff);
        let open = u32::from(!(below | above | zero)) * UNDECIDED;
        let near = u32::from(!zero) & u32::from(score >= top);
        *flag |= open | (near * TOP);
    }
    *judged = Judged { below: judged.below + under, zeros: judged.zeros + zeros, largest };
}

/// Counts magnitude keys below `from` and those in `from..=to`, and notes the places of the latter at the front of `found`,
/// which grows to the largest block once.
#[inline(always)]
pub(super) fn places_within(
    lanes: Lanes,
    values: &[f32],
    span: (u32, u32),
    found: &mut Vec<u32>,
) -> [u32; 2] {
    // Groups are stored whole.
    let room = values.len() + GROUP;
    if found.len() < room {
        found.resize(room, 0);
    }
    let (mut below, mut inside, mut first) = (0, 0, 0);
    let (groups, rest) = values.as_chunks::<GROUP>();
    for group in groups {
        let [under, within] = sides(lanes, group, span);
        if let Some(to) = found[inside..].first_chunk_mut() {
            places(lanes, within, first, to);
        }
        below += under.count_ones();
        inside += within.count_ones() as usize;
        first += GROUP as u32;
    }
    for (place, value) in (first..).zip(rest) {
        let key = value.to_bits() & 0x7fff_ffff;
        found[inside] = place;
        below += u32::from(key < span.0);
        inside += usize::from((span.0..=span.1).contains(&key));
    }
    [below, inside as u32]
}

/// Counts magnitude keys below `from`, and appends those in `from..=to`, which are few.
#[inline(always)]
pub(super) fn magnitudes_within(
    values: &[f32],
    (from, to): (u32, u32),
    found: &mut Vec<u32>,
) -> u32 {
    const GROUP: usize = 64;
    let (key, width) = (|value: f32| value.to_bits() & 0x7fff_ffff, to - from);
    let is_inside = |value: f32| key(value).wrapping_sub(from) <= width;
    let mut below = 0;
    let (groups, rest) = values.as_chunks::<GROUP>();
    for group in groups {
        let (mut under, mut inside) = (0, 0);
        for &value in group {
            under += u32::from(key(value) < from);
            inside |= u32::from(is_inside(value));
        }
        below += under;
        if inside != 0 {
            found.extend(group.iter().filter(|value| is_inside(**value)).map(|&value| key(value)));
        }
    }
    for &value in rest {
        below += u32::from(key(value) < from);
        if is_inside(value) {
            found.push(key(value));
        }
    }
    below
}

/// Scores of elements given by task vector and sum: bit for bit those of `pcb_scores`.
#[inline(always)]
pub(super) fn rescore(
    factor: f32,
    tau: &[f32],
    sum: &[f32],
    bounds: Bounds,
    rows: &mut Rows,
    out: &mut [f32],
) {
    rows.product.resize(tau.len(), 0.0);
    for ((product, tau), sum) in rows.product.iter_mut().zip(tau).zip(sum) {
        *product = tau * sum;
    }
    tanh_all(&rows.product, out);
    let (lo, width) = (bounds.lo, bounds.width());
    for (out, &tau) in out.iter_mut().zip(tau) {
        let z = (bounds.clamped(tau) - lo) / width;
        *out *= exp(factor * (z * z));
    }
}

/// The positions of elements that carry a flag.
pub fn flagged(flags: &[u32], mut visit: impl FnMut(usize, u32)) {
    for (i, chunk) in flags.chunks(16).enumerate() {
        // Flags are rare: most chunks are passed over without a branch for each element.
        if chunk.iter().fold(0, |all, flag| all | flag) == 0 {
            continue;
        }
        for (e, &flag) in chunk.iter().enumerate().filter(|(_, flag)| **flag != 0) {
            visit(i * 16 + e, flag);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernel::Kernels;
    use crate::kernel::pcb::{Inter, Scratch};

    /// Values of all sizes, most of them small, some of them zero.
    fn values() -> impl Strategy<Value = Vec<f32>> {
        let value = (-1f32..1.0, 0u32..9).prop_map(|(x, power)| match power {
            0 => 0.0,
            power => x.powi(power as i32) * 0.1,
        });
        prop::collection::vec(value, 1..5000)
    }

    fn guess() -> impl Strategy<Value = Guess> {
        let sizes = (1e-5f32..1e-3, 1e-2f32..0.2, 1e-8f32..1e-2, 1.0f32..1.3, 1.0f32..1e3);
        let slacks = (-1f32..4.0, 0f32..0.02, 0f32..0.01);
        (sizes, slacks).prop_map(|((lo, hi, low, high, top), (pivot, reach, lean))| Guess {
            middle: Bounds { lo, hi },
            low,
            high: low * high,
            pivot,
            reach,
            lean,
            guard: 1e-5,
            edge: 2.5,
            far: 4.0,
            top: low * top,
        })
    }

    proptest! {
        #[test]
        fn sorting_out_by_a_bound_decides_as_each_score_does(
            tau in values(), other in values(), guess in guess(), n in 1u8..17,
            scale in prop::sample::select(vec![1f32, 1e-9]),
        ) {
            // Of the smaller scale the bound cannot tell: all elements are left, and no others.
            let len = tau.len().min(other.len());
            let sum: Vec<f32> = tau.iter().zip(&other).map(|(a, b)| (a + b) * scale).collect();
            let tau: Vec<f32> = tau[..len].iter().map(|tau| tau * scale).collect();
            let (tau, square) = (&tau[..], scale * scale);
            let guess = Guess {
                middle: Bounds { lo: guess.middle.lo * scale, hi: guess.middle.hi * scale },
                low: guess.low * square, high: guess.high * square, top: guess.top * square,
                ..guess
            };
            prop_assert!(guess.limit(f32::from(n)).is_some());
            let (mut expected, mut rows) = (Vec::new(), Rows::default());
            let each = judge_each(Lanes::plain(), f32::from(n), tau, &sum, &guess, &mut expected);
            for kernels in Kernels::available() {
                let mut found = Vec::new();
                let judged =
                    kernels.pcb_judge(f32::from(n), tau, &sum, &guess, &mut rows, &mut found);
                prop_assert_eq!(&found, &expected);
                prop_assert_eq!(judged.below, each.below);
            }
        }
    }

    #[test]
    fn scores_of_single_elements_are_those_of_their_block() {
        const SPECIAL: [f32; 10] = [0.0, -0.0, 1e-45, -1e-39, 1e-23, -3e-4, 0.02, -0.7, 2.5, -40.0];
        for kernels in Kernels::available() {
            for (n, len) in [(1, 5), (3, 300), (7, 4096)] {
                let value = |i: usize, e: usize| {
                    SPECIAL[(e * 7 + i * 3 + e / 11) % SPECIAL.len()] * (1.0 + e as f32 * 1e-4)
                };
                let rows: Vec<Vec<f32>> =
                    (0..n).map(|i| (0..len).map(|e| value(i, e)).collect()).collect();
                let taus: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                let bounds: Vec<Bounds> =
                    (0..n).map(|i| Bounds { lo: 1e-6, hi: 0.3 + i as f32 }).collect();
                let mut scores = vec![0.0; n * len];
                let mut scratch = Scratch::default();
                kernels.pcb_scores(Inter::Raw, &taus, &bounds, &mut scratch, &mut scores);
                let mut sum = vec![0.0; len];
                kernels.pcb_sum(&taus, &mut sum);
                for (i, expected) in scores.chunks(len).enumerate() {
                    // Every third element, as if the others had been decided.
                    let some = |row: &[f32]| row.iter().copied().step_by(3).collect::<Vec<_>>();
                    let (tau, sum, expected) = (some(taus[i]), some(&sum), some(expected));
                    let (mut rows, mut got) = (Rows::default(), vec![0.0; tau.len()]);
                    kernels.pcb_rescore(n as f32, &tau, &sum, bounds[i], &mut rows, &mut got);
                    let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&got), bits(&expected), "{kernels:?} {n} {i}");
                }
            }
        }
    }
}
