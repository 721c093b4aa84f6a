//! The rescalers of EMR-Merging: what every task needs, and no single frame knows.

use serde::{Deserialize, Serialize};

use super::StoredShares;
use crate::checkpoint::components::{Form, Kind};

/// What an expert's part of the unified task vector is multiplied with, so that it has the expert's size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescalers {
    /// By the sum of the tensors' means, as in the authors' programs.
    pub tensor_mean: f32,
    /// By the sum over all elements.
    pub global_l1: f32,
}

impl Rescalers {
    /// The one of that name.
    pub fn of(self, form: &str) -> f32 {
        if form == "global-l1" { self.global_l1 } else { self.tensor_mean }
    }

    /// Whether they are what a division of sums can give.
    pub(super) fn are_possible(self) -> bool {
        [self.tensor_mean, self.global_l1].iter().all(|lambda| lambda.is_finite() && *lambda >= 0.0)
    }
}

/// Those of all experts; none of components. `sums` has a row for each tensor, with two for each expert: of its task
/// vector, and of what its mask leaves of the unified one. They are added up in the order of the tensors.
pub(super) fn rescalers(form: Form, tensors: &[StoredShares], sums: &[Vec<f64>]) -> Vec<Rescalers> {
    let lambda = |expert: usize, share: fn(f64, f64) -> f64| {
        let mass = |which: usize| {
            let terms = tensors.iter().zip(sums);
            let terms =
                terms.map(|(tensor, sums)| share(sums[2 * expert + which], tensor.elements as f64));
            terms.fold(0.0, |sum, term| sum + term)
        };
        let (own, left) = (mass(0), mass(1));
        // Nothing is left, so there is nothing to scale.
        if left == 0.0 { 1.0 } else { ((own / left) as f32).min(f32::MAX) }
    };
    match form.kind {
        Kind::Shares => Vec::new(),
        Kind::Unified => (0..form.experts)
            .map(|expert| Rescalers {
                tensor_mean: lambda(expert, |sum, elements| sum / elements),
                global_l1: lambda(expert, |sum, _| sum),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(sums: &[[f64; 2]], elements: &[u64]) -> Rescalers {
        let tensor = |&elements: &u64| StoredShares {
            name: String::new(),
            first: 0,
            elements,
            copied: false,
            offset: 0,
            base: String::new(),
            entries: Vec::new(),
            frames: Vec::new(),
        };
        let tensors: Vec<StoredShares> = elements.iter().map(tensor).collect();
        let sums: Vec<Vec<f64>> = sums.iter().map(|sums| sums.to_vec()).collect();
        rescalers(Form { kind: Kind::Unified, experts: 1 }, &tensors, &sums)[0]
    }

    #[test]
    fn a_bias_counts_as_much_as_a_matrix_or_by_its_elements() {
        let both = of(&[[6.0, 3.0], [1000.0, 2000.0]], &[3, 1000]);
        assert_eq!((both.tensor_mean, both.global_l1), (3.0 / 3.0, 1006.0f32 / 2003.0));
        let other = of(&[[6.0, 1.0], [1000.0, 1000.0]], &[1, 1000]);
        assert_eq!((other.tensor_mean, other.global_l1), (7.0 / 2.0, 1006.0f32 / 1001.0));
    }

    #[test]
    fn nothing_left_is_not_scaled_and_the_same_is_one() {
        assert_eq!(of(&[[0.0, 0.0]], &[5]), Rescalers { tensor_mean: 1.0, global_l1: 1.0 });
        let same = of(&[[0.1, 0.1], [0.7, 0.7]], &[3, 7]);
        assert_eq!(same, Rescalers { tensor_mean: 1.0, global_l1: 1.0 });
        assert_eq!(of(&[[1e300, 1e-300]], &[1]).global_l1, f32::MAX);
    }
}
