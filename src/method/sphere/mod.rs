//! Methods that see a tensor as a few vectors, and merge it by weights that follow from their lengths and angles.
//!
//! ```text
//! fold: the products of all vectors with one another      <x_i, x_j>
//! then: weights from these numbers alone                  w_i
//! map:  out = sum of w_i x_i   (+ base, where the vectors are task vectors)
//! ```
//! Whatever such a method does in between (means, iterations on the sphere) stays within the span of the vectors, so
//! that the small matrix of products is all it needs. It is computed in `f64`.
//!
//! Lengths and angles are those of the whole tensor, or of each of its rows or columns. See [`Group`].

mod columns;
pub(super) mod karcher;
pub(super) mod model_stock;
pub(super) mod multislerp;
pub(super) mod nuslerp;
mod rows;
pub(super) mod slerp;
mod tensor;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{AnyStage, Block, Method, MethodError, Operand, TensorView, UnitView, Values};
use crate::kernel::Kernels;
use crate::stats::Products;

/// What the vectors are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Vectors {
    /// The models themselves.
    Models,
    /// The base, then the models.
    BaseAndModels,
    /// Task vectors. The base is added to their merge.
    Tasks,
}

/// What is a vector in a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// All of it: two reads, or one where it fits in memory.
    Tensor,
    /// Each run along the last dimension: one read.
    Row,
    /// Each run along the first dimension: two reads, and a sum for each column.
    Column,
}

/// The weights of the vectors, from their products and the parameters. Not finite if there is no answer, which only
/// methods with one group may give: [`Group::Tensor`].
type Rule = fn(&Products, &Values) -> Vec<f64>;

/// A method of this room.
#[derive(Clone, Copy)]
struct Spherical {
    kernels: &'static Kernels,
    vectors: Vectors,
    group: fn(&Values) -> Group,
    rule: Rule,
}

impl Spherical {
    fn group(&self, tensor: &TensorView) -> Group {
        // A tensor without a second dimension is one vector, along whichever.
        if tensor.shape.len() < 2 { Group::Tensor } else { (self.group)(&tensor.values) }
    }

    fn group_of(&self, unit: &UnitView) -> Group {
        unit.tensors.first().map_or(Group::Tensor, |tensor| self.group(tensor))
    }

    /// Number of vectors among so many models.
    fn count(&self, models: usize) -> usize {
        models + usize::from(self.vectors == Vectors::BaseAndModels)
    }

    /// The vectors' elements in a block.
    fn of<'a>(&self, block: &Block<'a>) -> Vec<&'a [f32]> {
        let base = (self.vectors == Vectors::BaseAndModels).then_some(block.base);
        base.into_iter().chain(block.rows.iter().copied()).collect()
    }

    fn weights(&self, products: &Products, values: &Values) -> Vec<f32> {
        (self.rule)(products, values).into_iter().map(|weight| weight as f32).collect()
    }

    /// Ends a map: adds the base where the vectors are differences from it.
    fn rebase(&self, block: &Block<'_>, out: &mut [f32]) {
        if self.vectors == Vectors::Tasks {
            self.kernels.add_base(block.base, 1.0, out);
        }
    }
}

impl Method for Spherical {
    fn operand(&self) -> Operand {
        match self.vectors {
            Vectors::Models | Vectors::BaseAndModels => Operand::Value,
            Vectors::Tasks => Operand::TaskVector,
        }
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        match self.group(tensor) {
            Group::Tensor => tensor::GRAIN,
            Group::Row => tensor.row(),
            Group::Column => columns::grain(tensor),
        }
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        match self.group_of(unit) {
            Group::Tensor | Group::Column => vec!["products", "merge"],
            Group::Row => vec!["merge"],
        }
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let vectors = self.count(unit.experts);
        match self.group_of(unit) {
            Group::Tensor | Group::Row => tensor::bytes(vectors),
            Group::Column => {
                unit.tensors.iter().map(|t| columns::bytes(vectors, t)).max().unwrap_or(0)
            }
        }
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        Ok(match self.group_of(unit) {
            Group::Tensor => Box::new(tensor::Fold::new(*self, unit)),
            Group::Row => rows::map(*self, unit),
            Group::Column => Box::new(columns::Fold::new(*self, unit)),
        })
    }
}

/// The weights of two vectors for the point at `t` of the way from the first to the second, along the arc between
/// their directions: `cosine` is that of the angle. On a straight line where the angle cannot decide.
fn arc(cosine: f64, t: f64, straight: bool) -> Vec<f64> {
    if straight {
        return vec![1.0 - t, t];
    }
    let angle = cosine.acos();
    let sine = angle.sin();
    vec![((1.0 - t) * angle).sin() / sine, (t * angle).sin() / sine]
}
