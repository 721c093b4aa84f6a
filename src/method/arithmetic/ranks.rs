//! The first passes of methods that keep a part of the ranking by magnitude: where it begins and ends.

use std::ops::Range;
use std::sync::Arc;

use super::thinned::{Course, Keep};
use crate::method::band::{Band, Edge};
use crate::method::{AnyStage, BLOCK, Block, MethodError, Next, Stage};
use crate::stats::{
    Place, Places, Reader, RowCounts, RowSelection, SMALL, Selected, Selector, Writer,
};

/// The passes up to the edges, if some lie amid equal magnitudes.
pub(super) fn passes(elements: u64) -> Vec<&'static str> {
    let mut passes = vec!["magnitudes"];
    if elements > SMALL {
        passes.push("magnitudes, refined");
    }
    passes.extend(std::iter::repeat_n("equal magnitudes", Places::passes(elements)));
    passes
}

/// Bytes of state of one worker, where each expert has so many edges.
pub(super) fn state_bytes(elements: u64, experts: u64, edges: u64) -> u64 {
    let counts = Selector::state_bytes(elements, edges).max(edges * Places::state_bytes(elements));
    experts * counts + BLOCK as u64 * 4
}

/// Starts the search for the ranks that each expert keeps, `None` if that is all of them. Ranks count from the
/// largest magnitude. So many brackets were missed before.
pub(super) fn start(
    course: Arc<Course>,
    kept: Vec<Option<Range<u64>>>,
    missed: u64,
) -> Box<dyn AnyStage> {
    let elements = course.unit.elements;
    // Nothing need be searched for where all or nothing is kept.
    let known = |range: Option<&Range<u64>>| match range {
        None => Some(Keep::All),
        Some(range) => {
            let edge = |rank| Edge::outer(rank, elements);
            Some(Keep::Band(Band { from: edge(range.start)?, to: edge(range.end)? }))
        }
    };
    if let Some(keeps) = kept.iter().map(Option::as_ref).map(known).collect() {
        return course.go_on(keeps, missed);
    }
    // The selection counts from the smallest magnitude.
    let inner = |range: &Range<u64>| {
        let inner = [range.start, range.end].into_iter();
        let inner = inner.filter(|&rank| Edge::outer(rank, elements).is_none());
        inner.map(|rank| elements - 1 - rank).collect()
    };
    let ranks = kept.iter().map(|range| range.as_ref().map_or_else(Vec::new, inner)).collect();
    Box::new(Ranks { selection: RowSelection::each(elements, ranks), course, kept, missed })
}

/// Keys of the magnitudes at the edges.
struct Ranks {
    course: Arc<Course>,
    kept: Vec<Option<Range<u64>>>,
    selection: RowSelection,
    missed: u64,
}

struct RankState {
    counts: RowCounts,
    keys: Vec<u32>,
}

impl Stage for Ranks {
    type State = RankState;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "magnitudes" } else { "magnitudes, refined" }
    }

    fn empty(&self) -> RankState {
        RankState { counts: self.selection.empty(), keys: Vec::new() }
    }

    fn add(&self, state: &mut RankState, block: &Block<'_>, _out: &mut [f32]) {
        state.keys.resize(block.len(), 0);
        for (i, row) in block.rows.iter().enumerate() {
            if !self.selection.is_settled(i) {
                self.course.kernels.magnitude_keys(row, &mut state.keys);
                self.selection.add(&mut state.counts, i, &state.keys);
            }
        }
    }

    fn merge(&self, into: &mut RankState, from: RankState) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &RankState) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<RankState> {
        let mut saved = Reader::new(saved);
        let counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(RankState { counts, keys: Vec::new() })
    }

    fn finish(self, state: RankState) -> Result<Next, MethodError> {
        let found = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(found) => found,
        };
        let elements = self.course.unit.elements;
        let (mut keeps, mut searches) = (Vec::new(), Vec::new());
        for (expert, (range, row)) in self.kept.iter().zip(&found).enumerate() {
            let Some(range) = range else {
                keeps.push(Keep::All);
                continue;
            };
            let mut inner = row.values.iter().zip(&row.standings);
            let edges = [(range.start, false), (range.end, true)].map(|(rank, end)| {
                Edge::outer(rank, elements).unwrap_or_else(|| match inner.next() {
                    Some((&key, &standing)) => {
                        if let Some(number) = Edge::number(key, standing) {
                            let places = Places::new(elements, number);
                            searches.push(Search { expert, end, key, places });
                        }
                        Edge { key, place: 0 }
                    }
                    None => Edge::END,
                })
            });
            keeps.push(Keep::Band(Band { from: edges[0], to: edges[1] }));
        }
        Ok(Equals { course: self.course, keeps, searches, missed: self.missed }.next())
    }
}

/// Places of the edges that lie amid equal magnitudes.
struct Equals {
    course: Arc<Course>,
    keeps: Vec<Keep>,
    searches: Vec<Search>,
    missed: u64,
}

/// A search among the elements of one magnitude.
struct Search {
    expert: usize,
    /// Which edge of its band.
    end: bool,
    key: u32,
    places: Places,
}

impl Equals {
    fn next(self) -> Next {
        if self.searches.is_empty() {
            Next::Stage(self.course.go_on(self.keeps, self.missed))
        } else {
            Next::stage(self)
        }
    }
}

impl Stage for Equals {
    type State = Vec<Vec<u64>>;

    fn name(&self) -> &'static str {
        "equal magnitudes"
    }

    fn empty(&self) -> Self::State {
        self.searches.iter().map(|search| search.places.empty()).collect()
    }

    fn add(&self, state: &mut Self::State, block: &Block<'_>, _out: &mut [f32]) {
        let (kernels, first) = (self.course.kernels, self.course.unit.place(block));
        for (search, counts) in self.searches.iter().zip(state) {
            let count = |part: &[f32]| kernels.count_magnitude(part, search.key);
            search.places.add(counts, first, block.rows[search.expert], count);
        }
    }

    fn merge(&self, into: &mut Self::State, from: Self::State) {
        into.iter_mut().zip(&from).for_each(|(into, from)| Places::merge(into, from));
    }

    fn save(&self, state: &Self::State) -> Vec<u8> {
        let mut out = Writer::default();
        state.iter().for_each(|counts| Places::save(counts, &mut out));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Self::State> {
        let mut saved = Reader::new(saved);
        let load = |search: &Search| search.places.load(&mut saved);
        let state = self.searches.iter().map(load).collect::<Option<_>>()?;
        saved.end()?;
        Some(state)
    }

    fn finish(mut self, state: Self::State) -> Result<Next, MethodError> {
        let mut left = Vec::new();
        for (search, counts) in self.searches.into_iter().zip(&state) {
            match search.places.finish(counts) {
                Place::Again(places) => left.push(Search { places, ..search }),
                Place::Found(place) => {
                    if let Keep::Band(band) = &mut self.keeps[search.expert] {
                        let edge = if search.end { &mut band.to } else { &mut band.from };
                        edge.place = place;
                    }
                }
            }
        }
        Ok(Self { searches: left, ..self }.next())
    }
}
