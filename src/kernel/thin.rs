//! Leaving out elements of a row by their magnitudes.

use super::dispatch::Lanes;
use super::pack::{GROUP, Mask, keep, pack, sides};

/// `out` = the values whose magnitudes, as bits, lie in `least..=most`; zero for the others.
#[inline(always)]
pub(super) fn keep_between(values: &[f32], (least, most): (u32, u32), out: &mut [f32]) {
    debug_assert!(least <= most, "nothing lies between {least} and {most}");
    let width = most.wrapping_sub(least);
    for (out, &value) in out.iter_mut().zip(values) {
        let key = value.to_bits() & 0x7fff_ffff;
        *out = if key.wrapping_sub(least) <= width { value } else { 0.0 };
    }
}

/// `out` = the values where `marks` is not zero; zero for the others.
#[inline(always)]
pub(super) fn keep_marked(marks: &[f32], values: &[f32], out: &mut [f32]) {
    for ((out, &value), &mark) in out.iter_mut().zip(values).zip(marks) {
        *out = if mark == 0.0 { 0.0 } else { value };
    }
}

/// `out` = the values whose bits are set; bit `first` is that of the first value. Zero for the others.
#[inline(always)]
pub(super) fn keep_bits(lanes: Lanes, bits: &[u16], first: usize, values: &[f32], out: &mut [f32]) {
    let (shift, words) = (first % GROUP, &bits[first / GROUP..]);
    let (groups, rest) = values.as_chunks::<GROUP>();
    let (outs, out_rest) = out[..values.len()].as_chunks_mut::<GROUP>();
    for (k, (out, values)) in outs.iter_mut().zip(groups).enumerate() {
        keep(lanes, bits_from(words, k, shift), values, out);
    }
    let wanted = if rest.is_empty() { 0 } else { bits_from(words, groups.len(), shift) };
    for (lane, (out, &value)) in out_rest.iter_mut().zip(rest).enumerate() {
        *out = if wanted >> lane & 1 == 1 { value } else { 0.0 };
    }
}

/// The bits of group `k`, which begin so many bits behind the beginning of a word.
#[inline(always)]
fn bits_from(words: &[u16], k: usize, shift: usize) -> Mask {
    let next = words.get(k + 1).map_or(0, |&word| u32::from(word));
    ((next << 16 | u32::from(words[k])) >> shift) as Mask
}

/// Notes, a bit for each element, which magnitudes, as bits, are not below `least`. Bits behind the last element are zero.
#[inline(always)]
pub(super) fn note_from(lanes: Lanes, values: &[f32], least: u32, noted: &mut [u16]) {
    let (groups, rest) = values.as_chunks::<GROUP>();
    let (whole, last) = noted.split_at_mut(groups.len());
    for (noted, group) in whole.iter_mut().zip(groups) {
        let [below, _] = sides(lanes, group, (least, u32::MAX));
        *noted = !below;
    }
    if let Some(noted) = last.first_mut() {
        let key = |value: &f32| value.to_bits() & 0x7fff_ffff;
        let bit = |noted, value: &f32| noted << 1 | u16::from(key(value) >= least);
        *noted = rest.iter().rev().fold(0, bit);
    }
}

/// Appends the values that are noted to `packed`.
#[inline(always)]
pub(super) fn pack_noted(lanes: Lanes, noted: &[u16], values: &[f32], packed: &mut Vec<f32>) {
    let before = packed.len();
    // Groups are stored whole.
    packed.resize(before + values.len() + GROUP, 0.0);
    let mut count = before;
    let (groups, rest) = values.as_chunks::<GROUP>();
    for (group, &wanted) in groups.iter().zip(noted) {
        if let Some(to) = packed[count..].first_chunk_mut() {
            pack(lanes, wanted, group, to);
        }
        count += wanted.count_ones() as usize;
    }
    let wanted = noted.get(groups.len()).copied().unwrap_or(0);
    for (lane, &value) in rest.iter().enumerate() {
        packed[count] = value;
        count += usize::from(wanted >> lane & 1);
    }
    packed.truncate(count);
}

/// How many magnitudes have these bits.
#[inline(always)]
pub(super) fn count_magnitude(values: &[f32], key: u32) -> u64 {
    // In pieces, so that counts of 32 bits do.
    let count = |piece: &[f32]| -> u32 {
        piece.iter().map(|value| u32::from(value.to_bits() & 0x7fff_ffff == key)).sum()
    };
    values.chunks(1 << 20).map(|piece| u64::from(count(piece))).sum()
}

/// Multiplies each element by one number.
#[inline(always)]
pub(super) fn multiply_by(factor: f32, out: &mut [f32]) {
    for x in out {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    use crate::kernel::Kernels;
    use crate::testing::parts::bits;

    #[test]
    fn all_paths_give_the_bits_of_a_plain_loop() {
        let some = [0.0f32, -0.0, 1.0, -1.0, 0.75, -0.25, 1e-45, 3.0, f32::MAX];
        for len in (0..70).chain([4096, 5001]) {
            let row: Vec<f32> = (0..len).map(|k| some[k * 7 % 9] * [1.0, 0.5][k % 2]).collect();
            for kernels in Kernels::available() {
                for (least, most) in [(0, 0), (1, u32::MAX), (0x3e80_0000, 0x3f80_0000), (5, 5)] {
                    let mut kept = vec![9.0; len];
                    kernels.keep_between(&row, (least, most), &mut kept);
                    for (x, kept) in row.iter().zip(kept) {
                        let inside = (least..=most).contains(&x.abs().to_bits());
                        assert_eq!(kept.to_bits(), if inside { x.to_bits() } else { 0 });
                    }
                }
                let (marks, mut marked) =
                    (row.iter().rev().copied().collect::<Vec<_>>(), vec![9.0; len]);
                kernels.keep_marked(&marks, &row, &mut marked);
                for ((x, mark), marked) in row.iter().zip(&marks).zip(&marked) {
                    assert_eq!(marked.to_bits(), if *mark == 0.0 { 0 } else { x.to_bits() });
                }
                let mut noted = vec![9; len.div_ceil(16)];
                kernels.note_from(&row, 0.75f32.to_bits(), &mut noted);
                let large = |x: &f32| x.abs() >= 0.75;
                for (k, x) in row.iter().enumerate() {
                    assert_eq!(noted[k / 16] >> (k % 16) & 1 == 1, large(x), "{len} {k}");
                }
                // No bits behind the end.
                assert!(len % 16 == 0 || noted[len / 16] >> (len % 16) == 0);
                let mut packed = vec![7.0];
                kernels.pack_noted(&noted, &marks, &mut packed);
                let wanted = row.iter().zip(&marks).filter(|(x, _)| large(x));
                let wanted: Vec<f32> = [7.0].into_iter().chain(wanted.map(|(_, x)| *x)).collect();
                assert_eq!(bits(&packed), bits(&wanted));
                let mut found = Vec::new();
                let (quarter, one) = (0.25f32.to_bits(), 1f32.to_bits());
                for span in [(quarter, one), (1, u32::MAX), (0, 0), (1 << 31, u32::MAX), (one, 1)] {
                    let [below, inside] = kernels.places_within(&row, span, &mut found);
                    let keys = row.iter().map(|x| x.abs().to_bits());
                    let places = (0..).zip(keys.clone());
                    let places = places.filter(|(_, key)| (span.0..=span.1).contains(key));
                    let places: Vec<u32> = places.map(|(place, _)| place).collect();
                    assert_eq!(found[..inside as usize], places);
                    assert_eq!(below as usize, keys.filter(|&key| key < span.0).count());
                }
                for first in [0, 1, 15, 16, 37] {
                    let mut words = vec![0u16; (first + len).div_ceil(16)];
                    for (k, _) in marks.iter().enumerate().filter(|(_, mark)| **mark != 0.0) {
                        words[(first + k) / 16] |= 1 << ((first + k) % 16);
                    }
                    let mut kept = vec![9.0; len];
                    kernels.keep_bits(&words, first, &row, &mut kept);
                    kernels.keep_marked(&marks, &row, &mut marked);
                    assert_eq!(bits(&kept), bits(&marked));
                }
                let equal = row.iter().filter(|x| x.abs() == 0.5).count();
                assert_eq!(kernels.count_magnitude(&row, 0.5f32.to_bits()), equal as u64);
                let mut scaled = row.clone();
                kernels.multiply_by(-1.7, &mut scaled);
                for (x, scaled) in row.iter().zip(scaled) {
                    assert_eq!(scaled.to_bits(), (x * -1.7).to_bits());
                }
            }
        }
    }
}
