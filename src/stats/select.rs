//! Exact order statistics of `u32` keys in bounded memory, by radix selection.
//!
//! Two passes find any rank among any number of keys: the first counts the upper 16 bits, the
//! second the lower 16 bits of the keys whose upper bits hold a wanted rank. Up to [`SMALL`]
//! keys are collected instead and need one pass. Either way the result is the value that a full
//! sort would put at the rank, however many keys are equal.

use super::{Reader, Writer};

/// The largest number of keys that is collected rather than counted (256 KiB of keys).
pub const SMALL: u64 = 1 << 16;

const BINS: usize = 1 << 16;

/// Finds the keys at given ranks (from 0, ascending) among a known number of keys.
///
/// ```
/// use reflow::stats::Selector;
/// let mut selector = Selector::new(5, vec![0, 3]);
/// while selector.values().is_none() {
///     let mut counts = selector.empty();
///     counts.add(&[7, 1, 9, 7, 3]);
///     selector.absorb(counts);
/// }
/// assert_eq!(selector.values(), Some(&[1, 7][..]));
/// ```
#[derive(Clone, Debug)]
pub struct Selector {
    total: u64,
    ranks: Vec<u64>,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Nothing known yet.
    First,
    /// Upper half of each wanted key, and its rank among the keys with that upper half.
    Second(Vec<(u16, u64)>),
    Done(Vec<u32>, Vec<Standing>),
}

/// How a rank stands among the keys that are equal to the one found there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Equal keys of lower rank.
    pub before: u64,
    /// Equal keys in all, that at the rank included.
    pub equal: u64,
}

/// What one pass has counted. Mergeable: [`Counts::merge`] in any order gives the same counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counts {
    /// All keys, for small numbers of them.
    Keys(Vec<u32>),
    /// Number of keys by their upper 16 bits.
    High(Box<[u64]>),
    /// For each of a few upper halves, the number of keys by their lower 16 bits.
    Low(Vec<(u16, Box<[u64]>)>),
}

impl Selector {
    /// Starts a selection of `ranks` among `total` keys. Ranks past the end mean the last key.
    pub fn new(total: u64, ranks: Vec<u64>) -> Self {
        let last = total.saturating_sub(1);
        let ranks: Vec<u64> = ranks.into_iter().map(|rank| rank.min(last)).collect();
        let nothing = total == 0 || ranks.is_empty();
        let stage = if nothing { Stage::Done(Vec::new(), Vec::new()) } else { Stage::First };
        Self { total, ranks, stage }
    }

    /// Wants other ranks. Without effect after the first pass.
    pub fn rerank(&mut self, ranks: Vec<u64>) {
        if matches!(self.stage, Stage::First) {
            *self = Self::new(self.total, ranks);
        }
    }

    /// An empty count for the coming pass.
    pub fn empty(&self) -> Counts {
        match &self.stage {
            Stage::First if self.total <= SMALL => Counts::Keys(Vec::new()),
            Stage::First => Counts::High(vec![0; BINS].into()),
            Stage::Second(wanted) => {
                let mut prefixes: Vec<u16> = wanted.iter().map(|&(prefix, _)| prefix).collect();
                prefixes.sort_unstable();
                prefixes.dedup();
                Counts::Low(prefixes.into_iter().map(|p| (p, vec![0; BINS].into())).collect())
            }
            Stage::Done(..) => Counts::Low(Vec::new()),
        }
    }

    /// Takes the merged counts of a pass over all keys and prepares the next one.
    pub fn absorb(&mut self, counts: Counts) {
        self.stage = match (&self.stage, counts) {
            (Stage::First, Counts::Keys(mut keys)) => {
                keys.sort_unstable();
                let found = self.ranks.iter().map(|&rank| {
                    let key = keys[rank as usize];
                    let from = keys.partition_point(|&other| other < key) as u64;
                    let to = keys.partition_point(|&other| other <= key) as u64;
                    (key, Standing { before: rank - from, equal: to - from })
                });
                let (values, standings) = found.unzip();
                Stage::Done(values, standings)
            }
            (Stage::First, Counts::High(bins)) => Stage::Second(
                self.ranks
                    .iter()
                    .map(|&rank| {
                        let (bin, rest) = locate(&bins, rank);
                        (bin as u16, rest)
                    })
                    .collect(),
            ),
            (Stage::Second(wanted), Counts::Low(tables)) => {
                let found = wanted.iter().map(|&(prefix, rank)| {
                    let table = tables.iter().find(|(p, _)| *p == prefix);
                    let (low, before, equal) = table.map_or((0, 0, 0), |(_, bins)| {
                        let (low, before) = locate(bins, rank);
                        (low, before, bins[low])
                    });
                    (u32::from(prefix) << 16 | low as u32, Standing { before, equal })
                });
                let (values, standings) = found.unzip();
                Stage::Done(values, standings)
            }
            (stage, _) => stage.clone(),
        };
    }

    /// The keys at the wanted ranks, once known.
    pub fn values(&self) -> Option<&[u32]> {
        match &self.stage {
            Stage::Done(values, _) => Some(values),
            _ => None,
        }
    }

    /// How the wanted ranks stand among equal keys, once known.
    pub fn standings(&self) -> Option<&[Standing]> {
        match &self.stage {
            Stage::Done(_, standings) => Some(standings),
            _ => None,
        }
    }

    /// Bytes that the counts of the largest pass take, for `ranks` ranks among `total` keys.
    pub fn state_bytes(total: u64, ranks: u64) -> u64 {
        // A growing vector may hold twice what it needs.
        if total <= SMALL { total * 8 } else { BINS as u64 * 8 * ranks.max(1) }
    }
}

impl Counts {
    /// Counts a block of keys.
    pub fn add(&mut self, keys: &[u32]) {
        match self {
            Counts::Keys(all) => all.extend_from_slice(keys),
            Counts::High(bins) => {
                for &key in keys {
                    bins[(key >> 16) as usize] += 1;
                }
            }
            Counts::Low(tables) => {
                for (prefix, bins) in tables {
                    let prefix = u32::from(*prefix);
                    for &key in keys {
                        if key >> 16 == prefix {
                            bins[(key & 0xffff) as usize] += 1;
                        }
                    }
                }
            }
        }
    }

    /// Adds the counts to what is saved.
    pub(super) fn save(&self, out: &mut Writer) {
        match self {
            Counts::Keys(keys) => {
                out.u64(keys.len() as u64);
                keys.iter().for_each(|&key| out.u32(key));
            }
            Counts::High(bins) => bins.iter().for_each(|&bin| out.u64(bin)),
            Counts::Low(tables) => {
                tables.iter().flat_map(|(_, bins)| bins).for_each(|&bin| out.u64(bin));
            }
        }
    }

    /// Fills empty counts with saved ones of the same pass.
    pub(super) fn load(&mut self, saved: &mut Reader<'_>) -> Option<()> {
        match self {
            Counts::Keys(keys) => {
                let count = saved.u64().filter(|&count| count <= SMALL)?;
                for _ in 0..count {
                    keys.push(saved.u32()?);
                }
                Some(())
            }
            Counts::High(bins) => saved.fill(bins),
            Counts::Low(tables) => tables.iter_mut().try_for_each(|(_, bins)| saved.fill(bins)),
        }
    }

    /// Adds what another part of the same pass has counted.
    pub fn merge(&mut self, other: Counts) {
        match (self, other) {
            (Counts::Keys(all), Counts::Keys(more)) => all.extend(more),
            (Counts::High(bins), Counts::High(more)) => add_bins(bins, &more),
            (Counts::Low(tables), Counts::Low(more)) => {
                for ((_, bins), (_, more)) in tables.iter_mut().zip(more) {
                    add_bins(bins, &more);
                }
            }
            (this, other) => debug_assert!(false, "counts of different passes: {this:?} {other:?}"),
        }
    }
}

fn add_bins(bins: &mut [u64], more: &[u64]) {
    for (bin, more) in bins.iter_mut().zip(more) {
        *bin += more;
    }
}

/// The bin that holds `rank`, and the rank inside it; the last filled bin if there are too few.
fn locate(bins: &[u64], rank: u64) -> (usize, u64) {
    let mut rest = rank;
    let mut last = 0;
    for (bin, &count) in bins.iter().enumerate() {
        if rest < count {
            return (bin, rest);
        }
        rest -= count;
        if count > 0 {
            last = bin;
        }
    }
    (last, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn select(keys: &[u32], ranks: &[u64], parts: usize, total: u64) -> Vec<u32> {
        let selector = selected(keys, ranks, parts, total);
        selector.values().unwrap().to_vec()
    }

    fn selected(keys: &[u32], ranks: &[u64], parts: usize, total: u64) -> Selector {
        let mut selector = Selector::new(total, ranks.to_vec());
        while selector.values().is_none() {
            let mut merged = selector.empty();
            for part in keys.chunks(keys.len().div_ceil(parts).max(1)) {
                let mut counts = selector.empty();
                part.chunks(37).for_each(|block| counts.add(block));
                merged.merge(counts);
            }
            selector.absorb(merged);
        }
        selector
    }

    #[test]
    fn nothing_to_select_from_is_done_at_once() {
        assert_eq!(Selector::new(0, vec![0]).values(), Some(&[][..]));
        assert_eq!(Selector::new(9, vec![]).values(), Some(&[][..]));
    }

    #[test]
    fn large_inputs_are_counted_not_collected() {
        let keys: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        let ranks = [0, 1, 99_999, 150_000, 199_999];
        let expected: Vec<u32> = ranks.iter().map(|&r| sorted[r as usize]).collect();
        assert_eq!(select(&keys, &ranks, 3, 200_000), expected);
    }

    #[test]
    fn a_group_of_equal_keys_is_one_value() {
        let mut keys = vec![0u32; 70_000];
        keys.extend([5; 10]);
        keys.extend([0xffff_ffff; 3]);
        let total = keys.len() as u64;
        assert_eq!(select(&keys, &[69_999, 70_000, total - 1], 2, total), [0, 5, 0xffff_ffff]);
    }

    proptest! {
        #[test]
        fn equals_a_full_sort(
            mut keys in prop::collection::vec(prop_oneof![any::<u32>(), 0u32..8, 0x7f00..0x7f08u32], 1..400),
            rank in any::<prop::sample::Index>(),
            parts in 1usize..5,
            counted in any::<bool>(),
        ) {
            let rank = rank.index(keys.len()) as u64;
            // A few keys of many: pad with the greatest key to leave the collecting path.
            if counted {
                keys.resize(SMALL as usize + 10, u32::MAX);
            }
            let total = keys.len() as u64;
            let found = selected(&keys, &[rank, 0], parts, total);
            keys.sort_unstable();
            let key = keys[rank as usize];
            prop_assert_eq!(found.values(), Some(&[key, keys[0]][..]));
            let count = |test: &dyn Fn(u32) -> bool| keys.iter().filter(|&&k| test(k)).count() as u64;
            let standing = Standing {
                before: rank - count(&|other| other < key),
                equal: count(&|other| other == key),
            };
            prop_assert_eq!(found.standings().unwrap()[0], standing);
        }
    }
}
