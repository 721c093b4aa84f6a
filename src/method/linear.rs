//! Linear: a weighted mean of the models themselves (model soups, arXiv 2203.05482).

use std::sync::Arc;

use super::pass::Map;
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "linear",
    dialect: None,
    about: "weighted mean of the models themselves",
    source: "arXiv 2203.05482; mergekit 0.1.5",
    base: BaseUse::Model,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: Some("weight"),
    parameters: &[
        Parameter::new("weight", Per::Model, Kind::ANY, Preset::Required, "weight of the model"),
        Parameter::new(
            "normalize",
            Per::Tensor,
            Kind::Flag,
            Preset::Flag(true),
            "whether the sum is divided by the sum of the weights",
        ),
    ],
    build: |setup| Box::new(Linear { kernels: setup.kernels }),
};

struct Linear {
    kernels: &'static Kernels,
}

impl Method for Linear {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let weights = unit.each_tensor(|values: &Values| {
            let weights = values.each_f32("weight");
            let sum = values.flag("normalize").then(|| weights.iter().sum::<f32>());
            (weights, sum)
        });
        if weights.all().iter().any(|(_, sum)| *sum == Some(0.0)) {
            return Err(MethodError::NoWeight);
        }
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            let (weights, sum) = weights.get(block.tensor);
            kernels.fused_sum(block.rows, weights, out);
            if let Some(sum) = *sum {
                kernels.divide_by(sum, out);
            }
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::run_in_memory;

    fn merged(weights: &[f64], normalize: bool) -> Result<Vec<f32>, MethodError> {
        let values = Values::new(2).with_each("weight", weights).with_flag("normalize", normalize);
        let unit = UnitView::array("w", 3, values);
        let linear = Linear { kernels: Kernels::available().last().unwrap() };
        let rows: [&[f32]; 2] = [&[1.0, 2.0, -4.0], &[3.0, 0.0, 8.0]];
        run_in_memory(&linear, &unit, &[], &rows).map(|(merged, _)| merged)
    }

    #[test]
    fn is_a_weighted_mean_or_sum() {
        assert_eq!(merged(&[1.0, 3.0], true).unwrap(), [2.5, 0.5, 5.0]);
        assert_eq!(merged(&[1.0, 3.0], false).unwrap(), [10.0, 2.0, 20.0]);
        assert_eq!(merged(&[-1.0, 1.0], false).unwrap(), [2.0, -2.0, 12.0]);
    }

    #[test]
    fn weights_that_cancel_are_refused_where_they_divide() {
        assert_eq!(merged(&[-1.0, 1.0], true), Err(MethodError::NoWeight));
    }
}
