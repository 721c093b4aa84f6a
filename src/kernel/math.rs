//! exp and tanh of our own: a library's bits change with CPU and version, and scores depend on them.
//!
//! Cody-Waite reduction and polynomials (coefficients of the Cephes library, by S. L. Moshier), without
//! fused multiply-add and without branches, so that every path gives the same bits.

#![allow(clippy::excessive_precision, reason = "coefficients as published")]

/// e to the power of `x`, within 2 ulp; subnormal results included, infinity above 88.73, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite anyway. Comparisons, unlike min and max, keep NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    // Adding and subtracting 1.5 * 2^23 rounds to an integer.
    let magic = 12_582_912.0f32;
    let shifted = x * std::f32::consts::LOG2_E + magic;
    let k = shifted - magic;
    // ln 2 in two parts; the first has few bits, so its product with k is exact.
    let r = x - k * 0.693_359_4;
    let r = r - k * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let p = p * (r * r) + r + 1.0;
    // 2^k in two steps, since k goes from -150 to 128. The integer is in the low bits of `shifted`.
    let k = (shifted.to_bits() as i32).wrapping_sub(magic.to_bits() as i32);
    let half = k >> 1;
    p * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// 2^k for k in -126..=127.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// Where the polynomial ends and the form with exp begins.
const SMALL: f32 = 0.625;

/// The polynomial branch of tanh, for magnitudes below 0.625. Keeps the sign of zero.
#[inline(always)]
fn tanh_small(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3;
    let p = p * z + 2.063_908_9e-2;
    let p = p * z - 5.373_971_6e-2;
    let p = p * z + 1.333_144_2e-1;
    let p = p * z - 3.333_328_2e-1;
    // For -0.0 the sum would be 0.0.
    (p * z * x + x).copysign(x)
}

/// The hyperbolic tangent, within 2 ulp; x itself for tiny x; 1 beyond about 9.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let large = (1.0 - 2.0 / (exp(a + a) + 1.0)).copysign(x);
    if a < SMALL { tanh_small(x) } else { large }
}

#[inline(always)]
pub(super) fn exp_all(values: &[f32], out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = exp(value);
    }
}

/// tanh of a row. Where all magnitudes are small, as they are for weights, the same values without
/// computing the other branch.
#[inline(always)]
pub(super) fn tanh_all(values: &[f32], out: &mut [f32]) {
    if super::keys::max_magnitude_bits(values) < SMALL.to_bits() {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = tanh_small(value);
        }
    } else {
        for (out, &value) in out.iter_mut().zip(values) {
            *out = tanh(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units in the last place of the correctly rounded result.
    fn ulps(got: f32, exact: f64) -> f64 {
        let rounded = exact as f32;
        if got == rounded {
            return 0.0;
        }
        let next = f32::from_bits(rounded.abs().to_bits() + 1) - rounded.abs();
        (f64::from(got) - exact).abs() / f64::from(next)
    }

    fn worst(inputs: impl Iterator<Item = f32>, f: fn(f32) -> f32, exact: fn(f64) -> f64) -> f64 {
        inputs.map(|x| ulps(f(x), exact(f64::from(x)))).fold(0.0, f64::max)
    }

    #[test]
    fn exp_is_within_two_ulp_over_the_whole_range() {
        let dense = (0..3_000_000).map(|i| -103.9 + 192.6 * (i as f32 / 3e6));
        assert!(worst(dense, exp, f64::exp) <= 2.0);
        let tiny = (0..1 << 20).map(|i| f32::from_bits(i * 1021)).filter(|x| *x < 1.0);
        assert!(worst(tiny, exp, f64::exp) <= 2.0);
    }

    #[test]
    fn tanh_is_within_two_ulp_over_the_whole_range() {
        let every = (0..u32::MAX / 997).map(|i| f32::from_bits(i * 997)).filter(|x| x.is_finite());
        let worst = worst(every, tanh, f64::tanh);
        assert!(worst <= 2.0, "{worst}");
    }

    #[test]
    fn special_values() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-104.0), 0.0);
        assert!(exp(-103.0) > 0.0 && exp(88.72) < f32::INFINITY);
        assert_eq!(exp(88.73), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        for x in [0.0f32, -0.0, 1e-45, -1e-40, 1e-30] {
            assert_eq!(tanh(x).to_bits(), x.to_bits());
        }
        for x in [9.5, 88.0, 1e30, f32::INFINITY] {
            assert_eq!((tanh(x), tanh(-x)), (1.0, -1.0));
        }
    }

    #[test]
    fn tanh_is_odd_and_never_leaves_the_unit_interval() {
        for i in 0..4_000_000u32 {
            let x = f32::from_bits(i * 509);
            assert_eq!(tanh(x).to_bits(), (-tanh(-x)).to_bits());
            assert!(tanh(x) <= 1.0);
        }
    }
}
