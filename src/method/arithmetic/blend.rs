//! The sum over experts, and what follows it.

use crate::kernel::Kernels;
use crate::method::pass::{Scratch, count_taken};
use crate::method::{Block, Kept, PerTensor, UnitView, Values};

/// Adds up what is left of the task vectors.
pub(super) struct Blend {
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
    pub(super) fn new(kernels: &'static Kernels, elects: bool, unit: &UnitView) -> Self {
        let factors = unit.each_tensor(|values: &Values| {
            let weights = values.each_f32("weight");
            let sum = weights.iter().sum::<f32>();
            let sum = if sum.abs() < 1e-8 { 1.0 } else { sum };
            let lambda = values.number("lambda") as f32;
            Factors { weights, lambda, normalize: values.flag("normalize"), sum }
        });
        Self { kernels, elects, factors }
    }

    /// Whether there is anything to count where nothing is thinned out.
    pub(super) fn elects(&self) -> bool {
        self.elects
    }

    /// Counts what [`Self::apply`] has just taken of the same rows.
    pub(super) fn count(
        &self,
        tensor: usize,
        rows: &[&[f32]],
        scratch: &mut Scratch,
        kept: &mut [Kept],
    ) {
        let rows = rows.iter().copied();
        if !self.elects {
            return count_taken(kept, rows, |_, _, x| x != 0.0);
        }
        let weights = &self.factors.get(tensor).weights;
        let [votes] = scratch.rows(rows.clone().map(<[f32]>::len).max().unwrap_or(0));
        count_taken(kept, rows, |i, k, x| {
            let term = weights[i] * x;
            if votes[k] >= 0.0 { term > 0.0 } else { term < 0.0 }
        });
    }

    /// Merges `rows`, which are the block's task vectors or what is left of them.
    pub(super) fn apply(
        &self,
        block: &Block<'_>,
        rows: &[&[f32]],
        scratch: &mut Scratch,
        out: &mut [f32],
    ) {
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
