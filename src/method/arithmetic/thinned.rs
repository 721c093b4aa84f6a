//! The last passes of methods that thin task vectors out: sums for `rescale`, and the map.

use std::sync::Arc;

use super::blend::Blend;
use super::drawn::{Odds, Space};
use crate::kernel::Kernels;
use crate::kernel::keys;
use crate::method::band::Band;
use crate::method::pass::Scratch;
use crate::method::{AnyStage, Block, Kept, MethodError, Next, Outcome, Stage, UnitView};
use crate::stats::{DotSum, Reader, Writer};

/// What the stages of a unit share.
pub(super) struct Course {
    pub(super) kernels: &'static Kernels,
    pub(super) blend: Blend,
    pub(super) unit: Arc<UnitView>,
    pub(super) rescale: bool,
    /// Whether the unit is in memory, and so is room for what was drawn.
    pub(super) at_hand: bool,
    /// Of what is kept at random.
    pub(super) odds: Option<Odds>,
}

impl Course {
    /// What follows when it is known what is kept of each expert, after so many missed brackets.
    pub(super) fn go_on(self: Arc<Self>, keeps: Vec<Keep>, missed: u64) -> Box<dyn AnyStage> {
        let thins = keeps.iter().any(|keep| !matches!(keep, Keep::All));
        if self.rescale && thins {
            return Box::new(Sums { course: self, keeps, missed });
        }
        let factors = vec![1.0; keeps.len()];
        Box::new(Merge { course: self, keeps, factors, drawn: Drawn::default(), missed })
    }

    /// Draws for a row of a block: notes what is kept of it in `kept`, and returns the largest magnitude of that, as bits.
    fn draw(
        &self,
        block: &Block<'_>,
        expert: usize,
        space: &mut Space,
        kept: &mut Vec<u16>,
    ) -> u32 {
        let (row, tensor) = (block.rows[expert], &self.unit.tensors[block.tensor]);
        kept.resize(row.len().div_ceil(GROUP), 0);
        if let Some(odds) = &self.odds {
            odds.draw(self.kernels, (tensor, expert), block, space, kept)
        } else {
            // Cannot be: what is drawn has odds.
            kept.fill(!0);
            self.kernels.max_magnitude_bits(row)
        }
    }
}

/// Elements that a bit each is noted of together.
const GROUP: usize = u16::BITS as usize;

/// What was drawn for a unit in memory, block by block, so that it need not be drawn again.
#[derive(Default)]
struct Drawn {
    /// Place in the unit and length of each block, ascending, and where its rows begin in `bits`: of all experts that are drawn for.
    blocks: Vec<(u64, usize, usize)>,
    bits: Vec<u16>,
}

impl Drawn {
    /// Makes room for so many rows of a unit.
    fn reserve(&mut self, elements: u64, rows: usize) {
        // A group of each row of a block is not filled, and blocks have 2048 elements, if not more.
        let groups = elements as usize / GROUP + elements as usize / 2048 + 1;
        self.bits.reserve_exact(rows * groups);
    }

    /// The rows of a block, if they are there.
    fn rows(&self, place: u64, len: usize) -> Option<impl Iterator<Item = &[u16]>> {
        let at = self.blocks.binary_search_by_key(&place, |&(place, ..)| place).ok()?;
        let &(_, _, start) = self.blocks.get(at).filter(|&&(_, seen, _)| seen == len)?;
        Some(self.bits.get(start..)?.chunks_exact(len.div_ceil(GROUP)))
    }
}

/// What is kept of an expert.
#[derive(Clone, Debug)]
pub(super) enum Keep {
    /// Everything.
    All,
    /// A part of the ranking by magnitude.
    Band(Band),
    /// What the odds of this expert say.
    Drawn(usize),
}

impl Keep {
    fn is_drawn(&self) -> bool {
        matches!(self, Keep::Drawn(_))
    }
}

/// Sums of the magnitudes of all elements and of those kept, by whose ratio the latter are multiplied.
struct Sums {
    course: Arc<Course>,
    keeps: Vec<Keep>,
    missed: u64,
}

struct SumState {
    /// Of each expert: all, kept.
    sums: Vec<[DotSum; 2]>,
    kept: Vec<f32>,
    noted: Vec<u16>,
    space: Space,
    drawn: Drawn,
}

impl Stage for Sums {
    type State = SumState;

    fn name(&self) -> &'static str {
        "sums"
    }

    fn empty(&self) -> SumState {
        let sums = vec![[DotSum::default(); 2]; self.keeps.len()];
        let mut drawn = Drawn::default();
        if self.course.at_hand {
            let rows = self.keeps.iter().filter(|keep| keep.is_drawn()).count();
            drawn.reserve(self.course.unit.elements, rows);
        }
        SumState { sums, kept: Vec::new(), noted: Vec::new(), space: Space::default(), drawn }
    }

    fn add(&self, state: &mut SumState, block: &Block<'_>, _out: &mut [f32]) {
        let (course, kernels) = (&*self.course, self.course.kernels);
        let SumState { sums, kept, noted, space, drawn } = state;
        if course.at_hand {
            drawn.blocks.push((course.unit.place(block), block.len(), drawn.bits.len()));
        }
        for ((keep, sums), row) in self.keeps.iter().zip(sums).zip(block.rows) {
            let largest = |row| keys::magnitude(kernels.max_magnitude_bits(row));
            match keep {
                Keep::All => {}
                Keep::Drawn(expert) => {
                    let most = keys::magnitude(course.draw(block, *expert, space, noted));
                    let largest = [largest(row), most];
                    DotSum::add_noted_magnitudes(sums, kernels, (row, noted), largest, kept);
                    if course.at_hand {
                        drawn.bits.extend_from_slice(noted);
                    }
                }
                Keep::Band(band) => {
                    kept.resize(block.len(), 0.0);
                    band.keep(kernels, course.unit.place(block), row, kept);
                    for (sum, row) in sums.iter_mut().zip([row, &kept[..]]) {
                        sum.add_magnitudes(kernels, row, largest(row));
                    }
                }
            }
        }
    }

    fn merge(&self, into: &mut SumState, from: SumState) {
        let pairs = into.sums.iter_mut().flatten().zip(from.sums.into_iter().flatten());
        pairs.for_each(|(into, from)| into.merge(from));
        // One worker has seen all of a unit in memory. What only some have seen is drawn again.
        into.drawn = Drawn::default();
    }

    fn save(&self, state: &SumState) -> Vec<u8> {
        let mut out = Writer::default();
        state.sums.iter().flatten().for_each(|sum| sum.save(&mut out));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<SumState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        for sum in state.sums.iter_mut().flatten() {
            *sum = DotSum::load(&mut saved)?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: SumState) -> Result<Next, MethodError> {
        let factors = state.sums.iter().map(|[all, kept]| factor(all.value(), kept.value()));
        let factors = factors.collect();
        let Self { course, keeps, missed } = self;
        Ok(Next::stage(Merge { course, keeps, factors, drawn: state.drawn, missed }))
    }
}

/// What the elements kept are multiplied by. As in mergekit, 1 where there is next to nothing to compare.
fn factor(all: f64, kept: f64) -> f32 {
    if all < 1e-7 || kept < 1e-7 { 1.0 } else { (all / kept) as f32 }
}

/// The map.
struct Merge {
    course: Arc<Course>,
    keeps: Vec<Keep>,
    factors: Vec<f32>,
    /// Of units in memory, where something was drawn before.
    drawn: Drawn,
    missed: u64,
}

#[derive(Default)]
struct MergeState {
    kept: Vec<f32>,
    noted: Vec<u16>,
    scratch: Scratch,
    space: Space,
}

impl Stage for Merge {
    type State = MergeState;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> MergeState {
        MergeState::default()
    }

    fn add(&self, state: &mut MergeState, block: &Block<'_>, out: &mut [f32]) {
        let MergeState { kept, noted, scratch, space } = state;
        let (course, len) = (&*self.course, block.len());
        let (kernels, place) = (course.kernels, course.unit.place(block));
        kept.resize(len * block.rows.len(), 0.0);
        let mut rows: Vec<&[f32]> = Vec::with_capacity(block.rows.len());
        let mut known = self.drawn.rows(place, len);
        let each = self.keeps.iter().zip(&self.factors).zip(block.rows);
        for (((keep, &factor), &row), kept) in each.zip(kept.chunks_exact_mut(len)) {
            match keep {
                Keep::All => {
                    rows.push(row);
                    continue;
                }
                Keep::Drawn(expert) => {
                    let known = known.as_mut().and_then(Iterator::next);
                    let noted = known.unwrap_or_else(|| {
                        course.draw(block, *expert, space, noted);
                        noted
                    });
                    kernels.keep_noted(noted, factor, row, kept);
                }
                Keep::Band(band) => {
                    band.keep(kernels, place, row, kept);
                    if factor != 1.0 {
                        kernels.multiply_by(factor, kept);
                    }
                }
            }
            rows.push(kept);
        }
        course.blend.apply(block, &rows, scratch, out);
    }

    fn count_kept(&self, state: &mut MergeState, block: &Block<'_>, counts: &mut [Kept]) -> bool {
        let thins = self.keeps.iter().any(|keep| !matches!(keep, Keep::All));
        if !thins && !self.course.blend.elects() {
            return false;
        }
        let MergeState { kept, scratch, .. } = state;
        let left = self.keeps.iter().zip(block.rows).zip(kept.chunks_exact(block.len()));
        let rows: Vec<&[f32]> = left
            .map(|((keep, row), kept)| if matches!(keep, Keep::All) { row } else { kept })
            .collect();
        self.course.blend.count(block.tensor, &rows, scratch, counts);
        true
    }

    fn merge(&self, _into: &mut MergeState, _from: MergeState) {}

    fn save(&self, _state: &MergeState) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<MergeState> {
        saved.is_empty().then(MergeState::default)
    }

    fn finish(self, _state: MergeState) -> Result<Next, MethodError> {
        let (elements, missed) = (self.course.unit.elements, self.missed);
        Ok(Next::Done(Outcome { elements, missed, ..Outcome::default() }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{family, values};
    use super::super::{Family, Thinning};
    use super::*;
    use crate::method::{Held, Method, Values, block_len};
    use crate::testing::parts::{self, Run, bits, tied};

    /// Merges a unit as a worker does one that is in memory: block by block, nothing saved in between.
    fn at_hand(method: &Family, unit: &Arc<UnitView>, base: &[f32], rows: &[Vec<f32>]) -> Vec<f32> {
        let mut out = vec![f32::NAN; base.len()];
        let mut stage = method.start_at_hand(unit).unwrap();
        loop {
            let mut state = stage.empty();
            for first in (0..base.len()).step_by(block_len(method.grain(&unit.tensors[0]))) {
                let len = block_len(method.grain(&unit.tensors[0])).min(base.len() - first);
                let rows: Vec<&[f32]> = rows.iter().map(|row| &row[first..first + len]).collect();
                let base = &base[first..first + len];
                let block =
                    Block { tensor: 0, first: first as u64, base, rows: &rows, weights: &[] };
                let out = if stage.writes() { &mut out[first..first + len] } else { &mut [] };
                stage.add(&mut state, &block, out);
            }
            match stage.finish(state, &Held::default()).unwrap() {
                Next::Stage(next) => stage = next,
                Next::Done(_) => return out,
            }
        }
    }

    #[test]
    fn what_was_drawn_is_kept_for_the_merge_of_a_unit_in_memory() {
        let densities = [0.5, 1.0, 0.3, 0.0];
        for shape in [&[9000][..], &[7, 1000], &[3, 4100]] {
            for thinning in [Thinning::Random { seed: 3 }, Thinning::Ranked { seed: 3 }] {
                let unit = UnitView::tensor("w", shape, values(&densities, true));
                let elements = unit.elements as usize;
                let (rows, base) = (tied(densities.len(), elements, 4), vec![1.0; elements]);
                let method = family(true, thinning);
                let run = Run { cuts: vec![4096], workers: 2, at_hand: false };
                let (expected, _) = parts::merge(&method, &unit, &base, &rows, &run).unwrap();
                let got = at_hand(&method, &unit, &base, &rows);
                assert_eq!(bits(&got), bits(&expected), "{shape:?} {thinning:?}");
                // Room for it was planned.
                let rooms = method.bits_at_hand(&unit) * unit.elements / 8;
                assert!(rooms >= 3 * unit.elements.div_ceil(8) && rooms < unit.elements);
            }
        }
        assert_eq!(
            family(true, Thinning::Largest).bits_at_hand(&UnitView::array("w", 9, Values::new(2))),
            0
        );
    }

    #[test]
    fn ranking_takes_no_more_than_is_planned() {
        let method = family(true, Thinning::Ranked { seed: 3 });
        for shape in [&[2, 60_000][..], &[70_000], &[2, 4, 3000], &[60, 9], &[2, 5000, 2]] {
            let unit = UnitView::tensor("w", shape, values(&[0.5; 3], false));
            // Magnitudes that nothing but sorting tells apart, and many equal ones.
            let mut random = parts::uniform(7);
            let smooth = (0..3).map(|_| (0..unit.elements).map(|_| random() as f32).collect());
            for rows in [smooth.collect(), tied(3, unit.elements as usize, 5)] {
                let course = Course {
                    kernels: method.kernels,
                    blend: Blend::new(method.kernels, true, &unit),
                    odds: method.odds(&unit).unwrap(),
                    unit: unit.clone(),
                    rescale: false,
                    at_hand: false,
                };
                let stage = Merge {
                    course: Arc::new(course),
                    keeps: (0..3).map(Keep::Drawn).collect(),
                    factors: vec![1.0; 3],
                    drawn: Drawn::default(),
                    missed: 0,
                };
                let len = block_len(method.grain(&unit.tensors[0])).min(rows[0].len());
                let rows: Vec<&[f32]> = rows.iter().map(|row: &Vec<f32>| &row[..len]).collect();
                let (base, mut out) = (vec![1.0; len], vec![0.0; len]);
                let block = Block { tensor: 0, first: 0, base: &base, rows: &rows, weights: &[] };
                let mut state = Stage::empty(&stage);
                stage.add(&mut state, &block, &mut out);
                let MergeState { kept, noted, scratch, space } = &mut state;
                let words = kept.capacity() + scratch.space().capacity();
                let taken = words * 4 + noted.capacity() * 2 + space.bytes();
                let planned = method.state_bytes(&unit);
                assert!(taken as u64 <= planned, "{shape:?}: {taken} of {planned}");
            }
        }
    }

    #[test]
    fn rows_are_found_by_the_place_and_length_of_their_block() {
        let blocks = vec![(0, 20, 0), (20, 16, 4)];
        let drawn = Drawn { blocks, bits: vec![1, 2, 3, 4, 5, 6] };
        let rows = |place, len| Some(drawn.rows(place, len)?.take(2).collect::<Vec<_>>());
        assert_eq!(rows(0, 20), Some(vec![&[1, 2][..], &[3, 4]]));
        assert_eq!(rows(20, 16), Some(vec![&[5][..], &[6]]));
        assert_eq!((rows(20, 15), rows(16, 16)), (None, None));
    }
}
