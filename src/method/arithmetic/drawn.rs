//! Elements that are kept at random.
//!
//! Whether an element is kept depends on the seed, the name of its tensor, the number of its expert in the recipe
//! and its place in the tensor, and on nothing else: not on scope, tiles, threads or resumes.

use super::ranked::{Ranking, mark_rows};
use crate::kernel::Kernels;
use crate::kernel::random::limit;
use crate::kernel::ranked::MARK;
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
    numbers: Vec<u32>,
    marks: Vec<u32>,
    ranking: Ranking,
}

impl Space {
    /// Bytes that are taken.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        (self.numbers.capacity() + self.marks.capacity()) * 4 + self.ranking.bytes()
    }
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

    /// Notes in `kept`, a bit for each, which elements of a row of a block are kept. Returns the largest magnitude of those,
    /// as bits.
    pub(super) fn draw(
        &self,
        kernels: &Kernels,
        (tensor, expert): (&TensorView, usize),
        block: &Block<'_>,
        space: &mut Space,
        kept: &mut [u16],
    ) -> u32 {
        let (row, [density, epsilon]) = (block.rows[expert], self.each.get(block.tensor)[expert]);
        let Space { numbers, marks, ranking } = space;
        numbers.resize(row.len(), 0);
        if density >= 1.0 || density <= 0.0 {
            numbers.fill(0);
            return kernels.note_below(numbers, u32::from(density >= 1.0), row, kept);
        }
        kernels.draw(key(self.seed, &tensor.name, expert), block.first, numbers);
        if self.ranked {
            marks.resize(row.len(), 0);
            mark_rows(kernels, tensor, (row, numbers), [density, epsilon], ranking, marks);
            kernels.note_below(marks, MARK, row, kept)
        } else {
            kernels.note_below(numbers, limit(density as f32), row, kept)
        }
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
    use std::collections::HashSet;

    #[test]
    fn keys_tell_seeds_names_and_experts_apart() {
        let names = ["", "a", "b", "ab", "a\0", "model.layers.1.weight", "model.layers.11.weight"];
        let keys = names.iter().flat_map(|name| {
            (0..3).flat_map(move |seed| (0..3).map(move |expert| key(seed, name, expert)))
        });
        let keys: HashSet<_> = keys.collect();
        assert_eq!(keys.len(), names.len() * 9);
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
