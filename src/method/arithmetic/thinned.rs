//! The last passes of methods that thin task vectors out: sums for `rescale`, and the map.

use std::sync::Arc;

use super::blend::Blend;
use super::drawn::{Odds, Space};
use crate::kernel::Kernels;
use crate::kernel::keys;
use crate::method::band::Band;
use crate::method::pass::Scratch;
use crate::method::{AnyStage, Block, Kept, MethodError, Next, Outcome, Stage, UnitView};
use crate::stats::{DotSum, Reader, Writer};

/// What the stages of a unit share.
pub(super) struct Course {
    pub(super) kernels: &'static Kernels,
    pub(super) blend: Blend,
    pub(super) unit: Arc<UnitView>,
    pub(super) rescale: bool,
    /// Of what is kept at random.
    pub(super) odds: Option<Odds>,
}

impl Course {
    /// What follows when it is known what is kept of each expert, after so many missed brackets.
    pub(super) fn go_on(self: Arc<Self>, keeps: Vec<Keep>, missed: u64) -> Box<dyn AnyStage> {
        let thins = keeps.iter().any(|keep| !matches!(keep, Keep::All));
        if self.rescale && thins {
            return Box::new(Sums { course: self, keeps, missed });
        }
        let factors = vec![1.0; keeps.len()];
        Box::new(Merge { course: self, keeps, factors, missed })
    }
}

/// What is kept of an expert.
#[derive(Clone, Debug)]
pub(super) enum Keep {
    /// Everything.
    All,
    /// A part of the ranking by magnitude.
    Band(Band),
    /// What the odds of this expert say.
    Drawn(usize),
}

impl Keep {
    /// What is left of a row, which is the row itself or in `out`.
    fn apply<'a>(
        &self,
        course: &Course,
        block: &Block<'_>,
        row: &'a [f32],
        space: &mut Space,
        out: &'a mut [f32],
    ) -> &'a [f32] {
        match self {
            Keep::All => row,
            Keep::Drawn(expert) => {
                let tensor = &course.unit.tensors[block.tensor];
                match &course.odds {
                    Some(odds) => odds.keep(course.kernels, (tensor, *expert), block, space, out),
                    None => out.copy_from_slice(row),
                }
                out
            }
            Keep::Band(band) => {
                band.keep(course.kernels, course.unit.place(block), row, out);
                out
            }
        }
    }
}

/// Sums of the magnitudes of all elements and of those kept, by whose ratio the latter are multiplied.
struct Sums {
    course: Arc<Course>,
    keeps: Vec<Keep>,
    missed: u64,
}

struct SumState {
    /// Of each expert: all, kept.
    sums: Vec<[DotSum; 2]>,
    kept: Vec<f32>,
    space: Space,
}

impl Stage for Sums {
    type State = SumState;

    fn name(&self) -> &'static str {
        "sums"
    }

    fn empty(&self) -> SumState {
        let sums = vec![[DotSum::default(); 2]; self.keeps.len()];
        SumState { sums, kept: Vec::new(), space: Space::default() }
    }

    fn add(&self, state: &mut SumState, block: &Block<'_>, _out: &mut [f32]) {
        let kernels = self.course.kernels;
        let SumState { sums, kept, space } = state;
        kept.resize(block.len(), 0.0);
        for ((keep, sums), row) in self.keeps.iter().zip(sums).zip(block.rows) {
            if matches!(keep, Keep::All) {
                continue;
            }
            let kept = keep.apply(&self.course, block, row, space, kept);
            for (sum, row) in sums.iter_mut().zip([row, kept]) {
                let largest = keys::magnitude(kernels.max_magnitude_bits(row));
                sum.add_magnitudes(kernels, row, largest);
            }
        }
    }

    fn merge(&self, into: &mut SumState, from: SumState) {
        let pairs = into.sums.iter_mut().flatten().zip(from.sums.into_iter().flatten());
        pairs.for_each(|(into, from)| into.merge(from));
    }

    fn save(&self, state: &SumState) -> Vec<u8> {
        let mut out = Writer::default();
        state.sums.iter().flatten().for_each(|sum| sum.save(&mut out));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<SumState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        for sum in state.sums.iter_mut().flatten() {
            *sum = DotSum::load(&mut saved)?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: SumState) -> Result<Next, MethodError> {
        let factors = state.sums.iter().map(|[all, kept]| factor(all.value(), kept.value()));
        let factors = factors.collect();
        let Self { course, keeps, missed } = self;
        Ok(Next::stage(Merge { course, keeps, factors, missed }))
    }
}

/// What the elements kept are multiplied by. As in mergekit, 1 where there is next to nothing to compare.
fn factor(all: f64, kept: f64) -> f32 {
    if all < 1e-7 || kept < 1e-7 { 1.0 } else { (all / kept) as f32 }
}

/// The map.
struct Merge {
    course: Arc<Course>,
    keeps: Vec<Keep>,
    factors: Vec<f32>,
    missed: u64,
}

#[derive(Default)]
struct MergeState {
    kept: Vec<f32>,
    scratch: Scratch,
    space: Space,
}

impl Stage for Merge {
    type State = MergeState;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> MergeState {
        MergeState::default()
    }

    fn add(&self, state: &mut MergeState, block: &Block<'_>, out: &mut [f32]) {
        let MergeState { kept, scratch, space } = state;
        let (course, len) = (&*self.course, block.len());
        kept.resize(len * block.rows.len(), 0.0);
        let mut rows: Vec<&[f32]> = Vec::with_capacity(block.rows.len());
        let each = self.keeps.iter().zip(&self.factors).zip(block.rows);
        for (((keep, &factor), &row), kept) in each.zip(kept.chunks_exact_mut(len)) {
            if matches!(keep, Keep::All) {
                rows.push(row);
                continue;
            }
            let _in_place = keep.apply(course, block, row, space, kept);
            if factor != 1.0 {
                course.kernels.multiply_by(factor, kept);
            }
            rows.push(kept);
        }
        course.blend.apply(block, &rows, scratch, out);
    }

    fn count_kept(&self, state: &mut MergeState, block: &Block<'_>, counts: &mut [Kept]) -> bool {
        let thins = self.keeps.iter().any(|keep| !matches!(keep, Keep::All));
        if !thins && !self.course.blend.elects() {
            return false;
        }
        let MergeState { kept, scratch, .. } = state;
        let left = self.keeps.iter().zip(block.rows).zip(kept.chunks_exact(block.len()));
        let rows: Vec<&[f32]> = left
            .map(|((keep, row), kept)| if matches!(keep, Keep::All) { row } else { kept })
            .collect();
        self.course.blend.count(block.tensor, &rows, scratch, counts);
        true
    }

    fn merge(&self, _into: &mut MergeState, _from: MergeState) {}

    fn save(&self, _state: &MergeState) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<MergeState> {
        saved.is_empty().then(MergeState::default)
    }

    fn finish(self, _state: MergeState) -> Result<Next, MethodError> {
        let (elements, missed) = (self.course.unit.elements, self.missed);
        Ok(Next::Done(Outcome { elements, missed, ..Outcome::default() }))
    }
}
