//! The map: weights from scores, and the weighted mean of the clamped task vectors.

use std::sync::Arc;

use super::{Findings, Setup, load_tallies, save_tallies};
use crate::kernel::pcb::{Bounds, Cut, Scratch, Tally};
use crate::method::{Block, Kept, MethodError, Next, Outcome, Stage};

/// Writes out = base + sum_i lambda_i u_i, with u_i = s_i T_i / max(sum_k s_k, 1e-12).
pub(super) struct Map {
    setup: Arc<Setup>,
    elements: u64,
    bounds: Vec<Bounds>,
    cuts: Vec<Cut>,
    findings: Vec<Findings>,
    /// Brackets that were missed before.
    missed: u64,
}

pub(super) struct State {
    tallies: Vec<Tally>,
    /// As they were when they were counted last.
    counted: Vec<Tally>,
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
        Self { setup, elements, bounds, cuts, findings, missed: 0 }
    }

    /// The same, after so many brackets were missed.
    pub(super) fn after(self, missed: u64) -> Self {
        Self { missed, ..self }
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
        let tallies = vec![Tally::default(); self.bounds.len()];
        State { counted: tallies.clone(), tallies, scratch: Scratch::default() }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, out: &mut [f32]) {
        let setup = &self.setup;
        setup.kernels.pcb_map(
            setup.inter(),
            block.base,
            block.rows,
            &self.bounds,
            &self.cuts,
            setup.lambdas.get(block.tensor),
            &mut state.scratch,
            out,
            &mut state.tallies,
        );
    }

    fn add_shares(
        &self,
        state: &mut State,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        _sums: &mut [f64],
    ) {
        let setup = &self.setup;
        setup.kernels.pcb_shares(
            setup.inter(),
            block.base,
            block.rows,
            &self.bounds,
            &self.cuts,
            &mut state.scratch,
            shares,
            &mut state.tallies,
        );
        setup.combine(block, shares, out);
    }

    fn count_kept(&self, state: &mut State, _block: &Block<'_>, kept: &mut [Kept]) -> bool {
        for ((kept, now), before) in kept.iter_mut().zip(&state.tallies).zip(&mut state.counted) {
            let ([elements, score], [e, s]) = (now.to_parts(), before.to_parts());
            kept.add(Kept { elements: elements - e, score: score - s });
            *before = *now;
        }
        true
    }

    fn merge(&self, into: &mut State, from: State) {
        let both = into.tallies.iter_mut().zip(from.tallies);
        both.chain(into.counted.iter_mut().zip(from.counted)).for_each(|(tally, more)| {
            tally.merge(more);
        });
    }

    fn save(&self, state: &State) -> Vec<u8> {
        save_tallies(&state.tallies)
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let tallies = load_tallies(saved, self.findings.len())?;
        // What is saved was counted.
        Some(State { counted: tallies.clone(), tallies, ..self.empty() })
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let experts = self.findings.into_iter().zip(state.tallies);
        let experts = experts.map(|(f, t)| f.outcome(t.kept, t.weight())).collect();
        Ok(Next::Done(Outcome { elements: self.elements, missed: self.missed, experts }))
    }
}
