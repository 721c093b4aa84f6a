//! A part of the ranking of an expert's elements by magnitude.
//!
//! The ranking begins with the largest magnitude; equal ones stand in the order of the unit's elements. So
//! exactly as many are kept as are asked for, whatever the ties, and always the same ones.

use std::ops::Range;

use crate::kernel::Kernels;
use crate::stats::Standing;

/// Where a part of the ranking begins or ends: before the element of this magnitude, as a key, at this place in
/// the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    pub(super) key: u32,
    pub(super) place: u64,
}

impl Edge {
    /// Before all elements: no finite magnitude has this key.
    pub(super) const START: Self = Self { key: u32::MAX, place: 0 };
    /// Behind all elements.
    pub(super) const END: Self = Self { key: 0, place: u64::MAX };

    /// The edge before rank `rank` of `elements`, if that is the start or the end.
    pub(super) fn outer(rank: u64, elements: u64) -> Option<Self> {
        match rank {
            0 => Some(Self::START),
            _ if rank >= elements => Some(Self::END),
            _ => None,
        }
    }

    /// The number of the element at the edge among those of its magnitude, in the order of places, if it must be
    /// searched for. `standing` counts in ascending order. It is of no use to tell zeros apart.
    pub(super) fn number(key: u32, standing: Standing) -> Option<u64> {
        let number = (standing.equal - 1).saturating_sub(standing.before);
        (key > 0 && number > 0).then_some(number)
    }
}

/// The elements from one edge of the ranking to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Band {
    pub(super) from: Edge,
    pub(super) to: Edge,
}

impl Band {
    /// The elements of the row, which lie at `first` and behind it; zero for those outside the band.
    pub(super) fn keep(&self, kernels: &Kernels, first: u64, row: &[f32], out: &mut [f32]) {
        let end = first + row.len() as u64;
        let mut start = first;
        while start < end {
            // Elements on one side of both edges' places are compared by magnitude alone.
            let next = [self.from.place, self.to.place, end];
            let stop = next.into_iter().filter(|&at| at > start).min().unwrap_or(end).min(end);
            let part = (start - first) as usize..(stop - first) as usize;
            match self.keys(start..stop) {
                Some(keys) => kernels.keep_between(&row[part.clone()], keys, &mut out[part]),
                None => out[part].fill(0.0),
            }
            start = stop;
        }
    }

    /// The least and the greatest key in the band, for places on one side of those of both edges.
    fn keys(&self, places: Range<u64>) -> Option<(u32, u32)> {
        let before = |edge: Edge| places.end <= edge.place;
        let most = if before(self.from) { self.from.key.checked_sub(1)? } else { self.from.key };
        let least = if before(self.to) { self.to.key } else { self.to.key.checked_add(1)? };
        (least <= most).then_some((least, most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An edge as a plain sort finds it.
    fn edge(row: &[f32], rank: usize) -> Edge {
        Edge::outer(rank as u64, row.len() as u64).unwrap_or_else(|| {
            let place = ranked(row)[rank];
            Edge { key: row[place].abs().to_bits(), place: place as u64 }
        })
    }

    /// Places by descending magnitude, in order where equal.
    fn ranked(row: &[f32]) -> Vec<usize> {
        let mut places: Vec<usize> = (0..row.len()).collect();
        places.sort_by(|&a, &b| row[b].abs().total_cmp(&row[a].abs()));
        places
    }

    proptest! {
        #[test]
        fn exactly_the_ranks_between_the_edges_are_kept(
            steps in prop::collection::vec(-3i8..4, 1..60),
            ends in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
            cut in 1usize..20,
        ) {
            let row: Vec<f32> = steps.iter().map(|&step| f32::from(step) * 0.5).collect();
            let ends = (ends.0.index(row.len() + 1), ends.1.index(row.len() + 1));
            let (from, to) = (ends.0.min(ends.1), ends.0.max(ends.1));
            let band = Band { from: edge(&row, from), to: edge(&row, to) };
            let mut expected = vec![0.0; row.len()];
            ranked(&row)[from..to].iter().for_each(|&place| expected[place] = row[place]);
            for kernels in Kernels::available() {
                let mut out = vec![9.0; row.len()];
                for (k, (row, out)) in row.chunks(cut).zip(out.chunks_mut(cut)).enumerate() {
                    band.keep(kernels, (k * cut) as u64, row, out);
                }
                prop_assert_eq!(&out, &expected);
            }
        }
    }
}
