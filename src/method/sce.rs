//! SCE (arXiv 2408.07990): positions in which task vectors differ most, weights by their sizes, and a vote on each sign.
//!
//! ```text
//! variances  (2 passes)   of the task vectors, in each position: the largest are selected
//! equal ones (0 to 3)     where the last of equal variances that is selected lies
//! sizes      (1 pass)     mean squares of what is selected: the weights
//! map        (1 pass)     the weighted mean of those that have the sign of the sum
//! ```
//! In a unit at hand, all before the map is a sample and one pass: see `scan`. This is mergekit 0.1.5's form.

mod scan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::band::{Band, Edge};
use super::pass::{Map, count_taken};
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{
    AnyStage, BLOCK, Block, Method, MethodError, Next, Operand, Stage, Strategy, UnitView, Values,
};
use crate::kernel::{Kernels, keys};
use crate::stats::{
    DotSum, Place, Places, Reader, RowCounts, RowSelection, SMALL, Selected, Selector, Writer,
};

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "sce",
    dialect: None,
    about: "positions that differ most, weights by size, an elected sign, and the mean of those that have it",
    source: "arXiv 2408.07990; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor, Scope::Layer, Scope::Model],
    reads: (1, 7),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[Parameter::new(
        "select_topk",
        Per::Tensor,
        Kind::FRACTION,
        Preset::Number(1.0),
        "fraction of the positions that differ at all which is merged",
    )],
    build: |setup| Box::new(Sce::new(setup.kernels, setup.strategy)),
};

/// Units at hand of up to so many elements are not sampled.
const SMALLEST: u64 = 1 << 20;

struct Sce {
    kernels: &'static Kernels,
    /// How positions are ranked in units at hand; others are streamed by selection.
    strategy: Strategy,
    /// [`SMALLEST`], but for tests.
    smallest: u64,
}

impl Sce {
    /// The fraction of positions that is selected; `None` if all of them are, even those that do not differ.
    fn share(unit: &UnitView) -> Result<Option<f64>, MethodError> {
        let share = unit.uniform("select_topk", |values: &Values| values.number("select_topk"))?;
        Ok(share.filter(|&share| share < 1.0))
    }

    fn new(kernels: &'static Kernels, strategy: Strategy) -> Self {
        Self { kernels, strategy, smallest: SMALLEST }
    }

    fn course(&self, unit: &Arc<UnitView>) -> Arc<Course> {
        Arc::new(Course { kernels: self.kernels, unit: unit.clone(), missed: 0 })
    }

    /// The share that is selected, if a unit at hand is scanned for it.
    fn scanned(&self, unit: &UnitView) -> Option<f64> {
        // Places are 32 bits wide there.
        let sizes = self.smallest + 1..=u64::from(u32::MAX);
        let fits = self.strategy == Strategy::Fused && sizes.contains(&unit.elements);
        Self::share(unit).ok().flatten().filter(|&share| share > 0.0 && fits)
    }
}

impl Method for Sce {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        let mut passes = Vec::new();
        // A unit whose parameters do not fit together is refused when it starts.
        if Self::share(unit).ok().flatten().is_some_and(|share| share > 0.0) {
            passes.push("variances");
            if unit.elements > SMALL {
                passes.push("variances, refined");
            }
            passes.extend(std::iter::repeat_n("equal variances", Places::passes(unit.elements)));
        }
        passes.extend(["sizes", "merge"]);
        passes
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let counts =
            Selector::state_bytes(unit.elements, 1).max(Places::state_bytes(unit.elements));
        let scan = self.scanned(unit).map_or(0, |_| scan::state_bytes(unit.experts));
        counts.max(scan) + (unit.experts as u64 + 4) * BLOCK as u64 * 4
    }

    fn held_bytes(&self, unit: &UnitView) -> u64 {
        self.scanned(unit).map_or(0, |_| scan::held_bytes(unit.elements, unit.experts))
    }

    fn start_at_hand(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        match self.scanned(unit) {
            Some(share) => Ok(scan::start(self.course(unit), share)),
            None => self.start(unit),
        }
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let course = self.course(unit);
        let nothing = Band { from: Edge::START, to: Edge::START };
        Ok(match Self::share(unit)? {
            None => Box::new(Sizes { course, selected: None }),
            Some(share) if share > 0.0 => Box::new(Variances::new(course, share)),
            Some(_) => Box::new(Sizes { course, selected: Some(nothing) }),
        })
    }
}

#[derive(Clone)]
struct Course {
    kernels: &'static Kernels,
    unit: Arc<UnitView>,
    /// Brackets that were missed before.
    missed: u64,
}

/// Which positions are selected.
#[derive(Clone)]
enum Chosen {
    /// By their variances.
    Band(Band),
    /// Those with a bit: words of [`scan::WORD`].
    Marked(Arc<[u16]>),
}

/// How many positions are selected of those that differ.
fn selected(different: u64, share: f64) -> u64 {
    // A product of f32, as in mergekit: torch multiplies a tensor of one integer with a float.
    (different as f32 * share as f32) as u64
}

impl Course {
    /// The rows with nothing but the selected positions, one after another in `space`, with room for three more rows.
    fn select<'a>(
        &self,
        block: &Block<'_>,
        selected: Option<&Chosen>,
        space: &'a mut Vec<f32>,
    ) -> (Vec<&'a [f32]>, &'a mut [f32]) {
        let (kernels, n, len) = (self.kernels, block.rows.len(), block.len());
        space.resize((n + 3) * len, 0.0);
        let (rows, rest) = space.split_at_mut(n * len);
        let (variances, marks) = rest[..2 * len].split_at_mut(len);
        let first = self.unit.place(block);
        if let Some(Chosen::Band(band)) = selected {
            kernels.variances(block.rows, variances);
            band.keep(kernels, first, variances, marks);
        }
        for (row, out) in block.rows.iter().zip(rows.chunks_exact_mut(len.max(1))) {
            match selected {
                Some(Chosen::Band(_)) => kernels.keep_marked(marks, row, out),
                Some(Chosen::Marked(bits)) => kernels.keep_bits(bits, first as usize, row, out),
                None => out.copy_from_slice(row),
            }
        }
        (rows.chunks_exact(len.max(1)).collect(), rest)
    }
}

/// Ranks positions by the variance of the task vectors in them.
struct Variances {
    course: Arc<Course>,
    share: f64,
    selection: RowSelection,
    /// Known after the first pass: how many positions are selected.
    selected: u64,
}

struct Counted {
    counts: RowCounts,
    /// Positions that differ.
    different: u64,
    variances: Vec<f32>,
    keys: Vec<u32>,
}

impl Variances {
    fn new(course: Arc<Course>, share: f64) -> Self {
        // The rank depends on how many positions differ: it is set after the first pass.
        let selection = RowSelection::new(1, course.unit.elements, vec![0]);
        Self { course, share, selection, selected: 0 }
    }
}

impl Stage for Variances {
    type State = Counted;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "variances" } else { "variances, refined" }
    }

    fn empty(&self) -> Counted {
        let counts = self.selection.empty();
        Counted { counts, different: 0, variances: Vec::new(), keys: Vec::new() }
    }

    fn add(&self, state: &mut Counted, block: &Block<'_>, _out: &mut [f32]) {
        let (kernels, len) = (self.course.kernels, block.len());
        let Counted { counts, different, variances, keys } = state;
        variances.resize(len, 0.0);
        keys.resize(len, 0);
        kernels.variances(block.rows, variances);
        kernels.magnitude_keys(variances, keys);
        self.selection.add(counts, 0, keys);
        *different += len as u64 - kernels.zeros(variances);
    }

    fn merge(&self, into: &mut Counted, from: Counted) {
        into.counts.merge(from.counts);
        into.different += from.different;
    }

    fn save(&self, state: &Counted) -> Vec<u8> {
        let mut out = Writer::default();
        out.u64(state.different);
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Counted> {
        let mut saved = Reader::new(saved);
        let different = saved.u64()?;
        let counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(Counted { counts, different, variances: Vec::new(), keys: Vec::new() })
    }

    fn finish(mut self, state: Counted) -> Result<Next, MethodError> {
        let elements = self.course.unit.elements;
        if self.selection.is_first() {
            self.selected = selected(state.different, self.share);
            let rank = elements.saturating_sub(1).saturating_sub(self.selected);
            self.selection.rerank(0, vec![rank]);
        }
        let from = Edge::START;
        let to = |key, place| match self.selected {
            0 => from,
            selected => Edge::outer(selected, elements).unwrap_or(Edge { key, place }),
        };
        let row = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(mut found) => found.pop(),
        };
        let course = self.course;
        let Some(row) = row else {
            return Ok(Next::stage(Sizes { course, selected: None }));
        };
        let (key, standing) = (row.value(0), row.standings.first().copied());
        let band = Band { from, to: to(key, 0) };
        let inner = Edge::outer(self.selected, elements).is_none();
        match standing.filter(|_| inner).and_then(|standing| Edge::number(key, standing)) {
            Some(number) => {
                let places = Places::new(elements, number);
                Ok(Next::stage(Equals { course, band, places }))
            }
            None => Ok(Next::stage(Sizes { course, selected: Some(band) })),
        }
    }
}

/// The place of the first position of equal variance that is not selected.
struct Equals {
    course: Arc<Course>,
    band: Band,
    places: Places,
}

struct EqualState {
    counts: Vec<u64>,
    variances: Vec<f32>,
}

impl Stage for Equals {
    type State = EqualState;

    fn name(&self) -> &'static str {
        "equal variances"
    }

    fn empty(&self) -> EqualState {
        EqualState { counts: self.places.empty(), variances: Vec::new() }
    }

    fn add(&self, state: &mut EqualState, block: &Block<'_>, _out: &mut [f32]) {
        let kernels = self.course.kernels;
        state.variances.resize(block.len(), 0.0);
        kernels.variances(block.rows, &mut state.variances);
        let count = |part: &[f32]| kernels.count_magnitude(part, self.band.to.key);
        self.places.add(&mut state.counts, self.course.unit.place(block), &state.variances, count);
    }

    fn merge(&self, into: &mut EqualState, from: EqualState) {
        Places::merge(&mut into.counts, &from.counts);
    }

    fn save(&self, state: &EqualState) -> Vec<u8> {
        let mut out = Writer::default();
        Places::save(&state.counts, &mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<EqualState> {
        let mut saved = Reader::new(saved);
        let counts = self.places.load(&mut saved)?;
        saved.end()?;
        Some(EqualState { counts, variances: Vec::new() })
    }

    fn finish(mut self, state: EqualState) -> Result<Next, MethodError> {
        match self.places.finish(&state.counts) {
            Place::Again(places) => Ok(Next::stage(Self { places, ..self })),
            Place::Found(place) => {
                self.band.to.place = place;
                Ok(Next::stage(Sizes { course: self.course, selected: Some(self.band) }))
            }
        }
    }
}

/// Sums of squares of what is selected of each expert.
struct Sizes {
    course: Arc<Course>,
    selected: Option<Band>,
}

struct SizeState {
    squares: Vec<DotSum>,
    space: Vec<f32>,
}

impl Stage for Sizes {
    type State = SizeState;

    fn name(&self) -> &'static str {
        "sizes"
    }

    fn empty(&self) -> SizeState {
        let experts = self.course.unit.experts;
        SizeState { squares: vec![DotSum::default(); experts], space: Vec::new() }
    }

    fn add(&self, state: &mut SizeState, block: &Block<'_>, _out: &mut [f32]) {
        let kernels = self.course.kernels;
        let selected = self.selected.map(Chosen::Band);
        let (rows, _) = self.course.select(block, selected.as_ref(), &mut state.space);
        for (sum, row) in state.squares.iter_mut().zip(rows) {
            let largest = keys::magnitude(kernels.max_magnitude_bits(row));
            sum.add(kernels, (row, row), (largest, largest));
        }
    }

    fn merge(&self, into: &mut SizeState, from: SizeState) {
        into.squares.iter_mut().zip(from.squares).for_each(|(into, from)| into.merge(from));
    }

    fn save(&self, state: &SizeState) -> Vec<u8> {
        let mut out = Writer::default();
        state.squares.iter().for_each(|sum| sum.save(&mut out));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<SizeState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        for sum in &mut state.squares {
            *sum = DotSum::load(&mut saved)?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: SizeState) -> Result<Next, MethodError> {
        Ok(merge(self.course, self.selected.map(Chosen::Band), &state.squares))
    }
}

/// The map, with weights by the squares of what is selected.
fn merge(course: Arc<Course>, selected: Option<Chosen>, squares: &[DotSum]) -> Next {
    let (elements, missed) = (course.unit.elements, course.missed);
    let squares: Vec<f64> = squares.iter().map(DotSum::value).collect();
    let weights = weights(&squares, elements);
    let (again, same) = (Arc::clone(&course), selected.clone());
    let map = Map::new(elements, move |block, scratch, out| {
        let kernels = course.kernels;
        let (rows, rest) = course.select(block, selected.as_ref(), scratch.space());
        let (votes, shares) = rest[..2 * out.len()].split_at_mut(out.len());
        kernels.weighted_sum(&rows, &vec![1.0; rows.len()], votes);
        kernels.agreeing_sum(&rows, &weights, votes, shares, out);
        kernels.divide_at_least(shares, 1e-6, out);
        kernels.add_base(block.base, 1.0, out);
    });
    Next::stage(map.after(missed).counting(move |block, scratch, kept| {
        let (rows, rest) = again.select(block, same.as_ref(), scratch.space());
        let votes = &mut rest[..block.len()];
        again.kernels.weighted_sum(&rows, &vec![1.0; rows.len()], votes);
        count_taken(kept, rows, |_, k, x| if votes[k] >= 0.0 { x > 0.0 } else { x < 0.0 });
    }))
}

/// Weights that are in proportion to mean squares; equal ones where these are tiny, as they are for most fine-tuned
/// models.
fn weights(squares: &[f64], elements: u64) -> Vec<f32> {
    let means = squares.iter().map(|square| (square / elements.max(1) as f64) as f32);
    let sum: f32 = means.clone().sum();
    let equal = sum < 1e-6;
    means.map(|mean| if equal { 1.0 / squares.len() as f32 } else { mean / sum }).collect()
}
