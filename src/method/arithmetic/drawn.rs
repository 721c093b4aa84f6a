//! Elements that are kept at random.
//!
//! Whether an element is kept depends on the seed, the name of its tensor, the number of its expert in the recipe
//! and its place in the tensor, and on nothing else: not on scope, tiles, threads or resumes.

use crate::kernel::Kernels;
use crate::method::{Block, MethodError, PerTensor, TensorView, UnitView};

/// How likely elements are kept.
pub(super) struct Odds {
    seed: u64,
    /// Whether it depends on the rank of the element in its row.
    ranked: bool,
    /// Of each expert: density and epsilon.
    each: PerTensor<Vec<[f64; 2]>>,
}

/// Space for one row of a block.
#[derive(Default)]
pub(super) struct Space {
    numbers: Vec<f32>,
    odds: Vec<f32>,
    column: Vec<f32>,
    ranks: Ranks,
}

impl Odds {
    /// The odds in a unit.
    ///
    /// # Errors
    /// [`MethodError::Odds`] if they lie outside of 0 to 1.
    pub(super) fn new(seed: u64, ranked: bool, unit: &UnitView) -> Result<Self, MethodError> {
        let each = unit.each_tensor(|values| {
            let densities = values.each("density");
            let epsilons = if ranked { values.each("epsilon") } else { vec![0.0; densities.len()] };
            densities.into_iter().zip(epsilons).map(|(d, e)| [d, e]).collect::<Vec<_>>()
        });
        for &[density, epsilon] in each.all().iter().flatten() {
            let inside = density - epsilon.abs() > 0.0 && density + epsilon.abs() < 1.0;
            if ranked && density > 0.0 && density < 1.0 && !inside {
                return Err(MethodError::Odds { density, epsilon });
            }
        }
        Ok(Self { seed, ranked, each })
    }

    /// Whether an expert keeps everything.
    pub(super) fn keep_all(&self, expert: usize) -> bool {
        self.each.all().iter().all(|each| each[expert][0] >= 1.0)
    }

    /// What is left of a row of a block.
    pub(super) fn keep(
        &self,
        kernels: &Kernels,
        (tensor, expert): (&TensorView, usize),
        block: &Block<'_>,
        space: &mut Space,
        out: &mut [f32],
    ) {
        let (row, [density, epsilon]) = (block.rows[expert], self.each.get(block.tensor)[expert]);
        if density >= 1.0 {
            out.copy_from_slice(row);
        } else if density <= 0.0 {
            out.fill(0.0);
        } else {
            let Space { numbers, odds, column, ranks } = space;
            numbers.resize(row.len(), 0.0);
            kernels.uniforms(key(self.seed, &tensor.name, expert), block.first, numbers);
            if self.ranked {
                odds.resize(row.len(), 0.0);
                rank_rows(tensor, row, [density, epsilon], ranks, column, odds);
                kernels.keep_below_each(numbers, odds, row, out);
            } else {
                kernels.keep_below(numbers, density as f32, row, out);
            }
        }
    }
}

/// Elements that are ranked together with those beside them: a row of a matrix, the whole of a vector, and of
/// other tensors all that have one index in the first dimension.
pub(super) fn slice(tensor: &TensorView) -> u64 {
    match &*tensor.shape {
        [] | [_] => tensor.elements,
        [_, row @ ..] => row.iter().product(),
    }
    .max(1)
}

/// The odds of each element: density - epsilon for the smallest magnitude along the second dimension, density +
/// epsilon for the largest, evenly spaced between them.
fn rank_rows(
    tensor: &TensorView,
    row: &[f32],
    [density, epsilon]: [f64; 2],
    ranks: &mut Ranks,
    column: &mut Vec<f32>,
    odds: &mut [f32],
) {
    let slice = slice(tensor) as usize;
    let length = tensor.shape.get(1).map_or(slice, |&length| length as usize).max(1);
    let stride = slice / length;
    let (least, range) = ((density - epsilon) as f32, (2.0 * epsilon) as f32);
    let odd = |rank: u32| match length {
        // Neither the smallest nor the largest.
        1 => density as f32,
        _ => least + rank as f32 / (length - 1) as f32 * range,
    };
    for (row, odds) in row.chunks_exact(slice).zip(odds.chunks_exact_mut(slice)) {
        for offset in 0..stride {
            if stride == 1 {
                ranks.rank(row);
            } else {
                column.clear();
                column.extend(row[offset..].iter().step_by(stride));
                ranks.rank(column);
            }
            for (odds, &rank) in odds[offset..].iter_mut().step_by(stride).zip(&ranks.found) {
                *odds = odd(rank);
            }
        }
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

/// The key of an expert's random numbers in a tensor.
fn key(seed: u64, tensor: &str, expert: usize) -> [u32; 2] {
    let mut state = mix(seed);
    for chunk in tensor.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state ^ u64::from_le_bytes(word));
    }
    state = mix(mix(state ^ tensor.len() as u64) ^ expert as u64);
    [state as u32, (state >> 32) as u32]
}

/// One step of SplitMix64.
fn mix(state: u64) -> u64 {
    let x = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Values;
    use crate::testing::parts::tied;
    use std::collections::HashSet;

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

    #[test]
    fn keys_tell_seeds_names_and_experts_apart() {
        let names = ["", "a", "b", "ab", "a\0", "model.layers.1.weight", "model.layers.11.weight"];
        let keys = names.iter().flat_map(|name| {
            (0..3).flat_map(move |seed| (0..3).map(move |expert| key(seed, name, expert)))
        });
        let keys: HashSet<_> = keys.collect();
        assert_eq!(keys.len(), names.len() * 9);
    }

    fn odds(shape: &[u64], row: &[f32]) -> Vec<f32> {
        let unit = UnitView::tensor("w", shape, Values::new(1));
        let mut odds = vec![9.0; row.len()];
        let (mut ranks, mut column) = (Ranks::default(), Vec::new());
        rank_rows(&unit.tensors[0], row, [0.5, 0.25], &mut ranks, &mut column, &mut odds);
        odds
    }

    #[test]
    fn odds_run_along_the_second_dimension() {
        let row = [3.0, -1.0, 2.0, 0.0, 5.0, -4.0];
        assert_eq!(odds(&[6], &row), [0.55, 0.35, 0.45, 0.25, 0.75, 0.65]);
        assert_eq!(odds(&[2, 3], &row), [0.75, 0.25, 0.5, 0.25, 0.75, 0.5]);
        assert_eq!(odds(&[1, 3, 2], &row), [0.5, 0.5, 0.25, 0.25, 0.75, 0.75]);
        assert_eq!(odds(&[6, 1], &row), [0.5; 6]);
        assert_eq!(odds(&[], &row[..1]), [0.5]);
    }

    #[test]
    fn odds_outside_of_0_to_1_are_refused() {
        let new = |density: f64, epsilon: f64| {
            let values = Values::new(1).with_each("density", &[density]);
            let unit = UnitView::array("w", 1, values.with_each("epsilon", &[epsilon]));
            Odds::new(0, true, &unit).map(|odds| odds.keep_all(0))
        };
        assert_eq!(new(0.1, 0.15), Err(MethodError::Odds { density: 0.1, epsilon: 0.15 }));
        assert_eq!(new(0.9, -0.2), Err(MethodError::Odds { density: 0.9, epsilon: -0.2 }));
        assert_eq!(
            (new(0.0, 0.15), new(1.0, 0.15), new(0.5, 0.15)),
            (Ok(false), Ok(true), Ok(false))
        );
    }
}
