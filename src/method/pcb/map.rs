//! The map: weights from scores, and the weighted mean of the clamped task vectors.

use std::sync::Arc;

use super::{Findings, Setup, load_tallies, save_tallies};
use crate::kernel::pcb::{Bounds, Cut, Scratch, Tally};
use crate::method::{BLOCK, Block, MethodError, Next, Outcome, Stage};

/// Writes out = base + sum_i lambda_i u_i, with u_i = s_i T_i / max(sum_k s_k, 1e-12).
pub(super) struct Map {
    setup: Arc<Setup>,
    elements: u64,
    bounds: Vec<Bounds>,
    cuts: Vec<Cut>,
    findings: Vec<Findings>,
}

pub(super) struct State {
    tallies: Vec<Tally>,
    scores: Vec<f32>,
    scratch: Scratch,
}

impl Map {
    pub(super) fn new(
        setup: Arc<Setup>,
        elements: u64,
        bounds: Vec<Bounds>,
        cuts: Vec<Cut>,
        findings: Vec<Findings>,
    ) -> Self {
        Self { setup, elements, bounds, cuts, findings }
    }
}

impl Stage for Map {
    type State = State;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> State {
        let n = self.bounds.len();
        State {
            tallies: vec![Tally::default(); n],
            scores: vec![0.0; n * BLOCK],
            scratch: Scratch::default(),
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, out: &mut [f32]) {
        let (setup, len) = (&self.setup, block.base.len());
        let State { tallies, scores, scratch } = state;
        let scores = &mut scores[..self.bounds.len() * len];
        setup.kernels.pcb_scores(setup.inter(), block.rows, &self.bounds, scratch, scores);
        setup.kernels.pcb_merge(
            block.base,
            block.rows,
            scores,
            &self.bounds,
            &self.cuts,
            setup.lambdas.get(block.tensor),
            scratch,
            out,
            tallies,
        );
    }

    fn merge(&self, into: &mut State, from: State) {
        for (tally, more) in into.tallies.iter_mut().zip(from.tallies) {
            tally.merge(more);
        }
    }

    fn save(&self, state: &State) -> Vec<u8> {
        save_tallies(&state.tallies)
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let tallies = load_tallies(saved, self.findings.len())?;
        Some(State { tallies, ..self.empty() })
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let experts = self.findings.into_iter().zip(state.tallies);
        let experts = experts.map(|(f, t)| f.outcome(t.kept, t.weight())).collect();
        Ok(Next::Done(Outcome { elements: self.elements, experts }))
    }
}
