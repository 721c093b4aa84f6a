//! The task-arithmetic family: weighted sums of task vectors, some of them thinned out before.
//!
//! ```text
//! e_i = weight_i * d_i
//! with election:      the sign of sum e_i, zero as +1; D = sum of the e_i that have it; q = sum of their weights
//! without:            D = sum e_i;                                                     q = sum of the weights
//! out = base + lambda * D   or, if normalized,  base + lambda * D / q
//! ```
//! This is mergekit 0.1.5's form; `docs/methods.md` has the details.

pub(super) mod task_arithmetic;

use std::sync::Arc;

use super::pass::{Map, Scratch};
use super::registry::{Kind, Parameter, Per, Preset};
use super::{AnyStage, BLOCK, Block, Method, MethodError, Operand, PerTensor, UnitView, Values};
use crate::kernel::Kernels;

const WEIGHT: Parameter =
    Parameter::new("weight", Per::Model, Kind::ANY, Preset::Required, "factor of the task vector");

const LAMBDA: Parameter = Parameter::new(
    "lambda",
    Per::Tensor,
    Kind::ANY,
    Preset::Number(1.0),
    "factor of the merged task vector",
);

const INT8_MASK: Parameter = Parameter::new(
    "int8_mask",
    Per::Tensor,
    Kind::Flag,
    Preset::Flag(false),
    "without effect; mergekit's recipes have it",
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

/// A method of the family.
struct Family {
    kernels: &'static Kernels,
    /// Whether signs are elected.
    elects: bool,
}

impl Method for Family {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn passes(&self, _unit: &UnitView) -> Vec<&'static str> {
        vec!["merge"]
    }

    fn state_bytes(&self, _unit: &UnitView) -> u64 {
        2 * BLOCK as u64 * 4
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let blend = Blend::new(self.kernels, self.elects, unit);
        Ok(Box::new(Map::new(unit.elements, move |block, scratch, out| {
            blend.apply(block, block.rows, scratch, out);
        })))
    }
}

/// The sum over experts and what follows it.
struct Blend {
    kernels: &'static Kernels,
    elects: bool,
    factors: PerTensor<Factors>,
}

struct Factors {
    weights: Vec<f32>,
    lambda: f32,
    normalize: bool,
    /// The divisor where no signs are elected.
    sum: f32,
}

impl Blend {
    fn new(kernels: &'static Kernels, elects: bool, unit: &UnitView) -> Self {
        let factors = unit.each_tensor(|values: &Values| {
            let weights = values.each_f32("weight");
            let sum = weights.iter().sum::<f32>();
            let sum = if sum.abs() < 1e-8 { 1.0 } else { sum };
            let lambda = values.number("lambda") as f32;
            Factors { weights, lambda, normalize: values.flag("normalize"), sum }
        });
        Self { kernels, elects, factors }
    }

    /// Merges `rows`, which are the block's task vectors or what is left of them.
    fn apply(&self, block: &Block<'_>, rows: &[&[f32]], scratch: &mut Scratch, out: &mut [f32]) {
        let (kernels, factors) = (self.kernels, self.factors.get(block.tensor));
        if self.elects {
            let [votes, shares] = scratch.rows(out.len());
            kernels.elected_sum(rows, &factors.weights, votes, shares, out);
            if factors.normalize {
                kernels.divide(shares, out);
            }
        } else {
            kernels.weighted_sum(rows, &factors.weights, out);
            if factors.normalize {
                kernels.divide_by(factors.sum, out);
            }
        }
        kernels.add_base(block.base, factors.lambda, out);
    }
}
