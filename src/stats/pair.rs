//! What there is to tell about one tensor in two models.

use super::DotSum;
use crate::kernel::{Kernels, keys};

/// Statistics of one tensor in two models, or of several added up. Mergeable in any order to the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PairStats {
    /// Elements seen.
    pub elements: u64,
    /// Elements that are NaN or infinite in one of the models, or whose difference is; they count as zero in all that
    /// follows.
    pub nonfinite: u64,
    /// Elements whose values are equal.
    pub equal: u64,
    /// The largest magnitude of a difference.
    pub largest: f32,
    a: DotSum,
    b: DotSum,
    product: DotSum,
    difference: DotSum,
}

impl PairStats {
    /// Adds elements of both models, of the same number. `space` takes their differences.
    pub fn add(&mut self, kernels: &Kernels, a: &[f32], b: &[f32], space: &mut Vec<f32>) {
        space.clear();
        space.extend_from_slice(a);
        kernels.subtract(b, space);
        let bits = [a, b, space].map(|row| kernels.max_magnitude_bits(row));
        if bits.iter().any(|&bits| bits >= keys::INFINITY) {
            return self.add_finite(kernels, a, b, space);
        }
        let [of_a, of_b, of_both] = bits.map(keys::magnitude);
        self.elements += a.len() as u64;
        self.equal += kernels.zeros(space);
        self.largest = self.largest.max(of_both);
        self.a.add(kernels, (a, a), (of_a, of_a));
        self.b.add(kernels, (b, b), (of_b, of_b));
        self.product.add(kernels, (a, b), (of_a, of_b));
        self.difference.add(kernels, (space, space), (of_both, of_both));
    }

    /// Adds elements of which some are not finite: these are counted, and count as zero everywhere.
    #[cold]
    fn add_finite(&mut self, kernels: &Kernels, a: &[f32], b: &[f32], space: &mut Vec<f32>) {
        let keep = |k: usize| a[k].is_finite() && b[k].is_finite() && (a[k] - b[k]).is_finite();
        let clean = |row: &[f32]| -> Vec<f32> {
            row.iter().enumerate().map(|(k, &x)| if keep(k) { x } else { 0.0 }).collect()
        };
        let bad = (0..a.len()).filter(|&k| !keep(k)).count() as u64;
        let (a, b) = (clean(a), clean(b));
        self.add(kernels, &a, &b, space);
        self.nonfinite += bad;
        // Their differences are zero because nothing is known of them.
        self.equal -= bad;
    }

    /// Adds what was seen elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.elements += other.elements;
        self.nonfinite += other.nonfinite;
        self.equal += other.equal;
        self.largest = self.largest.max(other.largest);
        self.a.merge(other.a);
        self.b.merge(other.b);
        self.product.merge(other.product);
        self.difference.merge(other.difference);
    }

    /// The norms of the tensor in both models.
    pub fn norms(&self) -> [f64; 2] {
        [self.a.value().sqrt(), self.b.value().sqrt()]
    }

    /// The norm of the difference, which is summed itself: as exact for models that hardly differ.
    pub fn distance(&self) -> f64 {
        self.difference.value().sqrt()
    }

    /// The cosine of the angle between both; `None` if one of them is zero.
    pub fn cosine(&self) -> Option<f64> {
        let [a, b] = self.norms();
        (a > 0.0 && b > 0.0).then(|| (self.product.value() / (a * b)).clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stats(a: &[f32], b: &[f32], part: usize, kernels: &Kernels) -> PairStats {
        let (mut parts, mut space) = (Vec::new(), Vec::new());
        for (a, b) in a.chunks(part).zip(b.chunks(part)) {
            let mut stats = PairStats::default();
            stats.add(kernels, a, b, &mut space);
            parts.push(stats);
        }
        let mut all = PairStats::default();
        parts.iter().rev().for_each(|part| all.merge(part));
        all
    }

    fn value() -> impl Strategy<Value = f32> {
        prop_oneof![
            6 => -1.0f32..1.0,
            2 => prop::sample::select(vec![0.0, -0.0, 1e-45, 3e-4, 0.5, 1e20]),
            1 => prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::MAX, f32::MIN]),
        ]
    }

    proptest! {
        #[test]
        fn any_cut_on_any_path_gives_the_same(
            pairs in prop::collection::vec((value(), value()), 1..500),
            part in 1usize..520,
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let whole = stats(&a, &b, a.len(), Kernels::available().next().unwrap());
            for kernels in Kernels::available() {
                prop_assert_eq!(stats(&a, &b, part, kernels), whole);
            }
        }
    }

    #[test]
    fn they_are_what_plain_loops_give() {
        let a: Vec<f32> = (0..9001).map(|k| ((k * 37 % 101) as f32 - 50.0) / 512.0).collect();
        let b: Vec<f32> = a.iter().enumerate().map(|(k, x)| x + (k % 3) as f32 / 4096.0).collect();
        let stats = stats(&a, &b, 4096, Kernels::available().last().unwrap());
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        let close = |got: f64, plain: f64| {
            assert!((got - plain).abs() <= 1e-10 * plain.abs(), "{got} {plain}");
        };
        let difference: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let norms = [dot(&a, &a).sqrt(), dot(&b, &b).sqrt()];
        close(stats.norms()[0], norms[0]);
        close(stats.norms()[1], norms[1]);
        close(stats.distance(), dot(&difference, &difference).sqrt());
        close(stats.cosine().unwrap(), dot(&a, &b) / (norms[0] * norms[1]));
        assert_eq!((stats.elements, stats.equal, stats.nonfinite), (9001, 3001, 0));
        assert_eq!(stats.largest, 2.0 / 4096.0);
    }

    #[test]
    fn what_is_not_finite_is_neither_equal_nor_summed() {
        let a = [1.0, f32::NAN, f32::INFINITY, f32::MAX, 3.0];
        let b = [1.0, f32::NAN, 2.0, f32::MIN, 5.0];
        let stats = stats(&a, &b, 5, Kernels::available().last().unwrap());
        assert_eq!((stats.elements, stats.nonfinite, stats.equal), (5, 3, 1));
        assert_eq!((stats.norms(), stats.distance()), ([10f64.sqrt(), 26f64.sqrt()], 2.0));
        assert_eq!(stats.largest, 2.0);
    }

    #[test]
    fn a_tensor_of_zeros_has_no_cosine() {
        let stats = stats(&[0.0; 3], &[1.0; 3], 3, Kernels::available().next().unwrap());
        assert_eq!((stats.cosine(), stats.distance()), (None, 3f64.sqrt()));
        assert_eq!(PairStats::default().cosine(), None);
    }
}
