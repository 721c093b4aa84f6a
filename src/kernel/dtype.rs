//! Stored floats to `f32` and back.

use safetensors::Dtype;

use super::ahead;
use super::float8::{E4M3, E4M3_VALUES, E5M2, E5M2_VALUES};

/// A storage type of floating-point numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// IEEE binary64; passes through `f32`.
    F64,
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Torch's `float8_e4m3fn`.
    F8E4M3,
    /// Torch's `float8_e5m2`.
    F8E5M2,
}

impl Float {
    /// The float type of a safetensors type; `None` for those that hold no plain floats.
    pub fn from_dtype(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => Float::F64,
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
            Dtype::BF16 => Float::BF16,
            Dtype::F8_E4M3 => Float::F8E4M3,
            Dtype::F8_E5M2 => Float::F8E5M2,
            _ => return None,
        })
    }

    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            Float::F64 => 8,
            Float::F32 => 4,
            Float::F16 | Float::BF16 => 2,
            Float::F8E4M3 | Float::F8E5M2 => 1,
        }
    }
}

#[inline(always)]
fn bf16_to_f32(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

#[inline(always)]
fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    let half = u32::from(u16::from_le_bytes(bytes));
    // Moving the exponent's bias by a multiplication is exact, subnormals included.
    let scaled = f32::from_bits((half & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    let special = if half & 0x7c00 == 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits(scaled.to_bits() | special | (half & 0x8000) << 16)
}

#[inline(always)]
fn f32_to_bf16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN keeps its sign and the top of its payload, and becomes quiet.
    let nan = bits >> 16 | 0x40;
    let half = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded };
    (half as u16).to_le_bytes()
}

#[inline(always)]
fn f32_to_f16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let magnitude = bits & 0x7fff_ffff;
    // Subnormal results: adding 0.5 leaves the count of 2^-24 in the low bits, rounded.
    let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(112 << 23).wrapping_add(0xfff + odd) >> 13;
    let finite = if magnitude < 113 << 23 { subnormal } else { normal };
    let nan = 0x7e00 | magnitude >> 13 & 0x3ff;
    let large = if magnitude > 0x7f80_0000 { nan } else { 0x7c00 };
    let half = if magnitude >= 143 << 23 { large } else { finite };
    (half as u16 | (bits >> 16) as u16 & 0x8000).to_le_bytes()
}

/// Calls `$body` with each element's bytes (an array of the type's size) and its output.
macro_rules! each {
    ($bytes:expr, $out:expr, $size:literal, |$element:ident| $value:expr) => {
        for (out, $element) in $out.iter_mut().zip($bytes.as_chunks::<$size>().0) {
            let $element = *$element;
            *out = $value;
        }
    };
}

#[inline(always)]
pub(super) fn decode(float: Float, bytes: &[u8], out: &mut [f32]) {
    match float {
        Float::F64 => each!(bytes, out, 8, |e| f64::from_le_bytes(e) as f32),
        Float::F32 => each!(bytes, out, 4, |e| f32::from_le_bytes(e)),
        Float::F16 => each!(bytes, out, 2, |e| f16_to_f32(e)),
        Float::BF16 => each!(bytes, out, 2, |e| bf16_to_f32(e)),
        Float::F8E4M3 => each!(bytes, out, 1, |e| E4M3_VALUES[usize::from(e[0])]),
        Float::F8E5M2 => each!(bytes, out, 1, |e| E5M2_VALUES[usize::from(e[0])]),
    }
}

/// Elements that are decoded between two looks ahead.
const RUN: usize = 256;

/// [`decode`], and the largest magnitude, as bits.
#[inline(always)]
pub(super) fn decode_with_largest(float: Float, bytes: &[u8], out: &mut [f32]) -> u32 {
    let mut largest = 0;
    if float == Float::BF16 {
        // The common case in one sweep.
        for (out, bytes) in out.chunks_mut(RUN).zip(bytes.chunks(2 * RUN)) {
            ahead::ask(bytes);
            for (out, e) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = bf16_to_f32(*e);
                largest = largest.max(out.to_bits() & 0x7fff_ffff);
            }
        }
        return largest;
    }
    decode(float, bytes, out);
    super::keys::max_magnitude_bits(out)
}

#[inline(always)]
pub(super) fn decode_minus_base(float: Float, bytes: &[u8], base: &[f32], out: &mut [f32]) -> u32 {
    let mut largest = 0;
    if float == Float::BF16 {
        // The common case in one sweep.
        let runs = out.chunks_mut(RUN).zip(bytes.chunks(2 * RUN)).zip(base.chunks(RUN));
        for ((out, bytes), base) in runs {
            ahead::ask(bytes);
            for ((out, e), base) in out.iter_mut().zip(bytes.as_chunks::<2>().0).zip(base) {
                *out = bf16_to_f32(*e) - base;
                largest = largest.max(out.to_bits() & 0x7fff_ffff);
            }
        }
        return largest;
    }
    decode(float, bytes, out);
    subtract(base, out);
    super::keys::max_magnitude_bits(out)
}

#[inline(always)]
pub(super) fn subtract(base: &[f32], out: &mut [f32]) {
    for (out, base) in out.iter_mut().zip(base) {
        *out -= base;
    }
}

#[inline(always)]
pub(super) fn encode(float: Float, values: &[f32], out: &mut [u8]) {
    macro_rules! store {
        ($size:literal, |$value:ident| $bytes:expr) => {
            for (out, &$value) in out.as_chunks_mut::<$size>().0.iter_mut().zip(values) {
                *out = $bytes;
            }
        };
    }
    match float {
        Float::F64 => store!(8, |v| f64::from(v).to_le_bytes()),
        Float::F32 => store!(4, |v| v.to_le_bytes()),
        Float::F16 => store!(2, |v| f32_to_f16(v)),
        Float::BF16 => store!(2, |v| f32_to_bf16(v)),
        Float::F8E4M3 => store!(1, |v| [E4M3::encode(v)]),
        Float::F8E5M2 => store!(1, |v| [E5M2::encode(v)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn same(a: f32, b: f32) -> bool {
        a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
    }

    #[test]
    fn every_16_bit_pattern_decodes_as_the_half_crate_says_and_comes_back() {
        for bits in 0..=u16::MAX {
            let bytes = bits.to_le_bytes();
            let (bf16, f16) = (half::bf16::from_bits(bits), half::f16::from_bits(bits));
            assert!(same(bf16_to_f32(bytes), bf16.to_f32()), "bf16 {bits:04x}");
            assert!(same(f16_to_f32(bytes), f16.to_f32()), "f16 {bits:04x}");
            if !f16.is_nan() {
                assert_eq!(f32_to_f16(f16.to_f32()), bytes);
            }
            if !bf16.is_nan() {
                assert_eq!(f32_to_bf16(bf16.to_f32()), bytes);
            }
        }
    }

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let mut probes: Vec<f32> =
            (0..4_000_000u32).map(|i| f32::from_bits(i.wrapping_mul(1_073_741_827))).collect();
        // Exactly half way between neighbours, and one bit beside it.
        for bits in 0..=0x7c00u16 {
            let (a, b) =
                (half::f16::from_bits(bits).to_f32(), half::f16::from_bits(bits + 1).to_f32());
            let middle = a + (b - a) / 2.0;
            let bits = middle.to_bits();
            probes.extend([middle, f32::from_bits(bits + 1), f32::from_bits(bits.wrapping_sub(1))]);
        }
        for value in probes {
            let bf16 = half::bf16::from_f32(value).to_le_bytes();
            assert_eq!(f32_to_bf16(value), bf16, "{value:e}");
            let f16 = half::f16::from_f32(value);
            if f16.is_nan() {
                assert!(half::f16::from_le_bytes(f32_to_f16(value)).is_nan());
            } else {
                assert_eq!(f32_to_f16(value), f16.to_le_bytes(), "{value:e}");
            }
        }
    }

    #[test]
    fn the_largest_magnitude_comes_with_the_values() {
        let values = [0.5f32, -3.0, 0.0, 2.5, f32::INFINITY, -1.0];
        for (len, largest) in [(0, 0.0f32), (1, 0.5), (4, 3.0), (6, f32::INFINITY)] {
            for float in [Float::F32, Float::BF16, Float::F16] {
                let mut bytes = vec![0; len * float.size()];
                encode(float, &values[..len], &mut bytes);
                for kernels in crate::kernel::Kernels::available() {
                    let mut out = vec![9.0; len];
                    let bits = kernels.decode_with_largest(float, &bytes, &mut out);
                    assert_eq!((f32::from_bits(bits), &*out), (largest, &values[..len]));
                }
            }
        }
    }

    #[test]
    fn doubles_are_rounded_to_nearest() {
        let mut out = [0.0; 2];
        let bytes: Vec<u8> = [0.1f64, 1e300].iter().flat_map(|v| v.to_le_bytes()).collect();
        decode(Float::F64, &bytes, &mut out);
        assert_eq!(out, [0.1f32, f32::INFINITY]);
    }
}
