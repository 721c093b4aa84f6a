//! Runs of elements that are treated alike, and where they lie.

use std::sync::Arc;

use super::evidence::Told;
use super::low_rank::LowRank;
use super::rows::RowMap;
use super::solve::Solve;
use crate::checkpoint::components::FRAME;
use crate::kernel::Float;

/// What is done with a run of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Merged by the method.
    Merge,
    /// Taken from the base, converted to the output type.
    Convert,
    /// Taken from the base byte by byte; with `check`, all sources must be equal to it.
    Copy {
        /// Whether the experts must agree.
        check: bool,
    },
}

/// Where a run of elements lies in one checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceRef {
    /// Its position among [`Inputs::catalogs`](super::Inputs::catalogs), or behind them among
    /// [`Inputs::evidence`](super::Inputs::evidence).
    pub checkpoint: u32,
    /// Index among the files of all checkpoints.
    pub file: u32,
    /// Absolute offset of the first element, in bytes.
    pub offset: u64,
    /// How elements are stored (without meaning for [`Action::Copy`]).
    pub float: Float,
    /// What an adapter adds to the tensor that the run is a part of. The elements are numbered as in the output.
    pub low_rank: Option<Arc<LowRank>>,
    /// Where the rows are, if they are not where they were: then the elements are `f32` that are made of them.
    pub rows: Option<Arc<RowMap>>,
}

impl SourceRef {
    /// Whether the stored bytes are those of another source.
    pub fn shares(&self, other: &Self) -> bool {
        let plain = self.rows.is_none() && other.rows.is_none();
        plain && (self.file, self.offset) == (other.file, other.offset)
    }

    /// The offset of an element, `plain` bytes behind the first one unless rows move.
    pub fn at(&self, element: u64, plain: u64) -> u64 {
        let Some(map) = &self.rows else { return self.offset + plain };
        let found = map.runs(element, element + 1).first().and_then(|run| {
            let &(table, row) = run.from.first()?;
            let table = &map.tables[table as usize];
            let inside = element - run.first * map.columns;
            Some(table.offset + (row * map.columns + inside) * table.float.size() as u64)
        });
        found.unwrap_or(self.offset)
    }
}

/// A run of elements of one output tensor that is treated alike. Tiles are cut from it.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Index into [`Plan::tensors`](super::Plan::tensors).
    pub tensor: u32,
    /// First element in the tensor.
    pub first: u64,
    /// What is done.
    pub action: Action,
    /// Number of elements; bytes for [`Action::Copy`].
    pub elements: u64,
    /// For [`Action::Merge`] all that take part in order, then what weighs each of them; else the donor, and those that
    /// must agree with it.
    pub sources: Box<[SourceRef]>,
    /// What was measured of the models about these elements.
    pub told: Told,
    /// Elements that must meet in one block, see [`Method::grain`](crate::method::Method::grain); 1 if nothing is merged.
    pub grain: u64,
    /// Its number among those of which frames are kept or read ([`Frames`](crate::checkpoint::components)), if it is one.
    pub frames: Option<u32>,
    /// Its place among the segments of its unit.
    pub place: u32,
    /// Output type, and its bytes per element (1 for [`Action::Copy`]).
    pub out: Float,
    /// Bytes per output element; 0 if no output is made.
    pub out_size: u32,
    /// Output shard.
    pub shard: u32,
    /// Absolute offset in the output shard.
    pub offset: u64,
}

impl Segment {
    /// Elements that must meet in one tile and in one piece: those of a block, or of a frame. A grain is a part of a frame.
    pub fn cut(&self) -> u64 {
        let frame = self.frames.map_or(1, |_| FRAME.into());
        self.grain.max(frame)
    }

    /// Frames that its elements lie in.
    pub fn frame_count(&self) -> u64 {
        self.elements.div_ceil(FRAME.into())
    }

    /// Elements of a tile of at most `most`: whole cuts, and at least one. A segment that is no longer is one tile, wherever its
    /// last cut ends: a unit of it is merged whole.
    pub fn tile(&self, most: u32) -> u64 {
        let most = u64::from(most);
        match self.cut() {
            cut if cut > 1 && self.elements > most => (most / cut * cut).max(cut),
            _ => most,
        }
    }

    /// How many of the sources have values to merge: the others weigh them.
    pub fn valued(&self) -> usize {
        match self.told {
            Told::Weights(weights) => self.sources.len() - weights as usize,
            Told::Nothing | Told::Grams(_) => self.sources.len(),
        }
    }

    /// Leaves the donor as the only source; that the experts agree with it was seen before.
    pub(super) fn forget_experts(&mut self) {
        self.sources = self.sources.iter().take(1).cloned().collect();
        if let Action::Copy { check } = &mut self.action {
            *check = false;
        }
    }

    /// Whether experts are looked at even where no output is made: what is merged, and what they must agree on.
    pub(super) fn is_needed(&self) -> bool {
        match self.action {
            Action::Merge => true,
            Action::Convert => false,
            Action::Copy { check } => check && self.sources.len() > 1,
        }
    }

    /// Leaves it no place in an output.
    pub(super) fn forget_output(&mut self) {
        (self.out_size, self.shard, self.offset) = (0, 0, 0);
    }

    /// Bytes per element in source `i`.
    pub fn source_size(&self, i: usize) -> u64 {
        match self.action {
            Action::Copy { .. } => 1,
            Action::Merge | Action::Convert => self.sources[i].float.size() as u64,
        }
    }

    /// The sources whose bytes are read: those that share theirs with an earlier one are left out.
    pub fn read(&self) -> impl Iterator<Item = usize> {
        let fresh = |&i: &usize| !self.sources[..i].iter().any(|s| s.shares(&self.sources[i]));
        (0..self.sources.len()).filter(fresh)
    }

    /// Bytes that reading one element takes, over all sources.
    pub fn element_bytes(&self) -> u64 {
        self.read().map(|i| self.source_size(i)).sum()
    }

    /// Bytes that reading the whole segment once takes, over all sources, and what else it is made from.
    pub fn input_bytes(&self) -> u64 {
        self.element_bytes() * self.elements + self.solve().map_or(0, Solve::gram_bytes)
    }
}
