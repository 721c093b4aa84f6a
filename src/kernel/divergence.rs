//! How much two rows of numbers differ as distributions: softmax, then the Kullback-Leibler divergence, in doubles.
//!
//! The divergence is a small difference of large terms: for fine-tuned weights it is about the square of a change,
//! 1e-9 and less, which is below the rounding of `f32`. exp and ln are our own, without branches and fused
//! operations, so that every path gives the same bits.

/// Partial sums side by side.
const LANES: usize = 8;

/// Added to probabilities, as in the method's definition.
const LEAST: f64 = 1e-8;

/// Space for the exponentials of two rows.
#[derive(Debug, Default)]
pub struct Scratch {
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Scratch {
    /// Bytes for rows of `len` elements.
    pub fn bytes(len: u64) -> u64 {
        len * 16
    }
}

/// The divergence of softmax(x) from softmax(y), 1e-8 added to each probability. Not negative.
#[inline(always)]
pub(super) fn divergence(x: &[f32], y: &[f32], scratch: &mut Scratch) -> f64 {
    let Scratch { x: p, y: q } = scratch;
    let (p_sum, q_sum) = (exponentials(x, p), exponentials(y, q));
    let (p_part, q_part) = (1.0 / p_sum, 1.0 / q_sum);
    let mut sums = [0f64; LANES];
    let mut add = |k: usize, p: f64, q: f64| {
        let (p, q) = (p * p_part + LEAST, q * q_part + LEAST);
        sums[k] += p * ln(p / q);
    };
    let (ps, qs) = (p.chunks_exact(LANES), q.chunks_exact(LANES));
    let rest = ps.remainder().iter().zip(qs.remainder());
    for (k, (&p, &q)) in rest.enumerate() {
        add(k, p, q);
    }
    for (p, q) in ps.zip(qs) {
        for k in 0..LANES {
            add(k, p[k], q[k]);
        }
    }
    sums.iter().sum::<f64>().max(0.0)
}

/// exp(x - the largest x) of each element, and their sum.
#[inline(always)]
fn exponentials(row: &[f32], out: &mut Vec<f64>) -> f64 {
    let largest = row.iter().fold(f32::NEG_INFINITY, |most, &x| if x > most { x } else { most });
    let largest = f64::from(largest);
    out.resize(row.len(), 0.0);
    for (out, &x) in out.iter_mut().zip(row) {
        *out = exp_below_one(f64::from(x) - largest);
    }
    let mut sums = [0f64; LANES];
    let chunks = out.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for k in 0..LANES {
            sums[k] += chunk[k];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    sums.iter().sum()
}

/// 1.5 * 2^52: adding and subtracting it rounds to an integer, which is then in the low bits of the sum.
const MAGIC: f64 = 6_755_399_441_055_744.0;

/// e^x for x up to 0, within 1e-15 of itself; below -700 as there.
#[inline(always)]
fn exp_below_one(x: f64) -> f64 {
    let x = if x < -700.0 { -700.0 } else { x };
    let shifted = x * std::f64::consts::LOG2_E + MAGIC;
    let k = shifted - MAGIC;
    // ln 2 in two parts; the first has 32 bits, so its product with k is exact.
    let r = (x - k * 0.693_147_180_369_123_8) - k * 1.908_214_929_270_587_7e-10;
    // The series up to r^13: |r| is at most 0.347, and the next term 4e-18.
    let mut p = 1.0 / 6_227_020_800.0;
    for c in [
        1.0 / 479_001_600.0,
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    // The bits of the magic number vanish from the exponent.
    p * f64::from_bits((shifted.to_bits() << 52).wrapping_add(1f64.to_bits()))
}

/// ln x for positive normal x, with an error of about 1e-16 near 1.
#[inline(always)]
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let fraction = f64::from_bits(bits & 0x000f_ffff_ffff_ffff | 1f64.to_bits());
    // 2^52 + the exponent, as its bits; there is no vector instruction for the conversion everywhere.
    let exponent =
        f64::from_bits(bits >> 52 | 0x4330_0000_0000_0000) - 4_503_599_627_370_496.0 - 1023.0;
    let large = fraction > std::f64::consts::SQRT_2;
    let (m, e) = if large { (fraction * 0.5, exponent + 1.0) } else { (fraction, exponent) };
    // ln m = 2 atanh s, by its series up to s^23: |s| is at most 0.172, and the next term 1e-20.
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let mut p = 1.0 / 23.0;
    for c in [
        1.0 / 21.0,
        1.0 / 19.0,
        1.0 / 17.0,
        1.0 / 15.0,
        1.0 / 13.0,
        1.0 / 11.0,
        1.0 / 9.0,
        1.0 / 7.0,
        1.0 / 5.0,
        1.0 / 3.0,
    ] {
        p = p * z + c;
    }
    let s = s + s;
    e * std::f64::consts::LN_2 + (s + s * z * p)
}

/// |x - y| * factor for each element.
#[inline(always)]
pub(super) fn importances(x: &[f32], y: &[f32], factor: f32, out: &mut [f32]) {
    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
        *out = (x - y).abs() * factor;
    }
}

/// `out` = y + (x - y) where |x - y| * factor reaches `threshold`, else y.
#[inline(always)]
pub(super) fn fuse(x: &[f32], y: &[f32], factor: f32, threshold: f32, out: &mut [f32]) {
    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
        let change = x - y;
        *out = y + if change.abs() * factor >= threshold { change } else { 0.0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    fn row(len: usize, seed: u64, size: f32) -> Vec<f32> {
        let mut x = seed + 7;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((x >> 40) as f32 / 16_777_216.0 - 0.5) * size
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn exp_and_ln_are_close_to_the_library() {
        for i in 0..200_000 {
            let x = f64::from(i) * -0.003_51;
            let (got, want) = (exp_below_one(x), x.max(-700.0).exp());
            assert!((got - want).abs() <= 4e-16 * want, "{x}: {got:e} {want:e}");
            let x = 2f64.powf((f64::from(i) - 100_000.0) / 3333.0);
            let (got, want) = (ln(x), x.ln());
            assert!((got - want).abs() <= 4e-16 * want.abs().max(1.0), "{x:e}: {got:e} {want:e}");
        }
        assert_eq!((exp_below_one(0.0), ln(1.0)), (1.0, 0.0));
        let near = 1.0 + 1e-9;
        assert!((ln(near) - (near - 1.0)).abs() < 1e-17);
    }

    #[test]
    fn it_is_the_divergence_of_a_plain_loop() {
        for (len, size) in [(1, 1.0), (5, 0.1), (300, 0.1), (4096, 8.0), (7, 200.0)] {
            let (x, y) = (row(len, 1, size), row(len, 2, size));
            let softmax = |row: &[f32]| -> Vec<f64> {
                let all: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
                all.iter().map(|e| e / all.iter().sum::<f64>() + 1e-8).collect()
            };
            let (p, q) = (softmax(&x), softmax(&y));
            let plain: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
            let got =
                Kernels::available().last().unwrap().divergence(&x, &y, &mut Scratch::default());
            assert!(
                (got - plain).abs() <= 1e-12 * plain + 1e-15,
                "{len} {size}: {got:e} {plain:e}"
            );
        }
    }

    #[test]
    fn small_changes_have_a_divergence_that_doubles_can_tell() {
        // To second order it is half the variance of the changes under the distribution.
        let y = row(4096, 3, 0.1);
        let x: Vec<f32> = y.iter().enumerate().map(|(k, y)| y + [1e-4, -1e-4][k % 2]).collect();
        let got = Kernels::available().next().unwrap().divergence(&x, &y, &mut Scratch::default());
        assert!((got - 5e-9).abs() < 1e-11, "{got:e}");
        assert_eq!(divergence(&y, &y, &mut Scratch::default()), 0.0);
    }

    #[test]
    fn every_path_gives_the_scalar_bits_on_every_length() {
        let scalar = Kernels::available().next().unwrap();
        let mut scratch = Scratch::default();
        for len in (1..40).chain([255, 4096]) {
            let (x, y) = (row(len, 4, 3.0), row(len, 5, 3.0));
            let expected = scalar.divergence(&x, &y, &mut scratch);
            for kernels in Kernels::available() {
                let got = kernels.divergence(&x, &y, &mut scratch);
                assert_eq!(got.to_bits(), expected.to_bits(), "{kernels:?} {len}");
                let (mut sizes, mut fused) = (vec![9.0; len], vec![9.0; len]);
                kernels.importances(&x, &y, 0.3, &mut sizes);
                kernels.fuse(&x, &y, 0.3, 0.25, &mut fused);
                for k in 0..len {
                    let size = (x[k] - y[k]).abs() * 0.3;
                    assert_eq!(sizes[k].to_bits(), size.to_bits());
                    let want = if size >= 0.25 { y[k] + (x[k] - y[k]) } else { y[k] };
                    assert_eq!(fused[k].to_bits(), want.to_bits());
                }
            }
        }
    }
}
