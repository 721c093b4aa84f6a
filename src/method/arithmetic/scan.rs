//! Where a part of the ranking begins and ends, in one read: brackets from a sample, and a scan that counts around them.
//!
//! ```text
//! sample (2 passes of 1 % each)   a bracket for the magnitude at each edge
//! scan   (1 pass)                 counts what lies below it; hands out what lies inside, with its place
//!        at its end               the edge, by rank among these: magnitude and place at once
//! ```
//! The counts prove whether a bracket held what it should. If one did not, all edges are found by selection
//! (`ranks`): the same edges, in more reads. Small units are not sampled: the scan hands out all of them.

use std::ops::Range;
use std::sync::Arc;

use super::ranks;
use super::thinned::{Course, Keep};
use crate::method::band::{Band, Edge};
use crate::method::sampling::sampling;
use crate::method::{
    AnyStage, BLOCK, Block, Held, Lost, MethodError, Next, Parcels, Sampling, Stage,
};
use crate::stats::{
    Brackets, EVERYTHING, Ladder, Pile, Reader, Rung, Sketch, Sketched, Sketches, Span, Writer,
    lanes, unpack,
};

const SAMPLE: [&str; 2] = ["sample of magnitudes", "sample of magnitudes, refined"];
const SCAN: &str = "scan";

/// First words of saved states, so that none is taken for that of another stage.
const SAMPLE_STATE: u32 = 0x5a62_0001;
const SCAN_STATE: u32 = 0x5a62_0002;

/// Brackets take no more than this share of a large unit: one that holds more is a miss.
const SHARE: u64 = 8;
/// But so many records are always taken.
const ALWAYS: u64 = 1 << 20;

/// Sizes that tests change to get at the rare paths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tuning {
    /// Units of up to so many elements are handed out whole.
    pub(super) collect: u64,
    /// Factor on the width of all brackets.
    pub(super) width: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { collect: 1 << 20, width: 1.0 }
    }
}

/// How many passes read a sample.
pub(super) fn samples(tuning: Tuning, elements: u64) -> usize {
    if elements > tuning.collect { SAMPLE.len() } else { 0 }
}

/// The passes up to the edges, in an undisturbed merge.
pub(super) fn passes(tuning: Tuning, elements: u64) -> Vec<&'static str> {
    let mut passes = SAMPLE[..samples(tuning, elements)].to_vec();
    passes.push(SCAN);
    passes
}

/// Bytes of state of one worker, where each expert has so many edges.
pub(super) fn state_bytes(experts: u64, edges: u64) -> u64 {
    let block = BLOCK as u64;
    let pile = Pile::bytes(experts * edges * block);
    // The last is for the searches at the end of the scan.
    let searches = (experts * edges) << 19;
    Sketch::state_bytes(experts, edges).max(pile).max(searches) + 2 * 4 * block
}

/// Bytes of records of a unit at hand, with so many edges in all: 6 % of the elements may lie in each bracket, most of
/// which hold 1 or 2 %.
pub(super) fn held_bytes(elements: u64, edges: u64) -> u64 {
    elements / 2 * edges
}

/// Starts the search for the ranks that each expert keeps, `None` if that is all of them. Ranks count from the
/// largest magnitude.
pub(super) fn start(
    course: Arc<Course>,
    kept: Vec<Option<Range<u64>>>,
    tuning: Tuning,
) -> Box<dyn AnyStage> {
    let elements = course.unit.elements;
    let search = Search { course, kept };
    if elements <= tuning.collect {
        let spans = search.edges().map(|_| EVERYTHING).collect();
        return Box::new(Scan::new(search, spans));
    }
    let ranks: Vec<Vec<u64>> = (0..search.kept.len())
        .map(|expert| {
            let own = search.edges().filter(|edge| edge.expert == expert);
            own.map(|edge| elements - 1 - edge.rank).collect()
        })
        .collect();
    let blocks = elements.div_ceil(sampling(elements).stride);
    Box::new(Sample { sketch: Sketch::each(elements, blocks, &ranks, tuning.width), search })
}

/// What is looked for.
struct Search {
    course: Arc<Course>,
    kept: Vec<Option<Range<u64>>>,
}

/// An edge that is looked for: before this rank.
#[derive(Clone, Copy)]
struct Wanted {
    expert: usize,
    rank: u64,
}

impl Search {
    /// The edges that are neither the start nor the end of the ranking.
    fn edges(&self) -> impl Iterator<Item = Wanted> + '_ {
        let elements = self.course.unit.elements;
        self.kept.iter().enumerate().flat_map(move |(expert, range)| {
            let ends = range.iter().flat_map(|range| [range.start, range.end]);
            let inner = ends.filter(move |&rank| Edge::outer(rank, elements).is_none());
            inner.map(move |rank| Wanted { expert, rank })
        })
    }

    /// What follows when the edges are found, in their order.
    fn found(self, edges: Vec<Edge>) -> Next {
        let elements = self.course.unit.elements;
        let mut edges = edges.into_iter();
        let mut edge =
            |rank| Edge::outer(rank, elements).unwrap_or_else(|| edges.next().unwrap_or(Edge::END));
        let keep = |range: Option<&Range<u64>>| match range {
            None => Keep::All,
            Some(range) => {
                let from = edge(range.start);
                Keep::Band(Band { from, to: edge(range.end) })
            }
        };
        let keeps = self.kept.iter().map(Option::as_ref).map(keep).collect();
        Next::Stage(self.course.go_on(keeps, 0))
    }
}

/// Brackets of the edges.
struct Sample {
    search: Search,
    sketch: Sketch,
}

struct SampleState {
    counts: Sketched,
    keys: Vec<u32>,
}

impl Stage for Sample {
    type State = SampleState;

    fn name(&self) -> &'static str {
        SAMPLE[usize::from(!self.sketch.is_first())]
    }

    fn sample(&self) -> Option<Sampling> {
        Some(sampling(self.search.course.unit.elements))
    }

    fn empty(&self) -> SampleState {
        SampleState { counts: self.sketch.empty(), keys: Vec::new() }
    }

    fn add(&self, state: &mut SampleState, block: &Block<'_>, _out: &mut [f32]) {
        state.keys.resize(block.len(), 0);
        let at = self.search.course.unit.place(block);
        for (i, (row, range)) in block.rows.iter().zip(&self.search.kept).enumerate() {
            if range.is_some() {
                self.search.course.kernels.magnitude_keys(row, &mut state.keys);
                self.sketch.add(&mut state.counts, i, at, &state.keys);
            }
        }
    }

    fn merge(&self, into: &mut SampleState, from: SampleState) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &SampleState) -> Vec<u8> {
        state.counts.saved(SAMPLE_STATE)
    }

    fn load(&self, saved: &[u8]) -> Option<SampleState> {
        let counts = self.sketch.loaded(SAMPLE_STATE, saved)?;
        Some(SampleState { counts, ..Stage::empty(self) })
    }

    fn finish(self, state: SampleState) -> Result<Next, MethodError> {
        let brackets: Vec<Brackets> = match self.sketch.absorb(state.counts) {
            Sketches::Again(sketch) => return Ok(Next::stage(Self { sketch, ..self })),
            Sketches::Done(brackets) => brackets,
        };
        let spans = brackets.into_iter().flat_map(|bracket| bracket.spans).collect();
        Ok(Next::stage(Scan::new(self.search, spans)))
    }
}

/// One pass over everything.
struct Scan {
    search: Search,
    /// Brackets of the magnitudes at the edges, as keys.
    spans: Vec<Span>,
    /// Records of one bracket, at most.
    limit: u64,
    /// Bits that a place takes.
    bits: u32,
}

/// What was counted about one edge.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Magnitudes below the bracket. Where it begins with zero: zeros.
    below: u64,
    /// Magnitudes inside.
    inside: u64,
}

struct ScanState {
    counted: Vec<Counted>,
    pile: Pile,
    places: Vec<u32>,
}

impl Scan {
    fn new(search: Search, spans: Vec<Span>) -> Self {
        let elements = search.course.unit.elements;
        let limit = (elements / SHARE).max(ALWAYS);
        let bits = u64::BITS - elements.saturating_sub(1).leading_zeros();
        // Zeros may be half of all and are only counted.
        let spans = spans.into_iter().map(|(from, to)| (from.max(1), to.max(1))).collect();
        Self { search, spans, limit, bits }
    }

    /// Whether keys of a bracket and places fit in one record, side by side.
    fn fits(&self, (from, to): Span) -> bool {
        u64::from(to - from) <= u64::MAX >> self.bits
    }

    /// The edge, by its rank among what lay in its bracket; `None` if that is not known.
    fn settle(
        &self,
        counted: &[Counted],
        parcels: &dyn Parcels,
    ) -> Result<Vec<Option<Edge>>, Lost> {
        let elements = self.search.course.unit.elements;
        let zero = Edge { key: 0, place: 0 };
        // Per edge: a search, or the answer at once.
        let start = |((wanted, &span), counted): ((Wanted, &Span), &Counted)| {
            let above = elements - counted.below - counted.inside;
            let rank = match wanted.rank.checked_sub(above) {
                _ if !self.fits(span) || counted.inside > self.limit => return Err(None),
                None => return Err(None),
                Some(rank) if rank >= counted.inside => {
                    // Below the bracket: among zeros, which need not be told apart, if it begins with them.
                    return Err((span.0 == 1).then_some(zero));
                }
                Some(rank) => rank,
            };
            let records = (0, self.record(span, span.0, u64::MAX >> (64 - self.bits.max(1))));
            Ok(Rung::Again(Ladder::new(records, rank, counted.inside)))
        };
        let edges = self.search.edges().zip(&self.spans).zip(counted);
        let mut searches: Vec<Result<Rung, Option<Edge>>> = edges.map(start).collect();
        let open = |search: &Result<Rung, _>| matches!(search, Ok(Rung::Again(_)));
        while searches.iter().any(open) {
            let mut seen = vec![0; counted.len()];
            let wanted: Vec<bool> = searches.iter().map(open).collect();
            let is_wanted = |lane: usize| wanted.get(lane).copied().unwrap_or(false);
            let mut whole = true;
            parcels.visit(&mut |parcel| {
                let unpacked = if self.search.course.at_hand {
                    lanes(parcel, |lane, records| {
                        if let Some(Ok(Rung::Again(ladder))) = searches.get_mut(lane) {
                            seen[lane] += records.len() as u64;
                            records.iter().for_each(|&r| ladder.add(u64::from_le_bytes(r), 1));
                        }
                    })
                } else {
                    unpack(parcel, is_wanted, |lane, record, times| {
                        seen[lane] += times;
                        if let Ok(Rung::Again(ladder)) = &mut searches[lane] {
                            ladder.add(record, times);
                        }
                    })
                };
                whole &= unpacked.is_some();
            })?;
            let records = |lane: usize| !wanted[lane] || seen[lane] == counted[lane].inside;
            if !whole || !(0..counted.len()).all(records) {
                return Err(Lost { reason: "parcels are damaged".to_owned() });
            }
            for search in &mut searches {
                if let Ok(Rung::Again(ladder)) = search {
                    let ladder = std::mem::replace(ladder, Ladder::new((0, 0), 0, 0));
                    *search = Ok(ladder.finish());
                }
            }
        }
        let edge = |(search, &(_, to)): (Result<Rung, Option<Edge>>, &Span)| match search {
            Ok(Rung::Found(record)) => {
                let place = record & !(u64::MAX << self.bits);
                Some(Edge { key: to - (record >> self.bits) as u32, place })
            }
            Ok(_) => None,
            Err(known) => known,
        };
        Ok(searches.into_iter().zip(&self.spans).map(edge).collect())
    }

    /// A record: in the order of the ranking.
    fn record(&self, (_, to): Span, key: u32, place: u64) -> u64 {
        // All bits belong to the key where there is one place.
        u64::from(to - key).checked_shl(self.bits).unwrap_or(0) | place
    }
}

impl Stage for Scan {
    type State = ScanState;

    fn name(&self) -> &'static str {
        SCAN
    }

    fn empty(&self) -> ScanState {
        let edges = self.spans.len();
        ScanState {
            counted: vec![Counted::default(); edges],
            pile: Pile::new(edges),
            places: Vec::new(),
        }
    }

    fn add(&self, state: &mut ScanState, block: &Block<'_>, _out: &mut [f32]) {
        let ScanState { counted, pile, places } = state;
        let (kernels, first) = (self.search.course.kernels, self.search.course.unit.place(block));
        let edges = self.search.edges().zip(&self.spans).zip(counted);
        for (lane, ((wanted, &span), counted)) in edges.enumerate() {
            if !self.fits(span) {
                continue;
            }
            let row = block.rows[wanted.expert];
            let [below, inside] = kernels.places_within(row, span, places).map(u64::from);
            let room = self.limit.saturating_sub(counted.inside);
            let record = |&place: &u32| {
                let key = row[place as usize].to_bits() & 0x7fff_ffff;
                self.record(span, key, first + u64::from(place))
            };
            pile.extend(lane, places[..inside.min(room) as usize].iter().map(record));
            counted.below += below;
            counted.inside += inside;
        }
    }

    fn merge(&self, into: &mut ScanState, from: ScanState) {
        into.pile.merge(from.pile);
        for (into, from) in into.counted.iter_mut().zip(from.counted) {
            into.below += from.below;
            into.inside += from.inside;
        }
    }

    fn hand_out(&self, state: &mut ScanState, all: bool) -> Option<Vec<u8>> {
        let due = state.pile.is_full() || all && !state.pile.is_empty();
        // What stays in memory need not be small.
        let plain = self.search.course.at_hand;
        due.then(|| if plain { state.pile.plain_parcel() } else { state.pile.parcel() })
    }

    /// The counts alone: what the pile held is in parcels.
    fn save(&self, state: &ScanState) -> Vec<u8> {
        debug_assert!(
            state.pile.is_empty(),
            "records must be handed out before the state is saved"
        );
        let mut out = Writer::default();
        out.u32(SCAN_STATE);
        for counted in &state.counted {
            out.u64(counted.below);
            out.u64(counted.inside);
        }
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<ScanState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        (saved.u32()? == SCAN_STATE).then_some(())?;
        for counted in &mut state.counted {
            *counted = Counted { below: saved.u64()?, inside: saved.u64()? };
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: ScanState) -> Result<Next, MethodError> {
        self.conclude(state, &Held::default())
    }

    fn conclude(self, state: ScanState, parcels: &dyn Parcels) -> Result<Next, MethodError> {
        let edges = if parcels.is_whole() {
            self.settle(&state.counted, parcels)?
        } else {
            vec![None; self.spans.len()]
        };
        let missed = edges.iter().filter(|edge| edge.is_none()).count() as u64;
        if missed == 0 {
            return Ok(self.search.found(edges.into_iter().flatten().collect()));
        }
        let Search { course, kept } = self.search;
        Ok(Next::Stage(ranks::start(course, kept, missed)))
    }
}
