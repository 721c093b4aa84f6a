//! Odds that depend on the rank of an element's magnitude in its row.

use crate::kernel::Kernels;
use crate::kernel::ranked::{Limits, MARK, Places};
use crate::method::TensorView;

/// Elements that are ranked together with those beside them: a row of a matrix, the whole of a vector, and of
/// other tensors all that have one index in the first dimension.
pub(super) fn slice(tensor: &TensorView) -> u64 {
    match &*tensor.shape {
        [] | [_] => tensor.elements,
        [_, row @ ..] => row.iter().product(),
    }
    .max(1)
}

/// Rows shorter than this are sorted, whatever they hold.
const SHORT: usize = 64;

/// Space for ranking a row.
#[derive(Default)]
pub(super) struct Ranking {
    limits: Kept,
    column: Vec<f32>,
    numbers: Vec<u32>,
    marks: Vec<u32>,
    places: Places,
    ranks: Ranks,
}

impl Ranking {
    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        let words = [&self.numbers, &self.marks, &self.ranks.found].map(Vec::capacity);
        let pairs = self.ranks.pairs.capacity() + self.ranks.other.capacity();
        let words = words.iter().sum::<usize>() + self.column.capacity() + self.limits.limits.len();
        words * 4 + pairs * 8 + self.places.bytes()
    }
}

/// Marks elements of whole slices, as [`Kernels::mark_ranked`] does, whose numbers lie below the odds of their ranks: density - epsilon for the
/// smallest magnitude along the second dimension, density + epsilon for the largest, evenly spaced between them.
pub(super) fn mark_rows(
    kernels: &Kernels,
    tensor: &TensorView,
    (row, numbers): (&[f32], &[u32]),
    odds: [f64; 2],
    ranking: &mut Ranking,
    marks: &mut [u32],
) {
    let slice = slice(tensor) as usize;
    let length = tensor.shape.get(1).map_or(slice, |&length| length as usize).max(1);
    let stride = slice / length;
    let Ranking { limits, column, numbers: drawn, marks: marked, places, ranks } = ranking;
    let limits = limits.of(length, odds);
    let slices = row.chunks_exact(slice).zip(numbers.chunks_exact(slice));
    for ((row, numbers), marks) in slices.zip(marks.chunks_exact_mut(slice)) {
        if stride == 1 {
            mark(kernels, (row, numbers), limits, (places, ranks), marks);
            continue;
        }
        marked.resize(length, 0);
        for offset in 0..stride {
            column.clear();
            column.extend(row[offset..].iter().step_by(stride));
            drawn.clear();
            drawn.extend(numbers[offset..].iter().step_by(stride));
            mark(kernels, (column, drawn), limits, (places, ranks), marked);
            for (mark, &marked) in marks[offset..].iter_mut().step_by(stride).zip(&*marked) {
                *mark = marked;
            }
        }
    }
}

/// Marks elements of one row.
fn mark(
    kernels: &Kernels,
    (row, numbers): (&[f32], &[u32]),
    limits: &Limits,
    (places, ranks): (&mut Places, &mut Ranks),
    marks: &mut [u32],
) {
    if row.len() < SHORT || !kernels.mark_ranked(row, numbers, limits, places, marks) {
        ranks.rank(row);
        for ((mark, &number), &rank) in marks.iter_mut().zip(numbers).zip(&ranks.found) {
            *mark = if number < limits.get(rank as usize) { 0 } else { MARK };
        }
    }
}

/// Limits of random numbers, kept from row to row.
#[derive(Default)]
struct Kept {
    odds: [f64; 2],
    limits: Limits,
}

impl Kept {
    fn of(&mut self, length: usize, odds: [f64; 2]) -> &Limits {
        if self.limits.len() != length || self.odds != odds {
            let [density, epsilon] = odds;
            let (least, range) = ((density - epsilon) as f32, (2.0 * epsilon) as f32);
            // One element alone is neither the smallest nor the largest.
            self.limits = Limits::new(length, least, range, density as f32);
            self.odds = odds;
        }
        &self.limits
    }
}

/// Ranks by magnitude.
#[derive(Default)]
struct Ranks {
    found: Vec<u32>,
    /// Keys above places.
    pairs: Vec<u64>,
    other: Vec<u64>,
}

impl Ranks {
    /// Finds the rank of each value from the smallest magnitude, equal ones in their order.
    fn rank(&mut self, values: &[f32]) {
        let Self { found, pairs, other } = self;
        let pair =
            |(place, value): (u64, &f32)| u64::from(value.to_bits() & 0x7fff_ffff) << 32 | place;
        pairs.clear();
        pairs.extend((0..).zip(values).map(pair));
        if values.len() < 512 {
            // Pairs are distinct, so this is as good as a stable sort.
            pairs.sort_unstable();
        } else {
            sort(pairs, other);
        }
        found.resize(values.len(), 0);
        for (rank, &pair) in (0..).zip(&*pairs) {
            found[pair as u32 as usize] = rank;
        }
    }
}

/// Bits of a digit that is sorted by, and how many digits a key of 31 bits has.
const DIGIT: u32 = 8;
const DIGITS: usize = 4;

/// The so-manieth digit of the key.
#[inline(always)]
fn digit(pair: u64, number: usize) -> usize {
    (pair >> (32 + DIGIT * number as u32)) as usize & ((1 << DIGIT) - 1)
}

/// Sorts by the keys, equal ones in their order: digit by digit, the lowest first, but for those in which all keys agree.
/// Task vectors of half-width floats have few significant bits.
fn sort(pairs: &mut Vec<u64>, other: &mut Vec<u64>) {
    let mut counts = [[0u32; 1 << DIGIT]; DIGITS];
    for &pair in &*pairs {
        for (number, counts) in counts.iter_mut().enumerate() {
            counts[digit(pair, number)] += 1;
        }
    }
    other.resize(pairs.len(), 0);
    for (number, starts) in counts.iter_mut().enumerate() {
        let Some(&first) = pairs.first() else { return };
        if starts[digit(first, number)] as usize == pairs.len() {
            continue;
        }
        let mut sum = 0;
        for start in &mut *starts {
            (*start, sum) = (sum, sum + *start);
        }
        for &pair in &*pairs {
            let start = &mut starts[digit(pair, number)];
            other[*start as usize] = pair;
            *start += 1;
        }
        std::mem::swap(pairs, other);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{UnitView, Values};
    use crate::testing::parts::{tied, uniform};

    #[test]
    fn ranks_are_those_of_a_stable_sort() {
        for len in [0, 1, 2, 100, 511, 512, 513, 5000] {
            let row = &tied(1, len, 7 + len as u64)[0];
            let mut ranks = Ranks::default();
            ranks.rank(&vec![1.0; 3 * len / 2]);
            ranks.rank(row);
            let mut places: Vec<usize> = (0..len).collect();
            places.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
            assert_eq!(ranks.found.len(), len);
            for (rank, place) in places.into_iter().enumerate() {
                assert_eq!(ranks.found[place] as usize, rank, "{len}");
            }
        }
    }

    /// Which elements of a tensor are kept, by the definition.
    fn plain(
        shape: &[usize],
        row: &[f32],
        numbers: &[u32],
        [density, epsilon]: [f64; 2],
    ) -> Vec<bool> {
        let slice = shape.iter().skip(1).product::<usize>();
        let (slice, length) = match shape {
            [] | [_] => (row.len(), row.len()),
            [_, length, ..] => (slice, *length),
        };
        let stride = slice / length;
        let mut kept = vec![false; row.len()];
        for (at, offset) in
            (0..row.len()).step_by(slice).flat_map(|at| (0..stride).map(move |o| (at, o)))
        {
            let mut places: Vec<usize> = (0..length).map(|k| at + offset + k * stride).collect();
            places.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
            for (rank, place) in places.into_iter().enumerate() {
                let odds = match length {
                    1 => density as f32,
                    _ => {
                        (density - epsilon) as f32
                            + rank as f32 / (length - 1) as f32 * (2.0 * epsilon) as f32
                    }
                };
                kept[place] = (numbers[place] as f32 / (1 << 24) as f32) < odds;
            }
        }
        kept
    }

    /// Which elements are kept with these numbers, zeros apart.
    fn kept(
        kernels: &Kernels,
        shape: &[usize],
        row: &[f32],
        numbers: &[u32],
        odds: [f64; 2],
    ) -> Vec<bool> {
        let sizes: Vec<u64> = shape.iter().map(|&size| size as u64).collect();
        let unit = UnitView::tensor("w", &sizes, Values::new(1));
        let (mut marks, mut ranking) = (vec![9; row.len()], Ranking::default());
        // Space that another tensor has left.
        mark_rows(kernels, &unit.tensors[0], (row, numbers), [0.5, 0.1], &mut ranking, &mut marks);
        mark_rows(kernels, &unit.tensors[0], (row, numbers), odds, &mut ranking, &mut marks);
        marks.into_iter().map(|mark| mark < MARK).collect()
    }

    #[test]
    fn elements_are_kept_by_the_odds_of_their_ranks() {
        let numbers = |len: usize, seed| -> Vec<u32> {
            let mut uniform = uniform(seed);
            (0..len).map(|_| (uniform() * f64::from(1 << 24)) as u32).collect()
        };
        let mut random = uniform(3);
        let mut smooth =
            |scale: f64| (((random() - 0.5) / (random() + 0.01)).powi(3) * scale) as f32;
        for shape in [
            &[][..],
            &[1],
            &[5],
            &[2, 3],
            &[6, 1],
            &[3, 63],
            &[3, 64],
            &[2, 4, 3],
            &[1, 100, 2],
            &[3, 2048],
            &[1, 5001],
            &[700],
        ] {
            let len = shape.iter().product::<usize>();
            // Ties and zeros; none; both; magnitudes of all sizes; large buckets of two magnitudes; all equal; nothing.
            let half = |k: usize| {
                if k.is_multiple_of(2) { 1.0 } else { f32::from_bits(1.0f32.to_bits() + 1) }
            };
            let rows = [
                tied(1, len, 5).remove(0),
                (0..len).map(|_| smooth(1.0)).collect(),
                tied(1, len, 6)[0]
                    .iter()
                    .enumerate()
                    .map(|(k, &x)| if k % 9 == 0 { smooth(1e-3) } else { x })
                    .collect(),
                (0..len).map(|k| smooth(1.0) * 2f32.powi(k as i32 % 200 - 120)).collect(),
                (0..len).map(half).collect(),
                vec![-0.3; len],
                vec![0.0; len],
            ];
            for (k, row) in rows.iter().enumerate() {
                let numbers = numbers(len, k as u64 + 9);
                for odds in
                    [[0.5, 0.15], [0.5, -0.15], [0.3, 0.29], [0.9, 0.0], [0.5, 1e-6], [0.5, 0.003]]
                {
                    let expected = plain(shape, row, &numbers, odds);
                    for kernels in Kernels::available() {
                        let got = kept(kernels, shape, row, &numbers, odds);
                        for e in (0..len).filter(|&e| row[e] != 0.0) {
                            assert_eq!(got[e], expected[e], "{shape:?} row {k} {odds:?} {e}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_next_to_the_limits_of_ranks_are_told_apart() {
        let mut random = uniform(11);
        for len in [64, 79, 4095, 65_535, 65_536] {
            let mut bits = |low: u32, span: u32, mask: u32| {
                let mut bits =
                    || f32::from_bits((low + (random() * f64::from(span)) as u32) & !mask);
                (0..len).map(|_| bits()).collect::<Vec<f32>>()
            };
            // Subnormals; the largest; all sizes; nothing but few bits, and such beside others; few magnitudes.
            let mut rows = [
                bits(0, 1 << 23, 0),
                bits(0x7f00_0000, 0x007f_ffff, 0),
                bits(0, 0x7f7f_ffff, 0),
                bits(0x3f00_0000, 0x0300_0000, 0x1_ffff),
                bits(0x3f00_0000, 0x0300_0000, 0xffff),
                bits(0x3f80_0000, 3, 0),
                bits(0, 4, 0),
            ];
            for (k, x) in rows.iter_mut().flatten().enumerate() {
                *x = [-*x, *x, if k % 31 == 1 { -0.0 } else { *x }][k % 3];
            }
            for (number, row) in rows.iter().enumerate() {
                let mut places: Vec<usize> = (0..len).collect();
                places.sort_by(|&a, &b| row[a].abs().total_cmp(&row[b].abs()));
                for odds in [[0.5, 0.15], [0.5, 0.5], [0.9, 0.0], [0.5, 1e-6]] {
                    let [least, range] = [odds[0] - odds[1], 2.0 * odds[1]].map(|x| x as f32);
                    let limits = Limits::new(len, least, range, odds[0] as f32);
                    let mut numbers = vec![0; len];
                    for (rank, &e) in places.iter().enumerate() {
                        // Of its rank, or of one of the three on either side.
                        let limit = limits.get((rank + e * 5 % 7).saturating_sub(3).min(len - 1));
                        numbers[e] = (limit + e as u32 % 3).saturating_sub(1);
                    }
                    let expected = plain(&[1, len], row, &numbers, odds);
                    for kernels in Kernels::available() {
                        let got = kept(kernels, &[1, len], row, &numbers, odds);
                        for e in (0..len).filter(|&e| row[e] != 0.0) {
                            assert_eq!(got[e], expected[e], "{len} row {number} {odds:?} {e}");
                        }
                    }
                }
            }
        }
    }
}
