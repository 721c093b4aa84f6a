//! SLERP: the point between base and model on the arc that turns one into the other.

use super::{Group, Spherical, Vectors, arc};
use crate::method::Values;
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use crate::stats::Products;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "slerp",
    dialect: None,
    about: "point between base and model on the arc from one to the other",
    source: "Shoemake 1985; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=1,
    scopes: &[Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[Parameter::new(
        "t",
        Per::Tensor,
        Kind::ANY,
        Preset::Required,
        "0 is the base, 1 the model",
    )],
    build: |setup| {
        Box::new(Spherical {
            kernels: setup.kernels,
            vectors: Vectors::BaseAndModels,
            group: |_| Group::Tensor,
            rule,
        })
    },
};

/// Vectors no longer than this count as of length 1.
const NO_LENGTH: f64 = 1e-8;

/// Beyond this cosine the arc is taken as straight.
const STRAIGHT: f64 = 0.9995;

fn rule(products: &Products, values: &Values) -> Vec<f64> {
    let [base, model] = [0, 1].map(|vector| match products.norm(vector) {
        norm if norm > NO_LENGTH => norm,
        _ => 1.0,
    });
    let cosine = (products.get(0, 1) / base / model).clamp(-1.0, 1.0);
    arc(cosine, values.number("t"), cosine.abs() > STRAIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::testing::merged;

    fn slerp(base: &[f32], model: &[f32], t: f64) -> Vec<f32> {
        merged(&ENTRY, &[base.len() as u64], Values::new(1).with("t", t), base, &[model]).unwrap()
    }

    #[test]
    fn turns_the_base_into_the_model() {
        let (base, model) = ([3.0, 0.0, 0.0], [0.0, 4.0, 0.0]);
        assert_eq!(slerp(&base, &model, 0.0), base);
        assert_eq!(slerp(&base, &model, 1.0)[1], 4.0);
        let half = slerp(&base, &model, 0.5);
        let root = 0.5f32.sqrt();
        assert!(
            (half[0] - 3.0 * root).abs() < 1e-6 && (half[1] - 4.0 * root).abs() < 1e-6,
            "{half:?}"
        );
    }

    #[test]
    fn vectors_in_line_are_mixed_linearly() {
        assert_eq!(slerp(&[1.0, 2.0], &[2.0, 4.0], 0.25), [1.25, 2.5]);
        assert_eq!(slerp(&[1.0, 2.0], &[-1.0, -2.0], 0.25), [0.5, 1.0]);
    }

    #[test]
    fn a_vector_without_length_is_at_a_right_angle_to_all() {
        let root = 0.5f32.sqrt();
        let merged = slerp(&[0.0, 0.0], &[1.0, 2.0], 0.5);
        assert!((merged[0] - root).abs() < 1e-6 && (merged[1] - 2.0 * root).abs() < 1e-6);
        assert_eq!(slerp(&[0.0, 0.0], &[0.0, 0.0], 0.5), [0.0, 0.0]);
    }
}
