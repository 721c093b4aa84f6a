//! Whole tensors as vectors: a fold, then a map.

use std::sync::Arc;

use super::Spherical;
use crate::method::pass::Map;
use crate::method::{BLOCK, Block, MethodError, Next, Stage, TensorView, UnitView};
use crate::stats::{Gram, Reader, Writer};

/// Products are summed in blocks that are the same in any run.
pub(super) const GRAIN: u64 = BLOCK as u64;

/// Bytes of state for so many vectors.
pub(super) fn bytes(vectors: usize) -> u64 {
    Gram::bytes(vectors)
}

/// The first pass: the products of all vectors.
pub(super) struct Fold {
    method: Spherical,
    unit: Arc<UnitView>,
}

impl Fold {
    pub(super) fn new(method: Spherical, unit: &Arc<UnitView>) -> Self {
        Self { method, unit: Arc::clone(unit) }
    }

    fn vectors(&self) -> usize {
        self.method.count(self.unit.experts)
    }
}

impl Stage for Fold {
    type State = Gram;

    fn name(&self) -> &'static str {
        "products"
    }

    fn empty(&self) -> Gram {
        Gram::new(self.vectors())
    }

    fn add(&self, state: &mut Gram, block: &Block<'_>, _out: &mut [f32]) {
        state.add(self.method.kernels, &self.method.of(block));
    }

    fn merge(&self, into: &mut Gram, from: Gram) {
        into.merge(&from);
    }

    fn save(&self, state: &Gram) -> Vec<u8> {
        let mut out = Writer::default();
        state.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<Gram> {
        let mut saved = Reader::new(saved);
        let state = Gram::load(self.vectors(), &mut saved)?;
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: Gram) -> Result<Next, MethodError> {
        let Self { method, unit } = self;
        let products = state.products();
        let of = |tensor: &TensorView| method.weights(&products, &tensor.values);
        let weights: Vec<Vec<f32>> = unit.tensors.iter().map(of).collect();
        if !weights.iter().flatten().all(|weight| weight.is_finite()) {
            return Err(MethodError::NoDirection);
        }
        Ok(Next::stage(Map::new(unit.elements, move |block, _, out| {
            method.kernels.weighted_sum(&method.of(block), &weights[block.tensor], out);
            method.rebase(block, out);
        })))
    }
}
