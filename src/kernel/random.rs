//! Random numbers that depend on nothing but a key and a counter.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011): ten rounds over a
//! counter of four 32-bit words give four random words. Integers only, so they are the same on any machine.

use super::dispatch::Lanes;
use super::pack;

/// Counters that are worked on together.
const LANES: usize = 16;
/// Elements whose numbers come from counters next to each other: all first words, then all second ones, ..
const GROUP: usize = 256;
const COUNTERS: usize = GROUP / 4;

/// Bits of a number.
const BITS: u32 = 24;

/// The least number, of 24 bits, that is as large as a fraction or larger: numbers below it are as likely as that.
#[inline(always)]
pub fn limit(odds: f32) -> u32 {
    // Exact: a power of two. What is negative becomes 0.
    (odds * (1 << BITS) as f32).ceil() as u32
}

/// Numbers of [`BITS`] bits for the elements from `first` on.
///
/// Element e has word (e / 64) mod 4 of the counter 64 (e / 256) + e mod 64.
#[inline(always)]
pub(super) fn draw(key: [u32; 2], first: u64, out: &mut [u32]) {
    let (mut at, mut skip) = (first / GROUP as u64, (first % GROUP as u64) as usize);
    let mut rest = out;
    while !rest.is_empty() {
        let words = group(key, at);
        let (now, later) = rest.split_at_mut(rest.len().min(GROUP - skip));
        for (out, word) in now.iter_mut().zip(&words[skip..]) {
            *out = word >> (32 - BITS);
        }
        (rest, at, skip) = (later, at + 1, 0);
    }
}

/// The words of one group of elements.
#[inline(always)]
fn group(key: [u32; 2], number: u64) -> [u32; GROUP] {
    let mut words = [0; GROUP];
    for start in (0..COUNTERS).step_by(LANES) {
        let mut x = [[0u64; LANES]; 4];
        let [low, high, ..] = &mut x;
        let counters = number * COUNTERS as u64 + start as u64..;
        for ((low, high), counter) in low.iter_mut().zip(high).zip(counters) {
            (*low, *high) = (counter, counter >> 32);
        }
        philox(&mut x, key);
        for (word, x) in x.iter().enumerate() {
            for (word, &x) in words[word * COUNTERS + start..][..LANES].iter_mut().zip(x) {
                *word = x as u32;
            }
        }
    }
    words
}

/// The bits of a word.
const WORD: u64 = u32::MAX as u64;

/// Philox4x32-10 on counters side by side. Words lie in 64 bits, as the products of two do: no vector instruction multiplies
/// words that lie next to each other into those. What is above their 32 bits has no meaning.
#[inline(always)]
fn philox<const N: usize>(x: &mut [[u64; N]; 4], [mut k0, mut k1]: [u32; 2]) {
    let [x0, x1, x2, x3] = x;
    for _ in 0..10 {
        for lane in 0..N {
            let a = (x0[lane] & WORD) * 0xd251_1f53;
            let b = (x2[lane] & WORD) * 0xcd9e_8d57;
            let (y0, y2) = (b >> 32 ^ x1[lane] ^ u64::from(k0), a >> 32 ^ x3[lane] ^ u64::from(k1));
            (x0[lane], x1[lane], x2[lane], x3[lane]) = (y0, b, y2, a);
        }
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
}

/// Notes in `kept`, a bit for each element, the lowest for the first of sixteen, which numbers lie below `limit`. Returns the
/// largest magnitude of the values that have them, as bits.
#[inline(always)]
pub(super) fn note_below(
    lanes: Lanes,
    numbers: &[u32],
    limit: u32,
    values: &[f32],
    kept: &mut [u16],
) -> u32 {
    let mut largest = [0; pack::GROUP];
    let (full, rest) = numbers.as_chunks::<{ pack::GROUP }>();
    let (values, values_rest) = values.as_chunks::<{ pack::GROUP }>();
    let (kept, kept_rest) = kept.split_at_mut(full.len());
    for ((numbers, values), kept) in full.iter().zip(values).zip(kept) {
        *kept = note_group(lanes, numbers, limit, values, &mut largest);
    }
    if let Some(kept) = kept_rest.first_mut() {
        // No number lies below the limit where there is none.
        let (mut numbers, mut values) = ([u32::MAX; pack::GROUP], [0.0; pack::GROUP]);
        numbers[..rest.len()].copy_from_slice(rest);
        values[..rest.len()].copy_from_slice(values_rest);
        *kept = note_group(lanes, &numbers, limit, &values, &mut largest);
    }
    largest.into_iter().fold(0, u32::max)
}

#[inline(always)]
fn note_group(
    lanes: Lanes,
    numbers: &[u32; pack::GROUP],
    limit: u32,
    values: &[f32; pack::GROUP],
    largest: &mut [u32; pack::GROUP],
) -> u16 {
    let mut flags = [0; pack::GROUP];
    for k in 0..pack::GROUP {
        // All ones or none: compilers make branches of what is chosen.
        flags[k] = u32::from(numbers[k] < limit).wrapping_neg();
        largest[k] = largest[k].max(values[k].to_bits() & 0x7fff_ffff & flags[k]);
    }
    pack::mask(lanes, &flags)
}

/// `out` = `factor` times the values that are noted in `kept`; zero for the others.
#[inline(always)]
pub(super) fn keep_noted(kept: &[u16], factor: f32, values: &[f32], out: &mut [f32]) {
    // Not in arrays: loops of known length are unrolled before they are made vectors of, which fails then.
    for ((out, values), &kept) in
        out.chunks_mut(pack::GROUP).zip(values.chunks(pack::GROUP)).zip(kept)
    {
        for (bit, (out, &value)) in (0..).zip(out.iter_mut().zip(values)) {
            *out = if kept >> bit & 1 == 1 { factor * value } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;

    #[test]
    fn philox_gives_the_published_numbers() {
        // Random123's kat_vectors, philox4x32 10.
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            // What is above the words does not matter.
            for above in [0, 0xabcd_0000_0000] {
                let mut x = counter.map(|word: u32| [u64::from(word) | above]);
                philox(&mut x, key);
                assert_eq!(x.map(|[word]| word as u32), expected);
            }
        }
    }

    /// Numbers drawn by the last path.
    fn drawn(key: [u32; 2], first: u64, len: usize) -> Vec<u32> {
        let mut numbers = vec![9; len];
        Kernels::available().last().unwrap().draw(key, first, &mut numbers);
        numbers
    }

    #[test]
    fn an_element_has_its_number_wherever_a_block_begins() {
        let key = [3, 4];
        let far = (1u64 << 40) - 700;
        for origin in [0, far] {
            let mut whole = vec![0; 2000];
            Kernels::available().next().unwrap().draw(key, origin, &mut whole);
            assert!(whole.iter().all(|&number| number < 1 << BITS));
            for kernels in Kernels::available() {
                for (first, len) in [(0, 2000), (1, 255), (255, 2), (300, 1000), (1999, 1), (7, 0)]
                {
                    let mut part = vec![9; len];
                    kernels.draw(key, origin + first, &mut part);
                    assert_eq!(part, &whole[first as usize..][..len]);
                }
            }
        }
        let word = |counter: u64, word: usize| {
            let mut x = [[counter], [0], [0], [0]];
            philox(&mut x, key);
            x[word][0] as u32 >> 8
        };
        let some = drawn(key, 0, 600);
        assert_eq!(
            [some[0], some[70], some[255], some[599]],
            [word(0, 0), word(6, 1), word(63, 3), word(151, 1)]
        );
    }

    #[test]
    fn numbers_below_a_limit_are_those_below_the_fraction() {
        for odds in [0.0, 1e-30, 0.1, 0.3, 0.5, 0.999_999, 1.0, -0.5] {
            let limit = limit(odds);
            for number in [0, 1, limit.saturating_sub(1), limit, limit + 1, (1 << BITS) - 1] {
                let fraction = number as f32 / (1 << BITS) as f32;
                assert_eq!(number < limit, fraction < odds, "{odds} {number}");
            }
        }
    }

    #[test]
    fn every_path_notes_what_a_plain_loop_does_and_keeps_it() {
        for len in (0..70).chain([4096, 5001]) {
            let numbers = drawn([5, 6], 77, len);
            let values: Vec<f32> = (0..len).map(|e| (e % 89) as f32 - 60.0).collect();
            let limit = limit(0.3);
            let below: Vec<bool> = numbers.iter().map(|&number| number < limit).collect();
            for kernels in Kernels::available() {
                let (mut kept, mut left) = (vec![0xaaaa; len.div_ceil(16)], vec![9.0; len]);
                let largest = kernels.note_below(&numbers, limit, &values, &mut kept);
                kernels.keep_noted(&kept, 1.5, &values, &mut left);
                let mut most = 0.0f32;
                for e in 0..len {
                    assert_eq!(kept[e / 16] >> (e % 16) & 1 == 1, below[e]);
                    assert_eq!(left[e], if below[e] { 1.5 * values[e] } else { 0.0 });
                    most = most.max(if below[e] { values[e].abs() } else { 0.0 });
                }
                assert_eq!(f32::from_bits(largest), most);
                // No bits behind the end.
                assert!(len % 16 == 0 || kept.last().is_none_or(|bits| bits >> (len % 16) == 0));
            }
        }
    }

    #[test]
    fn they_look_uniform_and_independent() {
        let len = 1 << 20;
        let draw = |key| -> Vec<f64> {
            let numbers = drawn(key, 0, len).into_iter();
            numbers.map(|number| f64::from(number) / f64::from(1 << BITS) - 0.5).collect()
        };
        let (a, b) = (draw([1, 0]), draw([2, 0]));
        let n = len as f64;
        let mean = |f: &dyn Fn(usize) -> f64| (0..len).map(f).sum::<f64>() / n;
        // Five standard errors.
        assert!(mean(&|e| a[e]).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!((mean(&|e| a[e].powi(2)) - 1.0 / 12.0).abs() < 5.0 * (1.0 / 180.0 / n).sqrt());
        for lag in [1, 64, 256] {
            let moved = mean(&|e| a[e] * a[(e + lag) % len]);
            assert!(moved.abs() < 5.0 / 12.0 / n.sqrt(), "{lag}: {moved}");
        }
        assert!(mean(&|e| a[e] * b[e]).abs() < 5.0 / 12.0 / n.sqrt());
    }
}
