//! TIES-Merging (arXiv 2306.01708) as its authors' code has it.
//!
//! ```text
//! thresholds (2 passes)   t_i = the rank d - trunc(d K) - 1 of |tau_i|
//! signs      (1 pass)     how many sums of trimmed elements are above and below zero: their majority
//! map        (1 pass)     out = base + lambda * mean, sum or largest of those that have the elected sign,
//!                         or base + sum of lambda_i times each of them (AdaMerging++)
//! ```
//! The code is github.com/prateeky2806/ties-merging, `src/utils/merge_utils.py`.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::arithmetic::LAMBDA;
use super::pass::{Map, count_taken};
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{
    AnyStage, BLOCK, Block, Method, MethodError, Next, Operand, PerTensor, Stage, UnitView, Values,
};
use crate::kernel::Kernels;
use crate::stats::{Reader, RowCounts, RowSelection, SMALL, Selected, Selector, Writer};

/// What is kept of each task vector.
pub(super) const DENSITY: Parameter = Parameter::new(
    "density",
    Per::Merge,
    Kind::FRACTION,
    Preset::Number(0.2),
    "fraction of elements kept of each expert",
);

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "ties",
    dialect: Some("paper"),
    about: "TIES as its authors' code has it: one threshold for the whole model, no weights",
    source: "arXiv 2306.01708; github.com/prateeky2806/ties-merging",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model, Scope::Layer, Scope::Tensor],
    reads: (1, 4),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[
        DENSITY,
        Parameter::new(
            "combine",
            Per::Merge,
            Kind::Word(&["mean", "sum", "max"]),
            Preset::Word("mean"),
            "what is taken of the elements that have the elected sign",
        ),
        LAMBDA,
    ],
    build: |setup| {
        let combine = Combine::named(setup.values.word("combine"));
        let density = setup.values.number("density");
        Ties::boxed(setup.kernels, density, combine)
    },
};

/// What is taken of the elements that agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combine {
    Mean,
    Sum,
    Max,
    /// All of them, each times its expert's own lambda.
    Each,
}

impl Combine {
    fn named(name: &str) -> Self {
        match name {
            "sum" => Combine::Sum,
            "max" => Combine::Max,
            _ => Combine::Mean,
        }
    }
}

pub(super) struct Ties {
    kernels: &'static Kernels,
    density: f64,
    combine: Combine,
}

impl Ties {
    /// The method that keeps the fraction `density` of each expert.
    pub(super) fn boxed(
        kernels: &'static Kernels,
        density: f64,
        combine: Combine,
    ) -> Box<dyn Method> {
        Box::new(Self { kernels, density, combine })
    }

    /// The rank of the threshold, counted from 0; `None` if everything is kept.
    fn rank(&self, elements: u64) -> Option<u64> {
        // A float cast to an integer truncates, as Python's int() does.
        let kept = (elements as f64 * self.density) as u64;
        elements.checked_sub(kept)?.checked_sub(1)
    }
}

impl Method for Ties {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        let mut passes = Vec::new();
        if self.rank(unit.elements).is_some() {
            passes.push("magnitudes");
            if unit.elements > SMALL {
                passes.push("magnitudes, refined");
            }
        }
        passes.extend(["signs", "merge"]);
        passes
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let n = unit.experts as u64;
        n * Selector::state_bytes(unit.elements, 1) + (n + 3) * BLOCK as u64 * 4
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let course = Arc::new(Course {
            kernels: self.kernels,
            combine: self.combine,
            elements: unit.elements,
            lambdas: unit.each_tensor(|values: &Values| match self.combine {
                Combine::Each => values.each_f32("lambda"),
                Combine::Mean | Combine::Sum | Combine::Max => {
                    vec![values.number("lambda") as f32]
                }
            }),
        });
        Ok(match self.rank(unit.elements) {
            Some(rank) => {
                let selection = RowSelection::new(unit.experts, unit.elements, vec![rank]);
                Box::new(Thresholds { course, selection })
            }
            None => Box::new(Signs { course, least: vec![0; unit.experts] }),
        })
    }
}

struct Course {
    kernels: &'static Kernels,
    combine: Combine,
    elements: u64,
    /// One for all experts; with [`Combine::Each`] one for each.
    lambdas: PerTensor<Vec<f32>>,
}

impl Course {
    /// The trimmed rows, one after another, and their sum in the last place of `space`.
    fn trim<'a>(&self, block: &Block<'_>, least: &[u32], space: &'a mut Vec<f32>) -> Trimmed<'a> {
        let (n, len) = (block.rows.len(), block.len());
        space.resize((n + 2) * len, 0.0);
        let (trimmed, rest) = space.split_at_mut(n * len);
        for ((row, &least), out) in
            block.rows.iter().zip(least).zip(trimmed.chunks_exact_mut(len.max(1)))
        {
            self.kernels.keep_between(row, (least, u32::MAX), out);
        }
        let (votes, counts) = rest.split_at_mut(len);
        let rows: Vec<&[f32]> = trimmed.chunks_exact(len.max(1)).collect();
        self.kernels.weighted_sum(&rows, &vec![1.0; n], votes);
        Trimmed { rows, votes, counts }
    }
}

struct Trimmed<'a> {
    rows: Vec<&'a [f32]>,
    votes: &'a [f32],
    counts: &'a mut [f32],
}

/// Finds the thresholds.
struct Thresholds {
    course: Arc<Course>,
    selection: RowSelection,
}

struct Counted {
    counts: RowCounts,
    keys: Vec<u32>,
}

impl Stage for Thresholds {
    type State = Counted;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "magnitudes" } else { "magnitudes, refined" }
    }

    fn empty(&self) -> Counted {
        Counted { counts: self.selection.empty(), keys: Vec::new() }
    }

    fn add(&self, state: &mut Counted, block: &Block<'_>, _out: &mut [f32]) {
        state.keys.resize(block.len(), 0);
        for (i, row) in block.rows.iter().enumerate() {
            self.course.kernels.magnitude_keys(row, &mut state.keys);
            self.selection.add(&mut state.counts, i, &state.keys);
        }
    }

    fn merge(&self, into: &mut Counted, from: Counted) {
        into.counts.merge(from.counts);
    }

    fn save(&self, state: &Counted) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Counted> {
        let mut saved = Reader::new(saved);
        let counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(Counted { counts, keys: Vec::new() })
    }

    fn finish(self, state: Counted) -> Result<Next, MethodError> {
        let found = match self.selection.absorb(state.counts) {
            Selected::Again(selection) => return Ok(Next::stage(Self { selection, ..self })),
            Selected::Found(found) => found,
        };
        let least = found.iter().map(|row| row.value(0)).collect();
        Ok(Next::stage(Signs { course: self.course, least }))
    }
}

/// Counts the signs of the sums of what is left.
struct Signs {
    course: Arc<Course>,
    /// The least magnitudes that are kept, as keys.
    least: Vec<u32>,
}

struct SignState {
    /// Above zero, below zero.
    counts: [u64; 2],
    space: Vec<f32>,
}

impl Stage for Signs {
    type State = SignState;

    fn name(&self) -> &'static str {
        "signs"
    }

    fn empty(&self) -> SignState {
        SignState { counts: [0; 2], space: Vec::new() }
    }

    fn add(&self, state: &mut SignState, block: &Block<'_>, _out: &mut [f32]) {
        let trimmed = self.course.trim(block, &self.least, &mut state.space);
        let more = self.course.kernels.signs(trimmed.votes);
        state.counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
    }

    fn merge(&self, into: &mut SignState, from: SignState) {
        into.counts.iter_mut().zip(from.counts).for_each(|(into, from)| *into += from);
    }

    fn save(&self, state: &SignState) -> Vec<u8> {
        let mut out = Writer::default();
        state.counts.iter().for_each(|&count| out.u64(count));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<SignState> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        saved.fill(&mut state.counts)?;
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: SignState) -> Result<Next, MethodError> {
        let [above, below] = state.counts;
        let majority = match above.cmp(&below) {
            std::cmp::Ordering::Less => -1.0,
            std::cmp::Ordering::Equal => 0.0,
            std::cmp::Ordering::Greater => 1.0,
        };
        let Self { course, least } = self;
        let (again, above) = (Arc::clone(&course), least.clone());
        let map = Map::new(course.elements, move |block, scratch, out| {
            let trimmed = course.trim(block, &least, scratch.space());
            let (kernels, Trimmed { rows, votes, counts }) = (course.kernels, trimmed);
            let lambdas = course.lambdas.get(block.tensor);
            let mut factor = lambdas[0];
            match course.combine {
                Combine::Max => kernels.disjoint_max(&rows, votes, majority, out),
                Combine::Sum => kernels.disjoint_sum(&rows, votes, majority, counts, out),
                Combine::Mean => {
                    kernels.disjoint_sum(&rows, votes, majority, counts, out);
                    kernels.divide(counts, out);
                }
                Combine::Each => {
                    kernels.disjoint_weighted(&rows, votes, majority, lambdas, out);
                    factor = 1.0;
                }
            }
            kernels.add_base(block.base, factor, out);
        });
        Ok(Next::stage(map.counting(move |block, scratch, kept| {
            let Trimmed { rows, votes, .. } = again.trim(block, &above, scratch.space());
            count_taken(kept, rows, |_, k, x| {
                let sign = if votes[k] == 0.0 { majority } else { votes[k] };
                if sign > 0.0 { x > 0.0 } else { x < 0.0 }
            });
        })))
    }
}
