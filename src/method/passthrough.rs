//! Passthrough: one model's tensors as they are, or scaled.

use std::sync::Arc;

use super::pass::Map;
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "passthrough",
    dialect: None,
    about: "one model's tensors, scaled if wanted",
    source: "mergekit 0.1.5",
    base: BaseUse::Model,
    models: 1..=1,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: Some("scale"),
    parameters: &[Parameter::new(
        "scale",
        Per::Model,
        Kind::ANY,
        Preset::Number(1.0),
        "factor of the tensors",
    )],
    build: |setup| Box::new(Passthrough { kernels: setup.kernels }),
};

struct Passthrough {
    kernels: &'static Kernels,
}

impl Method for Passthrough {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let scales = unit.each_tensor(|values: &Values| values.each_f32("scale"));
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            match (block.rows.first(), scales.get(block.tensor).first()) {
                // Also keeps the sign of zeros, which a sum would not.
                (Some(row), None | Some(1.0)) => out.copy_from_slice(row),
                (Some(row), Some(&scale)) => kernels.scale(row, scale, out),
                (None, _) => {}
            }
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::run_in_memory;

    #[test]
    fn takes_a_model_as_it_is_or_scaled() {
        let merged = |scale: f64| {
            let values = Values::new(1).with_each("scale", &[scale]);
            let unit = UnitView::array("w", 4, values);
            let method = Passthrough { kernels: Kernels::available().last().unwrap() };
            let row = [1.0, -0.0, 1e-45, -3.5];
            run_in_memory(&method, &unit, &[], &[&row])
                .unwrap()
                .0
                .iter()
                .map(|x| x.to_bits())
                .collect()
        };
        let bits = |row: [f32; 4]| -> Vec<u32> { row.iter().map(|x| x.to_bits()).collect() };
        let all: [Vec<u32>; 3] = [merged(1.0), merged(-2.0), merged(0.0)];
        assert_eq!(all[0], bits([1.0, -0.0, 1e-45, -3.5]));
        assert_eq!(all[1], bits([-2.0, 0.0, -3e-45, 7.0]));
        assert_eq!(all[2], bits([0.0, -0.0, 0.0, -0.0]));
    }
}
