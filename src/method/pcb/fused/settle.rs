//! The end of a scan: exact statistics from its counts and parcels, or the proof that some are
//! not there.

use super::super::magnitudes;
use super::scan::{Counted, HI_LANE, LANES, LO_LANE, Look, OPEN_LANE, Scan, TOP_LANE};
use super::{Known, crowd};
use crate::kernel::Kernels;
use crate::kernel::bracket::Rows;
use crate::kernel::keys;
use crate::kernel::pcb::Bounds;
use crate::method::{BLOCK, Lost, Parcels};
use crate::stats::{Ladder, Rung, Span, unpack};

/// Fills in what the scan has found about the experts of its course.
pub(super) fn settle(
    scan: &mut Scan,
    counted: &[Counted],
    gathered: u64,
    parcels: &dyn Parcels,
) -> Result<(), Lost> {
    let mut experts = scan.course.experts.clone();
    find_bounds(scan, counted, parcels, &mut experts)?;
    if scan.course.is_joint() {
        crowd::find_cuts(scan, counted, gathered, parcels, &mut experts)?;
    } else {
        find_cuts(scan, counted, parcels, &mut experts)?;
    }
    scan.course.experts = experts;
    Ok(())
}

/// A search among the records of one lane.
pub(super) struct Search {
    lane: usize,
    state: Rung,
}

impl Search {
    /// For the key at a rank, among about so many.
    pub(super) fn new(lane: usize, (from, to): Span, rank: u64, keys: u64) -> Self {
        let span = (u64::from(from), u64::from(to));
        Self { lane, state: Rung::Again(Ladder::new(span, rank, keys)) }
    }

    pub(super) fn found(&self) -> Option<u32> {
        // Keys of 32 bits went in.
        if let Rung::Found(key) = self.state { Some(key as u32) } else { None }
    }

    pub(super) fn ladder(&mut self) -> Option<&mut Ladder> {
        if let Rung::Again(ladder) = &mut self.state { Some(ladder) } else { None }
    }

    pub(super) fn step(&mut self) {
        let state = std::mem::replace(&mut self.state, Rung::Outside);
        self.state = if let Rung::Again(ladder) = state { ladder.finish() } else { state };
    }
}

/// Shows the records of the wanted lanes, of which none may be missing.
fn visit(
    counted: &[Counted],
    parcels: &dyn Parcels,
    wanted: impl Fn(usize) -> bool,
    mut see: impl FnMut(usize, u64, u64),
) -> Result<(), Lost> {
    let lanes = counted.len() * LANES;
    let (mut whole, mut seen) = (true, vec![0; lanes]);
    let wanted = |lane| lane < lanes && wanted(lane);
    parcels.visit(&mut |parcel| {
        let unpacked = unpack(parcel, wanted, |lane, record, times| {
            seen[lane] += times;
            see(lane, record, times);
        });
        whole &= unpacked.is_some();
    })?;
    let records = |lane: usize| counted[lane / LANES].records[lane % LANES];
    whole &= (0..lanes).all(|lane| !wanted(lane) || seen[lane] == records(lane));
    if whole { Ok(()) } else { Err(damaged()) }
}

pub(super) fn damaged() -> Lost {
    Lost { reason: "parcels are damaged".to_owned() }
}

/// lo and hi by their ranks among what lay in their brackets.
fn find_bounds(
    scan: &Scan,
    counted: &[Counted],
    parcels: &dyn Parcels,
    experts: &mut [Known],
) -> Result<(), Lost> {
    let ranks = scan.course.setup.clamp_ranks(scan.course.elements);
    let ranks = ranks.map(|rank| rank.min(scan.course.elements.saturating_sub(1)));
    // Per expert and bound: a search, or the answer at once.
    let mut searches: Vec<[Search; 2]> = Vec::new();
    for (i, look) in scan.looks.iter().enumerate() {
        let search = |bound: usize| {
            let Some(spans) = &look.spans else {
                return Search { lane: usize::MAX, state: Rung::Outside };
            };
            let shared = spans[0] == spans[1];
            let counts = if shared { 0 } else { bound };
            let (below, rank) = (counted[i].below[counts], ranks[bound]);
            let lane = [LO_LANE, HI_LANE][counts];
            let state = match rank.checked_sub(below) {
                _ if scan.is_overfull(&counted[i], lane) => Rung::Outside,
                // Everything below the bracket is zero.
                None if spans[bound].0 == 0 => Rung::Found(0),
                None => Rung::Outside,
                Some(rank) => Search::new(0, spans[bound], rank, counted[i].records[lane]).state,
            };
            Search { lane: i * LANES + lane, state }
        };
        searches.push([search(0), search(1)]);
    }
    while searches.iter_mut().flatten().any(|search| search.ladder().is_some()) {
        let wanted = |lane| searches.iter().flatten().any(|search| search.lane == lane);
        let lanes: Vec<bool> = (0..scan.looks.len() * LANES).map(wanted).collect();
        let wanted = |lane: usize| lanes.get(lane).copied().unwrap_or(false);
        visit(counted, parcels, wanted, |lane, record, times| {
            for search in &mut searches[lane / LANES] {
                let here = search.lane == lane;
                if let Some(ladder) = search.ladder().filter(|_| here) {
                    ladder.add(record & 0xffff_ffff, times);
                }
            }
        })?;
        searches.iter_mut().flatten().for_each(Search::step);
    }
    for (i, [lo, hi]) in searches.iter().enumerate() {
        if let (Some(lo), Some(hi)) = (lo.found(), hi.found()) {
            let value = keys::magnitude;
            let largest = value(counted[i].largest);
            experts[i].bounds = Some(magnitudes::settle(value(lo), value(hi), largest));
        }
    }
    Ok(())
}

/// A search for a threshold and a maximum among scores that were not decided.
struct Scored {
    expert: usize,
    bounds: Bounds,
    search: Search,
    largest: Option<u32>,
    tau: Vec<f32>,
    sum: Vec<f32>,
    times: Vec<u64>,
}

impl Scored {
    fn start(
        scan: &Scan,
        expert: usize,
        look: &Look,
        counted: &Counted,
        known: &Known,
    ) -> Option<Self> {
        let (aim, boxed) = look.guess.as_ref()?;
        let bounds = known.bounds.as_ref()?.0;
        let full = [OPEN_LANE, TOP_LANE].iter().any(|&lane| scan.is_overfull(counted, lane));
        let rank = scan.course.rank.checked_sub(counted.under)?;
        if full || counted.is_huge() || !boxed.holds(bounds) {
            return None;
        }
        let span = aim.span(aim.turn(bounds));
        let records = counted.records[OPEN_LANE];
        let mut search = Search::new(expert * LANES + OPEN_LANE, span, rank, records);
        let zero = keys::score_key(0.0);
        if aim.is_open_at_zero()
            && let Some(ladder) = search.ladder()
        {
            ladder.add(zero.into(), counted.zeros);
        }
        let largest = (counted.zeros > 0).then_some(zero);
        let (tau, sum, times) = (Vec::new(), Vec::new(), Vec::new());
        Some(Self { expert, bounds, search, largest, tau, sum, times })
    }

    /// Takes an element; scores are computed in batches.
    fn take(
        &mut self,
        kernels: &Kernels,
        factor: f32,
        record: u64,
        times: u64,
        scratch: &mut Scratch,
    ) {
        self.tau.push(f32::from_bits((record >> 32) as u32));
        self.sum.push(f32::from_bits(record as u32));
        self.times.push(times);
        if self.tau.len() == BLOCK {
            self.count(kernels, factor, scratch);
        }
    }

    fn count(&mut self, kernels: &Kernels, factor: f32, scratch: &mut Scratch) {
        let Scratch { rows, scores, keys } = scratch;
        let (scores, keys) = (&mut scores[..self.tau.len()], &mut keys[..self.tau.len()]);
        kernels.pcb_rescore(factor, &self.tau, &self.sum, self.bounds, rows, scores);
        kernels.score_keys(scores, keys);
        for (&key, &times) in keys.iter().zip(&self.times) {
            // Elements near the top count nowhere else: they come with no multiplicity.
            if times > 0
                && let Some(ladder) = self.search.ladder()
            {
                ladder.add(key.into(), times);
            }
            self.largest = self.largest.max(Some(key));
        }
        self.tau.clear();
        self.sum.clear();
        self.times.clear();
    }
}

struct Scratch {
    rows: Rows,
    scores: Vec<f32>,
    keys: Vec<u32>,
}

/// Thresholds by their ranks among the scores of the undecided, and the largest scores.
fn find_cuts(
    scan: &Scan,
    counted: &[Counted],
    parcels: &dyn Parcels,
    experts: &mut [Known],
) -> Result<(), Lost> {
    let kernels = scan.course.setup.kernels;
    let factor = scan.looks.len() as f32;
    let start = |(i, look): (usize, &Look)| Scored::start(scan, i, look, &counted[i], &experts[i]);
    let mut scored: Vec<Option<Scored>> = scan.looks.iter().enumerate().map(start).collect();
    let mut scratch =
        Scratch { rows: Rows::default(), scores: vec![0.0; BLOCK], keys: vec![0; BLOCK] };
    let mut first = true;
    while scored.iter_mut().flatten().any(|scored| scored.search.ladder().is_some()) {
        let searched: Vec<bool> = scored.iter().map(Option::is_some).collect();
        let wanted = |lane: usize| {
            let top = first && lane % LANES == TOP_LANE;
            searched.get(lane / LANES).is_some_and(|&it| it && (top || lane % LANES == OPEN_LANE))
        };
        visit(counted, parcels, wanted, |lane, record, times| {
            if let Some(scored) = &mut scored[lane / LANES] {
                let times = if lane % LANES == OPEN_LANE { times } else { 0 };
                scored.take(kernels, factor, record, times, &mut scratch);
            }
        })?;
        for scored in scored.iter_mut().flatten() {
            scored.count(kernels, factor, &mut scratch);
            scored.search.step();
            // Zeros lie in the first range only if the threshold's bracket holds them.
            let zero = keys::score_key(0.0);
            let look = &scan.looks[scored.expert];
            let open = look.guess.as_ref().is_some_and(|(aim, _)| aim.is_open_at_zero());
            if let Some(ladder) = scored.search.ladder().filter(|_| open) {
                ladder.add(zero.into(), counted[scored.expert].zeros);
            }
        }
        first = false;
    }
    for scored in scored.into_iter().flatten() {
        if let (Some(threshold), Some(largest)) = (scored.search.found(), scored.largest) {
            experts[scored.expert].settle(threshold, largest);
        }
    }
    Ok(())
}
