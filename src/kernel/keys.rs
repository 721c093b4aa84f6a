//! Sortable integer keys of floats.
//!
//! For finite values the order of the keys is that of the values, so that order statistics can be
//! found by counting bits.

/// The key of infinity among magnitudes: keys at or above it are not finite.
pub const INFINITY: u32 = 0x7f80_0000;

/// The magnitude that a key of `Kernels::magnitude_keys` stands for.
pub fn magnitude(key: u32) -> f32 {
    f32::from_bits(key)
}

/// The value that a key of `Kernels::score_keys` stands for.
pub fn score(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key ^ 0x8000_0000 } else { !key })
}

/// The key of one signed value; -0.0 has the key of 0.0.
#[inline(always)]
pub fn score_key(value: f32) -> u32 {
    // Adding zero turns -0.0 into 0.0 and changes nothing else.
    let bits = (value + 0.0).to_bits();
    bits ^ (((bits as i32 >> 31) as u32) | 0x8000_0000)
}

#[inline(always)]
pub(super) fn magnitude_keys(values: &[f32], out: &mut [u32]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = value.to_bits() & 0x7fff_ffff;
    }
}

#[inline(always)]
pub(super) fn score_keys(values: &[f32], out: &mut [u32]) {
    for (out, &value) in out.iter_mut().zip(values) {
        *out = score_key(value);
    }
}

#[inline(always)]
pub(super) fn max_magnitude_bits(values: &[f32]) -> u32 {
    values.iter().fold(0, |max, value| max.max(value.to_bits() & 0x7fff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_sort_as_values_do(a in any::<f32>(), b in any::<f32>()) {
            prop_assert_eq!(score_key(a).cmp(&score_key(b)), a.partial_cmp(&b).unwrap());
            prop_assert_eq!(score(score_key(a)), a);
            let mut keys = [0; 2];
            magnitude_keys(&[a, b], &mut keys);
            prop_assert_eq!(keys[0].cmp(&keys[1]), a.abs().partial_cmp(&b.abs()).unwrap());
            prop_assert_eq!(magnitude(keys[0]), a.abs());
        }
    }

    #[test]
    fn zeros_are_equal_and_subnormals_are_not_zero() {
        assert_eq!(score_key(-0.0), score_key(0.0));
        assert_eq!(score(score_key(-0.0)).to_bits(), 0);
        assert!(score_key(1e-45) > score_key(0.0) && score_key(-1e-45) < score_key(0.0));
        assert!(score_key(f32::MIN) < score_key(-1.0) && score_key(f32::MAX) > score_key(1.0));
    }

    #[test]
    fn finds_values_that_are_not_finite() {
        assert!(max_magnitude_bits(&[1.0, f32::MAX, -f32::MAX]) < INFINITY);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(max_magnitude_bits(&[0.0, bad, 1.0]) >= INFINITY);
        }
        assert_eq!(max_magnitude_bits(&[]), 0);
    }
}
