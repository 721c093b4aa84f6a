//! The same decision for scores that depend on the clamp bounds of all experts: variants c and d.
//!
//! Write m_j for the width of expert j's clamp range in the middle of its bracket, divided by its real width: a normed
//! magnitude z_j is m_j times what it is in the middle (written z^), unless it is clamped, and but for a shift where the
//! lower bound moves, too. |m_j - 1| <= sway_j. The threshold moves as one chooses; here it is
//!
//! ```text
//! c: T(m) = T exp(pivot r_i) / k        k = (m_1 .. m_n)^(-share), share = 1/n
//! d: T(m) = T exp(pivot r_i) m_i / k
//! ```
//! because the inter term is nearly proportional to that. With H = sum_j s_j z_j (s the signs):
//!
//! ```text
//! |k H - H^|  <=  C  =  sum_j sway_j max(|s_j z^_j - share H^|, |share H^| if clamping may set in)
//!                     + sum_j (sway_j K + K2) z^_j + stretch sum_j shift_j
//! ```
//! where K = q / (1 - q), K2 = q^2 / (1 - q)^3 and stretch = 1 / (1 - q) for the largest sway q bound |k - 1|, what is left of k after
//! its linear part, and k. What the inter term may be off in the middle by is then, since tanh has no slope above 1,
//!
//! ```text
//! c: |tau_i| C + bend curve t^3                      t = |tau_i| (sum z^ + sum shift)
//! d: z^_i C + cubic z^_i^3 sum z^^3 + (stretch^3 shift_i + clip_i) (sum z^ + sum shift)
//! ```
//! The second terms are what tanh(k x) and k tanh(x) differ by (at most |ln k| min(1, 2/3 (k x)^2) of the latter), in d also
//! what the slope differs from 1 by (at most x^2); clip_i = sway_i stretch^4 where own clamping may set in. The factor exp(n z_i^2)
//! is treated as for one product. Rounding, and the shortened tanh of d, are in the coefficient of z^.

use super::super::keys::max_magnitude_bits;
use super::super::math::{EXP_SHORT, TanhForm, exp_short, tanh, tanh_to_one};
use super::super::pcb::SHIFT_ABOVE;
use super::{Guess, Judged};

/// Elements worked on at a time.
const CHUNK: usize = 256;

/// What is known about one expert before the scores of all are counted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// As for scores of one product.
    pub guess: Guess,
    /// Whether its scores are of interest.
    pub wanted: bool,
    /// The largest relative change of z.
    pub sway: f32,
    /// The largest absolute change of z beside that.
    pub shift: f32,
    /// What else z may be off by, relative.
    pub sag: f32,
    /// From here on z may be clamped for some of the bounds.
    pub rim: f32,
    /// What clamping adds to the uncertainty of the own score.
    pub clip: f32,
}

/// What is known about all experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Joint {
    /// Whether scores are sums over pairs (variant d) or products with a sum (variant c).
    pub pairs: bool,
    /// In the order of the experts.
    pub members: Vec<Member>,
    /// The exponent of each m_j in k.
    pub share: f32,
    /// A bound for k.
    pub stretch: f32,
    /// See above.
    pub bend: f32,
    /// See above.
    pub curve: f32,
    /// See above.
    pub cubic: f32,
}

/// Space for intermediate rows.
#[derive(Clone, Debug, Default)]
pub struct Space {
    signed: Vec<f32>,
}

/// Rows of marks for so many experts: the first one says whether there is any mark, then there is one bit for each expert.
pub fn mark_rows(experts: usize) -> usize {
    1 + experts.div_ceil(32)
}

/// tanh(x) = x (c_0 + c_1 x^2 + ..) up to x = 1, off by at most [`SHORT`] of its value.
const TANH: [f32; 5] = [0.999_993_1, -0.332_980_66, 0.130_368_11, -0.044_817_56, 0.009_036_425];

/// See `TANH`; rounding included.
pub const SHORT: f32 = 1.0 / (1 << 16) as f32;

/// Sums over experts, one element of each row for each element of the chunk.
struct Sums {
    /// Of the odd powers of signed z; only the first one in c.
    powers: [[f32; CHUNK]; TANH.len()],
    /// Of z, and all shifts.
    magnitude: [f32; CHUNK],
    /// Of z^3.
    cubes: [f32; CHUNK],
    /// C.
    drift: [f32; CHUNK],
    /// The largest of the last three.
    most: [f32; 3],
}

/// The largest magnitude; NaN if there is one.
#[inline(always)]
fn most(values: &[f32]) -> f32 {
    f32::from_bits(max_magnitude_bits(values))
}

/// Judges the elements of all experts. `marks` holds [`mark_rows`] rows of the block's length; marks are added.
#[inline(always)]
pub(in super::super) fn judge_together(
    joint: &Joint,
    taus: &[&[f32]],
    space: &mut Space,
    marks: &mut [u32],
    judged: &mut [Judged],
) {
    let len = taus.first().map_or(0, |row| row.len());
    space.signed.resize(taus.len() * CHUNK, 0.0);
    let mut sums = Sums {
        powers: [[0.0; CHUNK]; TANH.len()],
        magnitude: [0.0; CHUNK],
        cubes: [0.0; CHUNK],
        drift: [0.0; CHUNK],
        most: [0.0; 3],
    };
    let mut terms = Terms { inter: [0.0; CHUNK], doubt: [0.0; CHUNK] };
    let (any, bits) = marks.split_at_mut(len);
    for at in (0..len).step_by(CHUNK) {
        let here = CHUNK.min(len - at);
        sum_up(joint, taus, at, here, &mut space.signed, &mut sums);
        sums.most = [&sums.magnitude, &sums.cubes, &sums.drift].map(|row| most(&row[..here]));
        let rows = joint.members.iter().zip(space.signed.chunks(CHUNK)).zip(taus);
        for (i, (((member, signed), tau), judged)) in rows.zip(judged.iter_mut()).enumerate() {
            if !member.wanted {
                continue;
            }
            let bits = &mut bits[i / 32 * len + at..][..here];
            let chunk = Own {
                joint,
                member,
                bit: i as u32 % 32,
                tau: &tau[at..at + here],
                signed: &signed[..here],
                sums: &sums,
            };
            if chunk.is_below() {
                judged.below += here as u32;
                continue;
            }
            chunk.judge(&mut terms, &mut any[at..at + here], bits, judged);
        }
    }
}

#[inline(always)]
fn sum_up(
    joint: &Joint,
    taus: &[&[f32]],
    at: usize,
    len: usize,
    signed: &mut [f32],
    sums: &mut Sums,
) {
    let shifts = joint.members.iter().map(|member| member.shift).sum::<f32>();
    let Sums { powers, magnitude, cubes, drift, .. } = sums;
    let [first, third, fifth, seventh, ninth] = powers;
    first[..len].fill(0.0);
    magnitude[..len].fill(shifts);
    drift[..len].fill(joint.stretch * shifts);
    if joint.pairs {
        for row in [&mut *third, &mut *fifth, &mut *seventh, &mut *ninth, &mut *cubes] {
            row[..len].fill(0.0);
        }
    }
    for ((member, tau), signed) in joint.members.iter().zip(taus).zip(signed.chunks_mut(CHUNK)) {
        let bounds = member.guess.middle;
        let (lo, hi, scale) = (bounds.lo, bounds.hi, 1.0 / bounds.width());
        let row = signed.iter_mut().zip(&tau[at..at + len]).zip(&mut *first).zip(&mut *magnitude);
        for (((signed, &tau), first), magnitude) in row {
            let size = tau.abs();
            let raised = if size < lo { lo } else { size };
            let z = (if raised > hi { hi } else { raised } - lo) * scale;
            let z = if tau == 0.0 { 0.0 } else { z };
            *signed = z.copysign(tau);
            *first += *signed;
            *magnitude += z;
        }
        if joint.pairs {
            let row = signed[..len].iter().zip(&mut *third).zip(&mut *fifth);
            let row = row.zip(&mut *seventh).zip(&mut *ninth).zip(&mut *cubes);
            for (((((&signed, third), fifth), seventh), ninth), cubes) in row {
                let square = signed * signed;
                let power = signed * square;
                *third += power;
                *cubes += power.abs();
                let power = power * square;
                *fifth += power;
                let power = power * square;
                *seventh += power;
                *ninth += power * square;
            }
        }
    }
    for (member, signed) in joint.members.iter().zip(signed.chunks(CHUNK)) {
        let (sway, sag, rim, share) = (member.sway, member.sag, member.rim, joint.share);
        for ((drift, &signed), &sum) in drift.iter_mut().zip(&signed[..len]).zip(&*first) {
            let (z, common) = (signed.abs(), share * sum);
            let (free, held) = ((signed - common).abs(), common.abs());
            let most = if z >= rim && held > free { held } else { free };
            *drift += sway * most + sag * z;
        }
    }
}

/// Inter terms of one expert in the middle, and what they may be off by.
struct Terms {
    inter: [f32; CHUNK],
    doubt: [f32; CHUNK],
}

/// The elements of one expert in a chunk.
struct Own<'a> {
    joint: &'a Joint,
    member: &'a Member,
    bit: u32,
    tau: &'a [f32],
    signed: &'a [f32],
    sums: &'a Sums,
}

impl Own<'_> {
    /// Whether small changes leave no doubt about any element.
    #[inline(always)]
    fn is_below(&self) -> bool {
        let (joint, member) = (self.joint, self.member);
        let [magnitude, cubes, drift] = self.sums.most;
        let z = most(self.signed);
        let (inter, doubt) = if joint.pairs {
            let own = joint.stretch * joint.stretch * joint.stretch * member.shift + member.clip;
            // The short tanh is below 1.001 x.
            let cubic = joint.cubic * (z * z * z) * cubes;
            (1.001 * z * magnitude, z * drift + cubic + own * magnitude)
        } else {
            let tau = most(self.tau);
            let t = tau * magnitude;
            (t, tau * drift + joint.bend * joint.curve * (t * t * t))
        };
        let factor = joint.members.len() as f32;
        member.guess.is_above_all(factor * (z * z), inter, doubt + 1e-44)
    }

    #[inline(always)]
    fn judge(&self, terms: &mut Terms, any: &mut [u32], bits: &mut [u32], judged: &mut Judged) {
        let Joint { pairs, stretch, bend, curve, cubic, .. } = *self.joint;
        let Sums { powers, magnitude, cubes, drift, .. } = self.sums;
        let len = self.tau.len();
        let Terms { inter, doubt } = terms;
        let (inter, doubt) = (&mut inter[..len], &mut doubt[..len]);
        if pairs {
            let [first, third, fifth, seventh, ninth] = powers;
            let [c1, c3, c5, c7, c9] = TANH;
            let Member { shift, rim, clip, .. } = *self.member;
            let shift = stretch * stretch * stretch * shift;
            let sums = first.iter().zip(third).zip(fifth).zip(seventh).zip(ninth);
            for ((inter, &signed), ((((p1, p3), p5), p7), p9)) in
                inter.iter_mut().zip(self.signed).zip(sums)
            {
                let square = signed * signed;
                let x = c7 * p7 + square * (c9 * p9);
                let x = c5 * p5 + square * x;
                let x = c3 * p3 + square * x;
                *inter = signed * (c1 * p1 + square * x);
            }
            let sums = magnitude.iter().zip(cubes).zip(drift);
            for ((doubt, &signed), ((magnitude, cubes), drift)) in
                doubt.iter_mut().zip(self.signed).zip(sums)
            {
                let z = signed.abs();
                let own = if z >= rim { shift + clip } else { shift };
                *doubt = z * drift + cubic * (z * z * z) * cubes + own * magnitude;
            }
        } else {
            let mut largest = 0;
            for ((inter, tau), sum) in inter.iter_mut().zip(self.tau).zip(&powers[0]) {
                *inter = tau * sum;
                largest = largest.max(inter.to_bits() & 0x7fff_ffff);
            }
            match TanhForm::for_magnitudes_to(largest) {
                TanhForm::Identity => {}
                TanhForm::ToOne => inter.iter_mut().for_each(|x| *x = tanh_to_one(*x)),
                TanhForm::Full => inter.iter_mut().for_each(|x| *x = tanh(*x)),
            }
            for ((doubt, tau), (magnitude, drift)) in
                doubt.iter_mut().zip(self.tau).zip(magnitude.iter().zip(drift))
            {
                let t = tau.abs() * magnitude;
                *doubt = tau.abs() * drift + bend * curve * (t * t * t);
            }
        }
        self.compare(inter, doubt, any, bits, judged);
    }

    /// From inter terms in the middle and what they may be off by.
    #[inline(always)]
    fn compare(
        &self,
        inter: &[f32],
        doubt: &[f32],
        any: &mut [u32],
        bits: &mut [u32],
        judged: &mut Judged,
    ) {
        let Guess { low, high, pivot, reach, lean, guard, edge, far, top, .. } = self.member.guess;
        let (factor, bit) = (self.joint.members.len() as f32, self.bit);
        // z is at most 1, and no more experts than this are judged.
        const { assert!(SHIFT_ABOVE as f32 <= EXP_SHORT) };
        let (mut under, mut zeros) = (0, 0);
        let row = self.tau.iter().zip(self.signed).zip(inter.iter().zip(doubt));
        for (((&tau, &signed), (&x, &doubt)), (any, bits)) in row.zip(any.iter_mut().zip(bits)) {
            let exponent = factor * (signed * signed);
            let power = exp_short(exponent);
            let score = x * power;
            let moved = if exponent < edge { (exponent - pivot).abs() } else { far };
            let slack = moved * reach + signed.abs() * lean + guard;
            let slack = slack + slack * slack;
            // Products of subnormals round absolutely.
            let slack = slack * score.abs() + (slack + 1.0) * (power * (doubt + 1e-44)) + 1e-44;
            let zero = tau == 0.0;
            let slack = if zero { 1e-44 } else { slack };
            let below = score + slack < low;
            let above = score - slack > high;
            under += u32::from(below);
            zeros += u32::from(zero);
            let open = u32::from(!(below | above | zero));
            let near = u32::from(!zero) & u32::from(score + slack >= top);
            *any |= open | near;
            *bits |= open << bit;
        }
        judged.below += under;
        judged.zeros += zeros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;
    use crate::kernel::pcb::Bounds;

    #[test]
    fn the_short_tanh_is_as_close_as_promised() {
        for i in 1..=1_000_000u32 {
            let x = i as f32 / 1e6;
            let y = x * x;
            let [c1, c3, c5, c7, c9] = TANH;
            let short = x * (c1 + y * (c3 + y * (c5 + y * (c7 + y * c9))));
            let exact = f64::from(x).tanh();
            assert!((f64::from(short) - exact).abs() <= f64::from(SHORT) * exact * 0.6, "{x}");
        }
    }

    fn joint(pairs: bool, n: usize) -> Joint {
        let guess = Guess {
            middle: Bounds { lo: 1e-6, hi: 0.02 },
            low: 0.001,
            high: 0.0011,
            pivot: 1.0,
            reach: 0.02,
            lean: 1e-4,
            guard: 1e-5,
            edge: 2.9,
            far: 3.0,
            top: 0.5,
        };
        let member = |i: usize| Member {
            guess,
            wanted: i != 1,
            sway: 0.0101,
            shift: 1e-4,
            sag: 1e-4,
            rim: 0.98,
            clip: 0.01,
        };
        let members = (0..n).map(member).collect();
        Joint {
            pairs,
            members,
            share: 1.0 / n as f32,
            stretch: 1.01,
            bend: 0.01,
            curve: 1.04,
            cubic: 0.03,
        }
    }

    #[test]
    fn every_path_gives_the_scalar_marks_on_every_length() {
        const SPECIAL: [f32; 10] = [0.0, -0.0, 1e-45, -1e-39, 1e-5, -3e-3, 0.019, -0.7, 2.5, -40.0];
        let run = |kernels: &Kernels, pairs: bool, rows: &[Vec<f32>]| {
            let taus: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let (n, len) = (rows.len(), rows[0].len());
            let mut marks = vec![0; mark_rows(n) * len];
            let mut judged = vec![Judged::default(); n];
            let (joint, mut space) = (joint(pairs, n), Space::default());
            kernels.pcb_judge_together(&joint, &taus, &mut space, &mut marks, &mut judged);
            (marks, judged)
        };
        let scalar = Kernels::available().next().unwrap();
        for (n, lens) in [(3, (1..=70).chain([255, 4099]).collect::<Vec<_>>()), (35, vec![300])] {
            for len in lens {
                let value = |i: usize, e: usize| {
                    let x = (i * 31 + e * 17 + e * e % 97) % 1000;
                    if x.is_multiple_of(4) {
                        SPECIAL[x / 4 % 10]
                    } else {
                        (x as f32 - 500.0) * 4e-5
                    }
                };
                let rows: Vec<Vec<f32>> =
                    (0..n).map(|i| (0..len).map(|e| value(i, e)).collect()).collect();
                for pairs in [false, true] {
                    let expected = run(scalar, pairs, &rows);
                    for kernels in Kernels::available() {
                        assert_eq!(run(kernels, pairs, &rows), expected, "{kernels:?} {n} {len}");
                    }
                    // An element's marks do not depend on its neighbours, and unwanted experts have none.
                    let last: Vec<Vec<f32>> =
                        rows.iter().map(|row| row[len - 1..].to_vec()).collect();
                    let (marks, judged) = run(scalar, pairs, &last);
                    let columns = expected.0.chunks(len).map(|row| row[len - 1]);
                    assert_eq!(marks, columns.collect::<Vec<_>>());
                    assert_eq!(judged[1], Judged::default());
                    assert_eq!(marks[1] & 2, 0);
                }
            }
        }
    }
}
