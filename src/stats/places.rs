//! Where one of many marked elements lies: the place of the k-th of them, in the order of elements.

use super::{Reader, Writer};
use std::ops::Range;

/// Parts that a pass divides the range into.
const BINS: u64 = 1 << 16;

/// Searches for the place of one marked element. Each pass over the elements cuts the range in which it lies
/// to a part in 65,536, by counting the marked ones in all parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    from: u64,
    to: u64,
    /// Marked elements of the range before the wanted one.
    index: u64,
    shift: u32,
}

/// What is known after a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The place. Past the end if there are not as many marked elements.
    Found(u64),
    /// Another pass is needed.
    Again(Places),
}

impl Places {
    /// Looks for the place of the marked element number `index` (from 0) among `elements` elements.
    pub fn new(elements: u64, index: u64) -> Self {
        Self::within(0..elements, index)
    }

    fn within(range: Range<u64>, index: u64) -> Self {
        let mut shift = 0;
        while (range.end - range.start) >> shift > BINS {
            shift += 1;
        }
        Self { from: range.start, to: range.end, index, shift }
    }

    /// How many passes a search among so many elements takes.
    pub fn passes(elements: u64) -> usize {
        let search = Self::new(elements, 0);
        if search.shift == 0 { 1 } else { 1 + Self::passes(1 << search.shift) }
    }

    /// Empty counts for the coming pass.
    pub fn empty(&self) -> Vec<u64> {
        let width = self.to - self.from;
        vec![0; width.div_ceil(1 << self.shift) as usize]
    }

    /// Bytes of such counts.
    pub fn state_bytes(elements: u64) -> u64 {
        elements.min(BINS + 1) * 8
    }

    /// Counts a run of elements that begins at place `first`; `count` tells how many are marked in a part of it.
    pub fn add<T>(
        &self,
        counts: &mut [u64],
        first: u64,
        elements: &[T],
        count: impl Fn(&[T]) -> u64,
    ) {
        let end = first + elements.len() as u64;
        let (mut at, to) = (first.max(self.from), end.min(self.to));
        while at < to {
            let bin = (at - self.from) >> self.shift;
            let until = to.min(self.from + ((bin + 1) << self.shift));
            counts[bin as usize] +=
                count(&elements[(at - first) as usize..(until - first) as usize]);
            at = until;
        }
    }

    /// Adds what another part of the same pass has counted.
    pub fn merge(into: &mut [u64], from: &[u64]) {
        into.iter_mut().zip(from).for_each(|(into, from)| *into += from);
    }

    /// Adds counts to what is saved.
    pub fn save(counts: &[u64], out: &mut Writer) {
        counts.iter().for_each(|&count| out.u64(count));
    }

    /// Saved counts of this pass.
    pub fn load(&self, saved: &mut Reader<'_>) -> Option<Vec<u64>> {
        let mut counts = self.empty();
        saved.fill(&mut counts)?;
        Some(counts)
    }

    /// Ends a pass.
    pub fn finish(&self, counts: &[u64]) -> Place {
        let mut index = self.index;
        for (bin, &count) in (0u64..).zip(counts) {
            if index < count {
                let from = self.from + (bin << self.shift);
                if self.shift == 0 {
                    return Place::Found(from);
                }
                let to = self.to.min(from + (1 << self.shift));
                return Place::Again(Self::within(from..to, index));
            }
            index -= count;
        }
        Place::Found(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs the search over elements that are marked where they are true, cut into pieces.
    fn search(marked: &[bool], index: u64, cut: usize) -> (u64, usize) {
        let mut places = Places::new(marked.len() as u64, index);
        for passes in 1.. {
            let mut counts = places.empty();
            for (k, piece) in marked.chunks(cut).enumerate().rev() {
                let mut part = places.empty();
                let count = |part: &[bool]| part.iter().filter(|&&it| it).count() as u64;
                places.add(&mut part, (k * cut) as u64, piece, count);
                Places::merge(&mut counts, &part);
            }
            let mut out = Writer::default();
            Places::save(&counts, &mut out);
            let saved = out.finish();
            assert!(places.load(&mut Reader::new(&saved[1..])).is_none());
            match places.finish(&places.load(&mut Reader::new(&saved)).unwrap()) {
                Place::Found(place) => return (place, passes),
                Place::Again(next) => places = next,
            }
        }
        unreachable!()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

        #[test]
        fn finds_the_place_that_a_list_has(
            len in prop_oneof![1usize..300, 65_530usize..65_545, 131_000usize..150_000],
            one_in in 1usize..50,
            index in any::<prop::sample::Index>(),
            cut in 999usize..70_000,
            seed in any::<usize>(),
        ) {
            let marked: Vec<bool> =
                (0..len).map(|e| (e ^ seed).wrapping_mul(0x9e37_79b9) >> 7 & 0xffff < 65_536 / one_in).collect();
            let listed: Vec<u64> = (0..).zip(&marked).filter(|(_, it)| **it).map(|(e, _)| e).collect();
            prop_assume!(!listed.is_empty());
            let index = index.index(listed.len());
            let (place, passes) = search(&marked, index as u64, cut);
            prop_assert_eq!(place, listed[index]);
            prop_assert!(passes <= Places::passes(len as u64));
        }
    }

    #[test]
    fn one_that_is_not_there_lies_past_the_end() {
        assert_eq!(search(&[true, false, true], 2, 2).0, 3);
        assert_eq!(search(&vec![true; 70_000], 70_000, 1000).0, 70_000);
        assert_eq!(
            [1, 65_536, 65_537, 1 << 32, 70_000_000_000].map(Places::passes),
            [1, 1, 2, 2, 3]
        );
    }
}
