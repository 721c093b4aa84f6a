//! Multi-SLERP: the weighted mean of the models' directions, as long as the weighted mean of their lengths.

use super::{Group, Spherical, Vectors};
use crate::method::Values;
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use crate::stats::Products;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "multislerp",
    dialect: None,
    about: "weighted mean of the models' directions, or of those of their task vectors",
    source: "goddard.blog/posts/multislerp-wow-what-a-cool-idea; mergekit 0.1.5",
    base: BaseUse::Optional,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: Some("weight"),
    parameters: &[
        Parameter::new("weight", Per::Model, Kind::ANY, Preset::Required, "weight of the model"),
        Parameter::new(
            "normalize_weights",
            Per::Tensor,
            Kind::Flag,
            Preset::Flag(true),
            "whether weights are divided by their sum",
        ),
        Parameter::new(
            "eps",
            Per::Tensor,
            Kind::NOT_NEGATIVE,
            Preset::Number(1e-8),
            "added to lengths; a shorter mean direction is none",
        ),
    ],
    build: |setup| {
        Box::new(Spherical {
            kernels: setup.kernels,
            vectors: if setup.base { Vectors::Tasks } else { Vectors::Models },
            group: |_| Group::Tensor,
            rule,
        })
    },
};

/// Sums of unit vectors this short, for each of them, are not told apart from zero.
const NOISE: f64 = 3e-8;

fn rule(products: &Products, values: &Values) -> Vec<f64> {
    let count = products.vectors();
    if count == 1 {
        return vec![1.0];
    }
    let (mut weights, eps) = (values.each("weight"), values.number("eps"));
    if values.flag("normalize_weights") {
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    let norms: Vec<f64> = (0..count).map(|vector| products.norm(vector)).collect();
    if norms.iter().all(|&norm| norm == 0.0) {
        // mergekit refuses, but a tensor that no model has changed is no mistake.
        return vec![0.0; count];
    }
    let mean: Vec<f64> = weights.iter().zip(&norms).map(|(w, norm)| w / (norm + eps)).collect();
    let size = products.length(&mean);
    let most: f64 = weights.iter().map(|weight| weight.abs()).sum();
    if size < eps.max(NOISE * most) {
        return if count == 2 { weights } else { vec![f64::NAN; count] };
    }
    // mergekit then goes from the mean along the weighted sum of the vectors' parts at right angles to it. By the
    // mean's own definition that sum is zero; what is left of the step is the `eps` added to its length.
    let length: f64 = weights.iter().zip(&norms).map(|(w, norm)| w * norm).sum();
    let factor = length * eps.cos() / size;
    mean.into_iter().map(|share| share * factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::MethodError;
    use crate::method::testing::merged;

    const ROWS: [[f32; 2]; 3] = [[3.0, 0.0], [0.0, 2.0], [-4.0, 0.0]];

    fn multislerp(weights: &[f64], normalize: bool, base: &[f32]) -> Result<Vec<f32>, MethodError> {
        let values = Values::new(weights.len())
            .with_each("weight", weights)
            .with_flag("normalize_weights", normalize)
            .with("eps", 1e-8);
        let rows = ROWS.each_ref().map(|row| &row[..]);
        merged(&ENTRY, &[2], values, base, &rows[..weights.len()])
    }

    fn close(got: Result<Vec<f32>, MethodError>, want: [f32; 2]) {
        let got = got.unwrap();
        assert!((got[0] - want[0]).abs() < 1e-6 && (got[1] - want[1]).abs() < 1e-6, "{got:?}");
    }

    #[test]
    fn directions_and_lengths_are_averaged_apart() {
        let root = 0.5f32.sqrt();
        close(multislerp(&[1.0, 1.0], true, &[]), [2.5 * root, 2.5 * root]);
        close(multislerp(&[1.0, 1.0], true, &[1.0, 0.0]), [1.0 + 2.5 * root, 2.5 * root]);
        close(multislerp(&[1.0, 1.0], false, &[]), [5.0 * root, 5.0 * root]);
        // Directions (3, 4) / 5, of length (3 * 3 + 4 * 2) / 7.
        close(multislerp(&[3.0, 4.0], true, &[]), [0.6 * 17.0 / 7.0, 0.8 * 17.0 / 7.0]);
    }

    #[test]
    fn one_model_is_itself() {
        assert_eq!(multislerp(&[0.3], true, &[]).unwrap(), ROWS[0]);
        assert_eq!(multislerp(&[0.3], true, &[0.5, 1.0]).unwrap(), [3.5, 1.0]);
    }

    #[test]
    fn a_tensor_that_no_model_has_changed_is_the_base() {
        let values = Values::new(3)
            .with_each("weight", &[1.0, 2.0, 3.0])
            .with_flag("normalize_weights", true)
            .with("eps", 1e-8);
        let zeros: [&[f32]; 3] = [&[0.0, 0.0]; 3];
        assert_eq!(merged(&ENTRY, &[2], values, &[0.5, 2.0], &zeros).unwrap(), [0.5, 2.0]);
    }

    #[test]
    fn directions_that_cancel_are_refused_but_two_are_mixed_linearly() {
        assert_eq!(multislerp(&[1.0, 0.0, 1.0], true, &[]), Err(MethodError::NoDirection));
        assert_eq!(multislerp(&[1.0, -1.0], true, &[]), Err(MethodError::NoDirection));
        let values = Values::new(2)
            .with_each("weight", &[1.0, 1.0])
            .with_flag("normalize_weights", true)
            .with("eps", 1e-8);
        let mixed = merged(&ENTRY, &[2], values, &[], &[&ROWS[0], &ROWS[2]]);
        assert_eq!(mixed.unwrap(), [-0.5, 0.0]);
    }
}
