//! Clamp bounds and thresholds of all experts in one read, and a sample before it.
//!
//! ```text
//! sample (4 passes of 1 % each)  brackets of lo_i, hi_i, then of thr_i
//! scan   (1 pass)                counts what lies below them; hands out what lies inside
//!        at its end              lo_i, hi_i by rank among what was inside; scores of the undecided
//!                                with these; thr_i by rank among them; mx_i
//! ```
//! The counts prove whether a bracket held what it should. If one did not, the experts concerned
//! are sampled and scanned once more with wider brackets, and if that does not help all go on with
//! selection by radix. The statistics are the same either way, bit for bit.
//!
//! Small units are not sampled: the scan hands out all of them.
//!
//! In variants c and d a score depends on the bounds of all experts: what is undecided is kept with the
//! task vectors of all, and no threshold is found before all bounds are. See `crowd`.

mod crowd;
mod guess;
mod sample;
mod scan;
mod settle;

#[cfg(test)]
mod sound;
#[cfg(test)]
pub(super) mod tests;

use std::sync::Arc;

use super::magnitudes::Magnitudes;
use super::map::Map;
use super::scores::{self, Scores};
use super::{Findings, Setup};
use crate::kernel::keys;
use crate::kernel::pcb::{Bounds, Cut, Inter};
pub(super) use crate::method::sampling::sampling;
use crate::method::{AnyStage, BLOCK, Next};
use crate::stats::{EVERYTHING, Sketch, Span};

/// Rounds of sample and scan before the radix plan is taken.
const ROUNDS: u32 = 2;
/// How much wider brackets are in each round.
const WIDER: f64 = 4.0;

/// Sizes that tests change to get at the rare paths.
#[derive(Clone, Copy, Debug)]
pub(in crate::method) struct Tuning {
    /// Units of up to so many elements are handed out whole.
    pub(in crate::method) collect: u64,
    /// Factor on the width of all brackets in the first round.
    pub(in crate::method) width: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { collect: 1 << 20, width: 1.0 }
    }
}

/// The pass names up to the map, in an undisturbed merge.
pub(super) fn passes(tuning: Tuning, elements: u64) -> Vec<&'static str> {
    let mut passes = Vec::new();
    if elements > tuning.collect {
        passes.extend([sample::MAGNITUDES[0], sample::MAGNITUDES[1]]);
        passes.extend([sample::SCORES[0], sample::SCORES[1]]);
    }
    passes.push(scan::NAME);
    passes
}

/// Bytes of state of one worker, whatever the pass.
pub(super) fn state_bytes(experts: u64, inter: Inter) -> u64 {
    let rows = (3 * experts + 4) * BLOCK as u64 * 4;
    let sketches = Sketch::state_bytes(experts, 2).max(Sketch::state_bytes(2 * experts, 1));
    // The last is for the searches at the end of the scan: two tables for each expert.
    scan::Scan::state_bytes(experts, inter).max(sketches + rows).max(experts << 20)
}

/// Bytes of records of a unit at hand: some 5 % of the elements may be undecided for each expert.
pub(super) fn held_bytes(elements: u64, experts: u64) -> u64 {
    elements / 2 * experts
}

/// What is known so far, and how it goes on.
struct Course {
    setup: Arc<Setup>,
    elements: u64,
    rank: u64,
    round: u32,
    missed: u64,
    experts: Vec<Known>,
}

/// What is known of one expert.
#[derive(Clone, Default)]
struct Known {
    bounds: Option<(Bounds, Findings)>,
    /// With what the bounds and it have shown; the radix plan would find both once more.
    cut: Option<(Cut, Findings)>,
}

impl Known {
    /// Takes the threshold and the largest score.
    fn settle(&mut self, threshold: u32, largest: u32) {
        if let Some((_, findings)) = &self.bounds {
            let mut findings = findings.clone();
            let (threshold, largest) = (keys::score(threshold), keys::score(largest));
            let cut = scores::cut(threshold, largest, &mut findings);
            self.cut = Some((cut, findings));
        }
    }
}

/// Starts with the first pass over a unit.
pub(super) fn start(setup: Arc<Setup>, elements: u64, rank: u64) -> Box<dyn AnyStage> {
    let experts = vec![Known::default(); setup.experts()];
    let collect = elements <= setup.tuning.collect;
    let course = Course { setup, elements, rank, round: 0, missed: 0, experts };
    if collect {
        Box::new(scan::Scan::of_everything(course))
    } else {
        Box::new(sample::Magnitudes::new(course))
    }
}

impl Course {
    /// Whether the scores of an expert depend on the bounds of all.
    fn is_joint(&self) -> bool {
        self.setup.inter() != Inter::Raw
    }

    /// A search for brackets of these ranks in so many rows of the sample.
    fn sketch(&self, rows: usize, ranks: &[u64]) -> Sketch {
        let blocks = self.elements.div_ceil(sampling(self.elements).stride);
        Sketch::new(rows, self.elements, blocks, ranks, self.width())
    }

    fn width(&self) -> f64 {
        self.setup.tuning.width * WIDER.powi(self.round as i32)
    }

    /// What follows a scan whose records had no room: wider brackets would have more of them.
    fn give_up(mut self) -> Next {
        self.round = ROUNDS;
        self.go_on()
    }

    /// What follows a scan.
    fn go_on(mut self) -> Next {
        let missing = self.experts.iter().filter(|expert| expert.cut.is_none()).count();
        let unbound = self.experts.iter().filter(|expert| expert.bounds.is_none()).count();
        // One bracket of bounds that is missed may cost all experts their thresholds.
        let alone = self.is_joint() && unbound > 0;
        self.missed += if alone { unbound } else { missing } as u64;
        let known: Option<Vec<_>> =
            self.experts.iter().map(|expert| expert.bounds.clone()).collect();
        if missing == 0
            && let Some(known) = known
        {
            let bounds = known.into_iter().map(|(bounds, _)| bounds).collect();
            let (cuts, findings) = self.experts.into_iter().filter_map(|expert| expert.cut).unzip();
            let map = Map::new(self.setup, self.elements, bounds, cuts, findings);
            return Next::stage(map.after(self.missed));
        }
        self.round += 1;
        let collected = self.elements <= self.setup.tuning.collect;
        match known {
            _ if self.round < ROUNDS && !collected => match known {
                Some(_) => Next::stage(sample::Scores::new(self, None)),
                None => Next::stage(sample::Magnitudes::new(self)),
            },
            Some(known) => {
                let (bounds, findings) = known.into_iter().unzip();
                let scores = Scores::new(self.setup, self.elements, self.rank, bounds, findings);
                Next::stage(scores.after(self.missed))
            }
            None => {
                let magnitudes = Magnitudes::new(self.setup, self.elements, self.rank);
                Next::stage(magnitudes.after(self.missed))
            }
        }
    }
}

/// The brackets of lo and hi of one expert.
type Spans = [Span; 2];

/// Where both are looked for if nothing is known.
const NO_IDEA: Spans = [EVERYTHING, EVERYTHING];
