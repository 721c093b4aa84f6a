//! One task's model from what EMR-Merging has kept.

use std::sync::Arc;

use crate::method::pass::Map;
use crate::method::{AnyStage, Method, MethodError, Operand, UnitView};

/// The base, and lambda times the unified task vector where the task's mask has it. The only row of blocks holds the values
/// that the unified task vector was taken of, and NaN where the mask has none.
pub struct Rebuilt {
    /// The rescaler.
    pub lambda: f32,
}

impl Method for Rebuilt {
    fn operand(&self) -> Operand {
        Operand::TaskVector
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let lambda = self.lambda;
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            let Some(row) = block.rows.first() else { return };
            for ((out, &value), &base) in out.iter_mut().zip(*row).zip(block.base) {
                *out = rebuilt(base, value, lambda);
            }
        })))
    }
}

/// One element. Lambda 1 leads to the value itself, without a way there and back that rounds.
#[inline(always)]
fn rebuilt(base: f32, value: f32, lambda: f32) -> f32 {
    if value.is_nan() {
        base
    } else if lambda == 1.0 {
        value
    } else {
        base + crate::kernel::moved(value, base) * lambda
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Values, run_in_memory};

    #[test]
    fn lambda_scales_the_way_from_the_base_and_one_leads_to_the_value() {
        let made = |lambda: f32| {
            let unit = UnitView::array("w", 4, Values::new(1));
            let base = [1.0, 1.0, 0.5, -1.0];
            let row: [f32; 4] = [1e-10, f32::NAN, 0.75, -0.0];
            run_in_memory(&Rebuilt { lambda }, &unit, &base, &[&row]).unwrap().0
        };
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        assert_eq!(bits(made(1.0)), bits(vec![1e-10, 1.0, 0.75, -0.0]));
        assert_eq!(made(2.0), [-1.0, 1.0, 1.0, 1.0]);
        assert_eq!(made(0.0), [1.0, 1.0, 0.5, -1.0]);
    }
}
