//! Columns along the first dimension as vectors: a fold that keeps a sum for each, then a map.

use std::sync::Arc;

use super::Spherical;
use crate::method::pass::Map;
use crate::method::{Block, MethodError, Next, Stage, TensorView, UnitView, Values};
use crate::stats::{ExactSum, Products, Reader, Writer};

/// Elements of a block, if it takes several rows to reach them: adding a block's sums to the exact ones costs more
/// than an element.
const WANTED: u64 = 1 << 16;

/// Number of columns: all dimensions but the first.
fn columns(tensor: &TensorView) -> u64 {
    tensor.shape.iter().skip(1).product::<u64>().max(1)
}

/// Whole rows, and the same ones in any run.
pub(super) fn grain(tensor: &TensorView) -> u64 {
    let columns = columns(tensor);
    columns * (WANTED / columns).max(1)
}

/// Bytes of state for so many vectors.
pub(super) fn bytes(vectors: usize, tensor: &TensorView) -> u64 {
    let pairs = (vectors * (vectors + 1) / 2) as u64;
    columns(tensor) * (pairs * size_of::<ExactSum>() as u64 + 8 + 4 * vectors as u64)
}

/// The first pass: the products down every column.
pub(super) struct Fold {
    method: Spherical,
    elements: u64,
    values: Arc<Values>,
    columns: usize,
    vectors: usize,
}

/// Sums by pair of vectors, then by column.
pub(super) struct State {
    sums: Vec<ExactSum>,
    block: Vec<f64>,
}

impl Fold {
    pub(super) fn new(method: Spherical, unit: &Arc<UnitView>) -> Self {
        let tensor = unit.tensors.first();
        Self {
            method,
            elements: unit.elements,
            values: tensor.map(|tensor| Arc::clone(&tensor.values)).unwrap_or_default(),
            columns: tensor.map_or(1, columns) as usize,
            vectors: method.count(unit.experts),
        }
    }

    fn pairs(&self) -> usize {
        self.vectors * (self.vectors + 1) / 2
    }
}

impl Stage for Fold {
    type State = State;

    fn name(&self) -> &'static str {
        "products"
    }

    fn empty(&self) -> State {
        State {
            sums: vec![ExactSum::default(); self.pairs() * self.columns],
            block: vec![0.0; self.columns],
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let vectors = self.method.of(block);
        let pairs = (0..vectors.len()).flat_map(|a| (a..vectors.len()).map(move |b| (a, b)));
        for ((a, b), sums) in pairs.zip(state.sums.chunks_exact_mut(self.columns)) {
            self.method.kernels.column_products(vectors[a], vectors[b], &mut state.block);
            sums.iter_mut().zip(&state.block).for_each(|(sum, &product)| sum.add(product));
        }
    }

    fn merge(&self, into: &mut State, from: State) {
        into.sums.iter_mut().zip(&from.sums).for_each(|(sum, more)| sum.merge(more));
    }

    fn save(&self, state: &State) -> Vec<u8> {
        let mut out = Writer::default();
        state.sums.iter().for_each(|sum| sum.save(&mut out));
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let (mut saved, mut state) = (Reader::new(saved), self.empty());
        for sum in &mut state.sums {
            *sum = ExactSum::load(&mut saved)?;
        }
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let Self { method, elements, values, columns, vectors } = self;
        let mut weights = vec![vec![0.0; columns]; vectors];
        for column in 0..columns {
            let sums = state.sums.iter().skip(column).step_by(columns);
            let products = Products::from_triangle(vectors, sums.map(ExactSum::value).collect());
            let found = method.weights(&products, &values);
            weights.iter_mut().zip(found).for_each(|(row, weight)| row[column] = weight);
        }
        Ok(Next::stage(Map::new(elements, move |block, _, out| {
            let vectors = method.of(block);
            let weights: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
            for (k, out) in out.chunks_mut(columns).enumerate() {
                let at = k * columns..k * columns + out.len();
                let vectors: Vec<&[f32]> = vectors.iter().map(|v| &v[at.clone()]).collect();
                method.kernels.weighted_rows(&vectors, &weights, out);
            }
            method.rebase(block, out);
        })))
    }
}
