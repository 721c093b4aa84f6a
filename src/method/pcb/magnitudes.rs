//! First fold: the clamp bounds lo_i and hi_i of the magnitudes of each task vector.

use std::sync::Arc;

use super::scores::Scores;
use super::{Findings, Setup};
use crate::kernel::keys;
use crate::kernel::pcb::Bounds;
use crate::method::{BLOCK, Block, MethodError, Next, Note, Stage};
use crate::stats::{Reader, RowCounts, RowSelection, Selected, Writer};

/// Selects, per expert, two ranks among the magnitudes |tau_i|, and finds the largest one.
pub(super) struct Magnitudes {
    setup: Arc<Setup>,
    elements: u64,
    threshold_rank: u64,
    selection: RowSelection,
    /// Brackets that were missed before.
    missed: u64,
}

pub(super) struct State {
    counts: RowCounts,
    keys: Vec<u32>,
}

impl Magnitudes {
    pub(super) fn new(setup: Arc<Setup>, elements: u64, threshold_rank: u64) -> Self {
        let ranks = setup.clamp_ranks(elements).to_vec();
        let selection = RowSelection::new(setup.experts(), elements, ranks);
        Self { setup, elements, threshold_rank, selection, missed: 0 }
    }

    /// The same, after so many brackets were missed.
    pub(super) fn after(self, missed: u64) -> Self {
        Self { missed, ..self }
    }
}

impl Stage for Magnitudes {
    type State = State;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "magnitudes" } else { "magnitudes, refined" }
    }

    fn empty(&self) -> State {
        State { counts: self.selection.empty(), keys: vec![0; BLOCK] }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let keys = &mut state.keys[..block.base.len()];
        for (i, tau) in block.rows.iter().enumerate() {
            self.setup.kernels.magnitude_keys(tau, keys);
            self.selection.add(&mut state.counts, i, keys);
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &State) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let mut saved = Reader::new(saved);
        let counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(State { counts, ..self.empty() })
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let found = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(found) => found,
        };
        let (bounds, findings) = (found.iter())
            .map(|row| {
                let value = |i| keys::magnitude(row.value(i));
                settle(value(0), value(1), keys::magnitude(row.largest))
            })
            .unzip();
        let (rank, elements) = (self.threshold_rank, self.elements);
        let scores = Scores::new(self.setup, elements, rank, bounds, findings);
        Ok(Next::stage(scores.after(self.missed)))
    }
}

/// The policy for clamp bounds that coincide (the authors' programs return NaN for the whole
/// model): the upper one becomes the largest magnitude. Keeping it would clamp a mostly zero
/// task vector to zero while its weights dilute the other experts.
pub(super) fn settle(lo: f32, hi: f32, largest: f32) -> (Bounds, Findings) {
    let mut notes = Vec::new();
    let empty = largest == 0.0;
    let mut settled = hi;
    if empty {
        notes.push(Note::IdenticalToBase);
    } else if hi == lo && largest > lo {
        settled = largest;
        notes.push(Note::BoundsCoincide);
    } else if hi == lo {
        notes.push(Note::MagnitudesEqual);
    }
    let figures = vec![("lo", lo), ("hi", settled), ("largest", largest)];
    (Bounds { lo, hi: settled }, Findings { empty, figures, notes })
}
