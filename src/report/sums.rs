//! Sums over tensors, and the numbers that follow from them.

use serde::Serialize;

use crate::checkpoint::TensorRow;

/// Sums over tensors, added in the order of the file.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    tensors: u64,
    elements: u64,
    nonfinite: u64,
    shared: u64,
    conflicts: u64,
    /// Squared norms.
    base: f64,
    merge: f64,
    /// Mean cosines of pairs of experts times elements, and those elements.
    cosines: f64,
    paired: f64,
    experts: Vec<OfExpert>,
}

/// Of the tensors that an expert is a part of.
#[derive(Clone, Copy, Debug, Default)]
struct OfExpert {
    elements: u64,
    zeros: u64,
    /// Where it is counted what is taken: elements, and those taken.
    counted: u64,
    kept: u64,
    scores: f64,
    base: f64,
    square: f64,
    with_merge: f64,
    merge: f64,
    distance: f64,
    largest: f32,
}

/// What there is to tell about a tensor, or several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Numbers {
    /// Tensors.
    pub tensors: u64,
    /// Their elements.
    pub elements: u64,
    /// Elements that are NaN or infinite somewhere, and count as zero.
    pub nonfinite: u64,
    /// ||base||; the values themselves have no base.
    pub base_norm: f64,
    /// ||merge - base||.
    pub merge_norm: f64,
    /// ||merge - base|| / ||base||.
    pub merge_relative: Option<f64>,
    /// Share of the elements that at least two experts change.
    pub shared: f64,
    /// Share of the elements that experts change in both directions.
    pub conflicts: f64,
    /// Mean cosine of the task vectors of two experts, each tensor with the weight of its elements.
    pub cosine: Option<f64>,
    /// The experts, in the order of the merge; none for one that is no part of it.
    pub experts: Vec<Option<ExpertNumbers>>,
}

/// What there is to tell about an expert in a tensor, or in several.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExpertNumbers {
    /// ||tau||.
    pub norm: f64,
    /// ||tau|| / ||base||.
    pub relative: Option<f64>,
    /// Share of the elements that it changes.
    pub changed: f64,
    /// Share of the elements in which it has a part, if the method takes part of them.
    pub kept: Option<f64>,
    /// Mean score of those.
    pub score: Option<f64>,
    /// Its share of the sum of all scores.
    pub weight: Option<f64>,
    /// ||merge - expert||.
    pub distance: f64,
    /// ||merge - expert|| / ||base||.
    pub distance_relative: Option<f64>,
    /// Cosine of its task vector with the merge's.
    pub cosine: Option<f64>,
    /// The largest |tau| of an element.
    pub largest: f32,
}

/// The cosine of two vectors by their product and squared norms; `None` if one of them is zero.
pub(super) fn cosine(product: f64, a: f64, b: f64) -> Option<f64> {
    let norms = a.sqrt() * b.sqrt();
    (norms > 0.0).then(|| (product / norms).clamp(-1.0, 1.0))
}

/// `part / whole`, where that says something; nothing of nothing is no change.
fn ratio(part: f64, whole: f64) -> Option<f64> {
    if part == 0.0 { Some(0.0) } else { (whole > 0.0).then(|| part / whole) }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

impl Sums {
    pub(super) fn new(experts: usize) -> Self {
        Self { experts: vec![OfExpert::default(); experts], ..Self::default() }
    }

    /// Adds a tensor.
    pub(super) fn add(&mut self, row: &TensorRow) {
        self.tensors += 1;
        self.elements += row.elements;
        self.nonfinite += row.nonfinite;
        self.shared += row.shared;
        self.conflicts += row.conflicts;
        self.base += row.base;
        let n = row.experts();
        let merge = row.product(n, n);
        self.merge += merge;
        let (mut sum, mut pairs) = (0.0, 0u32);
        for place in 0..n {
            let square = row.product(place, place);
            for other in place + 1..n {
                let of = cosine(row.product(place, other), square, row.product(other, other));
                if let Some(of) = of {
                    (sum, pairs) = (sum + of, pairs + 1);
                }
            }
            let Some(expert) = self.experts.get_mut(row.model(place)) else { continue };
            let magnitudes = &row.magnitudes[place];
            let with_merge = row.product(place, n);
            expert.elements += row.elements;
            expert.zeros += magnitudes.zeros;
            expert.largest = expert.largest.max(magnitudes.largest);
            expert.base += row.base;
            expert.square += square;
            expert.with_merge += with_merge;
            expert.merge += merge;
            // Rounding may leave less than nothing.
            expert.distance += (merge + square - 2.0 * with_merge).max(0.0);
            if let Some(kept) = &row.kept {
                expert.counted += row.elements;
                expert.kept += kept[place];
            }
            expert.scores += row.scores.as_ref().map_or(0.0, |scores| scores[place]);
        }
        if pairs > 0 {
            self.cosines += sum / f64::from(pairs) * row.elements as f64;
            self.paired += row.elements as f64;
        }
    }

    /// The numbers that follow; `scores` tells whether the method gives any.
    pub(super) fn numbers(&self, scores: bool) -> Numbers {
        let all: f64 = self.experts.iter().map(|expert| expert.scores).sum();
        let expert = |it: &OfExpert| {
            let base = it.base.sqrt();
            (it.elements > 0).then(|| ExpertNumbers {
                norm: it.square.sqrt(),
                relative: ratio(it.square.sqrt(), base),
                changed: share(it.elements - it.zeros, it.elements),
                kept: (it.counted > 0).then(|| share(it.kept, it.counted)),
                score: (scores && it.kept > 0).then(|| it.scores / it.kept as f64),
                weight: (scores && all > 0.0).then(|| it.scores / all),
                distance: it.distance.sqrt(),
                distance_relative: ratio(it.distance.sqrt(), base),
                cosine: cosine(it.with_merge, it.square, it.merge),
                largest: it.largest,
            })
        };
        Numbers {
            tensors: self.tensors,
            elements: self.elements,
            nonfinite: self.nonfinite,
            base_norm: self.base.sqrt(),
            merge_norm: self.merge.sqrt(),
            merge_relative: ratio(self.merge.sqrt(), self.base.sqrt()),
            shared: share(self.shared, self.elements),
            conflicts: share(self.conflicts, self.elements),
            cosine: (self.paired > 0.0).then(|| self.cosines / self.paired),
            experts: self.experts.iter().map(expert).collect(),
        }
    }
}

impl Numbers {
    /// The mean of a number over the experts that have it.
    pub fn mean(&self, of: impl Fn(&ExpertNumbers) -> Option<f64>) -> Option<f64> {
        let all: Vec<f64> = self.experts.iter().flatten().filter_map(of).collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    }
}
