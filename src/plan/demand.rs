//! What the budget depends on, added up from the plan.

use super::{
    Beside, Budget, Demand, Inputs, Means, PlanError, Segment, Unit, budget, low_rank, seen, solve,
};
use crate::checkpoint::components::{Entry, FRAME, Form, Kind};
use crate::method::{Method, Scope, block_len};
use crate::recipe::{Coefficients, Recipe};

/// Divides memory up. What of it is left holds models that statistics would read once more.
///
/// # Errors
/// If there is too little.
pub(super) fn divide(
    recipe: &Recipe,
    inputs: &Inputs,
    segments: &mut [Segment],
    units: &[Unit],
    method: &dyn Method,
    means: &Means,
) -> Result<Budget, PlanError> {
    let divided = |demand: &Demand| budget(means.memory, &means.memory_source, demand);
    let mut demand = demand(recipe, inputs, segments, units, method, means);
    let budget = divided(&demand)?;
    let room = demand.solve.held + means.memory.saturating_sub(budget.total());
    if !solve::hold(segments, units, method, room) {
        return Ok(budget);
    }
    demand.solve = solve::Need::new(segments, units, method);
    divided(&demand)
}

fn demand(
    recipe: &Recipe,
    inputs: &Inputs,
    segments: &[Segment],
    units: &[Unit],
    method: &dyn Method,
    means: &Means,
) -> Demand {
    let widest = |bytes: fn(&Segment) -> u64| segments.iter().map(bytes).max().unwrap_or(0);
    let solved =
        |unit: &&Unit| unit.segments.iter().any(|&s| segments[s as usize].solve().is_some());
    let single = units.iter().filter(|u| u.segments.len() == 1 && !solved(u));
    let state = units.iter().map(|unit| method.state_bytes(&unit.view)).max().unwrap_or(0);
    // Which units fit in a tile, and so are merged whole, the budget decides.
    let mut held: Vec<(u64, u64)> = units
        .iter()
        .filter(|unit| unit.segments.len() == 1)
        .map(|unit| (unit.view.elements, method.held_bytes(&unit.view)))
        .filter(|&(_, bytes)| bytes > 0)
        .collect();
    held.sort_unstable();
    held.dedup();
    let grain = segments.iter().map(Segment::cut).max().unwrap_or(1);
    // What the largest block has above the usual one. Blocks of whole grains may be smaller, too.
    let block = segments.iter().map(|s| block_len(s.grain)).max().unwrap_or(0);
    let block = block.saturating_sub(crate::method::BLOCK) as u64;
    let tensors: usize = inputs.catalogs().chain(&inputs.evidence).map(|c| c.tensors.len()).sum();
    let low_rank = low_rank::Need::new(segments);
    // Adapters, and rows that move, are planned for one reader.
    let sampled = if low_rank.files == 0 { second_sampled(units, method) } else { 0 };
    let maps = segments.iter().flat_map(|s| &s.sources).filter_map(|s| s.rows.as_ref());
    let runs: usize = maps.map(|map| map.runs.len()).sum();
    let products =
        segments.iter().flat_map(|s| &s.sources).filter(|s| s.low_rank.is_some()).count();
    let read = segments.iter().map(|s| s.read().count()).max().unwrap_or(0) as u64;
    let stored = widest(|s| (0..s.sources.len()).map(|i| s.source_size(i)).max().unwrap_or(0));
    let (n, frame) = (recipe.models.len() as u64, u64::from(FRAME));
    // A frame that was read, as entries, and packed.
    let unpacked = n * frame * (size_of::<Entry>() as u64 + 8);
    let (inputs_read, input_bytes, packed, frames) = match means.beside {
        Beside::Nothing => (read, stored, 0, 0),
        // What a frame holds at most for each element; zstd adds next to nothing. A worker has one as it comes, packed, and
        // compressed.
        Beside::Shares | Beside::Unified => {
            let kind = if means.beside == Beside::Shares { Kind::Shares } else { Kind::Unified };
            let form = Form { kind, experts: n as usize };
            let packed = (form.largest() as u64).div_ceil(frame) + 1;
            let listed = if kind == Kind::Shares { n * size_of::<Entry>() as u64 } else { packed };
            (read, stored, packed, (listed + 2 * packed) * frame + n * block_rows())
        }
        Beside::Frames { largest } => {
            (2, stored.max(largest.div_ceil(frame)), 0, unpacked + 4 * largest)
        }
    };
    let seen = means.statistics.then(|| {
        let meet = segments.iter().map(Segment::valued).max().unwrap_or(0) as u64;
        (seen::worker_bytes(meet, block), seen::common_bytes(meet))
    });
    Demand {
        mode: means.mode,
        inputs: inputs_read,
        low_rank,
        solve: solve::Need::new(segments, units, method),
        input_bytes,
        output_bytes: widest(|s| u64::from(s.out_size)) + packed,
        held,
        state_bytes: state + block * 4 * (inputs.labels.len() as u64 + 2) + frames,
        seen_bytes: seen.unwrap_or_default(),
        // Names and places are there twice while the plan is made, and once more in the manifest when a merge ends: 79 MB of
        // heap were measured for two checkpoints of 40,000 tensors, of which 14 MB were something else.
        catalog_bytes: tensors as u64 * 220
            + segments.len() as u64 * 2200
            + products as u64 * 800
            + runs as u64 * 80
            + segments.iter().filter(|s| s.frames.is_some()).map(Segment::frame_count).sum::<u64>()
                * FRAME_TOLD
            + recipe.coefficients.as_ref().map_or(0, Coefficients::bytes),
        bits_at_hand: single
            .clone()
            .map(|unit| method.bits_at_hand(&unit.view))
            .max()
            .filter(|_| recipe.scope != Scope::Model)
            .unwrap_or(0),
        whole: (recipe.scope != Scope::Model)
            .then(|| single.map(|u| u.view.elements).max())
            .flatten(),
        sampled,
        grain,
        threads: means.threads,
        tile: means.tile,
    }
}

/// Elements of the second largest unit that is sampled, if it has one tensor alone.
fn second_sampled(units: &[Unit], method: &dyn Method) -> u64 {
    let sampled = units.iter().filter(|unit| method.sampled(&unit.view).is_some());
    let mut elements: Vec<u64> = sampled
        .map(|unit| if unit.segments.len() == 1 { unit.view.elements } else { u64::MAX })
        .collect();
    elements.sort_unstable_by(|a, b| b.cmp(a));
    elements.get(1).copied().unwrap_or(0)
}

/// For each frame: how long it is or where it begins, and that in the file that tells of the frames, as it is read or written twice.
const FRAME_TOLD: u64 = 40;

/// Bytes of a row of a block.
fn block_rows() -> u64 {
    4 * crate::method::BLOCK as u64
}
