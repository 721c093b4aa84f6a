//! RAM and RAM+ (Reinforced Agent Merging, arXiv 2601.13572): elements that several experts change are averaged, those
//! that one expert alone changes are taken whole, or reinforced.

use std::sync::Arc;

use super::pass::{Map, Scratch, count_taken};
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{
    AnyStage, BLOCK, Block, Kept, Method, MethodError, Next, Operand, PerTensor, Stage, UnitView,
    Values,
};
use crate::kernel::Kernels;
use crate::stats::{Reader, Writer};

const EPSILON: Parameter = Parameter::new(
    "epsilon",
    Per::Tensor,
    Kind::NOT_NEGATIVE,
    Preset::Number(1e-5),
    "changes up to this magnitude are none",
);

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "ram",
    dialect: None,
    about: "the mean of what several experts change, and all of what one changes",
    source: "arXiv 2601.13572; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[EPSILON],
    build: |setup| Box::new(Ram { kernels: setup.kernels, reinforces: false }),
};

/// The same with reinforcement.
pub(crate) static PLUS: Entry = Entry {
    name: "ramplus_tl",
    dialect: None,
    about: "the same, and more of what one changes, the more of its changes are shared",
    source: "arXiv 2601.13572; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor, Scope::Layer, Scope::Model],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[
        Parameter::new("r", Per::Tensor, Kind::ANY, Preset::Number(0.1), "how much more"),
        Parameter::new(
            "alpha",
            Per::Tensor,
            Kind::ANY,
            Preset::Number(0.2),
            "the most that counts of the ratio of shared changes to others",
        ),
        EPSILON,
    ],
    build: |setup| Box::new(Ram { kernels: setup.kernels, reinforces: true }),
};

struct Ram {
    kernels: &'static Kernels,
    reinforces: bool,
}

#[derive(Clone, Copy)]
struct Factors {
    epsilon: f32,
    r: f32,
    alpha: f32,
}

impl Method for Ram {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn passes(&self, _unit: &UnitView) -> Vec<&'static str> {
        if self.reinforces { vec!["shares", "merge"] } else { vec!["merge"] }
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        BLOCK as u64 * 4 + unit.experts as u64 * 16
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let factors = unit.each_tensor(|values: &Values| Factors {
            epsilon: values.number("epsilon") as f32,
            r: values.number("r") as f32,
            alpha: values.number("alpha") as f32,
        });
        let (kernels, elements, experts) = (self.kernels, unit.elements, unit.experts);
        let course = Course { kernels, elements, experts, factors };
        if self.reinforces {
            return Ok(Box::new(Shares(course)));
        }
        let ones = vec![1.0; experts];
        let count = course.count();
        let map = Map::new(elements, move |block, scratch, out| {
            course.merge(block, &ones, scratch, out);
        });
        Ok(Box::new(map.counting(count)))
    }
}

struct Course {
    kernels: &'static Kernels,
    elements: u64,
    experts: usize,
    factors: PerTensor<Factors>,
}

impl Course {
    fn merge(&self, block: &Block<'_>, reinforced: &[f32], scratch: &mut Scratch, out: &mut [f32]) {
        let [counts] = scratch.rows(out.len());
        let epsilon = self.factors.get(block.tensor).epsilon;
        self.kernels.contributors(block.rows, epsilon, counts);
        self.kernels.reinforced_sum(block.rows, epsilon, reinforced, counts, out);
        self.kernels.add_base(block.base, 1.0, out);
    }

    /// Counts what is above epsilon.
    fn count(&self) -> impl Fn(&Block<'_>, &mut Scratch, &mut [Kept]) + Send + Sync + 'static {
        let factors = self.factors.clone();
        move |block, _, kept| {
            let epsilon = factors.get(block.tensor).epsilon;
            count_taken(kept, block.rows.iter().copied(), |_, _, x| x.abs() > epsilon);
        }
    }
}

/// How many changes of each expert are shared, and how many are its own.
struct Shares(Course);

struct Counted {
    counts: Vec<[u64; 2]>,
    columns: Vec<f32>,
}

impl Stage for Shares {
    type State = Counted;

    fn name(&self) -> &'static str {
        "shares"
    }

    fn empty(&self) -> Counted {
        Counted { counts: vec![[0; 2]; self.0.experts], columns: Vec::new() }
    }

    fn add(&self, state: &mut Counted, block: &Block<'_>, _out: &mut [f32]) {
        let epsilon = self.0.factors.get(block.tensor).epsilon;
        state.columns.resize(block.len(), 0.0);
        self.0.kernels.contributors(block.rows, epsilon, &mut state.columns);
        for (counts, row) in state.counts.iter_mut().zip(block.rows) {
            let more = self.0.kernels.shared_and_alone(row, epsilon, &state.columns);
            counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        }
    }

    fn merge(&self, into: &mut Counted, from: Counted) {
        let pairs = into.counts.iter_mut().flatten().zip(from.counts.into_iter().flatten());
        pairs.for_each(|(into, from)| *into += from);
    }

    fn save(&self, state: &Counted) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.iter().flatten().for_each(|&count| out.u64(count));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Counted> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        state.counts.iter_mut().try_for_each(|counts| saved.fill(counts))?;
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: Counted) -> Result<Next, MethodError> {
        let Self(course) = self;
        // Ratios of each expert, then what follows from them in each tensor.
        let reinforced: Vec<Vec<f32>> = (course.factors.all().iter())
            .map(|factors| state.counts.iter().map(|counts| factors.reinforced(*counts)).collect())
            .collect();
        let count = course.count();
        let map = Map::new(course.elements, move |block, scratch, out| {
            let reinforced = &reinforced[course.factors.which(block.tensor)];
            course.merge(block, reinforced, scratch, out);
        });
        Ok(Next::stage(map.counting(count)))
    }
}

impl Factors {
    /// 1 + r * (shared / alone, between 0 and alpha), in f32 as mergekit has it.
    fn reinforced(&self, [shared, alone]: [u64; 2]) -> f32 {
        let ratio = shared as f32 / (alone as f32).max(self.epsilon);
        // Without changes there is no ratio, and nothing to multiply.
        let ratio = if ratio.is_nan() { 0.0 } else { ratio };
        1.0 + self.r * ratio.max(0.0).min(self.alpha)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::run_in_memory;
    use crate::testing::parts::{self, Run, bits, tied, uniform};
    use proptest::prelude::*;

    fn ram(reinforces: bool) -> Ram {
        Ram { kernels: Kernels::available().last().unwrap(), reinforces }
    }

    fn values(experts: usize) -> Values {
        Values::new(experts).with("epsilon", 0.25).with("r", 0.5).with("alpha", 2.0)
    }

    fn merged(reinforces: bool, rows: &[&[f32]]) -> Vec<f32> {
        let elements = rows[0].len();
        let unit = UnitView::array("w", elements as u64, values(rows.len()));
        run_in_memory(&ram(reinforces), &unit, &vec![10.0; elements], rows).unwrap().0
    }

    #[test]
    fn shared_changes_are_averaged_and_others_taken_whole() {
        let rows: [&[f32]; 3] =
            [&[3.0, 3.0, 0.25, 0.0], &[0.0, 6.0, -0.1, 8.0], &[0.0, -3.0, 0.0, 0.0]];
        assert_eq!(merged(false, &rows), [13.0, 12.0, 10.0, 18.0]);
        // One of two changes of the first two is shared: as many as not.
        assert_eq!(merged(true, &rows), [14.5, 12.0, 10.0, 22.0]);
        // All that the third changes is shared, and 2 is the most that counts.
        assert_eq!(merged(true, &[&[1.0, 0.0], &[1.0, 0.0]]), [11.0, 10.0]);
        assert_eq!(Factors { epsilon: 0.25, r: 0.5, alpha: 2.0 }.reinforced([7, 0]), 2.0);
        assert_eq!(Factors { epsilon: 0.0, r: 0.5, alpha: 2.0 }.reinforced([0, 0]), 1.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        #[test]
        fn how_it_is_run_changes_no_bit(
            elements in 1usize..10_000,
            experts in 1usize..5,
            reinforces in any::<bool>(),
            cuts in prop::collection::vec(1usize..=BLOCK, 1..6),
            workers in 1usize..4,
            seed in any::<u64>(),
        ) {
            let mut rows = tied(experts, elements, seed);
            rows.iter_mut().flatten().for_each(|x| *x *= 100.0);
            let mut base = uniform(seed);
            let base: Vec<f32> = (0..elements).map(|_| base() as f32).collect();
            let unit = UnitView::array("w", elements as u64, values(experts));
            let run = Run { cuts, workers, at_hand: false };
            let (parts, _) = parts::merge(&ram(reinforces), &unit, &base, &rows, &run).unwrap();
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let (whole, _) = run_in_memory(&ram(reinforces), &unit, &base, &rows).unwrap();
            prop_assert_eq!(bits(&parts), bits(&whole));
        }
    }
}
