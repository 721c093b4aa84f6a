//! Rows along the last dimension as vectors: all in one pass, row by row.

use std::sync::Arc;

use super::Spherical;
use crate::method::pass::Map;
use crate::method::{AnyStage, UnitView};
use crate::stats::Products;

/// The only pass. Blocks are whole rows.
pub(super) fn map(method: Spherical, unit: &Arc<UnitView>) -> Box<dyn AnyStage> {
    let unit = Arc::clone(unit);
    Box::new(Map::new(unit.elements, move |block, _, out| {
        let tensor = &unit.tensors[block.tensor];
        let width = tensor.row() as usize;
        let vectors = method.of(block);
        for (k, out) in out.chunks_mut(width).enumerate() {
            let at = k * width..k * width + out.len();
            let vectors: Vec<&[f32]> = vectors.iter().map(|vector| &vector[at.clone()]).collect();
            let products = Products::of(method.kernels, &vectors);
            let weights = method.weights(&products, &tensor.values);
            method.kernels.weighted_sum(&vectors, &weights, out);
        }
        method.rebase(block, out);
    }))
}
