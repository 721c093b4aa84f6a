//! Task arithmetic: base + lambda * sum of weight * task vector (arXiv 2212.04089).

use super::{Family, INT8_MASK, LAMBDA, WEIGHT, normalize};
use crate::method::registry::{BaseUse, Entry, Scope};

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
    per_expert: Some("weight"),
    parameters: &[WEIGHT, LAMBDA, normalize(false), INT8_MASK],
    build: |setup| Box::new(Family { kernels: setup.kernels, elects: false }),
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::Kernels;
    use crate::method::{UnitView, Values, run_in_memory};

    fn merged(weights: &[f64], normalize: bool, lambda: f64) -> Vec<f32> {
        let values = Values::new(weights.len())
            .with_each("weight", weights)
            .with_flag("normalize", normalize)
            .with("lambda", lambda);
        let unit = UnitView::array("w", 3, values);
        let method = Family { kernels: Kernels::available().last().unwrap(), elects: false };
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
