//! The elementwise parts of PCB-Merging. Formulas and sources: `docs/methods.md`.
//!
//! Rows of n experts over one block; sums over experts run in order, starting from zero.

mod score;
mod share;
pub(super) mod sparse;

use super::math::exp;

pub(super) use score::scores;
pub(super) use share::{map, merge, shares};

/// Elements that are worked on from task vectors to results before the next ones: few enough to stay in the first-level
/// cache and to have much in common, enough to make up for the change between loops.
const CHUNK: usize = 256;

/// The inter-competition term of a score.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inter {
    /// tanh(tau_i * sum_j tau_j): variants a and b.
    Raw,
    /// tanh(tau_i * sum_j sign(tau_j) z_j): variant c.
    Half,
    /// sum_j tanh(sign(tau_i) z_i * sign(tau_j) z_j): variant d.
    Pairs,
}

/// Clamp bounds of the magnitudes of one expert; `lo <= hi`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The lower one.
    pub lo: f32,
    /// The upper one.
    pub hi: f32,
}

/// What turns the scores of one expert into weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Scores up to this have weight 0.
    pub threshold: f32,
    /// Largest score minus threshold: that score has weight 1.
    pub span: f32,
    /// Whether the expert has any weight at all.
    pub active: bool,
}

/// What one expert got over a number of elements. Sums of integers: their order does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Elements with a weight above 0.
    pub kept: u64,
    /// Sum of the weights in units of 2^-22, each rounded to that.
    weight: u64,
}

impl Tally {
    /// Adds another tally.
    pub fn merge(&mut self, other: Self) {
        self.kept += other.kept;
        self.weight += other.weight;
    }

    /// Both sums, to be saved.
    pub fn to_parts(self) -> [u64; 2] {
        [self.kept, self.weight]
    }

    /// A saved tally.
    pub fn from_parts([kept, weight]: [u64; 2]) -> Self {
        Self { kept, weight }
    }

    /// The sum of the weights.
    pub fn weight(self) -> f64 {
        self.weight as f64 / WEIGHT_ONE
    }
}

const WEIGHT_ONE: f64 = 4_194_304.0;

/// Space for intermediate rows of a chunk.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Signed normed magnitudes, then weights.
    rows: Vec<f32>,
    scores: Vec<f32>,
    left: sparse::Left,
}

impl Scratch {
    fn resize(&mut self, rows: usize) {
        self.rows.resize(rows * CHUNK, 0.0);
        self.scores.resize(rows * CHUNK, 0.0);
    }
}

/// Above this many experts exp(n) would overflow, and n (z^2 - 1) is used instead, which scales all
/// scores of all experts by one constant.
pub const SHIFT_ABOVE: usize = 80;

impl Bounds {
    #[inline(always)]
    pub(super) fn clamped(self, tau: f32) -> f32 {
        let magnitude = tau.abs();
        let raised = if magnitude < self.lo { self.lo } else { magnitude };
        if raised > self.hi { self.hi } else { raised }
    }

    /// What to divide by; any number where all magnitudes are clamped to one value.
    #[inline(always)]
    pub(super) fn width(self) -> f32 {
        let width = self.hi - self.lo;
        if width > 0.0 { width } else { 1.0 }
    }
}

#[inline(always)]
fn sign_of(tau: f32) -> f32 {
    if tau == 0.0 { 0.0 } else { 1f32.copysign(tau) }
}

/// The sum of rows: S, as `scores` computes it.
#[inline(always)]
pub(super) fn sum(taus: &[&[f32]], out: &mut [f32]) {
    sum_rows(taus.iter().copied(), out);
}

#[inline(always)]
fn sum_rows<'a>(rows: impl Iterator<Item = &'a [f32]> + Clone, out: &mut [f32]) {
    const GROUP: usize = 16;
    let (groups, rest) = out.as_chunks_mut::<GROUP>();
    let done = groups.len();
    // Group by group, so that a sum stays in a register: in loops over single rows the compiler must reckon with rows
    // that overlap, and takes elements one by one where they are few.
    for (at, out) in groups.iter_mut().enumerate() {
        let mut sum = [0.0; GROUP];
        for row in rows.clone() {
            for (sum, value) in sum.iter_mut().zip(&row.as_chunks::<GROUP>().0[at]) {
                *sum += value;
            }
        }
        *out = sum;
    }
    rest.fill(0.0);
    for row in rows {
        for (out, value) in rest.iter_mut().zip(&row[done * GROUP..]) {
            *out += value;
        }
    }
}

#[inline(always)]
pub(super) fn products(a: &[f32], b: &[f32], out: &mut [f32]) {
    for (out, (a, b)) in out.iter_mut().zip(a.iter().zip(b)) {
        *out = a * b;
    }
}

/// A softmax over min-max scaled values: exp(factor * scaled - greatest).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softmax {
    least: f32,
    width: f32,
    factor: f32,
    greatest: f32,
}

impl Softmax {
    /// For values in `least..=most`. Values that are all equal are scaled to 0.
    pub fn new((least, most): (f32, f32), factor: f32) -> Self {
        let width = most - least;
        if width > 0.0 {
            Self { least, width, factor, greatest: factor }
        } else {
            Self { least, width: 1.0, factor, greatest: 0.0 }
        }
    }
}

#[inline(always)]
pub(super) fn softmax_numerators(softmax: &Softmax, products: &[f32], out: &mut [f32]) {
    for (out, value) in out.iter_mut().zip(products) {
        let scaled = (value - softmax.least) / softmax.width;
        *out = exp(softmax.factor * scaled - softmax.greatest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Float, Kernels, keys};
    use proptest::prelude::*;

    const SPECIAL: [f32; 12] =
        [0.0, -0.0, 1e-45, -1e-39, 1e-20, -3e-4, 3e-4, 0.1, -0.7, 2.5, -40.0, 1e19];

    fn rows(n: usize, len: usize, seed: u64) -> Vec<Vec<f32>> {
        let mut x = seed | 1;
        let mut next = move || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            let special = SPECIAL[(x >> 40) as usize % SPECIAL.len()];
            if x.is_multiple_of(3) { special } else { (x >> 32) as i32 as f32 * 1e-12 }
        };
        (0..n).map(|_| (0..len).map(|_| next()).collect()).collect()
    }

    /// Everything that is computed from a block, as bits.
    fn outputs(kernels: &Kernels, inter: Inter, taus: &[Vec<f32>]) -> Vec<u32> {
        let (n, len) = (taus.len(), taus[0].len());
        let taus: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
        let bounds = vec![Bounds { lo: 1e-6, hi: 0.5 }; n];
        // No score of three experts is above 3 exp(3): weights stay below 1, as they must.
        let cuts = vec![Cut { threshold: 0.01, span: 64.0, active: true }; n];
        let (base, lambdas) = (vec![0.25; len], vec![1.1; n]);
        let mut scratch = Scratch::default();
        let (mut scores, mut out) = (vec![0.0; n * len], vec![0.0; len]);
        let mut tallies = vec![Tally::default(); n];
        kernels.pcb_scores(inter, &taus, &bounds, &mut scratch, &mut scores);
        kernels.pcb_merge(
            &base,
            &taus,
            &scores,
            &bounds,
            &cuts,
            &lambdas,
            &mut scratch,
            &mut out,
            &mut tallies,
        );
        let (mut mapped, mut again) = (vec![0.0; len], vec![Tally::default(); n]);
        kernels.pcb_map(
            inter,
            &base,
            &taus,
            &bounds,
            &cuts,
            &lambdas,
            &mut scratch,
            &mut mapped,
            &mut again,
        );
        assert_eq!(tallies, again);
        let (mut shares, mut combined) = (vec![9.0; n * len], vec![9.0; len]);
        let mut counted = vec![Tally::default(); n];
        kernels.pcb_shares(
            inter,
            &base,
            &taus,
            &bounds,
            &cuts,
            &mut scratch,
            &mut shares,
            &mut counted,
        );
        assert_eq!(tallies, counted);
        // As they come back from where zeros are not stored.
        shares.iter_mut().for_each(|share| *share = if *share == 0.0 { 0.0 } else { *share });
        let rows: Vec<&[f32]> = shares.chunks(len).collect();
        kernels.weighted_sum(&rows, &lambdas, &mut combined);
        kernels.add_base(&base, 1.0, &mut combined);
        let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        assert!(out.iter().zip(&mapped).all(same));
        assert!(out.iter().zip(&combined).all(same));
        let mut bits: Vec<u32> = scores.iter().chain(&out).map(|v| v.to_bits()).collect();
        let mut row = vec![0.0; len];
        kernels.products(taus[0], taus[n - 1], &mut row);
        kernels.softmax_numerators(&Softmax::new((-1.0, 3.0), 2.0), taus[0], &mut row);
        bits.extend(row.iter().map(|v| v.to_bits()));
        bits.extend(tallies.iter().flat_map(|t| [t.kept as u32, t.weight as u32]));
        bits
    }

    #[test]
    fn every_path_gives_the_scalar_bits_on_every_length() {
        let scalar = Kernels::available().next().unwrap();
        for kernels in Kernels::available() {
            for inter in [Inter::Raw, Inter::Half, Inter::Pairs] {
                for len in (1..=70).chain([4096, 4099]) {
                    let taus = rows(3, len, len as u64 + 17);
                    let expected = outputs(scalar, inter, &taus);
                    assert_eq!(
                        outputs(kernels, inter, &taus),
                        expected,
                        "{kernels:?} {inter:?} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn equal_inputs_give_equal_scores_at_every_position() {
        for kernels in Kernels::available() {
            for inter in [Inter::Raw, Inter::Half, Inter::Pairs] {
                let taus: Vec<Vec<f32>> = [3.1e-4, -2e-4, 0.03].map(|t| vec![t; 77]).into();
                let taus: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
                let bounds = [Bounds { lo: 1e-6, hi: 0.02 }; 3];
                let mut out = vec![0.0; 3 * 77];
                kernels.pcb_scores(inter, &taus, &bounds, &mut Scratch::default(), &mut out);
                for row in out.chunks(77) {
                    assert!(
                        row[0].is_finite() && row.iter().all(|v| v.to_bits() == row[0].to_bits())
                    );
                }
            }
        }
    }

    #[test]
    fn a_score_does_not_depend_on_its_neighbours() {
        // A large value makes its whole chunk take the full form of tanh; a middling one the polynomial.
        let quiet = [[3.1e-4f32, 0.0, 1e-3], [-2e-4, 4e-3, 1e-3], [0.03, -0.0, 2e-3]];
        for kernels in Kernels::available() {
            for inter in [Inter::Raw, Inter::Half, Inter::Pairs] {
                for n in [3, 81] {
                    let scores = |neighbour: f32, len: usize| {
                        let row = |i: usize| {
                            let mut row = vec![neighbour; len];
                            row[len - 3..].copy_from_slice(&quiet[i % 3]);
                            row
                        };
                        let rows: Vec<Vec<f32>> = (0..n).map(row).collect();
                        let taus: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
                        let bounds = vec![Bounds { lo: 1e-6, hi: 0.02 }; n];
                        let mut out = vec![0.0; n * len];
                        kernels.pcb_scores(
                            inter,
                            &taus,
                            &bounds,
                            &mut Scratch::default(),
                            &mut out,
                        );
                        let last = out.chunks(len).flat_map(|row| &row[len - 3..]);
                        last.map(|v| v.to_bits()).collect::<Vec<u32>>()
                    };
                    let alone = scores(0.0, 3);
                    for (neighbour, len) in [(0.0, 40), (0.1, 40), (7.0, 40), (7.0, 256 + 3)] {
                        assert_eq!(scores(neighbour, len), alone, "{inter:?} {neighbour} {len}");
                    }
                }
            }
        }
    }

    #[test]
    fn where_no_score_is_above_the_threshold_the_base_remains() {
        for kernels in Kernels::available() {
            let taus = rows(2, 300, 5);
            let taus: Vec<&[f32]> = taus.iter().map(Vec::as_slice).collect();
            let (base, bounds) = (vec![-0.25; 300], [Bounds { lo: 1e-6, hi: 0.5 }; 2]);
            let cut = Cut { threshold: f32::MAX, span: 1.0, active: true };
            let (mut out, mut tallies) = (vec![9.0; 300], [Tally::default(); 2]);
            kernels.pcb_map(
                Inter::Raw,
                &base,
                &taus,
                &bounds,
                &[cut, Cut { threshold: 0.0, active: false, ..cut }],
                &[1.0; 2],
                &mut Scratch::default(),
                &mut out,
                &mut tallies,
            );
            assert_eq!((out, tallies), (base, [Tally::default(); 2]));
        }
    }

    proptest! {
        #[test]
        fn decoding_and_encoding_do_not_depend_on_the_path_or_the_alignment(
            bytes in prop::collection::vec(any::<u8>(), 16..900),
            skip in 0usize..16,
        ) {
            let bytes = &bytes[skip..];
            let scalar = Kernels::available().next().unwrap();
            for float in [Float::F64, Float::F32, Float::F16, Float::BF16, Float::F8E4M3, Float::F8E5M2] {
                let len = bytes.len() / float.size();
                let decode = |kernels: &Kernels| {
                    let (mut values, mut tau, mut stored) = (vec![0.0; len], vec![0.0; len], vec![0; len * float.size()]);
                    kernels.decode(float, bytes, &mut values);
                    kernels.decode_minus_base(float, bytes, &vec![0.5; len], &mut tau);
                    kernels.encode(float, &values, &mut stored);
                    // NaNs are refused before anything is computed from them: any NaN will do.
                    let bits: Vec<u32> = values.iter().chain(&tau)
                        .map(|v| if v.is_nan() { 0x7fc0_0000 } else { v.to_bits() }).collect();
                    (bits, kernels.max_magnitude_bits(&values) >= keys::INFINITY, stored)
                };
                let expected = decode(scalar);
                for kernels in Kernels::available() {
                    let got = decode(kernels);
                    prop_assert_eq!(&got.0, &expected.0);
                    prop_assert_eq!(got.1, expected.1);
                    if !expected.1 {
                        prop_assert_eq!(&got.2, &expected.2);
                    }
                }
            }
        }
    }
}
