//! The two F8 types that are plain numbers: E4M3 (no infinity, largest 448) and E5M2.

/// A minifloat of one byte: sign, exponent, mantissa.
pub(super) struct Format<const MANTISSA: u32, const BIAS: i32, const LARGEST: u8>;

/// `F8_E4M3` of safetensors, torch's `float8_e4m3fn`.
pub(super) type E4M3 = Format<3, 7, 0x7e>;
/// `F8_E5M2` of safetensors, torch's `float8_e5m2`.
pub(super) type E5M2 = Format<2, 15, 0x7b>;

pub(super) static E4M3_VALUES: [f32; 256] = E4M3::values();
pub(super) static E5M2_VALUES: [f32; 256] = E5M2::values();

impl<const MANTISSA: u32, const BIAS: i32, const LARGEST: u8> Format<MANTISSA, BIAS, LARGEST> {
    /// Exponent of the least subnormal.
    const LEAST: i32 = 1 - BIAS - MANTISSA as i32;

    const fn value(code: u8) -> f32 {
        let magnitude = code & 0x7f;
        let mantissa = (magnitude & ((1 << MANTISSA) - 1)) as u32;
        let exponent = (magnitude >> MANTISSA) as i32;
        let sign = ((code >> 7) as u32) << 31;
        if magnitude > LARGEST {
            // E5M2 has infinities below its NaNs, E4M3 has one NaN.
            let infinite = mantissa == 0;
            return f32::from_bits(sign | if infinite { 0x7f80_0000 } else { 0x7fc0_0000 });
        }
        let (significand, exponent) = if exponent == 0 {
            (mantissa, Self::LEAST)
        } else {
            (mantissa | 1 << MANTISSA, Self::LEAST + exponent - 1)
        };
        let scale = f32::from_bits(((exponent + 127) as u32) << 23);
        let value = significand as f32 * scale;
        if sign == 0 { value } else { -value }
    }

    const fn values() -> [f32; 256] {
        let mut table = [0.0; 256];
        let mut code = 0;
        while code < 256 {
            table[code] = Self::value(code as u8);
            code += 1;
        }
        table
    }

    /// Rounds to nearest even; beyond the largest value that value; NaN stays NaN.
    #[inline(always)]
    pub(super) fn encode(value: f32) -> u8 {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        // Adding 2^23 least units leaves the rounded count of units in the low bits.
        let unit = f32::from_bits(((Self::LEAST + 23 + 127) as u32) << 23);
        let subnormal = (f32::from_bits(magnitude) + unit).to_bits().wrapping_sub(unit.to_bits());
        let shift = 23 - MANTISSA;
        let odd = magnitude >> shift & 1;
        let rebiased = magnitude.wrapping_sub(((127 - BIAS) as u32) << 23);
        let normal = rebiased.wrapping_add((1 << (shift - 1)) - 1 + odd) >> shift;
        let least_normal = ((128 - BIAS) as u32) << 23;
        let rounded = if magnitude < least_normal { subnormal } else { normal };
        let finite = if magnitude >= 0x7f80_0000 { u32::from(LARGEST) } else { rounded };
        let code = finite.min(u32::from(LARGEST));
        let code = if magnitude > 0x7f80_0000 { 0x7f } else { code };
        code as u8 | (bits >> 24) as u8 & 0x80
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(E4M3_VALUES[0x7e], 448.0);
        assert_eq!(E4M3_VALUES[0x01], 2f32.powi(-9));
        assert_eq!(E4M3_VALUES[0x38], 1.0);
        assert_eq!(E4M3_VALUES[0x80].to_bits(), (-0.0f32).to_bits());
        assert!(E4M3_VALUES[0x7f].is_nan() && E4M3_VALUES[0xff].is_nan());
        assert_eq!(E5M2_VALUES[0x7b], 57344.0);
        assert_eq!(E5M2_VALUES[0x01], 2f32.powi(-16));
        assert_eq!(E5M2_VALUES[0x3c], 1.0);
        assert_eq!(E5M2_VALUES[0xfc], f32::NEG_INFINITY);
        assert!(E5M2_VALUES[0x7d].is_nan());
    }

    /// The nearest code by search, ties to the even code.
    fn nearest(table: &[f32; 256], value: f32) -> u8 {
        let sign = if value.is_sign_negative() { 0x80 } else { 0 };
        // Beyond the largest value all distances are the same to a double.
        let target = f64::from(value.abs()).min(1e6);
        let distance = |code: u8| (f64::from(table[code as usize]) - target).abs();
        let mut best = 0;
        for code in (0..0x7fu8).filter(|&c| table[c as usize].is_finite()) {
            let (new, old) = (distance(code), distance(best));
            if new < old || (new == old && code % 2 == 0) {
                best = code;
            }
        }
        best | sign
    }

    fn check(table: &[f32; 256], encode: fn(f32) -> u8) {
        for (code, &value) in table.iter().enumerate() {
            if value.is_finite() {
                assert_eq!(usize::from(encode(value)), code);
                // Half way to the neighbour, and just beside it.
                let next = table[(code & 0x80) | ((code & 0x7f) + 1).min(0x7f)];
                let middle = value + (next - value) / 2.0;
                for probe in [middle, middle * 1.000_001, middle * 0.999_999] {
                    if probe.is_finite() {
                        assert_eq!(encode(probe), nearest(table, probe), "{probe}");
                    }
                }
            }
        }
        for i in 0..60_000u32 {
            let value = f32::from_bits(i.wrapping_mul(71_593));
            if !value.is_nan() {
                assert_eq!(encode(value), nearest(table, value), "{value}");
            }
        }
        assert_eq!(encode(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn encoding_rounds_to_the_nearest_code_and_saturates() {
        check(&E4M3_VALUES, E4M3::encode);
        check(&E5M2_VALUES, E5M2::encode);
        assert_eq!(E4M3::encode(f32::INFINITY), 0x7e);
        assert_eq!(E5M2::encode(-1e30), 0xfb);
    }
}
