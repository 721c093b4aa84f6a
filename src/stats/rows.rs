//! The same selection on several rows of keys at once, with the largest key of each.

use super::{Counts, Reader, Selector, Standing, Writer};

/// Selects ranks in each of several rows of equally many keys, in one or two passes.
#[derive(Clone, Debug)]
pub struct RowSelection {
    selectors: Vec<Selector>,
    /// Known after the first pass.
    largest: Option<Vec<u32>>,
}

/// What one pass has counted in all rows. Mergeable in any order.
#[derive(Clone, Debug)]
pub struct RowCounts {
    counts: Vec<Counts>,
    largest: Vec<u32>,
}

/// What was found in one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranked {
    /// The keys at the wanted ranks; 0 where there are no keys.
    pub values: Vec<u32>,
    /// How these ranks stand among equal keys.
    pub standings: Vec<Standing>,
    /// The largest key; 0 where there are none.
    pub largest: u32,
}

/// What follows a pass.
pub enum Selected {
    /// Everything is known, row by row.
    Found(Vec<Ranked>),
    /// Another pass is needed.
    Again(RowSelection),
}

impl RowSelection {
    /// Starts the selection of `ranks` (from 0) in each of `rows` rows of `total` keys.
    pub fn new(rows: usize, total: u64, ranks: Vec<u64>) -> Self {
        Self::each(total, vec![ranks; rows])
    }

    /// Starts the selection of other ranks in each row. A row of which none is wanted costs nothing.
    pub fn each(total: u64, ranks: Vec<Vec<u64>>) -> Self {
        let selectors = ranks.into_iter().map(|ranks| Selector::new(total, ranks)).collect();
        Self { selectors, largest: None }
    }

    /// Wants other ranks in a row, at least one; until the first pass has been absorbed.
    pub fn rerank(&mut self, row: usize, ranks: Vec<u64>) {
        self.selectors[row].rerank(ranks);
    }

    /// Whether nothing is left to be found in a row.
    pub fn is_settled(&self, row: usize) -> bool {
        self.selectors[row].values().is_some()
    }

    /// Whether this is the first pass.
    pub fn is_first(&self) -> bool {
        self.largest.is_none()
    }

    /// Empty counts for the coming pass.
    pub fn empty(&self) -> RowCounts {
        RowCounts {
            counts: self.selectors.iter().map(Selector::empty).collect(),
            largest: vec![0; self.selectors.len()],
        }
    }

    /// Counts a block of keys of one row.
    pub fn add(&self, counts: &mut RowCounts, row: usize, keys: &[u32]) {
        counts.counts[row].add(keys);
        if self.is_first() {
            let largest = keys.iter().copied().fold(0, u32::max);
            counts.largest[row] = counts.largest[row].max(largest);
        }
    }

    /// Saved counts of the coming pass; `None` if they are not.
    pub fn load(&self, saved: &mut Reader<'_>) -> Option<RowCounts> {
        let mut counts = self.empty();
        for largest in &mut counts.largest {
            *largest = saved.u32()?;
        }
        counts.counts.iter_mut().try_for_each(|counts| counts.load(saved))?;
        Some(counts)
    }

    /// Takes the merged counts of a pass over all keys.
    pub fn absorb(mut self, counts: RowCounts) -> Selected {
        for (selector, counts) in self.selectors.iter_mut().zip(counts.counts) {
            selector.absorb(counts);
        }
        let largest = self.largest.take().unwrap_or(counts.largest);
        if self.selectors.iter().any(|selector| selector.values().is_none()) {
            return Selected::Again(Self { largest: Some(largest), ..self });
        }
        let found = self.selectors.iter().zip(largest).map(|(selector, largest)| {
            let values = selector.values().unwrap_or_default().to_vec();
            let standings = selector.standings().unwrap_or_default().to_vec();
            Ranked { values, standings, largest }
        });
        Selected::Found(found.collect())
    }
}

impl RowCounts {
    /// Adds the counts to what is saved.
    pub fn save(&self, out: &mut Writer) {
        self.largest.iter().for_each(|&largest| out.u32(largest));
        self.counts.iter().for_each(|counts| counts.save(out));
    }

    /// Adds what another part of the same pass has counted.
    pub fn merge(&mut self, other: Self) {
        for (counts, more) in self.counts.iter_mut().zip(other.counts) {
            counts.merge(more);
        }
        for (largest, more) in self.largest.iter_mut().zip(other.largest) {
            *largest = (*largest).max(more);
        }
    }
}

impl Ranked {
    /// The key at the `i`-th wanted rank, 0 where there are no keys.
    pub fn value(&self, i: usize) -> u32 {
        self.values.get(i).copied().unwrap_or(0)
    }
}
