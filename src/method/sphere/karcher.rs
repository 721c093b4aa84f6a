//! Karcher mean: the point on the sphere from which the ways to all models' directions add up to zero.

use super::{Group, Spherical, Vectors};
use crate::method::Values;
use crate::method::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use crate::stats::Products;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "karcher",
    dialect: None,
    about: "mean of the models' directions on the sphere",
    source: "arXiv 2603.04972; mergekit 0.1.5",
    base: BaseUse::Model,
    models: 1..=usize::MAX,
    scopes: &[Scope::Tensor],
    reads: (1, 2),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[
        Parameter::new(
            "max_iter",
            Per::Tensor,
            Kind::Count { least: 0, most: 10_000 },
            Preset::Number(10.0),
            "steps taken at most",
        ),
        Parameter::new(
            "tol",
            Per::Tensor,
            Kind::NOT_NEGATIVE,
            Preset::Number(1e-5),
            "step that is no more worth taking; models shorter than this give no direction",
        ),
    ],
    build: |setup| {
        Box::new(Spherical {
            kernels: setup.kernels,
            vectors: Vectors::Models,
            group: |_| Group::Tensor,
            rule,
        })
    },
};

/// All points on the way are sums of the models' vectors: `mean` and `tangent` hold their weights.
fn rule(products: &Products, values: &Values) -> Vec<f64> {
    let (count, tol) = (products.vectors(), values.number("tol"));
    if count == 1 {
        return vec![1.0];
    }
    let norms: Vec<f64> = (0..count).map(|vector| products.norm(vector)).collect();
    let used: Vec<usize> = (0..count).filter(|&vector| norms[vector] > tol).collect();
    let Some(&first) = used.first() else { return vec![0.0; count] };
    let mut mean = vec![0.0; count];
    used.iter().for_each(|&vector| mean[vector] = 1.0 / norms[vector]);
    let size = products.length(&mean);
    if size < tol * used.len() as f64 {
        mean.fill(0.0);
        mean[first] = 1.0 / norms[first];
    } else {
        mean.iter_mut().for_each(|weight| *weight /= size);
    }
    for _ in 0..values.number("max_iter") as u32 {
        let mut tangent = vec![0.0; count];
        for &vector in &used {
            let cosine = (products.with(&mean, vector) / norms[vector]).clamp(-1.0, 1.0);
            let (angle, sine) = (cosine.acos(), cosine.acos().sin());
            // From a point right opposite no way is the shortest: it takes no part either.
            if angle < tol || sine < tol {
                continue;
            }
            let stretch = angle / sine / used.len() as f64;
            tangent[vector] += stretch / norms[vector];
            tangent.iter_mut().zip(&mean).for_each(|(t, m)| *t -= stretch * cosine * m);
        }
        let step = products.length(&tangent);
        if step < tol || step == 0.0 {
            break;
        }
        let (cosine, sine) = (step.cos(), step.sin() / step);
        mean.iter_mut().zip(tangent).for_each(|(m, t)| *m = cosine * *m + sine * t);
        let size = products.length(&mean);
        if size > tol {
            mean.iter_mut().for_each(|weight| *weight /= size);
        }
    }
    let length = norms.iter().sum::<f64>() / count as f64;
    mean.into_iter().map(|weight| weight * length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::testing::merged;

    fn karcher(rows: &[&[f32]], steps: f64) -> Vec<f32> {
        let values = Values::new(rows.len()).with("max_iter", steps).with("tol", 1e-5);
        merged(&ENTRY, &[rows[0].len() as u64], values, &[], rows).unwrap()
    }

    fn close(got: &[f32], want: &[f32]) {
        let near = got.iter().zip(want).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(near && got.len() == want.len(), "{got:?} {want:?}");
    }

    #[test]
    fn on_a_circle_it_is_the_mean_angle() {
        let at = |angle: f32, length: f32| [length * angle.cos(), length * angle.sin()];
        let rows = [at(0.1, 1.0), at(0.4, 2.0), at(1.3, 6.0)];
        let rows = rows.each_ref().map(|row| &row[..]);
        close(&karcher(&rows, 10.0), &at(0.6, 3.0));
        // Without a step it is the direction of the sum of the unit vectors.
        let sum = [0.1f32, 0.4, 1.3].map(|angle| at(angle, 1.0));
        let sum: [f32; 2] = std::array::from_fn(|k| sum.iter().map(|v| v[k]).sum());
        let size = (sum[0] * sum[0] + sum[1] * sum[1]).sqrt();
        close(&karcher(&rows, 0.0), &[3.0 * sum[0] / size, 3.0 * sum[1] / size]);
    }

    #[test]
    fn one_model_or_equal_ones_are_themselves() {
        let row = [0.3f32, -1.7, 2.0];
        assert_eq!(karcher(&[&row], 10.0), row);
        close(&karcher(&[&row, &row, &row], 10.0), &row);
    }

    #[test]
    fn opposite_models_stay_with_the_first_and_zeros_shorten() {
        close(&karcher(&[&[2.0, 0.0], &[-2.0, 0.0]], 10.0), &[2.0, 0.0]);
        close(&karcher(&[&[2.0, 1.0], &[0.0, 0.0]], 10.0), &[1.0, 0.5]);
        assert_eq!(karcher(&[&[0.0, 0.0], &[0.0, 0.0]], 10.0), [0.0, 0.0]);
    }
}
