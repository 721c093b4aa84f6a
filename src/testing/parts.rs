//! Merges as an engine runs them: cut into blocks, dealt to workers, killed and resumed.

use std::sync::Arc;

use crate::method::{
    AnyStage, BLOCK, Block, Held, Method, MethodError, Next, Outcome, Sampling, UnitView, block_len,
};

/// How a merge is run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// Lengths of the blocks, in turn, at most [`BLOCK`]; in grains where a tensor has one.
    pub(crate) cuts: Vec<usize>,
    pub(crate) workers: usize,
    /// Whether the unit is merged as one that is in memory.
    pub(crate) at_hand: bool,
}

/// Merges a unit, whose tensors lie end to end, in blocks that are dealt to several workers, the last ones
/// first. Each pass is saved and loaded before it ends.
pub(crate) fn merge(
    method: &dyn Method,
    unit: &Arc<UnitView>,
    base: &[f32],
    rows: &[Vec<f32>],
    run: &Run,
) -> Result<(Vec<f32>, Outcome), MethodError> {
    merge_within(method, unit, base, rows, run, u64::MAX)
}

/// The same with room for so many bytes of parcels.
pub(crate) fn merge_within(
    method: &dyn Method,
    unit: &Arc<UnitView>,
    base: &[f32],
    rows: &[Vec<f32>],
    run: &Run,
    room: u64,
) -> Result<(Vec<f32>, Outcome), MethodError> {
    let mut out = vec![f32::NAN; unit.elements as usize];
    let mut stage = if run.at_hand { method.start_at_hand(unit) } else { method.start(unit) }?;
    loop {
        let held = Held::within(room);
        let mut states: Vec<_> = (0..run.workers).map(|_| stage.empty()).collect();
        for (turn, (tensor, range)) in blocks(method, unit, &*stage, run).into_iter().enumerate() {
            let rows: Vec<&[f32]> = rows.iter().map(|row| &row[range.clone()]).collect();
            let first = range.start as u64 - unit.tensors[tensor].first;
            let base = base.get(range.clone()).unwrap_or_default();
            let block = Block { tensor, first, base, rows: &rows, weights: &[] };
            let values = if stage.writes() { &mut out[range] } else { &mut [] };
            let state = &mut states[(turn * 7 + turn / 3) % run.workers];
            stage.add(state, &block, values);
            stage.hand_out(state, false).into_iter().for_each(|parcel| held.keep(parcel));
        }
        for state in &mut states {
            stage.hand_out(state, true).into_iter().for_each(|parcel| held.keep(parcel));
        }
        let mut merged = states.remove(0);
        states.into_iter().rev().for_each(|state| stage.merge(&mut merged, state));
        let saved = stage.save(&merged);
        assert!(saved.is_empty() || stage.load(&saved[1..]).is_none(), "{}", stage.name());
        let merged = stage.load(&saved).expect("a state that was just saved");
        match stage.finish(merged, &held)? {
            Next::Stage(next) => stage = next,
            Next::Done(outcome) => return Ok((out, outcome)),
        }
    }
}

/// Tensors and ranges of the unit's elements, the last ones first.
fn blocks(
    method: &dyn Method,
    unit: &UnitView,
    stage: &dyn AnyStage,
    run: &Run,
) -> Vec<(usize, std::ops::Range<usize>)> {
    let (elements, mut turn, mut blocks) = (unit.elements, 0, Vec::new());
    let everything = Sampling { block: elements.max(1), stride: elements.max(1) };
    let sampling = stage.sample().unwrap_or(everything);
    for part in sampling.runs(0..elements, elements) {
        for (place, tensor) in unit.tensors.iter().enumerate() {
            let end = part.end.min(tensor.first + tensor.elements);
            let mut start = part.start.max(tensor.first);
            while start < end {
                let grain = method.grain(tensor).max(1);
                let len = (run.cuts[turn % run.cuts.len()].clamp(1, BLOCK) as u64)
                    .saturating_mul(grain)
                    .min(block_len(grain) as u64)
                    .min(end - start);
                blocks.push((place, start as usize..(start + len) as usize));
                (start, turn) = (start + len, turn + 1);
            }
        }
    }
    blocks.reverse();
    blocks
}

/// Task vectors as fine-tuning in bf16 makes them: heavy tails, many zeros, many ties.
pub(crate) fn tied(experts: usize, elements: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut uniform = uniform(seed);
    let mut value = move || {
        let tail = (uniform() - 0.5) / (uniform() + 0.02);
        // A grid of 2^-10 makes ties.
        ((tail * 4.0).round() / 1024.0) as f32
    };
    (0..experts).map(|_| (0..elements).map(|_| value()).collect()).collect()
}

/// Reproducible numbers in [0, 1).
pub(crate) fn uniform(seed: u64) -> impl FnMut() -> f64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Task vectors that are hard to select from by a sample of them, none of which is the same for all experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hard {
    /// Nothing but zeros.
    Zeros,
    /// Nothing but one magnitude, of both signs.
    OneMagnitude,
    /// Two magnitudes and zeros, so that any threshold lies amid equal ones.
    TwoMagnitudes,
    /// One element that is not zero, which the sample does not take.
    OneElement,
    /// Ever larger, so that no two parts are alike.
    Rising,
    /// What the sample takes is far larger than the rest.
    Deceptive,
}

impl Hard {
    pub(crate) const ALL: [Self; 6] = [
        Self::Zeros,
        Self::OneMagnitude,
        Self::TwoMagnitudes,
        Self::OneElement,
        Self::Rising,
        Self::Deceptive,
    ];

    /// Rows of so many elements, of which `sampling` takes a sample.
    pub(crate) fn rows(self, experts: usize, elements: usize, sampling: Sampling) -> Vec<Vec<f32>> {
        let mut sampled = vec![false; elements];
        for run in sampling.runs(0..elements as u64, elements as u64) {
            sampled[run.start as usize..run.end as usize].fill(true);
        }
        let hidden = sampled.iter().position(|sampled| !sampled).unwrap_or(0);
        let value = |i: usize, e: usize| {
            let mixed = (e ^ (i * 77)).wrapping_mul(0x9e37_79b9) >> 9;
            let sign = if mixed & 1 == 0 { 1.0 } else { -1.0 };
            let size = match self {
                Self::OneMagnitude => 0.25,
                Self::TwoMagnitudes => [0.0, 0.25, 0.5][mixed / 2 % 3],
                Self::OneElement if e == hidden => 0.5,
                Self::Zeros | Self::OneElement => 0.0,
                Self::Rising => (e + 1) as f32 / 1_048_576.0,
                Self::Deceptive if sampled[e] => 1.0 + (mixed % 64) as f32 / 64.0,
                Self::Deceptive => (1 + mixed % 1024) as f32 / 8192.0,
            };
            sign * size
        };
        (0..experts).map(|i| (0..elements).map(|e| value(i, e)).collect()).collect()
    }
}

/// The bits of values, so that zeros are told apart.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}
