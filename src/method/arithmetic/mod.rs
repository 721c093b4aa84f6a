//! The task-arithmetic family: weighted sums of task vectors, some of them thinned out before.
//!
//! ```text
//! e_i = weight_i * d_i
//! with election:      the sign of sum e_i, zero as +1; D = sum of the e_i that have it; q = sum of their weights
//! without:            D = sum e_i;                                                     q = sum of the weights
//! out = base + lambda * D   or, if normalized,  base + lambda * D / q
//! ```
//! This is mergekit 0.1.5's form; `docs/methods.md` has the details.

mod blend;
pub(super) mod breadcrumbs;
pub(super) mod dare;
pub(super) mod della;
mod drawn;
mod ranked;
mod ranks;
mod scan;
pub(super) mod task_arithmetic;
#[cfg(test)]
mod tests;
mod thinned;
pub(super) mod ties;

use std::ops::Range;
use std::sync::Arc;

use super::band::Edge;
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope, Setup};
use super::sampling::sampling;
use super::{
    AnyStage, BLOCK, Method, MethodError, Operand, Sampling, Strategy, TensorView, UnitView,
    Values, block_len,
};
use crate::kernel::Kernels;
use crate::kernel::ranked::Places;
use blend::Blend;
use drawn::Odds;
use scan::Tuning;
use thinned::{Course, Keep};

/// What the lines of the registry have in common where task vectors are thinned out.
const THINNED: Entry = Entry {
    name: "",
    dialect: None,
    about: "",
    source: "",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor, Scope::Layer, Scope::Model],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: Some("weight"),
    parameters: &[],
    build: |setup| Family::boxed(setup, false, Thinning::Nothing),
};

const WEIGHT: Parameter =
    Parameter::new("weight", Per::Model, Kind::ANY, Preset::Required, "factor of the task vector");

pub(super) const LAMBDA: Parameter = Parameter::new(
    "lambda",
    Per::Tensor,
    Kind::ANY,
    Preset::Number(1.0),
    "factor of the merged task vector",
);

const fn normalize(preset: bool) -> Parameter {
    Parameter::new(
        "normalize",
        Per::Tensor,
        Kind::Flag,
        Preset::Flag(preset),
        "whether the sum is divided by the sum of the weights",
    )
}

const fn rescale(preset: bool) -> Parameter {
    Parameter::new(
        "rescale",
        Per::Tensor,
        Kind::Flag,
        Preset::Flag(preset),
        "whether what is kept is scaled to the magnitude, in sum, that all elements had",
    )
}

const DENSITY: Parameter = Parameter::new(
    "density",
    Per::Model,
    Kind::FRACTION,
    Preset::Number(1.0),
    "fraction of elements kept",
);

/// A method of the family.
struct Family {
    kernels: &'static Kernels,
    /// Whether signs are elected.
    elects: bool,
    thinning: Thinning,
    /// How ranks are found.
    strategy: Strategy,
    tuning: Tuning,
}

/// Which elements of the task vectors are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinning {
    /// All.
    Nothing,
    /// The largest.
    Largest,
    /// All but the largest and the smallest.
    Middle,
    /// Each with the same probability.
    Random {
        /// Of the random numbers.
        seed: u64,
    },
    /// Each with a probability that depends on its rank in its row.
    Ranked {
        /// Of the random numbers.
        seed: u64,
    },
}

impl Family {
    fn boxed(setup: &Setup, elects: bool, thinning: Thinning) -> Box<dyn Method> {
        let (kernels, strategy) = (setup.kernels, setup.strategy);
        Box::new(Self { kernels, elects, thinning, strategy, tuning: Tuning::default() })
    }

    /// Ranks from the largest magnitude that each expert keeps; `None` for all.
    ///
    /// # Errors
    /// If they differ between tensors that are ranked together.
    fn kept(&self, unit: &UnitView) -> Result<Vec<Option<Range<u64>>>, MethodError> {
        let middle = match self.thinning {
            Thinning::Largest => false,
            Thinning::Middle => true,
            Thinning::Nothing | Thinning::Random { .. } | Thinning::Ranked { .. } => {
                return Ok(vec![None; unit.experts]);
            }
        };
        let each = |name: &'static str, preset: f64| -> Result<Vec<f64>, MethodError> {
            let values = unit.uniform(name, |values| values.each(name))?;
            Ok(values.unwrap_or_else(|| vec![preset; unit.experts]))
        };
        let densities = each("density", 1.0)?;
        let gammas = if middle { each("gamma", 0.0)? } else { vec![0.0; unit.experts] };
        // As Python's int() does it, a cast truncates.
        let count = |share: f64| (share * unit.elements as f64) as u64;
        let kept = |(density, gamma): (f64, f64)| match density {
            1.0.. => None,
            _ if middle => {
                // Fewer of the largest are left out where not enough would be kept.
                let kept = count(density);
                let above = count(gamma).min(unit.elements - kept);
                Some(above..above + kept)
            }
            _ if density > 0.0 => Some(0..count(density).max(1)),
            _ => Some(0..0),
        };
        Ok(densities.into_iter().zip(gammas).map(kept).collect())
    }

    /// The odds of elements that are kept at random.
    fn odds(&self, unit: &UnitView) -> Result<Option<Odds>, MethodError> {
        match self.thinning {
            Thinning::Random { seed } => Odds::new(seed, false, unit).map(Some),
            Thinning::Ranked { seed } => Odds::new(seed, true, unit).map(Some),
            Thinning::Nothing | Thinning::Largest | Thinning::Middle => Ok(None),
        }
    }

    /// What is known without statistics to be kept of each expert.
    fn known(odds: Option<&Odds>, experts: usize) -> Vec<Keep> {
        let keep = |expert| match odds {
            Some(odds) if !odds.keep_all(expert) => Keep::Drawn(expert),
            _ => Keep::All,
        };
        (0..experts).map(keep).collect()
    }

    fn rescales(unit: &UnitView) -> Result<bool, MethodError> {
        Ok(unit.uniform("rescale", |values: &Values| values.flag("rescale"))?.unwrap_or(false))
    }
}

/// Edges of the ranking that must be searched for.
fn edges(kept: &[Option<Range<u64>>], elements: u64) -> u64 {
    let inner = |range: &Range<u64>| {
        let inner = [range.start, range.end].into_iter();
        inner.filter(|&rank| Edge::outer(rank, elements).is_none()).count() as u64
    };
    kept.iter().flatten().map(inner).max().unwrap_or(0)
}

impl Method for Family {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        match self.thinning {
            // What is ranked must be seen together, unless nothing is.
            Thinning::Ranked { .. } if tensor.values.each("density").iter().any(|&d| d < 1.0) => {
                ranked::slice(tensor)
            }
            _ => 1,
        }
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        let mut passes = Vec::new();
        // A unit whose parameters do not fit together is refused when it starts.
        let kept = self.kept(unit).unwrap_or_default();
        if edges(&kept, unit.elements) > 0 {
            passes.extend(match self.strategy {
                Strategy::Fused => scan::passes(self.tuning, unit.elements),
                Strategy::Radix => ranks::passes(unit.elements),
            });
        }
        let odds = self.odds(unit).ok().flatten();
        let thins = kept.iter().any(Option::is_some)
            || (0..unit.experts).any(|i| odds.as_ref().is_some_and(|odds| !odds.keep_all(i)));
        if thins && Self::rescales(unit).unwrap_or(false) {
            passes.push("sums");
        }
        passes.push("merge");
        passes
    }

    fn sampled(&self, unit: &UnitView) -> Option<(usize, Sampling)> {
        let kept = self.kept(unit).unwrap_or_default();
        let fused = self.strategy == Strategy::Fused && edges(&kept, unit.elements) > 0;
        let samples = if fused { scan::samples(self.tuning, unit.elements) } else { 0 };
        (samples > 0).then(|| (samples, sampling(unit.elements)))
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let (n, kept) = (unit.experts as u64, self.kept(unit).unwrap_or_default());
        let ranks = match edges(&kept, unit.elements) {
            0 => 0,
            // A missed bracket ends in a selection.
            edges => ranks::state_bytes(unit.elements, n, edges).max(scan::state_bytes(n, edges)),
        };
        let largest = unit.tensors.iter().map(|tensor| block_len(self.grain(tensor))).max();
        let largest = largest.unwrap_or(BLOCK) as u64;
        // What is left of each row, votes, shares, numbers, marks; limits and sorting take six rows.
        let rows = match self.thinning {
            Thinning::Nothing => 2,
            Thinning::Largest | Thinning::Middle => n.max(3) + 2,
            Thinning::Random { .. } | Thinning::Ranked { .. } => n.max(3) + 10,
        };
        let places = match self.thinning {
            Thinning::Ranked { .. } => Places::most_bytes(largest),
            _ => 0,
        };
        ranks.max(rows * largest * 4 + places)
    }

    fn bits_at_hand(&self, unit: &UnitView) -> u64 {
        // What was drawn for the sums is kept for the merge; rows of blocks are not quite full.
        match self.thinning {
            Thinning::Random { .. } | Thinning::Ranked { .. } => unit.experts as u64 + 1,
            Thinning::Nothing | Thinning::Largest | Thinning::Middle => 0,
        }
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.start_with(unit, self.strategy, false)
    }

    fn start_at_hand(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        // Passes over a small unit in memory are cheaper than records of all its elements.
        let small = scan::samples(self.tuning, unit.elements) == 0;
        self.start_with(unit, if small { Strategy::Radix } else { self.strategy }, true)
    }

    fn held_bytes(&self, unit: &UnitView) -> u64 {
        let edges = edges(&self.kept(unit).unwrap_or_default(), unit.elements);
        match self.strategy {
            Strategy::Fused if scan::samples(self.tuning, unit.elements) > 0 => {
                scan::held_bytes(unit.elements, unit.experts as u64 * edges)
            }
            Strategy::Fused | Strategy::Radix => 0,
        }
    }
}

impl Family {
    fn start_with(
        &self,
        unit: &Arc<UnitView>,
        strategy: Strategy,
        at_hand: bool,
    ) -> Result<Box<dyn AnyStage>, MethodError> {
        let kept = self.kept(unit)?;
        let course = Arc::new(Course {
            kernels: self.kernels,
            blend: Blend::new(self.kernels, self.elects, unit),
            unit: unit.clone(),
            odds: self.odds(unit)?,
            rescale: self.thinning != Thinning::Nothing && Self::rescales(unit)?,
            at_hand,
        });
        if kept.iter().all(Option::is_none) {
            let known = Self::known(course.odds.as_ref(), unit.experts);
            return Ok(course.go_on(known, 0));
        }
        Ok(match strategy {
            Strategy::Fused if edges(&kept, unit.elements) > 0 => {
                scan::start(course, kept, self.tuning)
            }
            Strategy::Fused | Strategy::Radix => ranks::start(course, kept, 0),
        })
    }
}
