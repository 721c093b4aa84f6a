//! A sum of floats that does not depend on the order of its terms.

/// Sums `f32` terms of `[0, 1]` in fixed point, 80 bits after the point.
///
/// Each term is cut to a multiple of 2^-80 and the cut terms are added as integers: the result
/// is the same for any order, tiling and number of threads. Up to 2^47 terms fit. The cut loses
/// at most 2^-80 a term, far below the rounding of the `f64` that [`FixedSum::value`] returns
/// as long as one term is of ordinary size (in a softmax the largest is exactly 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedSum(u128);

const POINT: i32 = 80;

impl FixedSum {
    /// Adds one term; negative terms and NaN count as zero, terms above 1 as 1.
    #[inline]
    pub fn add(&mut self, term: f32) {
        let bits = if term > 0.0 { term.min(1.0).to_bits() } else { 0 };
        let exponent = (bits >> 23) as i32;
        let mantissa = u128::from(bits & 0x007f_ffff);
        // A normal number is (2^23 + mantissa) * 2^(exponent - 150), a subnormal one lacks 2^23.
        let (significand, exponent) =
            if exponent == 0 { (mantissa, 1) } else { (mantissa | 0x0080_0000, exponent) };
        let shift = exponent - 150 + POINT;
        self.0 += if shift >= 0 {
            significand << shift
        } else if shift > -64 {
            significand >> -shift
        } else {
            0
        };
    }

    /// Adds the terms of `other`.
    pub fn merge(&mut self, other: Self) {
        self.0 += other.0;
    }

    /// The sum as an integer, to be saved.
    pub fn to_bits(self) -> u128 {
        self.0
    }

    /// A saved sum.
    pub fn from_bits(bits: u128) -> Self {
        Self(bits)
    }

    /// The sum, rounded once.
    pub fn value(self) -> f64 {
        // The conversion rounds to nearest; the scaling by a power of two is exact.
        self.0 as f64 / 2f64.powi(POINT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_exactly_and_in_any_order() {
        let terms: Vec<f32> = (0..5000).map(|i| (i as f32 * 0.37).sin().abs().powi(9)).collect();
        let mut forward = FixedSum::default();
        terms.iter().for_each(|&t| forward.add(t));
        let mut halves = [FixedSum::default(); 2];
        terms.iter().rev().enumerate().for_each(|(i, &t)| halves[i % 2].add(t));
        let [mut a, b] = halves;
        a.merge(b);
        assert_eq!(forward, a);
        let plain: f64 = terms.iter().map(|&t| f64::from(t)).sum();
        assert!((forward.value() - plain).abs() < 1e-11 * plain);
    }

    #[test]
    fn handles_the_ends_of_the_range() {
        let mut sum = FixedSum::default();
        for term in [1.0, 0.0, -0.0, f32::MIN_POSITIVE, 1e-45, f32::NAN, -3.0] {
            sum.add(term);
        }
        assert_eq!(sum.value().to_bits(), 1f64.to_bits());
        let mut tiny = FixedSum::default();
        tiny.add(2f32.powi(-60));
        assert_eq!(tiny.value().to_bits(), 2f64.powi(-60).to_bits());
    }
}
