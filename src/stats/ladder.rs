//! Exact selection of one rank by dividing a range of keys again and again, until the few keys that are left can be kept.

/// Bins per step, at most and at least.
const MOST_BINS: u64 = 1 << 16;
const LEAST_BINS: u64 = 1 << 10;
/// Keys per bin.
const LOAD: u64 = 8;
/// So many keys are kept one by one: half the room of the bins.
const FEW: u64 = 1 << 15;

/// Finds the key at a rank, given a range that should hold it, in up to one pass for each 10 bits of the
/// range's width; mostly in two. Tells for certain if the key lies outside.
#[derive(Clone, Debug)]
pub struct Ladder {
    from: u64,
    to: u64,
    /// Rank among all keys.
    rank: u64,
    /// Keys below the range.
    below: u64,
    seen: Seen,
}

/// What a pass makes of the keys in the range.
#[derive(Clone, Debug)]
enum Seen {
    /// Bins of so many bits' width.
    Counted { shift: u32, bins: Vec<u64> },
    /// All of them, where there are no more than so many.
    Kept { keys: Vec<u64>, most: u64 },
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
    /// Looks for the key at `rank` (from 0), in `from..=to`. `keys` is about how many there will be.
    pub fn new((from, to): (u64, u64), rank: u64, keys: u64) -> Self {
        let width = to.saturating_sub(from);
        // Another pass costs more than bins that end it at once.
        let one = width < MOST_BINS;
        let most = if one { MOST_BINS } else { (keys / LOAD).clamp(LEAST_BINS, MOST_BINS) };
        let mut shift = 0;
        while width >> shift >= most {
            shift += 1;
        }
        let bins = vec![0; (width >> shift) as usize + 1];
        Self { from, to, rank, below: 0, seen: Seen::Counted { shift, bins } }
    }

    /// Looks among the keys in the range, which are so many.
    fn among((from, to): (u64, u64), rank: u64, keys: u64) -> Self {
        if keys > FEW {
            return Self::new((from, to), rank, keys);
        }
        let kept = Seen::Kept { keys: Vec::with_capacity(keys as usize), most: keys };
        Self { from, to, rank, below: 0, seen: kept }
    }

    /// Counts a key so many times.
    #[inline]
    pub fn add(&mut self, key: u64, times: u64) {
        if key < self.from {
            self.below += times;
        } else if key <= self.to {
            match &mut self.seen {
                Seen::Counted { shift, bins } => {
                    let bin = (key - self.from) >> *shift;
                    bins[bin as usize] += times;
                }
                Seen::Kept { keys, most } => {
                    let times = times.min(*most - keys.len() as u64);
                    keys.extend(std::iter::repeat_n(key, times as usize));
                }
            }
        }
    }

    /// Ends the pass.
    pub fn finish(self) -> Rung {
        let Some(mut rest) = self.rank.checked_sub(self.below) else { return Rung::Outside };
        let (shift, bins) = match self.seen {
            Seen::Counted { shift, bins } => (shift, bins),
            Seen::Kept { keys, .. } if rest >= keys.len() as u64 => return Rung::Outside,
            Seen::Kept { mut keys, .. } => {
                return Rung::Found(*keys.select_nth_unstable(rest as usize).1);
            }
        };
        for (bin, &count) in (0u64..).zip(&bins) {
            if rest < count {
                let from = self.from + (bin << shift);
                if shift == 0 {
                    return Rung::Found(from);
                }
                let to = from.saturating_add((1 << shift) - 1).min(self.to);
                drop(bins);
                return Rung::Again(Self::among((from, to), self.rank, count));
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
        let mut ladder = Ladder::new(range, rank, keys.len() as u64);
        loop {
            keys.iter().for_each(|&key| ladder.add(key, 1));
            match ladder.finish() {
                Rung::Found(key) => return Some(key),
                Rung::Outside => return None,
                Rung::Again(next) => ladder = next,
            }
        }
    }

    #[test]
    fn more_equal_keys_than_are_kept_are_counted_until_one_is_left() {
        let mut keys: Vec<u64> =
            (0..3 * FEW).map(|k| k.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
        keys.extend(vec![keys[7]; 2 * FEW as usize]);
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        let first = sorted.partition_point(|&key| key < keys[7]) as u64;
        for rank in [0, first - 1, first, first + 2 * FEW, first + 2 * FEW + 1, 5 * FEW - 1] {
            let expected = sorted[rank as usize];
            assert_eq!(select(&keys, (0, u64::MAX), rank), Some(expected), "{rank}");
        }
        assert_eq!(select(&keys, (0, u64::MAX), 5 * FEW), None);
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
