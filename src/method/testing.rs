//! Merges in memory for tests: in one go, and as an engine would cut them.

use crate::kernel::Kernels;
use crate::method;
use crate::method::registry::{Entry, Setup};
use crate::method::{
    AnyStage, Block, Held, MethodError, Next, State, UnitView, Values, block_len, run_in_memory,
};

fn setup(kernels: &'static Kernels, base: bool, values: &Values) -> Setup {
    Setup { kernels, base, seed: 0, strategy: method::Strategy::default(), values: values.clone() }
}

/// A merge of one tensor in memory.
pub(super) fn merged(
    entry: &Entry,
    shape: &[u64],
    values: Values,
    base: &[f32],
    rows: &[&[f32]],
) -> Result<Vec<f32>, MethodError> {
    let kernels = Kernels::available().last().unwrap();
    let method = (entry.build)(&setup(kernels, !base.is_empty(), &values));
    let unit = UnitView::tensor("w", shape, values);
    run_in_memory(&*method, &unit, base, rows).map(|(merged, _)| merged)
}

/// The same in tiles on several threads' states, each state saved and loaded on the way.
pub(super) fn in_tiles(
    entry: &Entry,
    kernels: &'static Kernels,
    shape: &[u64],
    values: &Values,
    (base, rows): (&[f32], &[&[f32]]),
    (tile, threads): (usize, usize),
) -> Vec<f32> {
    let method = (entry.build)(&setup(kernels, !base.is_empty(), values));
    let unit = UnitView::tensor("w", shape, values.clone());
    let grain = method.grain(&unit.tensors[0]);
    let block = block_len(grain);
    let tile = (tile / grain as usize * grain as usize).max(grain as usize);
    let mut merged = vec![0.0; unit.elements as usize];
    let mut stage: Box<dyn AnyStage> = method.start(&unit).unwrap();
    loop {
        let mut states: Vec<State> = (0..threads).map(|_| stage.empty()).collect();
        let tiles: Vec<usize> = (0..merged.len()).step_by(tile).collect();
        for (k, &start) in tiles.iter().enumerate().rev() {
            let end = (start + tile).min(merged.len());
            for at in (start..end).step_by(block) {
                let run = at..(at + block).min(end);
                let rows: Vec<&[f32]> = rows.iter().map(|row| &row[run.clone()]).collect();
                let base = base.get(run.clone()).unwrap_or_default();
                let view = Block { tensor: 0, first: at as u64, base, rows: &rows, weights: &[] };
                let out = if stage.writes() { &mut merged[run] } else { &mut [] };
                stage.add(&mut states[k % threads], &view, out);
            }
        }
        let mut all = stage.empty();
        for state in states {
            let saved = stage.save(&state);
            assert!(
                stage.load(&saved[..saved.len().saturating_sub(1)]).is_none() || saved.is_empty()
            );
            stage.merge(&mut all, stage.load(&saved).unwrap());
        }
        match stage.finish(all, &Held::default()).unwrap() {
            Next::Stage(next) => stage = next,
            Next::Done(_) => return merged,
        }
    }
}

/// Values of both signs and sizes far apart, with zeros.
pub(super) fn numbers(len: usize, seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let value = ((x >> 40) as f32 / 16_777_216.0 - 0.5) * 10f32.powi((x % 5) as i32 - 3);
        if x.is_multiple_of(9) { 0.0 } else { value }
    };
    (0..len).map(|_| next()).collect()
}
