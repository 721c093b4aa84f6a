//! Merged values from shares that an earlier merge has kept, with any lambdas.

use std::sync::Arc;

use super::pass::Map;
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The base plus lambda_i times the share of each expert: the rows of its blocks are shares. The same arithmetic as in the
/// map of PCB, and so the same bits.
pub struct Recombine {
    /// The kernels of this machine.
    pub kernels: &'static Kernels,
}

impl Method for Recombine {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let lambdas = unit.each_tensor(|values: &Values| values.each_f32("lambda"));
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            kernels.pcb_combine(block.base, block.rows, lambdas.get(block.tensor), out);
        })))
    }
}
