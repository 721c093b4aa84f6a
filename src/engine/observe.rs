//! What a map sees beside its work: statistics of each tile that it merges, gathered from what is in memory anyway.

use super::Context;
use super::decode::TileData;
use crate::method::{Block, Kept, Operand};
use crate::stats::{Reader, TensorStats, Writer};

/// What was seen of a tile, or of a run of tiles of one tensor. Mergeable in any order to the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// Base, differences of the experts from it, and that of the merge as it is stored.
    pub stats: TensorStats,
    /// What the merge took of each expert; none if the method takes part of no expert.
    pub kept: Option<Vec<Kept>>,
    experts: usize,
}

impl Seen {
    /// Nothing seen yet of so many experts.
    pub fn new(experts: usize) -> Self {
        Self { stats: TensorStats::new(experts, true), kept: None, experts }
    }

    /// Adds what was seen elsewhere, of as many experts.
    pub fn merge(&mut self, other: &Self) {
        self.stats.merge(&other.stats);
        match (&mut self.kept, &other.kept) {
            (Some(kept), Some(more)) => {
                kept.iter_mut().zip(more).for_each(|(kept, more)| kept.add(*more));
            }
            (None, Some(more)) => self.kept = Some(more.clone()),
            (_, None) => {}
        }
    }

    /// As bytes, to be saved.
    pub fn save(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.kept.is_some().into());
        for kept in self.kept.iter().flatten() {
            out.u64(kept.elements);
            out.u64(kept.score);
        }
        self.stats.save(&mut out);
        out.finish()
    }

    /// What was saved of so many experts; `None` if the bytes are not that.
    pub fn load(experts: usize, saved: &[u8]) -> Option<Self> {
        let mut saved = Reader::new(saved);
        let counted = saved.u32()? == 1;
        let mut kept = || Some(Kept { elements: saved.u64()?, score: saved.u64()? });
        let kept = counted.then(|| (0..experts).map(|_| kept()).collect::<Option<_>>());
        let kept = match kept {
            Some(kept) => Some(kept?),
            None => None,
        };
        let stats = TensorStats::load(experts, true, &mut saved)?;
        saved.end()?;
        Some(Self { stats, kept, experts })
    }
}

/// One worker's space for it.
pub(super) struct Observer {
    seen: Seen,
    /// What the block at hand was kept of, filled by the stage.
    counts: Vec<Kept>,
    merged: Vec<f32>,
    differences: Vec<f32>,
    zeros: Vec<f32>,
}

impl Observer {
    pub(super) fn new() -> Self {
        let (merged, differences, zeros) = (Vec::new(), Vec::new(), Vec::new());
        Self { seen: Seen::new(0), counts: Vec::new(), merged, differences, zeros }
    }

    /// Forgets what was seen before, for a tile of so many experts.
    pub(super) fn begin(&mut self, experts: usize) {
        self.seen = Seen::new(experts);
    }

    /// Counts what was taken of a block that was just merged.
    pub(super) fn count(&mut self, block: &Block<'_>, count: impl FnOnce(&mut [Kept]) -> bool) {
        self.counts.clear();
        self.counts.resize(block.rows.len(), Kept::default());
        if count(&mut self.counts) {
            let none = || vec![Kept::default(); block.rows.len()];
            let kept = self.seen.kept.get_or_insert_with(none);
            kept.iter_mut().zip(&self.counts).for_each(|(kept, more)| kept.add(*more));
        }
    }

    /// Adds a block, with its merged values as they are stored.
    pub(super) fn add(
        &mut self,
        context: &Context<'_>,
        tile: &TileData<'_>,
        (base, rows): (&[f32], &[f32]),
        stored: &[u8],
    ) {
        let kernels = context.kernels;
        let len = stored.len() / (tile.segment.out_size as usize).max(1);
        let Self { seen, merged, differences, zeros, .. } = self;
        merged.resize(len, 0.0);
        kernels.decode(tile.segment.out, stored, merged);
        let mut of_rows = rows;
        if base.is_empty() {
            zeros.resize(len, 0.0);
        } else {
            kernels.subtract(base, merged);
            if context.method.operand() == Operand::Value {
                differences.clear();
                differences.extend_from_slice(rows);
                for row in differences.chunks_exact_mut(len) {
                    kernels.subtract(base, row);
                }
                of_rows = differences;
            }
        }
        let base = if base.is_empty() { &zeros[..len] } else { base };
        let mut all: Vec<&[f32]> = of_rows.chunks_exact(len).take(seen.experts).collect();
        all.push(merged);
        seen.stats.add(kernels, base, &all);
    }

    /// What was seen of the tile.
    pub(super) fn take(&mut self) -> Seen {
        std::mem::replace(&mut self.seen, Seen::new(0))
    }
}
