//! Random numbers that depend on nothing but a key and a counter.
//!
//! Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3; SC 2011): ten rounds over a
//! counter of four 32-bit words give four random words. Integers only, so they are the same on any machine.

/// Counters that are worked on together.
const LANES: usize = 16;
/// Elements whose numbers come from counters next to each other: all first words, then all second ones, ..
const GROUP: usize = 256;
const COUNTERS: usize = GROUP / 4;

/// Numbers in [0, 1), multiples of 2^-24, for the elements from `first` on.
///
/// Element e has word (e / 64) mod 4 of the counter 64 (e / 256) + e mod 64.
#[inline(always)]
pub(super) fn uniforms(key: [u32; 2], first: u64, out: &mut [f32]) {
    let (mut at, mut skip) = (first / GROUP as u64, (first % GROUP as u64) as usize);
    let mut rest = out;
    while !rest.is_empty() {
        let words = group(key, at);
        let (now, later) = rest.split_at_mut(rest.len().min(GROUP - skip));
        for (out, word) in now.iter_mut().zip(&words[skip..]) {
            // 24 bits: exact in f32.
            *out = (word >> 8) as i32 as f32 * (1.0 / (1 << 24) as f32);
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
            (*low, *high) = (counter & WORD, counter >> 32);
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
/// words that lie next to each other into those.
#[inline(always)]
fn philox<const N: usize>(x: &mut [[u64; N]; 4], [mut k0, mut k1]: [u32; 2]) {
    let [x0, x1, x2, x3] = x;
    for _ in 0..10 {
        for lane in 0..N {
            let a = (x0[lane] & WORD) * 0xd251_1f53;
            let b = (x2[lane] & WORD) * 0xcd9e_8d57;
            let (y0, y2) = (b >> 32 ^ x1[lane] ^ u64::from(k0), a >> 32 ^ x3[lane] ^ u64::from(k1));
            (x0[lane], x1[lane], x2[lane], x3[lane]) = (y0, b & WORD, y2, a & WORD);
        }
        k0 = k0.wrapping_add(0x9e37_79b9);
        k1 = k1.wrapping_add(0xbb67_ae85);
    }
}

/// `out` = the values whose random numbers lie below `odds`; zero for the others.
#[inline(always)]
pub(super) fn keep_below(numbers: &[f32], odds: f32, values: &[f32], out: &mut [f32]) {
    for ((out, &value), &number) in out.iter_mut().zip(values).zip(numbers) {
        *out = if number < odds { value } else { 0.0 };
    }
}

/// The same with odds of their own for each.
#[inline(always)]
pub(super) fn keep_below_each(numbers: &[f32], odds: &[f32], values: &[f32], out: &mut [f32]) {
    for (((out, &value), &number), &odds) in out.iter_mut().zip(values).zip(numbers).zip(odds) {
        *out = if number < odds { value } else { 0.0 };
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
            let mut x = counter.map(|word: u32| [u64::from(word)]);
            philox(&mut x, key);
            assert_eq!(x.map(|[word]| word), expected.map(|word: u32| u64::from(word)));
        }
    }

    #[test]
    fn an_element_has_its_number_wherever_a_block_begins() {
        let key = [3, 4];
        let far = (1u64 << 40) - 700;
        for origin in [0, far] {
            let mut whole = vec![0.0; 2000];
            Kernels::available().next().unwrap().uniforms(key, origin, &mut whole);
            for kernels in Kernels::available() {
                for (first, len) in [(0, 2000), (1, 255), (255, 2), (300, 1000), (1999, 1), (7, 0)]
                {
                    let mut part = vec![9.0; len];
                    kernels.uniforms(key, origin + first, &mut part);
                    assert_eq!(part, &whole[first as usize..][..len]);
                }
                let values: Vec<f32> = (0..2000).map(|e| e as f32 - 7.0).collect();
                let (mut kept, mut each) = (vec![9.0; 2000], vec![9.0; 2000]);
                kernels.keep_below(&whole, 0.3, &values, &mut kept);
                kernels.keep_below_each(&whole, &vec![0.3; 2000], &values, &mut each);
                for e in 0..2000 {
                    let expected = if whole[e] < 0.3 { values[e] } else { 0.0 };
                    assert_eq!((kept[e], each[e]), (expected, expected));
                }
            }
        }
        let word = |counter: u64, word: usize| {
            let mut x = [[counter], [0], [0], [0]];
            philox(&mut x, key);
            (x[word][0] >> 8) as f32 / (1 << 24) as f32
        };
        let mut some = vec![0.0; 600];
        Kernels::available().next().unwrap().uniforms(key, 0, &mut some);
        assert_eq!(
            [some[0], some[70], some[255], some[599]],
            [word(0, 0), word(6, 1), word(63, 3), word(151, 1)]
        );
    }

    #[test]
    fn they_look_uniform_and_independent() {
        let len = 1 << 20;
        let draw = |key| {
            let mut numbers = vec![0.0; len];
            Kernels::available().last().unwrap().uniforms(key, 0, &mut numbers);
            numbers
        };
        let (a, b) = (draw([1, 0]), draw([2, 0]));
        let n = len as f64;
        let mean = |f: &dyn Fn(usize) -> f64| (0..len).map(f).sum::<f64>() / n;
        let centred = |row: &[f32], e: usize| f64::from(row[e]) - 0.5;
        // Five standard errors.
        assert!(mean(&|e| centred(&a, e)).abs() < 5.0 * (1.0 / 12.0 / n).sqrt());
        assert!(
            (mean(&|e| centred(&a, e).powi(2)) - 1.0 / 12.0).abs() < 5.0 * (1.0 / 180.0 / n).sqrt()
        );
        for lag in [1, 64, 256] {
            let moved = mean(&|e| centred(&a, e) * centred(&a, (e + lag) % len));
            assert!(moved.abs() < 5.0 / 12.0 / n.sqrt(), "{lag}: {moved}");
        }
        assert!(mean(&|e| centred(&a, e) * centred(&b, e)).abs() < 5.0 / 12.0 / n.sqrt());
    }
}
