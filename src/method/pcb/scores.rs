//! Second fold: threshold and maximum of the competition scores B_i of each expert.

use std::sync::Arc;

use super::map::Map;
use super::{Findings, Setup};
use crate::kernel::keys;
use crate::kernel::pcb::{Bounds, Cut, Scratch};
use crate::method::{BLOCK, Block, MethodError, Next, Note, Stage};
use crate::stats::{Counts, Selector};

/// Selects, per expert, the threshold rank among the scores, and finds the largest score.
pub(super) struct Scores {
    setup: Arc<Setup>,
    elements: u64,
    bounds: Vec<Bounds>,
    findings: Vec<Findings>,
    selectors: Vec<Selector>,
    /// Known after the first pass.
    largest: Option<Vec<u32>>,
}

pub(super) struct State {
    counts: Vec<Counts>,
    largest: Vec<u32>,
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
        let selectors = vec![Selector::new(elements, vec![rank]); bounds.len()];
        Self { setup, elements, bounds, findings, selectors, largest: None }
    }
}

impl Stage for Scores {
    type State = State;

    fn name(&self) -> &'static str {
        if self.largest.is_none() { "scores" } else { "scores, refined" }
    }

    fn empty(&self) -> State {
        let n = self.bounds.len();
        State {
            counts: self.selectors.iter().map(Selector::empty).collect(),
            largest: vec![0; n],
            overflow: vec![false; n],
            keys: vec![0; BLOCK],
            scores: vec![0.0; n * BLOCK],
            scratch: Scratch::default(),
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let (setup, len) = (&self.setup, block.base.len());
        let scores = &mut state.scores[..self.bounds.len() * len];
        setup.kernels.pcb_scores(
            setup.inter(),
            block.rows,
            &self.bounds,
            &mut state.scratch,
            scores,
        );
        let keys = &mut state.keys[..len];
        for (i, scores) in scores.chunks_exact(len).enumerate() {
            if self.largest.is_none() {
                state.overflow[i] |= setup.kernels.max_magnitude_bits(scores) >= keys::INFINITY;
            }
            setup.kernels.score_keys(scores, keys);
            state.counts[i].add(keys);
            if self.largest.is_none() {
                let largest = keys.iter().copied().fold(0, u32::max);
                state.largest[i] = state.largest[i].max(largest);
            }
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        for (counts, more) in into.counts.iter_mut().zip(from.counts) {
            counts.merge(more);
        }
        for (largest, more) in into.largest.iter_mut().zip(from.largest) {
            *largest = (*largest).max(more);
        }
        for (overflow, more) in into.overflow.iter_mut().zip(from.overflow) {
            *overflow |= more;
        }
    }

    fn finish(mut self, state: State) -> Result<Next, MethodError> {
        if let Some(expert) = state.overflow.iter().position(|&o| o) {
            return Err(MethodError::ScoreOverflow { expert: expert + 1 });
        }
        for (selector, counts) in self.selectors.iter_mut().zip(state.counts) {
            selector.absorb(counts);
        }
        let largest = self.largest.take().unwrap_or(state.largest);
        if self.selectors.iter().any(|s| s.values().is_none()) {
            return Ok(Next::stage(Self { largest: Some(largest), ..self }));
        }
        let mut cuts = Vec::new();
        for ((selector, largest), findings) in
            self.selectors.iter().zip(largest).zip(&mut self.findings)
        {
            let ranked = selector.values().unwrap_or_default();
            let threshold = ranked.first().map_or(0.0, |&key| keys::score(key));
            let largest = keys::score(largest);
            cuts.push(cut(threshold, largest, findings));
        }
        Ok(Next::stage(Map::new(self.setup, self.elements, self.bounds, cuts, self.findings)))
    }
}

/// The weights' scale: s = (B - threshold) / (largest - threshold), switched off where that
/// would be 0 / 0 (again NaN for the whole model in the authors' programs).
fn cut(threshold: f32, largest: f32, findings: &mut Findings) -> Cut {
    let span = largest - threshold;
    let active = span > 0.0 && !findings.empty;
    if span <= 0.0 && !findings.empty {
        findings.notes.push(Note::NothingAboveThreshold);
    }
    findings.figures.extend([("threshold", threshold), ("top", largest)]);
    Cut { threshold, span, active }
}
