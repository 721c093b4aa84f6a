//! First fold: the clamp bounds lo_i and hi_i of the magnitudes of each task vector.

use std::sync::Arc;

use super::scores::Scores;
use super::{Findings, Setup};
use crate::kernel::keys;
use crate::kernel::pcb::Bounds;
use crate::method::{BLOCK, Block, MethodError, Next, Note, Stage};
use crate::stats::{Counts, Selector};

/// Selects, per expert, two ranks among the magnitudes |tau_i|, and finds the largest one.
pub(super) struct Magnitudes {
    setup: Arc<Setup>,
    elements: u64,
    threshold_rank: u64,
    selectors: Vec<Selector>,
    /// Known after the first pass.
    largest: Option<Vec<u32>>,
}

pub(super) struct State {
    counts: Vec<Counts>,
    largest: Vec<u32>,
    keys: Vec<u32>,
}

impl Magnitudes {
    pub(super) fn new(setup: Arc<Setup>, elements: u64, threshold_rank: u64) -> Self {
        let ranks = setup.clamp_ranks(elements).to_vec();
        let selectors = vec![Selector::new(elements, ranks); setup.experts()];
        Self { setup, elements, threshold_rank, selectors, largest: None }
    }
}

impl Stage for Magnitudes {
    type State = State;

    fn name(&self) -> &'static str {
        if self.largest.is_none() { "magnitudes" } else { "magnitudes, refined" }
    }

    fn empty(&self) -> State {
        State {
            counts: self.selectors.iter().map(Selector::empty).collect(),
            largest: vec![0; self.selectors.len()],
            keys: vec![0; BLOCK],
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let keys = &mut state.keys[..block.base.len()];
        for (i, tau) in block.rows.iter().enumerate() {
            self.setup.kernels.magnitude_keys(tau, keys);
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
    }

    fn finish(mut self, state: State) -> Result<Next, MethodError> {
        for (selector, counts) in self.selectors.iter_mut().zip(state.counts) {
            selector.absorb(counts);
        }
        let largest = self.largest.take().unwrap_or(state.largest);
        if self.selectors.iter().any(|s| s.values().is_none()) {
            return Ok(Next::stage(Self { largest: Some(largest), ..self }));
        }
        let mut bounds = Vec::new();
        let mut findings = Vec::new();
        for (selector, largest) in self.selectors.iter().zip(largest) {
            let ranked = selector.values().unwrap_or_default();
            let bound = |i: usize| ranked.get(i).map_or(0.0, |&key| keys::magnitude(key));
            let (b, f) = settle(bound(0), bound(1), keys::magnitude(largest));
            bounds.push(b);
            findings.push(f);
        }
        let (rank, elements) = (self.threshold_rank, self.elements);
        Ok(Next::stage(Scores::new(self.setup, elements, rank, bounds, findings)))
    }
}

/// The policy for clamp bounds that coincide (the authors' programs return NaN for the whole
/// model): the upper one becomes the largest magnitude. Keeping it would clamp a mostly zero
/// task vector to zero while its weights dilute the other experts.
fn settle(lo: f32, hi: f32, largest: f32) -> (Bounds, Findings) {
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
