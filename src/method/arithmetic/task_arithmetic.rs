//! Task arithmetic: base + lambda * sum of weight * task vector (arXiv 2212.04089).

use super::{Family, LAMBDA, Thinning, WEIGHT, normalize};
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};

/// About what mergekit accepts for all methods of the family.
const IDLE: &str = "without effect, since nothing is thinned out";

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "task_arithmetic",
    dialect: None,
    about: "weighted sum of task vectors",
    source: "arXiv 2212.04089; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    evidence: None,
    per_expert: Some("weight"),
    parameters: &[
        WEIGHT,
        LAMBDA,
        normalize(false),
        Parameter::new("density", Per::Model, Kind::FRACTION, Preset::Number(1.0), IDLE),
        Parameter::new("rescale", Per::Tensor, Kind::Flag, Preset::Flag(false), IDLE),
    ],
    build: |setup| Family::boxed(setup, false, Thinning::Nothing),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::arithmetic::tests::family;
    use crate::method::{UnitView, Values, run_in_memory};

    fn merged(weights: &[f64], normalize: bool, lambda: f64) -> Vec<f32> {
        let values = Values::new(weights.len())
            .with_each("weight", weights)
            .with_flag("normalize", normalize)
            .with("lambda", lambda);
        let unit = UnitView::array("w", 3, values);
        let method = family(false, Thinning::Nothing);
        let rows: [&[f32]; 2] = [&[1.0, 0.0, -4.0], &[3.0, -2.0, 4.0]];
        run_in_memory(&method, &unit, &[10.0; 3], &rows[..weights.len()]).unwrap().0
    }

    #[test]
    fn adds_weighted_task_vectors_to_the_base() {
        assert_eq!(merged(&[1.0, 0.5], false, 1.0), [12.5, 9.0, 8.0]);
        assert_eq!(merged(&[1.0, 0.5], false, 2.0), [15.0, 8.0, 6.0]);
        assert_eq!(merged(&[2.0, 2.0], true, 1.0), [12.0, 9.0, 10.0]);
        assert_eq!(merged(&[-1.0], false, 1.0), [9.0, 10.0, 14.0]);
        // One expert with weight 1 is that expert.
        assert_eq!(merged(&[1.0], false, 1.0), [11.0, 10.0, 6.0]);
    }

    #[test]
    fn weights_that_cancel_divide_by_one() {
        assert_eq!(merged(&[0.5, -0.5], true, 1.0), [9.0, 11.0, 6.0]);
    }
}
