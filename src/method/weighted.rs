//! The base plus a number times a row for each expert: task vectors, or shares that an earlier merge has kept.

use std::sync::Arc;

use super::pass::Map;
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The base plus the sum of lambda_i times row i.
pub struct Weighted {
    /// The kernels of this machine.
    pub kernels: &'static Kernels,
}

impl Method for Weighted {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let lambdas = unit.each_tensor(|values: &Values| values.each_f32("lambda"));
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            combine(kernels, block.base, block.rows, lambdas.get(block.tensor), out);
        })))
    }
}

/// `out` = `base` + sum of `lambdas[i] * rows[i]`. The arithmetic of the map of PCB, whose shares the rows may be: the same
/// bits, and rows of which zeros are left out change none.
pub(super) fn combine(
    kernels: &Kernels,
    base: &[f32],
    rows: &[&[f32]],
    lambdas: &[f32],
    out: &mut [f32],
) {
    kernels.weighted_sum(rows, lambdas, out);
    kernels.add_base(base, 1.0, out);
}
