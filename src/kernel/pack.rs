//! Moving the wanted elements of a row together, and back to where they were.
//!
//! The one step of a kernel that plain loops cannot say in vectors: how far an element moves depends on those before it.
//! Nothing is computed here, so all instruction sets give the same bits by nature.

#![expect(unsafe_code, reason = "vector instructions that no loop compiles to")]

use super::dispatch::Lanes;
#[cfg(target_arch = "x86_64")]
use super::dispatch::Level;

/// Elements that are moved at a time.
pub(super) const GROUP: usize = 16;

/// A bit for each element of a group, the first one lowest.
pub(super) type Mask = u16;

/// What the vectors of a CPU do, where they have a function for it, else what is there in plain words.
macro_rules! vectors {
    ($lanes:ident, [$($level:ident $module:ident),+], $does:ident $arguments:tt, $plain:expr) => {
        match $lanes.level() {
            $(
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Lanes` of a level are made only where it is available.
                Level::$level => unsafe { $module::$does $arguments },
            )+
            _ => $plain,
        }
    };
}

/// The elements whose flags are not zero.
#[inline(always)]
pub(super) fn mask(lanes: Lanes, flags: &[u32; GROUP]) -> Mask {
    vectors!(lanes, [Avx2 avx2, Avx512 avx512], mask(flags), {
        flags.iter().rev().fold(0, |mask, &flag| mask << 1 | Mask::from(flag != 0))
    })
}

/// Writes the elements of a group that a mask wants, in their order, to the front of `to`. What is behind them has no
/// meaning then.
#[inline(always)]
pub(super) fn pack(lanes: Lanes, mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
    vectors!(lanes, [Avx2 avx2, Avx512 avx512], pack(mask, from, to), {
        let mut left = 0;
        for (lane, &value) in from.iter().enumerate() {
            // No branch: what is not wanted is overwritten by the next.
            to[left.min(GROUP - 1)] = value;
            left += usize::from(mask >> lane & 1);
        }
    });
}

/// Writes the places of the elements that a mask wants, of which the first one of the group has place `first`, to the front of
/// `to`. What is behind them has no meaning then.
#[inline(always)]
pub(super) fn places(lanes: Lanes, mask: Mask, first: u32, to: &mut [u32; GROUP]) {
    vectors!(lanes, [Avx512 avx512], places(mask, first, to), {
        let mut left = mask;
        for to in to.iter_mut().take(mask.count_ones() as usize) {
            *to = first + left.trailing_zeros();
            left &= left - 1;
        }
    });
}

/// The elements whose magnitudes, as bits, are below `from`, and those that lie in `from..=to`.
#[inline(always)]
pub(super) fn sides(lanes: Lanes, values: &[f32; GROUP], (from, to): (u32, u32)) -> [Mask; 2] {
    vectors!(lanes, [Avx2 avx2, Avx512 avx512], sides(values, from, to), {
        let key = |value: &f32| value.to_bits() & 0x7fff_ffff;
        let all = |wanted: &dyn Fn(u32) -> bool| {
            let bit = |mask, value| mask << 1 | Mask::from(wanted(key(value)));
            values.iter().rev().fold(0, bit)
        };
        [all(&|key| key < from), all(&|key| (from..=to).contains(&key))]
    })
}

/// `to` = the elements that a mask wants; zero for the others.
#[inline(always)]
pub(super) fn keep(lanes: Lanes, mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
    vectors!(lanes, [Avx2 avx2, Avx512 avx512], keep(mask, from, to), {
        for (lane, (to, &value)) in to.iter_mut().zip(from).enumerate() {
            *to = if mask >> lane & 1 == 1 { value } else { 0.0 };
        }
    });
}

/// Writes the first elements of `from` to where a mask wants them, and leaves the others of `to` alone.
#[inline(always)]
pub(super) fn unpack(lanes: Lanes, mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
    vectors!(lanes, [Avx2 avx2, Avx512 avx512], unpack(mask, from, to), {
        let mut left = 0;
        for (lane, to) in to.iter_mut().enumerate() {
            if mask >> lane & 1 == 1 {
                *to = from[left];
                left += 1;
            }
        }
    });
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        _mm512_add_epi32, _mm512_and_epi32, _mm512_cmple_epu32_mask, _mm512_cmplt_epu32_mask,
        _mm512_loadu_epi32, _mm512_loadu_ps, _mm512_mask_cmpge_epu32_mask, _mm512_mask_expand_ps,
        _mm512_maskz_compress_epi32, _mm512_maskz_compress_ps, _mm512_maskz_loadu_ps,
        _mm512_set1_epi32, _mm512_setr_epi32, _mm512_storeu_epi32, _mm512_storeu_ps,
        _mm512_test_epi32_mask,
    };

    use super::{GROUP, Mask};

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn mask(flags: &[u32; GROUP]) -> Mask {
        // SAFETY: the load is of the whole group.
        let flags = unsafe { _mm512_loadu_epi32(flags.as_ptr().cast()) };
        _mm512_test_epi32_mask(flags, flags)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn pack(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        // SAFETY: load and store are of whole groups.
        unsafe {
            let packed = _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(from.as_ptr()));
            _mm512_storeu_ps(to.as_mut_ptr(), packed);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn places(mask: Mask, first: u32, to: &mut [u32; GROUP]) {
        let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        let places = _mm512_add_epi32(_mm512_set1_epi32(first.cast_signed()), lanes);
        // SAFETY: the store is of the whole group.
        unsafe {
            let packed = _mm512_maskz_compress_epi32(mask, places);
            _mm512_storeu_epi32(to.as_mut_ptr().cast(), packed);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn sides(values: &[f32; GROUP], from: u32, to: u32) -> [Mask; 2] {
        // SAFETY: the load is of the whole group.
        let bits = unsafe { _mm512_loadu_epi32(values.as_ptr().cast()) };
        let keys = _mm512_and_epi32(bits, _mm512_set1_epi32(0x7fff_ffff));
        let (from, to) = [from, to].map(|key| _mm512_set1_epi32(key.cast_signed())).into();
        let inside = _mm512_cmple_epu32_mask(keys, to);
        [_mm512_cmplt_epu32_mask(keys, from), _mm512_mask_cmpge_epu32_mask(inside, keys, from)]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn keep(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        // SAFETY: load and store are of whole groups.
        unsafe {
            let kept = _mm512_maskz_loadu_ps(mask, from.as_ptr());
            _mm512_storeu_ps(to.as_mut_ptr(), kept);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn unpack(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        // SAFETY: loads and store are of whole groups.
        unsafe {
            let (old, new) = (_mm512_loadu_ps(to.as_ptr()), _mm512_loadu_ps(from.as_ptr()));
            _mm512_storeu_ps(to.as_mut_ptr(), _mm512_mask_expand_ps(old, mask, new));
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{
        __m256i, _mm_loadl_epi64, _mm256_and_ps, _mm256_and_si256, _mm256_blendv_ps,
        _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_cmpgt_epi32, _mm256_cvtepu8_epi32,
        _mm256_loadu_ps, _mm256_loadu_si256, _mm256_max_epu32, _mm256_min_epu32,
        _mm256_movemask_ps, _mm256_permutevar8x32_ps, _mm256_set1_epi32, _mm256_setr_epi32,
        _mm256_setzero_si256, _mm256_storeu_ps,
    };

    use super::{GROUP, Mask};

    const HALF: usize = GROUP / 2;

    /// For each mask, where the wanted elements come from,
    static PACKED: [[u8; HALF]; 256] = places(true);
    /// and where they go to.
    static UNPACKED: [[u8; HALF]; 256] = places(false);

    const fn places(packed: bool) -> [[u8; HALF]; 256] {
        let mut table = [[0; HALF]; 256];
        let mut mask = 0;
        while mask < 256 {
            let (mut left, mut lane) = (0, 0);
            while lane < HALF {
                if mask >> lane & 1 == 1 {
                    let (at, value) = if packed { (left, lane) } else { (lane, left) };
                    table[mask][at] = value as u8;
                    left += 1;
                }
                lane += 1;
            }
            mask += 1;
        }
        table
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn row(table: &[[u8; HALF]; 256], mask: usize) -> __m256i {
        // SAFETY: the load is of the eight bytes of a row.
        _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(table[mask].as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn mask(flags: &[u32; GROUP]) -> Mask {
        let half = |at: usize| {
            // SAFETY: `at` is the start of the first or of the second half.
            let flags = unsafe { _mm256_loadu_si256(flags.as_ptr().add(at).cast()) };
            let zero = _mm256_cmpeq_epi32(flags, _mm256_setzero_si256());
            !_mm256_movemask_ps(_mm256_castsi256_ps(zero)) as Mask & 0xff
        };
        half(0) | half(HALF) << HALF
    }

    /// The elements of a mask, as lanes of ones.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn spread(mask: Mask) -> __m256i {
        let bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let wanted = _mm256_and_si256(_mm256_set1_epi32(mask.into()), bits);
        _mm256_cmpgt_epi32(wanted, _mm256_setzero_si256())
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn sides(values: &[f32; GROUP], from: u32, to: u32) -> [Mask; 2] {
        let (from, to) = [from, to].map(|key| _mm256_set1_epi32(key.cast_signed())).into();
        let half = |at: usize| {
            // SAFETY: `at` is the start of the first or of the second half.
            let bits = unsafe { _mm256_loadu_si256(values.as_ptr().add(at).cast()) };
            let keys = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
            let bits = |lanes| _mm256_movemask_ps(_mm256_castsi256_ps(lanes)) as Mask & 0xff;
            let least = bits(_mm256_cmpeq_epi32(_mm256_max_epu32(keys, from), keys));
            let most = bits(_mm256_cmpeq_epi32(_mm256_min_epu32(keys, to), keys));
            [least ^ 0xff, least & most]
        };
        let ([below, inside], [under, within]) = (half(0), half(HALF));
        [below | under << HALF, inside | within << HALF]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn keep(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        for (at, mask) in [(0, mask & 0xff), (HALF, mask >> HALF)] {
            // SAFETY: load and store are of eight elements.
            unsafe {
                let values = _mm256_loadu_ps(from.as_ptr().add(at));
                let kept = _mm256_and_ps(values, _mm256_castsi256_ps(spread(mask)));
                _mm256_storeu_ps(to.as_mut_ptr().add(at), kept);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn pack(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        let (low, high) = (usize::from(mask & 0xff), usize::from(mask >> HALF));
        // SAFETY: loads and stores are of eight elements; the second store begins at the eighth at most.
        unsafe {
            let values = _mm256_loadu_ps(from.as_ptr());
            let others = _mm256_loadu_ps(from.as_ptr().add(HALF));
            _mm256_storeu_ps(to.as_mut_ptr(), _mm256_permutevar8x32_ps(values, row(&PACKED, low)));
            let behind = to.as_mut_ptr().add(low.count_ones() as usize);
            _mm256_storeu_ps(behind, _mm256_permutevar8x32_ps(others, row(&PACKED, high)));
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,popcnt")]
    pub(super) fn unpack(mask: Mask, from: &[f32; GROUP], to: &mut [f32; GROUP]) {
        let mut left = 0;
        for (at, mask) in [(0, mask & 0xff), (HALF, mask >> HALF)] {
            // SAFETY: loads and stores are of eight elements; `left` is eight at most.
            unsafe {
                let new = _mm256_loadu_ps(from.as_ptr().add(left));
                let new = _mm256_permutevar8x32_ps(new, row(&UNPACKED, mask.into()));
                let old = _mm256_loadu_ps(to.as_ptr().add(at));
                let both = _mm256_blendv_ps(old, new, _mm256_castsi256_ps(spread(mask)));
                _mm256_storeu_ps(to.as_mut_ptr().add(at), both);
            }
            left += mask.count_ones() as usize;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    #[test]
    fn wanted_elements_come_together_and_go_back_for_every_mask() {
        let row: [f32; GROUP] =
            std::array::from_fn(|lane| f32::from_bits(0x7f80_0001 + lane as u32));
        for kernels in Kernels::available() {
            for wanted in 0..=Mask::MAX {
                let flags = std::array::from_fn(|lane| u32::from(wanted >> lane & 1) << (lane * 2));
                let (mut packed, mut back) = ([0.0; GROUP], [-1.0; GROUP]);
                let mask = kernels.mask(&flags);
                assert_eq!(mask, wanted);
                kernels.pack(mask, &row, &mut packed);
                let lanes = (0..GROUP).filter(|lane| wanted >> lane & 1 == 1);
                for (got, lane) in packed.iter().zip(lanes) {
                    assert_eq!(got.to_bits(), row[lane].to_bits(), "{kernels:?} {wanted:b}");
                }
                kernels.unpack(mask, &packed, &mut back);
                for (lane, (got, value)) in back.iter().zip(row).enumerate() {
                    let expected = if wanted >> lane & 1 == 1 { value } else { -1.0 };
                    assert_eq!(got.to_bits(), expected.to_bits(), "{kernels:?} {wanted:b}");
                }
            }
        }
    }
}
