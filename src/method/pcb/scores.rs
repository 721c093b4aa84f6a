//! Second fold: threshold and maximum of the competition scores B_i of each expert.

use std::sync::Arc;

use super::map::Map;
use super::{Findings, Setup};
use crate::kernel::keys;
use crate::kernel::pcb::{Bounds, Cut, Scratch};
use crate::method::{BLOCK, Block, MethodError, Next, Note, Stage};
use crate::stats::{Reader, RowCounts, RowSelection, Selected, Writer};

/// Selects, per expert, the threshold rank among the scores, and finds the largest score.
pub(super) struct Scores {
    setup: Arc<Setup>,
    elements: u64,
    bounds: Vec<Bounds>,
    findings: Vec<Findings>,
    selection: RowSelection,
    /// Brackets that were missed before.
    missed: u64,
}

pub(super) struct State {
    counts: RowCounts,
    overflow: Vec<bool>,
    keys: Vec<u32>,
    scores: Vec<f32>,
    scratch: Scratch,
}

impl Scores {
    pub(super) fn new(
        setup: Arc<Setup>,
        elements: u64,
        rank: u64,
        bounds: Vec<Bounds>,
        findings: Vec<Findings>,
    ) -> Self {
        let selection = RowSelection::new(bounds.len(), elements, vec![rank]);
        Self { setup, elements, bounds, findings, selection, missed: 0 }
    }

    /// The same, after so many brackets were missed.
    pub(super) fn after(self, missed: u64) -> Self {
        Self { missed, ..self }
    }
}

impl Stage for Scores {
    type State = State;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "scores" } else { "scores, refined" }
    }

    fn empty(&self) -> State {
        let n = self.bounds.len();
        State {
            counts: self.selection.empty(),
            overflow: vec![false; n],
            keys: vec![0; BLOCK],
            scores: vec![0.0; n * BLOCK],
            scratch: Scratch::default(),
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let (setup, len) = (&self.setup, block.base.len());
        let scores = &mut state.scores[..self.bounds.len() * len];
        let (bounds, scratch) = (&self.bounds, &mut state.scratch);
        setup.kernels.pcb_scores(setup.inter(), block.rows, bounds, scratch, scores);
        let keys = &mut state.keys[..len];
        for (i, scores) in scores.chunks_exact(len).enumerate() {
            if self.selection.is_first() {
                state.overflow[i] |= setup.kernels.max_magnitude_bits(scores) >= keys::INFINITY;
            }
            setup.kernels.score_keys(scores, keys);
            self.selection.add(&mut state.counts, i, keys);
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.counts.merge(from.counts);
        for (overflow, more) in into.overflow.iter_mut().zip(from.overflow) {
            *overflow |= more;
        }
    }

    fn save(&self, state: &State) -> Vec<u8> {
        let mut out = Writer::default();
        state.overflow.iter().for_each(|&overflow| out.u32(overflow.into()));
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let mut saved = Reader::new(saved);
        let mut state = self.empty();
        for overflow in &mut state.overflow {
            *overflow = saved.u32()? != 0;
        }
        state.counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(state)
    }

    fn finish(mut self, state: State) -> Result<Next, MethodError> {
        if let Some(expert) = state.overflow.iter().position(|&o| o) {
            return Err(MethodError::ScoreOverflow { expert: expert + 1 });
        }
        let found = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(found) => found,
        };
        let cuts = (found.iter().zip(&mut self.findings))
            .map(|(row, findings)| {
                cut(keys::score(row.value(0)), keys::score(row.largest), findings)
            })
            .collect();
        let map = Map::new(self.setup, self.elements, self.bounds, cuts, self.findings);
        Ok(Next::stage(map.after(self.missed)))
    }
}

/// The weights' scale: s = (B - threshold) / (largest - threshold), switched off where that
/// would be 0 / 0 (again NaN for the whole model in the authors' programs).
pub(super) fn cut(threshold: f32, largest: f32, findings: &mut Findings) -> Cut {
    let span = largest - threshold;
    let active = span > 0.0 && !findings.empty;
    if span <= 0.0 && !findings.empty {
        findings.notes.push(Note::NothingAboveThreshold);
    }
    findings.figures.extend([("threshold", threshold), ("top", largest)]);
    Cut { threshold, span, active }
}
