//! Memory: who gets how much of `--memory`, decided before anything is read.

use serde::Serialize;

use super::PlanError;
use super::low_rank::Need;
use super::reading::{Grain, Mode};
use super::solve;

/// Bytes per purpose; their sum is the planned peak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// What may be used at most.
    pub limit: u64,
    /// Where the limit comes from.
    pub source: String,
    /// Elements per tile.
    pub tile_elements: u32,
    /// Worker threads.
    pub workers: usize,
    /// Tiles whose inputs are in memory.
    pub tiles: usize,
    /// Output buffers: of those tiles, and of some that the writer has.
    pub buffers: usize,
    /// Bytes between two write-behind steps.
    pub write_behind: u64,
    /// The unit in which page cache is filled and dropped.
    #[serde(skip)]
    pub grain: Grain,
    /// Inputs of the tiles in flight: mapped windows or buffers, and the page cache under them.
    pub input_bytes: u64,
    /// What of that is page cache: so much may be asked for ahead of time.
    #[serde(skip)]
    pub reach: u64,
    /// Output buffers of the tiles in flight.
    pub output_bytes: u64,
    /// Statistics: a state for each worker, the one they are gathered in, and one being saved; and what each worker keeps of a
    /// unit that it merges whole.
    pub fold_bytes: u64,
    /// Whether there is room to take samples of a unit while the one before it is merged.
    #[serde(skip)]
    pub samples_ahead: bool,
    /// What is seen of the tensors on the way, and told of them afterwards.
    #[serde(skip_serializing_if = "is_zero")]
    pub seen_bytes: u64,
    /// Matrices of adapters, and what reading them takes.
    pub adapter_bytes: u64,
    /// The largest system of equations, and what reading it takes.
    #[serde(skip_serializing_if = "is_zero")]
    pub solve_bytes: u64,
    /// Written pages that the disk has not taken yet.
    pub write_bytes: u64,
    /// Parsed headers, the plan, the program itself and slack.
    pub fixed_bytes: u64,
}

impl Budget {
    /// The planned peak.
    pub fn total(&self) -> u64 {
        let tiles = self.input_bytes + self.output_bytes + self.adapter_bytes + self.solve_bytes;
        tiles + self.fold_bytes + self.seen_bytes + self.write_bytes + self.fixed_bytes
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// What the budget depends on.
#[derive(Clone, Debug)]
pub(crate) struct Demand {
    /// How inputs are read.
    pub mode: Mode,
    /// Number of checkpoints that are read side by side.
    pub inputs: u64,
    /// What adapters take.
    pub low_rank: Need,
    /// What solving takes.
    pub solve: solve::Need,
    /// Bytes per element in the widest of them.
    pub input_bytes: u64,
    /// Bytes per element of the output.
    pub output_bytes: u64,
    /// State that one worker holds, for units of the largest size.
    pub state_bytes: u64,
    /// What one worker has seen of its tile, and what is known of tensors in all.
    pub seen_bytes: (u64, u64),
    /// Bits that one worker keeps of each element of a unit in one tile.
    pub bits_at_hand: u64,
    /// Units that may fit in one tile: their elements, and the bytes that are kept of them meanwhile.
    pub held: Vec<(u64, u64)>,
    /// Headers and plan.
    pub catalog_bytes: u64,
    /// The largest unit that gains from fitting in one tile (its statistics then cost no
    /// second read), in elements.
    pub whole: Option<u64>,
    /// Elements of the second largest unit of which a sample can be taken ahead; one of several tensors never fits in a tile.
    pub sampled: u64,
    /// Elements that must meet in one block, at most: the smallest tile.
    pub grain: u64,
    /// Threads wanted.
    pub threads: usize,
    /// Fixed tile size, if asked for.
    pub tile: Option<u32>,
}

/// The program, its thread stacks and what the allocator keeps: 7 to 9 MiB were measured; the
/// rest is slack for kernel memory charged to the process.
const PROGRAM: u64 = 14 << 20;
/// Elements of a tile where memory does not matter: 1 MiB windows of 2-byte types. Larger ones
/// read no faster.
const WANTED: u32 = 1 << 19;
const LEAST: u32 = 1 << 14;
/// Tiles that are being read, while the workers have one each: one has come, one is asked for.
const AHEAD: usize = 2;
/// Tiles of samples that are taken ahead: one worker has one.
pub(crate) const SAMPLE_TILES: usize = 1 + AHEAD;
/// Ways to write, the fastest first: output buffers beside those of tiles whose inputs are in memory, so that neither
/// the writer nor the workers wait for each other, and the most bytes given to the disk at a time.
const WAYS: [(usize, u64); 5] =
    [(2, 8 << 20), (2, 4 << 20), (2, 2 << 20), (0, 2 << 20), (0, 1 << 20)];

/// Divides `limit` up: tiles as large as wanted, then smaller ones, then fewer workers.
///
/// # Errors
/// [`PlanError::Memory`] with the smallest limit that works.
pub(crate) fn budget(limit: u64, source: &str, demand: &Demand) -> Result<Budget, PlanError> {
    let wanted = match (demand.tile, demand.whole) {
        (Some(tile), _) => tile,
        (None, Some(whole)) => whole.clamp(WANTED.into(), u32::MAX.into()) as u32,
        (None, None) => WANTED,
    };
    let grain = u32::try_from(demand.grain).unwrap_or(u32::MAX);
    let (wanted, least) = (wanted.max(grain), LEAST.max(grain));
    let mut last = None;
    for grain in grains(demand.mode) {
        let (mut tile, mut workers) = (wanted, demand.threads.max(1));
        loop {
            let ways = WAYS.map(|way| compute(limit, source, demand, *grain, tile, workers, way));
            if let Some(plan) = ways.iter().find(|plan| plan.total() <= limit) {
                return Ok(with_samples_ahead(plan.clone(), demand));
            }
            let can_shrink = demand.tile.is_none() && tile > least;
            let smaller = (tile / 2).max(least.min(wanted));
            if can_shrink && (tile > WANTED / 8 || workers == 1) {
                tile = smaller;
            } else if workers > 1 {
                workers -= 1;
            } else {
                last = ways.into_iter().next_back();
                break;
            }
        }
    }
    Err(last.as_ref().map_or(PlanError::Nothing, |plan| too_small(plan, &demand.solve.tensor)))
}

/// Lets samples be taken ahead, if there is room: a state of the one who takes them, one being saved, and what is read.
fn with_samples_ahead(plan: Budget, demand: &Demand) -> Budget {
    // The longest run of a sample may lie across the end of a block, or of a pool's buffer.
    let reading = demand.inputs * SAMPLE_TILES as u64 * 2 * Grain::Sparse.block();
    let bytes = 2 * demand.state_bytes + reading;
    if demand.sampled <= u64::from(plan.tile_elements) || plan.total() + bytes > plan.limit {
        return plan;
    }
    Budget { fold_bytes: plan.fold_bytes + bytes, samples_ahead: true, ..plan }
}

/// Grains in the order of preference: the fastest, then the one that needs the least memory.
fn grains(mode: Mode) -> &'static [Grain] {
    match mode {
        Mode::Mmap => &[Grain::Huge, Grain::Exact],
        Mode::Pread | Mode::Direct => &[Grain::Exact],
    }
}

fn compute(
    limit: u64,
    source: &str,
    demand: &Demand,
    grain: Grain,
    tile: u32,
    workers: usize,
    (waiting, most): (usize, u64),
) -> Budget {
    let tiles = workers + AHEAD;
    let buffers = tiles + waiting;
    let window = u64::from(tile) * demand.input_bytes;
    let span = window * tiles as u64;
    let (reach, buffered) = match demand.mode {
        Mode::Mmap => (grain.footprint(demand.inputs, span), 0),
        // Buffers, and page cache for the tile being read and the one asked for.
        Mode::Pread => (grain.footprint(demand.inputs, 2 * window), demand.inputs * span),
        Mode::Direct => (0, demand.inputs * (span + (8 << 10) * tiles as u64)),
    };
    // One matrix or run of rows is read at a time, the next one asked for. Each file keeps the block under its cursor.
    let Need { chunk, files, means, .. } = demand.low_rank;
    let reading = match demand.mode {
        Mode::Mmap => Grain::Sparse.footprint(files, 2 * chunk),
        Mode::Pread => 2 * chunk + Grain::Sparse.footprint(files, 2 * chunk),
        Mode::Direct => 2 * (chunk + (8 << 10)),
    };
    let adapter_bytes =
        if files == 0 { 0 } else { reading + means + demand.low_rank.live(tiles, tile) };
    // Runs of two files, or smaller ones of more, and the next ones. Tiles are not in memory meanwhile, but what they had
    // may not be given back.
    let (chunk, files) = (2 * 2 * demand.solve.chunk, demand.solve.files);
    let solve_bytes = match (demand.solve.held, demand.mode) {
        (0, _) => 0,
        (held, Mode::Mmap) => held + grain.footprint(files, chunk / files),
        (held, Mode::Pread) => held + chunk + grain.footprint(files, chunk / files),
        (held, Mode::Direct) => held + chunk + files * (16 << 10),
    };
    let whole = demand.held.iter().filter(|&&(elements, _)| elements <= u64::from(tile));
    let held = whole.map(|&(_, bytes)| bytes).max().unwrap_or(0);
    let write_behind = (8 * u64::from(tile) * demand.output_bytes).clamp(1 << 20, most);
    Budget {
        limit,
        source: source.to_owned(),
        tile_elements: tile,
        workers,
        tiles,
        buffers,
        write_behind,
        grain,
        input_bytes: reach + buffered,
        reach,
        output_bytes: u64::from(tile) * demand.output_bytes * buffers as u64,
        // One for each worker, one that gathers them, and one on its way to the disk.
        fold_bytes: demand.state_bytes * (workers as u64 + 2)
            + ((u64::from(tile) * demand.bits_at_hand).div_ceil(8) + held) * workers as u64,
        samples_ahead: false,
        seen_bytes: demand.seen_bytes.0 * (workers as u64 + 2) + demand.seen_bytes.1,
        adapter_bytes,
        solve_bytes,
        write_bytes: 2 * write_behind,
        fixed_bytes: PROGRAM + demand.catalog_bytes,
    }
}

fn too_small(plan: &Budget, solved: &str) -> PlanError {
    let solving = format!("solving for {solved}");
    let terms = [
        ("statistics", plan.fold_bytes),
        ("what --statistics sees", plan.seen_bytes),
        ("tiles", plan.input_bytes + plan.output_bytes),
        ("adapters", plan.adapter_bytes),
        (solving.as_str(), plan.solve_bytes),
        ("program and headers", plan.fixed_bytes),
        ("writing", plan.write_bytes),
    ];
    let largest = terms.into_iter().max_by_key(|&(_, bytes)| bytes).unwrap_or(terms[0]);
    PlanError::Memory {
        limit: plan.limit,
        source_of_limit: plan.source.clone(),
        // Rounded up to a number one would type.
        needed: plan.total().div_ceil(1 << 20) << 20,
        largest: largest.0.to_owned(),
        largest_bytes: largest.1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demand(experts: u64) -> Demand {
        Demand {
            mode: Mode::Mmap,
            inputs: experts + 1,
            input_bytes: 2,
            output_bytes: 2,
            low_rank: Need::default(),
            solve: solve::Need::default(),
            state_bytes: experts << 20,
            seen_bytes: (0, 0),
            bits_at_hand: 0,
            held: Vec::new(),
            catalog_bytes: 1 << 20,
            whole: None,
            sampled: 0,
            grain: 1,
            threads: 2,
            tile: None,
        }
    }

    #[test]
    fn three_experts_fit_in_64_mib_with_both_workers() {
        let plan = budget(64 << 20, "", &demand(3)).unwrap();
        assert!(plan.total() <= 64 << 20);
        assert_eq!((plan.workers, plan.tile_elements), (2, WANTED));
    }

    #[test]
    fn the_smallest_limit_it_names_works_and_one_mib_less_does_not() {
        for experts in [1, 3, 16, 90] {
            let demand = demand(experts);
            let Err(PlanError::Memory { needed, .. }) = budget(1 << 20, "", &demand) else {
                panic!("1 MiB cannot be enough");
            };
            assert!(budget(needed, "", &demand).is_ok(), "{experts}");
            assert!(budget(needed - (1 << 20), "", &demand).is_err(), "{experts}");
        }
    }

    #[test]
    fn bits_of_elements_in_memory_are_planned_for_each_worker() {
        let whole = Demand { whole: Some(8_000_000), ..demand(3) };
        let bits = Demand { bits_at_hand: 4, ..whole.clone() };
        let [whole, bits] = [whole, bits].map(|d| budget(4 << 30, "", &d).unwrap().total());
        assert_eq!(bits - whole, 2 * 4_000_000);
    }

    #[test]
    fn what_is_kept_of_whole_units_is_planned_for_where_they_fit_in_a_tile() {
        let held = vec![(1000, 10), (1 << 19, 1 << 20), (11_000_000, 20 << 20)];
        let plain = demand(3);
        let with = Demand { held: held.clone(), ..demand(3) };
        let fold = |demand: &Demand, tile| {
            let demand = Demand { tile: Some(tile), ..demand.clone() };
            budget(4 << 30, "", &demand).unwrap().fold_bytes
        };
        for (tile, bytes) in [(900, 0), (1000, 10), (1 << 20, 1 << 20), (12_000_000, 20 << 20)] {
            assert_eq!(fold(&with, tile), fold(&plain, tile) + 2 * bytes, "{tile}");
        }
        // Where it does not fit, the unit gets no tile of its size.
        let whole = Demand { whole: Some(11_000_000), ..plain };
        let fits = |limit: &u64| {
            budget(*limit, "", &whole).is_ok_and(|plan| plan.tile_elements == 11_000_000)
        };
        let least = (1..4000).map(|mib| mib << 20).find(fits).unwrap();
        let whole = Demand { held, ..whole };
        assert!(budget(least, "", &whole).unwrap().tile_elements < 11_000_000);
    }

    #[test]
    fn whole_units_get_tiles_of_their_size_when_memory_allows() {
        let demand = Demand { whole: Some(11_000_000), ..demand(3) };
        assert_eq!(budget(4 << 30, "", &demand).unwrap().tile_elements, 11_000_000);
        assert!(budget(64 << 20, "", &demand).unwrap().tile_elements < 1 << 20);
    }
}
