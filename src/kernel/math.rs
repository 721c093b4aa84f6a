//! exp and tanh of our own: a library's bits change with CPU and version, and scores depend on them.
//!
//! Polynomials, without fused multiply-add and without branches, so that every path gives the same bits.
//! exp has the reduction of Cody and Waite and the coefficients of the Cephes library (by S. L. Moshier); those of
//! tanh are a weighted minimax fit of (tanh(x) / x - 1) / x^2 over all magnitudes up to 1.
//!
//! Where it is known in what part of the range the arguments lie, there are shorter forms. They give the bits of the
//! full ones there: which form is taken is a matter of speed alone.

#![allow(clippy::excessive_precision, reason = "coefficients as published")]

/// 1.5 * 2^23: adding and subtracting it rounds to an integer, which is then in the low bits of the sum.
const MAGIC: f32 = 12_582_912.0;

/// e^x = p 2^k: p and [`MAGIC`] + k. Any x whose k is a small integer.
#[inline(always)]
fn reduced(x: f32) -> (f32, f32) {
    let shifted = x * std::f32::consts::LOG2_E + MAGIC;
    let k = shifted - MAGIC;
    // ln 2 in two parts; the first has few bits, so its product with k is exact.
    let r = x - k * 0.693_359_4;
    let r = r - k * -2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    (p * (r * r) + r + 1.0, shifted)
}

/// e to the power of `x`, within 2 ulp; subnormal results included, infinity above 88.73, NaN for NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinite anyway. Comparisons, unlike min and max, keep NaN.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let (p, shifted) = reduced(x);
    // 2^k in two steps, since k goes from -150 to 128.
    let k = (shifted.to_bits() as i32).wrapping_sub(MAGIC.to_bits() as i32);
    let half = k >> 1;
    p * power_of_two(half) * power_of_two(k.wrapping_sub(half))
}

/// Magnitudes up to which [`exp_short`] is [`exp`].
pub(super) const EXP_SHORT: f32 = 86.0;

/// [`exp`] for magnitudes up to [`EXP_SHORT`], where the result is far from the ends of the range.
#[inline(always)]
pub(super) fn exp_short(x: f32) -> f32 {
    let (p, shifted) = reduced(x);
    // The bits of the magic number vanish from the exponent.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// 2^k for k in -126..=127.
#[inline(always)]
fn power_of_two(k: i32) -> f32 {
    f32::from_bits((k.wrapping_add(127) as u32) << 23)
}

/// Where the polynomial of tanh ends and the form with exp begins.
const POLYNOMIAL_TO: f32 = 1.0;

/// Below this tanh(x) rounds to x: the next term of the series, x^3 / 3, is less than half an ulp.
const IDENTITY_BELOW: f32 = 1.0 / 4096.0;

/// [`tanh`] for magnitudes up to 1. Keeps the sign of zero.
#[inline(always)]
pub(super) fn tanh_to_one(x: f32) -> f32 {
    let z = x * x;
    let p = -3.584_500_2e-4;
    let p = p * z + 2.301_357_7e-3;
    let p = p * z - 7.946_096e-3;
    let p = p * z + 2.148_665_1e-2;
    let p = p * z - 5.387_98e-2;
    let p = p * z + 1.333_234_5e-1;
    let p = p * z - 3.333_329_6e-1;
    // For -0.0 the sum would be 0.0.
    (p * z * x + x).copysign(x)
}

/// The hyperbolic tangent, within 2 ulp; x itself for tiny x; 1 beyond about 9.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let a = x.abs();
    let large = (1.0 - 2.0 / (exp(a + a) + 1.0)).copysign(x);
    if a <= POLYNOMIAL_TO { tanh_to_one(x) } else { large }
}

/// The shortest form of [`tanh`] that gives its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TanhForm {
    /// The argument itself.
    Identity,
    /// [`tanh_to_one`].
    ToOne,
    /// [`tanh`].
    Full,
}

impl TanhForm {
    /// The form for arguments whose greatest magnitude has these bits.
    #[inline(always)]
    pub(super) fn for_magnitudes_to(bits: u32) -> Self {
        if bits < IDENTITY_BELOW.to_bits() {
            Self::Identity
        } else if bits <= POLYNOMIAL_TO.to_bits() {
            Self::ToOne
        } else {
            Self::Full
        }
    }
}

#[inline(always)]
pub(super) fn exp_all(values: &[f32], out: &mut [f32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = exp(value);
    }
}

/// Elements that share a form: few enough that large ones are rarely among them.
const CHUNK: usize = 256;

/// tanh of a row, chunk by chunk in the shortest form.
#[inline(always)]
pub(super) fn tanh_all(values: &[f32], out: &mut [f32]) {
    for (values, out) in values.chunks(CHUNK).zip(out.chunks_mut(CHUNK)) {
        match TanhForm::for_magnitudes_to(super::keys::max_magnitude_bits(values)) {
            TanhForm::Identity => out.copy_from_slice(values),
            TanhForm::ToOne => {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = tanh_to_one(value);
                }
            }
            TanhForm::Full => {
                for (out, &value) in out.iter_mut().zip(values) {
                    *out = tanh(value);
                }
            }
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
    fn the_short_forms_give_the_bits_of_the_full_ones() {
        let (identity, one) = (IDENTITY_BELOW.to_bits(), POLYNOMIAL_TO.to_bits());
        // Every float up to 2^-12 would take seconds: all of the last two octaves, and a sweep below.
        let tiny = (identity - (2 << 23)..identity).chain((0..identity).step_by(509));
        for x in tiny.map(f32::from_bits) {
            assert_eq!(tanh_to_one(x).to_bits(), x.to_bits(), "{x:e}");
            assert_eq!(tanh_to_one(-x).to_bits(), (-x).to_bits(), "{x:e}");
        }
        for x in (0..=one).rev().step_by(251).map(f32::from_bits) {
            assert_eq!(tanh(x).to_bits(), tanh_to_one(x).to_bits(), "{x:e}");
        }
        for x in (0..=EXP_SHORT.to_bits()).rev().step_by(251).map(f32::from_bits) {
            assert_eq!(exp(x).to_bits(), exp_short(x).to_bits(), "{x:e}");
            assert_eq!(exp(-x).to_bits(), exp_short(-x).to_bits(), "-{x:e}");
        }
    }

    #[test]
    fn the_form_is_chosen_by_the_largest_magnitude() {
        let form = |x: f32| TanhForm::for_magnitudes_to(x.abs().to_bits());
        assert_eq!(form(0.0), TanhForm::Identity);
        assert_eq!(form(2.4e-4), TanhForm::Identity);
        assert_eq!(form(1.0 / 4096.0), TanhForm::ToOne);
        assert_eq!(form(1.0), TanhForm::ToOne);
        assert_eq!(form(1.000_000_1), TanhForm::Full);
        assert_eq!(form(f32::NAN), TanhForm::Full);
    }

    #[test]
    fn tanh_does_not_fall_where_its_forms_meet() {
        let one = POLYNOMIAL_TO.to_bits();
        let around: Vec<f32> = (one - 2000..one + 2000).map(|b| tanh(f32::from_bits(b))).collect();
        assert!(around.windows(2).all(|pair| pair[0] <= pair[1] + 1.2e-7));
    }

    /// Minutes of work: for changes of the coefficients.
    #[test]
    #[ignore = "all four billion floats; run with --ignored and --release after a change here"]
    fn every_float_is_within_two_ulp() {
        let all = || (0..=u32::MAX).map(f32::from_bits).filter(|x| x.is_finite());
        let (exp, tanh) = (worst(all(), exp, f64::exp), worst(all(), tanh, f64::tanh));
        assert!(exp <= 2.0 && tanh <= 2.0, "{exp} {tanh}");
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
