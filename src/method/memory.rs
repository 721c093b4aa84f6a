//! A whole merge on arrays in memory: for units that fit in one tile, and for tests.

use super::{AnyStage, BLOCK, Block, Method, MethodError, Next, Outcome};

/// Merges one unit held in memory.
///
/// `rows` are what [`Method::operand`] asks for, one of the length of `base` per expert. Returns
/// the merged values.
///
/// # Errors
/// Those of the method.
pub fn run_in_memory(
    method: &dyn Method,
    base: &[f32],
    rows: &[&[f32]],
) -> Result<(Vec<f32>, Outcome), MethodError> {
    let mut merged = vec![0.0; base.len()];
    let mut stage = method.start(base.len() as u64)?;
    loop {
        match run_stage(stage, base, rows, &mut merged)? {
            Next::Stage(next) => stage = next,
            Next::Done(outcome) => return Ok((merged, outcome)),
        }
    }
}

fn run_stage(
    stage: Box<dyn AnyStage>,
    base: &[f32],
    rows: &[&[f32]],
    merged: &mut [f32],
) -> Result<Next, MethodError> {
    let mut state = stage.empty();
    for (i, base) in base.chunks(BLOCK).enumerate() {
        let range = i * BLOCK..i * BLOCK + base.len();
        let rows: Vec<&[f32]> = rows.iter().map(|row| &row[range.clone()]).collect();
        let out = if stage.writes() { &mut merged[range] } else { &mut [] };
        stage.add(&mut state, &Block { base, rows: &rows }, out);
    }
    stage.finish(state)
}
