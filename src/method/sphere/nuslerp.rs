//! NuSLERP: SLERP between two models by their weights, of the models or of their task vectors, whole or in parts.

use super::{Group, Spherical, Vectors, arc};
use crate::method::Values;
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use crate::stats::Products;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "nuslerp",
    dialect: None,
    about: "point on the arc between two models, or between their task vectors",
    source: "mergekit 0.1.5",
    base: BaseUse::Optional,
    models: 2..=2,
    scopes: &[Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: Some("weight"),
    parameters: &[
        Parameter::new("weight", Per::Model, Kind::ANY, Preset::Required, "share of the model"),
        Parameter::new(
            "nuslerp_flatten",
            Per::Tensor,
            Kind::Flag,
            Preset::Flag(true),
            "whether a tensor is one vector; if not, each run along its last dimension is one",
        ),
        Parameter::new(
            "nuslerp_row_wise",
            Per::Tensor,
            Kind::Flag,
            Preset::Flag(false),
            "whether vectors run along the first dimension instead",
        ),
    ],
    build: |setup| {
        Box::new(Spherical {
            kernels: setup.kernels,
            vectors: if setup.base { Vectors::Tasks } else { Vectors::Models },
            group: |values| match (values.flag("nuslerp_flatten"), values.flag("nuslerp_row_wise"))
            {
                (true, _) => Group::Tensor,
                (false, false) => Group::Row,
                (false, true) => Group::Column,
            },
            rule,
        })
    },
};

/// Weights whose sum is no larger are equal shares.
const NO_WEIGHT: f64 = 1e-6;

/// Vectors count as at least so long.
const LEAST_LENGTH: f64 = 1e-7;

/// Squares of sines up to this are those of vectors in line.
const STRAIGHT: f64 = 1e-16;

fn rule(products: &Products, values: &Values) -> Vec<f64> {
    let weights = values.each("weight");
    let sum: f64 = weights.iter().sum();
    let t = if sum.abs() < NO_WEIGHT { 0.5 } else { weights[1] / sum };
    let [a, b] = [0, 1].map(|vector| products.norm(vector).max(LEAST_LENGTH));
    let cosine = (products.get(0, 1) / a / b).clamp(-1.0, 1.0);
    arc(cosine, t, 1.0 - cosine * cosine <= STRAIGHT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::testing::merged;

    /// By rows of two, three of them.
    const A: [f32; 6] = [3.0, 0.0, 0.0, 2.0, 1.0, 1.0];
    const B: [f32; 6] = [0.0, 3.0, 0.0, 4.0, -1.0, 1.0];

    fn nuslerp(weights: &[f64], flags: (bool, bool), base: &[f32]) -> Vec<f32> {
        let values = Values::new(2)
            .with_each("weight", weights)
            .with_flag("nuslerp_flatten", flags.0)
            .with_flag("nuslerp_row_wise", flags.1);
        let rows = [A, B].map(|row| -> Vec<f32> {
            row.iter().enumerate().map(|(k, x)| x - base.get(k).unwrap_or(&0.0)).collect()
        });
        merged(&ENTRY, &[3, 2], values, base, &[&rows[0], &rows[1]]).unwrap()
    }

    fn close(got: &[f32], want: &[f32]) {
        let near = got.iter().zip(want).all(|(x, y)| (x - y).abs() < 1e-6);
        assert!(near && got.len() == want.len(), "{got:?} {want:?}");
    }

    #[test]
    fn each_row_turns_by_itself() {
        let root = 0.5f32.sqrt();
        // At a right angle; in line; at a right angle.
        let want = [3.0 * root, 3.0 * root, 0.0, 3.0, 0.0, 2.0 * root];
        close(&nuslerp(&[1.0, 1.0], (false, false), &[]), &want);
        // On the arc of a right angle, the shares are sines.
        let [a, b] = [0.75f32, 0.25].map(|t| (t * std::f32::consts::FRAC_PI_2).sin());
        let want = [3.0 * a, 3.0 * b, 0.0, 2.5, a - b, a + b];
        close(&nuslerp(&[3.0, 1.0], (false, false), &[]), &want);
    }

    #[test]
    fn each_column_turns_by_itself() {
        let angle = |c: usize| {
            let column = |row: &[f32; 6]| [row[c], row[c + 2], row[c + 4]].map(f64::from);
            let (x, y) = (column(&A), column(&B));
            let dot =
                |x: &[f64; 3], y: &[f64; 3]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
            (dot(&x, &y) / (dot(&x, &x) * dot(&y, &y)).sqrt()).acos()
        };
        let want: Vec<f32> = (0..6)
            .map(|k| {
                let angle = angle(k % 2);
                let part = |t: f64| (t * angle).sin() / angle.sin();
                (part(0.25) * f64::from(A[k]) + part(0.75) * f64::from(B[k])) as f32
            })
            .collect();
        close(&nuslerp(&[1.0, 3.0], (false, true), &[]), &want);
    }

    #[test]
    fn with_a_base_it_is_the_task_vectors_that_turn() {
        let base = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        let plain = nuslerp(&[1.0, 1.0], (true, false), &base);
        let tasks = [[2.0, -1.0, 0.0, 2.0, 1.0, 1.0], [-1.0, 2.0, 0.0, 4.0, -1.0, 1.0]];
        let dot: f64 = tasks[0].iter().zip(&tasks[1]).map(|(x, y)| x * y).sum();
        let norms = tasks.map(|t| t.iter().map(|x| x * x).sum::<f64>().sqrt());
        let angle = (dot / norms[0] / norms[1]).acos();
        let share = (angle / 2.0).sin() / angle.sin();
        let want: Vec<f32> = (0..6)
            .map(|k| (f64::from(base[k]) + share * (tasks[0][k] + tasks[1][k])) as f32)
            .collect();
        close(&plain, &want);
    }

    #[test]
    fn weights_that_cancel_are_equal_shares_and_a_zero_one_takes_no_part() {
        assert_eq!(
            nuslerp(&[0.5, -0.5], (true, false), &[]),
            nuslerp(&[2.0, 2.0], (true, false), &[])
        );
        for flags in [(true, false), (false, false), (false, true)] {
            close(&nuslerp(&[0.0, 7.0], flags, &[]), &B);
        }
    }
}
