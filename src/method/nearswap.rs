//! NearSwap: the model's values where they are near the base's, less of them the further away they are.

use std::sync::Arc;

use super::pass::Map;
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "nearswap",
    dialect: None,
    about: "the base, with the model's values where both are near each other",
    source: "alchemonaut/QuartetAnemoi-70B-t0.0001; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=1,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[Parameter::new(
        "t",
        Per::Tensor,
        Kind::ANY,
        Preset::Required,
        "distance up to which a value is the model's",
    )],
    build: |setup| Box::new(NearSwap { kernels: setup.kernels }),
};

struct NearSwap {
    kernels: &'static Kernels,
}

impl Method for NearSwap {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let distances = unit.each_tensor(|values: &Values| values.number("t") as f32);
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            if let Some(row) = block.rows.first() {
                kernels.near(block.base, row, *distances.get(block.tensor), out);
            }
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::run_in_memory;

    #[test]
    fn takes_what_is_near_and_holds_back_what_is_far() {
        let unit = UnitView::array("w", 3, Values::new(1).with("t", 0.5));
        let method = NearSwap { kernels: Kernels::available().last().unwrap() };
        let merged = run_in_memory(&method, &unit, &[1.0; 3], &[&[1.25, 3.0, 0.0]]).unwrap().0;
        assert_eq!(merged, [1.25, 1.5, 0.5]);
    }
}
