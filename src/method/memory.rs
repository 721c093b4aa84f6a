//! A whole merge on arrays in memory.

use std::ops::Range;
use std::sync::Arc;

use super::{AnyStage, BLOCK, Block, Held, Method, MethodError, Next, Outcome, UnitView};

/// Merges one unit held in memory, its tensors laid end to end.
///
/// `rows` are what [`Method::operand`] asks for, one per expert, of the length of `base`; `base` is
/// empty in a merge without one. Returns the merged values.
///
/// ```
/// use reflow::kernel;
/// use reflow::method::{UnitView, Values, registry, run_in_memory};
///
/// let values = Values::new(1).with_word("variant", "a").with("keep", 0.5);
/// let kernels = kernel::select()?;
/// let (strategy, values_of_all) = (Default::default(), values.clone());
/// let setup = registry::Setup { kernels, base: true, seed: 0, strategy, values: values_of_all };
/// let pcb = (registry::find("pcb", None).ok_or("no such method")?.build)(&setup);
/// let unit = UnitView::array("numbers", 4, values.with_each("lambda", &[1.0]));
/// let (merged, outcome) = run_in_memory(&*pcb, &unit, &[1.0; 4], &[&[0.0, 0.1, 0.2, 0.3]])?;
/// assert_eq!(merged, [1.0, 1.0, 1.0, 1.2]);
/// assert_eq!(outcome.experts[0].kept, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Those of the method.
pub fn run_in_memory(
    method: &dyn Method,
    unit: &Arc<UnitView>,
    base: &[f32],
    rows: &[&[f32]],
) -> Result<(Vec<f32>, Outcome), MethodError> {
    let mut merged = vec![0.0; unit.elements as usize];
    let mut stage = method.start(unit)?;
    loop {
        match run_stage(method, unit, stage, base, rows, &mut merged)? {
            Next::Stage(next) => stage = next,
            Next::Done(outcome) => return Ok((merged, outcome)),
        }
    }
}

fn run_stage(
    method: &dyn Method,
    unit: &UnitView,
    stage: Box<dyn AnyStage>,
    base: &[f32],
    rows: &[&[f32]],
    merged: &mut [f32],
) -> Result<Next, MethodError> {
    let (mut state, held) = (stage.empty(), Held::default());
    let mut add = |run: Range<u64>| {
        for (place, tensor) in unit.tensors.iter().enumerate() {
            let step = block_len(method.grain(tensor)) as u64;
            let end = run.end.min(tensor.first + tensor.elements);
            let mut begin = run.start.max(tensor.first);
            while begin < end {
                let range = begin as usize..end.min(begin + step) as usize;
                let rows: Vec<&[f32]> = rows.iter().map(|row| &row[range.clone()]).collect();
                let base = base.get(range.clone()).unwrap_or_default();
                let out = if stage.writes() { &mut merged[range] } else { &mut [] };
                let first = begin - tensor.first;
                stage.add(
                    &mut state,
                    &Block { tensor: place, first, base, rows: &rows, weights: &[] },
                    out,
                );
                if let Some(parcel) = stage.hand_out(&mut state, false) {
                    held.keep(parcel);
                }
                begin += step;
            }
        }
    };
    match stage.sample() {
        Some(sampling) => sampling.runs(0..unit.elements, unit.elements).for_each(add),
        None => add(0..unit.elements),
    }
    if let Some(parcel) = stage.hand_out(&mut state, true) {
        held.keep(parcel);
    }
    stage.finish(state, &held)
}

/// Elements of a block where `grain` elements must meet: as many grains as fit in [`BLOCK`], at least one.
pub fn block_len(grain: u64) -> usize {
    let grain = grain.max(1) as usize;
    (BLOCK / grain * grain).max(grain)
}
