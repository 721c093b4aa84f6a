//! A sum of doubles without any rounding, and so without any order.

use super::{Reader, Writer};

/// Bits of the limbs, and where the binary point is: the last bit is 2^-298, the smallest product of two `f32`.
const LIMBS: usize = 10;
const POINT: i32 = 298;

/// The exact sum of terms that are products of two `f32`, or sums of up to 2^12 such products in `f64`: one
/// integer that is wide enough for all of them, however far apart. Up to 2^64 terms fit.
///
/// Adding a term costs some nanoseconds. Rows are therefore summed in plain doubles first, block by block;
/// if the blocks are the same in any run ([`Method::grain`](crate::method::Method::grain)), so is the sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExactSum([u64; LIMBS]);

impl ExactSum {
    /// Adds a term.
    pub fn add(&mut self, term: f64) {
        let exponent = (term.to_bits() >> 52 & 0x7ff) as i32;
        let mantissa = term.to_bits() & 0x000f_ffff_ffff_ffff | 1 << 52;
        // The term is mantissa * 2^(exponent - 1075): so many bits above the last one.
        let place = exponent - 1075 + POINT;
        let (shift, mantissa) = match place {
            0.. => (place as usize, mantissa),
            // The bits that go are zeros, since no term has any below 2^-298.
            -63..0 => (0, mantissa >> -place),
            _ => return,
        };
        let wide = u128::from(mantissa) << (shift % 64);
        let parts = [wide as u64, (wide >> 64) as u64];
        let limbs = self.0.iter_mut().skip(shift / 64).zip(parts.into_iter().chain([0; LIMBS]));
        let mut carry = false;
        if term.is_sign_negative() {
            for (limb, part) in limbs {
                (*limb, carry) = limb.borrow_sub(part, carry);
            }
        } else {
            for (limb, part) in limbs {
                (*limb, carry) = limb.carry_add(part, carry);
            }
        }
    }

    /// Adds the terms of `other`.
    pub fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, part) in self.0.iter_mut().zip(other.0) {
            (*limb, carry) = limb.carry_add(part, carry);
        }
    }

    /// The sum, rounded once.
    pub fn value(&self) -> f64 {
        let negative = self.0[LIMBS - 1] >> 63 == 1;
        let mut limbs = self.0;
        if negative {
            let mut carry = true;
            for limb in &mut limbs {
                (*limb, carry) = (!*limb).carry_add(0, carry);
            }
        }
        let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else { return 0.0 };
        // The 64 bits from the highest one down, and whether any bit below is set.
        let (high, low) = (limbs[top], top.checked_sub(1).map_or(0, |below| limbs[below]));
        let empty = high.leading_zeros();
        let window = (u128::from(high) << 64 | u128::from(low)) << empty;
        let rest =
            window as u64 != 0 || limbs[..top.saturating_sub(1)].iter().any(|&limb| limb != 0);
        // The lowest of 64 bits is far below the rounding to 53: it can stand for all that is below.
        let bits = (window >> 64) as u64 | u64::from(rest);
        let scale = 64 * top as i32 - empty as i32 - POINT;
        let size = bits as f64 * 2f64.powi(scale);
        if negative { -size } else { size }
    }

    /// Adds the sum to what is saved.
    pub fn save(&self, out: &mut Writer) {
        self.0.iter().for_each(|&limb| out.u64(limb));
    }

    /// A saved sum.
    pub fn load(saved: &mut Reader<'_>) -> Option<Self> {
        let mut sum = Self::default();
        saved.fill(&mut sum.0)?;
        Some(sum)
    }
}

/// Addition and subtraction of limbs, with what goes over.
trait Limb: Sized {
    fn carry_add(self, other: Self, carry: bool) -> (Self, bool);
    fn borrow_sub(self, other: Self, borrow: bool) -> (Self, bool);
}

impl Limb for u64 {
    fn carry_add(self, other: u64, carry: bool) -> (u64, bool) {
        let (sum, over) = self.overflowing_add(other);
        let (sum, more) = sum.overflowing_add(u64::from(carry));
        (sum, over | more)
    }

    fn borrow_sub(self, other: u64, borrow: bool) -> (u64, bool) {
        let (rest, under) = self.overflowing_sub(other);
        let (rest, more) = rest.overflowing_sub(u64::from(borrow));
        (rest, under | more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sum(terms: &[f64]) -> ExactSum {
        let mut sum = ExactSum::default();
        terms.iter().for_each(|&term| sum.add(term));
        sum
    }

    fn term() -> impl Strategy<Value = f64> {
        let float = prop_oneof![
            3 => -1.0f32..1.0,
            2 => (-149i32..127, -1.0f32..1.0).prop_map(|(k, m)| (f64::from(m) * 2f64.powi(k)) as f32),
            1 => prop::sample::select(vec![0.0, -0.0, 1e-45, -1e-45, f32::MAX, f32::MIN, 1.0]),
        ];
        (float.clone(), float).prop_map(|(x, y)| f64::from(x) * f64::from(y))
    }

    proptest! {
        #[test]
        fn any_order_and_cut_gives_the_same_and_opposite_terms_cancel(
            terms in prop::collection::vec(term(), 0..60),
            cut in any::<prop::sample::Index>(),
        ) {
            let whole = sum(&terms);
            let (head, tail) = terms.split_at(cut.index(terms.len() + 1));
            let mut parts = sum(tail);
            parts.merge(&sum(head));
            prop_assert_eq!(parts, whole);
            let opposite: Vec<f64> = terms.iter().rev().map(|&term| -term).collect();
            prop_assert_eq!(sum(&opposite).value(), -whole.value());
            parts.merge(&sum(&opposite));
            prop_assert_eq!(parts, ExactSum::default());
            let mut out = Writer::default();
            whole.save(&mut out);
            prop_assert_eq!(ExactSum::load(&mut Reader::new(&out.finish())), Some(whole));
        }

        #[test]
        fn one_term_comes_back_and_two_are_added_as_the_processor_does(a in term(), b in term()) {
            prop_assert_eq!(sum(&[a]).value(), a);
            prop_assert_eq!(sum(&[a, b]).value(), a + b);
        }
    }

    #[test]
    fn what_doubles_would_lose_is_kept() {
        let large = f64::from(f32::MAX) * f64::from(f32::MAX);
        let tiny = f64::from(f32::from_bits(1)) * f64::from(f32::from_bits(1));
        assert_eq!(sum(&[large, tiny, -large]).value(), tiny);
        assert_eq!(sum(&[large, -tiny, -large]).value(), -tiny);
        assert_eq!(sum(&[]).value().to_bits(), 0f64.to_bits());
    }

    #[test]
    fn it_is_rounded_once_and_to_even() {
        let ulp = 2f64.powi(-52);
        assert_eq!(sum(&[1.0, ulp / 2.0]).value(), 1.0);
        assert_eq!(sum(&[1.0 + ulp, ulp / 2.0]).value(), 1.0 + 2.0 * ulp);
        assert_eq!(sum(&[1.0, ulp / 2.0, 2f64.powi(-298)]).value(), 1.0 + ulp);
        assert_eq!(sum(&[-1.0, -ulp / 2.0, -2f64.powi(-298)]).value(), -1.0 - ulp);
    }

    #[test]
    fn many_large_terms_fit() {
        let large = f64::from(f32::MAX) * f64::from(f32::MAX) * 4096.0;
        let mut all = sum(&[large]);
        for _ in 0..64 {
            let same = all;
            all.merge(&same);
        }
        assert_eq!(all.value(), large * 2f64.powi(64));
    }
}
