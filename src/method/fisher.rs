//! Fisher merging: a mean of the models in which each element of each has a weight of its own, what data has told
//! about it (arXiv 2111.09832).

use std::sync::Arc;

use super::pass::Map;
use super::registry::{BaseUse, Entry, Evidence, Kind, Parameter, Per, Preset, Scope};
use super::{AnyStage, Method, MethodError, Operand, UnitView, Values};
use crate::kernel::Kernels;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "fisher",
    dialect: None,
    about: "mean weighted by Fisher information, element by element",
    source: "arXiv 2111.09832; bloomberg/dataless-model-merging",
    base: BaseUse::Model,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: Some(Evidence::Fisher),
    per_expert: Some("weight"),
    parameters: &[
        Parameter::new(
            "weight",
            Per::Model,
            Kind::FACTOR,
            Preset::Number(1.0),
            "factor of the model's Fisher information",
        ),
        Parameter::new(
            "epsilon",
            Per::Tensor,
            Kind::FACTOR,
            Preset::Number(1e-10),
            "what is added to all Fisher information",
        ),
    ],
    build: |setup| Box::new(Fisher { kernels: setup.kernels }),
};

struct Fisher {
    kernels: &'static Kernels,
}

impl Method for Fisher {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let kernels = self.kernels;
        let factors =
            unit.each_tensor(|values: &Values| (values.each("weight"), values.number("epsilon")));
        if factors.all().iter().any(|(factors, _)| factors.iter().all(|factor| *factor == 0.0)) {
            return Err(MethodError::NoWeight);
        }
        Ok(Box::new(Map::new(unit.elements, move |block, _, out| {
            let (factors, epsilon) = factors.get(block.tensor);
            if block.weights.is_empty() {
                kernels.plain_mean(block.rows, factors, out);
            } else {
                kernels.weighted_mean(block.rows, block.weights, factors, *epsilon, out);
            }
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::{Block, run_in_memory};

    fn unit(weights: &[f64], epsilon: f64) -> Arc<UnitView> {
        let values = Values::new(weights.len()).with_each("weight", weights);
        UnitView::array("w", 3, values.with("epsilon", epsilon))
    }

    const ROWS: [&[f32]; 2] = [&[1.0, 2.0, -4.0], &[3.0, 0.0, 8.0]];

    #[test]
    fn weighs_each_element_by_what_is_known_of_it() {
        let fisher = Fisher { kernels: Kernels::available().last().unwrap() };
        let stage = fisher.start(&unit(&[1.0, 3.0], 0.0)).unwrap();
        let weights: [&[f32]; 2] = [&[3.0, 1.0, 0.0], &[1.0, 0.0, 0.0]];
        let block = Block { tensor: 0, first: 0, base: &[], rows: &ROWS, weights: &weights };
        let mut out = [f32::NAN; 3];
        stage.add(&mut stage.empty(), &block, &mut out);
        // Nothing is known of the last element: its mean is by the models' factors.
        assert_eq!(out, [2.0, 2.0, 5.0]);
    }

    #[test]
    fn is_the_mean_by_factors_where_nothing_is_known() {
        let fisher = Fisher { kernels: Kernels::available().last().unwrap() };
        let merged = |weights: &[f64]| {
            run_in_memory(&fisher, &unit(weights, 1e-10), &[], &ROWS).map(|(merged, _)| merged)
        };
        assert_eq!(merged(&[1.0, 3.0]).unwrap(), [2.5, 0.5, 5.0]);
        assert_eq!(merged(&[0.0, 0.0]), Err(MethodError::NoWeight));
    }
}
