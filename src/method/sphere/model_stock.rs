//! Model Stock: from the base towards the mean of the models, the further the better their task vectors agree.

use super::{Group, Spherical, Vectors};
use crate::method::Values;
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use crate::stats::Products;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "model_stock",
    dialect: None,
    about: "from the base towards the mean of the models, as far as their task vectors agree",
    source: "arXiv 2403.19522; mergekit 0.1.5",
    base: BaseUse::Required,
    models: 2..=usize::MAX,
    scopes: &[Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[Parameter::new(
        "filter_wise",
        Per::Tensor,
        Kind::Flag,
        Preset::Flag(false),
        "whether each run along the last dimension has its own angle",
    )],
    build: |setup| {
        Box::new(Spherical {
            kernels: setup.kernels,
            vectors: Vectors::Tasks,
            group: |values| if values.flag("filter_wise") { Group::Row } else { Group::Tensor },
            rule,
        })
    },
};

/// Products of two lengths count as at least this.
const LEAST_LENGTHS: f64 = 1e-6;

/// Nearer to zero than this, the share's denominator has no meaning.
const NO_SHARE: f64 = 1e-6;

fn rule(products: &Products, _values: &Values) -> Vec<f64> {
    let count = products.vectors();
    let norms: Vec<f64> = (0..count).map(|vector| products.norm(vector)).collect();
    let mut sum = 0.0;
    for a in 0..count {
        for b in a + 1..count {
            let lengths = (norms[a] * norms[b]).max(LEAST_LENGTHS);
            sum += (products.get(a, b) / lengths).clamp(-1.0, 1.0);
        }
    }
    let n = count as f64;
    let cosine = sum / (n * (n - 1.0) / 2.0);
    let denominator = 1.0 + (n - 1.0) * cosine;
    let share = if denominator.abs() < NO_SHARE { 0.0 } else { n * cosine / denominator };
    vec![share / n; count]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::testing::merged;

    fn stock(shape: &[u64], by_rows: bool, tasks: &[&[f32]]) -> Vec<f32> {
        let values = Values::new(tasks.len()).with_flag("filter_wise", by_rows);
        merged(&ENTRY, shape, values, &vec![1.0; tasks[0].len()], tasks).unwrap()
    }

    #[test]
    fn the_share_of_the_mean_follows_from_the_angle() {
        // At 60 degrees: 2 * 0.5 / 1.5.
        let tasks: [&[f32]; 2] = [&[2.0, 0.0], &[1.0, 3f32.sqrt()]];
        let merged = stock(&[2], false, &tasks);
        let want = [1.0 + 1.0, 1.0 + 3f32.sqrt() / 3.0];
        assert!(
            (merged[0] - want[0]).abs() < 1e-6 && (merged[1] - want[1]).abs() < 1e-6,
            "{merged:?}"
        );
        // In line: the mean. At a right angle: the base. Opposite: no answer, so the base.
        assert_eq!(stock(&[2], false, &[&[2.0, 0.0], &[4.0, 0.0]]), [4.0, 1.0]);
        assert_eq!(stock(&[2], false, &[&[2.0, 0.0], &[0.0, 4.0]]), [1.0, 1.0]);
        assert_eq!(stock(&[2], false, &[&[2.0, 0.0], &[-4.0, 0.0]]), [1.0, 1.0]);
    }

    #[test]
    fn three_models_count_their_mean_cosine() {
        let tasks: [&[f32]; 3] = [&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]];
        // Cosines 1, 0, 0: 3 c / (1 + 2 c) of the mean, c = 1/3.
        let share = 1.0 / (1.0 + 2.0 / 3.0);
        let merged = stock(&[2], false, &tasks);
        let want = [1.0 + share * 2.0 / 3.0, 1.0 + share / 3.0];
        assert!(
            (merged[0] - want[0]).abs() < 1e-6 && (merged[1] - want[1]).abs() < 1e-6,
            "{merged:?}"
        );
    }

    #[test]
    fn rows_have_angles_of_their_own() {
        let tasks: [&[f32]; 2] = [&[2.0, 0.0, 2.0, 0.0], &[4.0, 0.0, 0.0, 4.0]];
        assert_eq!(stock(&[2, 2], true, &tasks), [4.0, 1.0, 1.0, 1.0]);
        // A tensor of one dimension is one row.
        assert_eq!(stock(&[4], true, &tasks), stock(&[4], false, &tasks));
    }

    #[test]
    fn tiny_task_vectors_stay_near_the_base() {
        // Lengths of 1e-4: their product counts as 1e-6, a hundred times what it is.
        let merged = stock(&[2], false, &[&[1e-4, 0.0], &[1e-4, 0.0]]);
        let cosine = 0.01;
        let want = 1.0 + 2.0 * cosine / (1.0 + cosine) * 1e-4;
        assert!((f64::from(merged[0]) - want).abs() < 1e-7);
    }
}
