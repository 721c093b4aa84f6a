//! AdaMerging and AdaMerging++ (arXiv 2310.02575), applied: the coefficients were trained elsewhere.
//!
//! A coefficient for each expert and tensor is a parameter that differs from tensor to tensor; a file gives them
//! (`recipe::Coefficients`). AdaMerging++ takes of each task vector what TIES leaves of it.

use super::Weighted;
use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::ties::{Combine, DENSITY, Ties};

const SOURCE: &str = "arXiv 2310.02575; github.com/EnnengYang/AdaMerging";

const LAMBDA: Parameter = Parameter::new(
    "lambda",
    Per::Model,
    Kind::ANY,
    Preset::Required,
    "coefficient of the expert's task vector, for all tensors that a file of coefficients does not name",
);

/// The line of the registry.
pub(crate) static ENTRY: Entry = PLAIN;

const PLAIN: Entry = Entry {
    name: "adamerging",
    dialect: None,
    about: "task vectors with a trained coefficient for each expert and tensor",
    source: SOURCE,
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: Some("lambda"),
    parameters: &[LAMBDA],
    build: |setup| Box::new(Weighted { kernels: setup.kernels }),
};

/// The line of AdaMerging++.
pub(crate) static PLUS: Entry = Entry {
    name: "adamerging++",
    about: "the same with what TIES leaves of the task vectors",
    scopes: &[Scope::Model, Scope::Layer, Scope::Tensor],
    reads: (1, 4),
    parameters: &[LAMBDA, DENSITY],
    build: |setup| Ties::boxed(setup.kernels, setup.values.number("density"), Combine::Each),
    ..PLAIN
};

#[cfg(test)]
mod tests {
    use super::super::registry::find;
    use super::super::testing::{in_tiles, merged, numbers};
    use super::*;
    use crate::kernel::Kernels;
    use crate::method::Values;
    use proptest::prelude::*;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    #[test]
    fn coefficients_may_be_anything_and_one_makes_the_expert() {
        let merge = |lambdas: &[f64]| {
            let values = Values::new(2).with_each("lambda", lambdas);
            let rows: [&[f32]; 2] = [&[1.0, 2.0, -4.0], &[3.0, 0.0, 8.0]];
            merged(&ENTRY, &[3], values, &[1.0, -1.0, 0.5], &rows).unwrap()
        };
        assert_eq!(merge(&[1.0, 0.0]), [2.0, 1.0, -3.5]);
        assert_eq!(merge(&[0.5, 0.25]), [2.25, 0.0, 0.5]);
        assert_eq!(merge(&[-1.0, 0.5]), [1.5, -3.0, 8.5]);
    }

    proptest! {
        #[test]
        fn it_is_task_arithmetic_and_its_plus_a_ties_of_sums(
            elements in 1usize..400, tile in 1usize..70, threads in 1usize..4, seed in any::<u64>(),
            one in -2.0f64..2.0, other in -2.0f64..2.0, density in 0.0f64..=1.0,
        ) {
            let rows = [numbers(elements, seed), numbers(elements, seed ^ 1)];
            let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
            let (base, shape) = (numbers(elements, seed ^ 2), [elements as u64]);
            for kernels in Kernels::available() {
                let run = |entry: &Entry, values: Values| {
                    bits(&in_tiles(entry, kernels, &shape, &values, (&base, &rows), (tile, threads)))
                };
                let lambdas = [one, other];
                let arithmetic = Values::new(2).with_each("weight", &lambdas).with("lambda", 1.0);
                let arithmetic = arithmetic.with_flag("normalize", false);
                prop_assert_eq!(
                    run(&ENTRY, Values::new(2).with_each("lambda", &lambdas)),
                    run(find("task_arithmetic", None).unwrap(), arithmetic.with_each("density", &[1.0; 2])),
                );
            }
            // With equal coefficients of a power of two the order of product and sum does not matter.
            let plus = Values::new(2).with_each("lambda", &[0.5; 2]).with("density", density);
            let ties = Values::new(2).with("lambda", 0.5).with("density", density).with_word("combine", "sum");
            let paper = find("ties", Some("paper")).unwrap();
            let [plus, ties] = [(&PLUS, plus), (paper, ties)].map(|(entry, values)| {
                bits(&merged(entry, &shape, values, &base, &rows).unwrap())
            });
            prop_assert_eq!(plus, ties);
        }
    }
}
