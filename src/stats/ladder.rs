//! Exact selection of one rank by dividing a range of keys again and again.

/// Bins per step.
const BINS: u64 = 1 << 16;

/// Finds the key at a rank, given a range that should hold it, in one pass for each 16 bits of the
/// range's width. Tells for certain if the key lies outside.
#[derive(Clone, Debug)]
pub struct Ladder {
    from: u64,
    to: u64,
    /// Rank among all keys.
    rank: u64,
    /// Keys below the range.
    below: u64,
    shift: u32,
    bins: Vec<u64>,
}

/// What is known after a pass.
#[derive(Clone, Debug)]
pub enum Rung {
    /// The key.
    Found(u64),
    /// It is not in the range.
    Outside,
    /// Another pass over the same keys is needed.
    Again(Ladder),
}

impl Ladder {
    /// Looks for the key at `rank` (from 0), in `from..=to`.
    pub fn new((from, to): (u64, u64), rank: u64) -> Self {
        let width = to.saturating_sub(from);
        let mut shift = 0;
        while width >> shift >= BINS {
            shift += 1;
        }
        let bins = vec![0; (width >> shift) as usize + 1];
        Self { from, to, rank, below: 0, shift, bins }
    }

    /// Counts a key so many times.
    pub fn add(&mut self, key: u64, times: u64) {
        if key < self.from {
            self.below += times;
        } else if key <= self.to {
            self.bins[((key - self.from) >> self.shift) as usize] += times;
        }
    }

    /// Ends the pass.
    pub fn finish(self) -> Rung {
        let Some(mut rest) = self.rank.checked_sub(self.below) else { return Rung::Outside };
        for (bin, &count) in (0u64..).zip(&self.bins) {
            if rest < count {
                let from = self.from + (bin << self.shift);
                if self.shift == 0 {
                    return Rung::Found(from);
                }
                let to = from.saturating_add((1 << self.shift) - 1).min(self.to);
                return Rung::Again(Self::new((from, to), self.rank));
            }
            rest -= count;
        }
        Rung::Outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(keys: &[u64], range: (u64, u64), rank: u64) -> Option<u64> {
        let mut ladder = Ladder::new(range, rank);
        loop {
            keys.iter().for_each(|&key| ladder.add(key, 1));
            match ladder.finish() {
                Rung::Found(key) => return Some(key),
                Rung::Outside => return None,
                Rung::Again(next) => ladder = next,
            }
        }
    }

    proptest! {
        #[test]
        fn finds_what_a_sort_finds_in_any_range(
            mut keys in prop::collection::vec(prop_oneof![any::<u64>(), 0u64..40, any::<u32>().prop_map(u64::from), Just(u64::MAX)], 1..300),
            ends in (
                prop_oneof![any::<u64>(), any::<u32>().prop_map(u64::from)],
                prop_oneof![any::<u64>(), any::<u32>().prop_map(u64::from), Just(u64::MAX)],
            ),
            rank in 0u64..310,
        ) {
            let range = (ends.0.min(ends.1), ends.0.max(ends.1));
            let found = select(&keys, range, rank);
            keys.sort_unstable();
            let expected = keys.get(rank as usize).filter(|&&key| key >= range.0 && key <= range.1);
            prop_assert_eq!(found, expected.copied());
        }
    }
}
