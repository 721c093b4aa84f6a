//! Arcee Fusion: the base, with those of the model's values whose change matters most.
//!
//! ```text
//! importance = |x - base| * KL(softmax(x row) || softmax(base row))      rows along the last dimension
//! threshold  = median + 1.5 (third quartile - first quartile)            of the tensor's importances, exact
//! out        = x where the importance reaches the threshold, else base
//! ```
//! The first pass computes the rows' divergences, which the others use again.

use std::sync::Arc;

use super::pass::{Map, count_taken};
use super::registry::{BaseUse, Entry, Scope};
use super::{
    AnyStage, Block, Method, MethodError, Next, Operand, Stage, TensorView, UnitView, block_len,
};
use crate::kernel::{Divergence, Kernels, keys};
use crate::stats::{Reader, RowCounts, RowSelection, SMALL, Selected, Selector, Writer};

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "arcee_fusion",
    dialect: None,
    about: "the base, with the model's most important changes",
    source: "mergekit 0.1.5",
    base: BaseUse::Required,
    models: 1..=1,
    scopes: &[Scope::Tensor],
    reads: (1, 3),
    random: false,
    evidence: None,
    per_expert: None,
    parameters: &[],
    build: |setup| Box::new(Fusion { kernels: setup.kernels }),
};

struct Fusion {
    kernels: &'static Kernels,
}

impl Method for Fusion {
    fn operand(&self) -> Operand {
        Operand::Value
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        tensor.row()
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        if unit.elements <= SMALL {
            vec!["importances", "merge"]
        } else {
            vec!["importances", "importances, refined", "merge"]
        }
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        let widest = unit.tensors.iter().map(TensorView::row).max().unwrap_or(1);
        let rows: u64 = unit.tensors.iter().map(|tensor| tensor.elements / tensor.row() + 1).sum();
        let block = block_len(widest) as u64;
        Selector::state_bytes(unit.elements, 3) + rows * 4 + block * 8 + Divergence::bytes(widest)
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let last = unit.elements.saturating_sub(1);
        // trunc(q (d - 1)) for the quarters.
        let ranks = vec![last / 4, last / 2, last - last.div_ceil(4)];
        let width = unit.tensors.first().map_or(1, TensorView::row);
        Ok(Box::new(Importances {
            kernels: self.kernels,
            elements: unit.elements,
            width: width as usize,
            selection: RowSelection::new(1, unit.elements, ranks),
            divergences: None,
        }))
    }
}

/// The folds: three ranks among the importances.
struct Importances {
    kernels: &'static Kernels,
    elements: u64,
    width: usize,
    selection: RowSelection,
    /// Of each row, once known.
    divergences: Option<Vec<f32>>,
}

struct State {
    counts: RowCounts,
    /// Those of the rows seen, in the first pass; 0 elsewhere.
    divergences: Vec<f32>,
    values: Vec<f32>,
    keys: Vec<u32>,
    scratch: Divergence,
}

impl Importances {
    fn rows(&self) -> usize {
        (self.elements as usize).div_ceil(self.width)
    }
}

impl Stage for Importances {
    type State = State;

    fn name(&self) -> &'static str {
        if self.selection.is_first() { "importances" } else { "importances, refined" }
    }

    fn empty(&self) -> State {
        let rows = if self.divergences.is_none() { self.rows() } else { 0 };
        State {
            counts: self.selection.empty(),
            divergences: vec![0.0; rows],
            values: Vec::new(),
            keys: Vec::new(),
            scratch: Divergence::default(),
        }
    }

    fn add(&self, state: &mut State, block: &Block<'_>, _out: &mut [f32]) {
        let Some(model) = block.rows.first() else { return };
        state.values.resize(model.len(), 0.0);
        state.keys.resize(model.len(), 0);
        let first = block.first as usize / self.width;
        let rows = model.chunks(self.width).zip(block.base.chunks(self.width));
        for ((at, (x, base)), out) in (first..).zip(rows).zip(state.values.chunks_mut(self.width)) {
            let divergence = if let Some(known) = &self.divergences {
                known[at]
            } else {
                let found = self.kernels.divergence(x, base, &mut state.scratch) as f32;
                state.divergences[at] = found;
                found
            };
            self.kernels.importances(x, base, divergence, out);
        }
        self.kernels.magnitude_keys(&state.values, &mut state.keys);
        self.selection.add(&mut state.counts, 0, &state.keys);
    }

    fn merge(&self, into: &mut State, from: State) {
        into.counts.merge(from.counts);
        for (divergence, other) in into.divergences.iter_mut().zip(from.divergences) {
            *divergence = divergence.max(other);
        }
    }

    fn save(&self, state: &State) -> Vec<u8> {
        let mut out = Writer::default();
        state.divergences.iter().for_each(|divergence| out.u32(divergence.to_bits()));
        state.counts.save(&mut out);
        out.finish()
    }

    fn load(&self, saved: &[u8]) -> Option<State> {
        let (mut saved, mut state) = (Reader::new(saved), Stage::empty(self));
        for divergence in &mut state.divergences {
            *divergence = f32::from_bits(saved.u32()?);
        }
        state.counts = self.selection.load(&mut saved)?;
        saved.end()?;
        Some(state)
    }

    fn finish(self, state: State) -> Result<Next, MethodError> {
        let Self { kernels, elements, width, selection, divergences } = self;
        let divergences = divergences.unwrap_or(state.divergences);
        let found = match selection.absorb(state.counts) {
            Selected::Again(selection) => {
                let divergences = Some(divergences);
                return Ok(Next::stage(Self { kernels, elements, width, selection, divergences }));
            }
            Selected::Found(found) => found,
        };
        let quartile = |i| found.first().map_or(0.0, |row| keys::magnitude(row.value(i)));
        let threshold = quartile(1) + 1.5 * (quartile(2) - quartile(0));
        let same = divergences.clone();
        let map = Map::new(elements, move |block, _, out| {
            let Some(model) = block.rows.first() else { return };
            let rows = model.chunks(width).zip(block.base.chunks(width));
            let first = block.first as usize / width;
            for ((at, (x, base)), out) in (first..).zip(rows).zip(out.chunks_mut(width)) {
                kernels.fuse(x, base, divergences[at], threshold, out);
            }
        });
        Ok(Next::stage(map.counting(move |block, _, kept| {
            let first = block.first as usize / width;
            count_taken(kept, block.rows.iter().copied(), |_, k, x| {
                let size = (x - block.base[k]).abs();
                size > 0.0 && size * same[first + k / width] >= threshold
            });
        })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::testing::{in_tiles, merged, numbers};
    use crate::method::{Scope, Values};
    use proptest::prelude::*;

    fn fused(shape: &[u64], base: &[f32], model: &[f32]) -> Vec<f32> {
        assert_eq!(ENTRY.scopes, [Scope::Tensor]);
        merged(&ENTRY, shape, Values::new(1), base, &[model]).unwrap()
    }

    /// The definition on all elements at once.
    fn plain(width: usize, base: &[f32], model: &[f32]) -> Vec<f32> {
        let softmax = |row: &[f32]| -> Vec<f64> {
            let all: Vec<f64> = row.iter().map(|&x| f64::from(x).exp()).collect();
            all.iter().map(|e| e / all.iter().sum::<f64>() + 1e-8).collect()
        };
        let importances: Vec<f64> = (base.chunks(width).zip(model.chunks(width)))
            .flat_map(|(base, x)| {
                let (p, q) = (softmax(x), softmax(base));
                let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
                let change = |(x, base): (&f32, &f32)| f64::from((x - base).abs()) * divergence;
                x.iter().zip(base).map(change).collect::<Vec<f64>>()
            })
            .collect();
        let mut sorted = importances.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |q: f64| sorted[(q * (sorted.len() - 1) as f64) as usize];
        let threshold = at(0.5) + 1.5 * (at(0.75) - at(0.25));
        let all = importances.iter().zip(base.iter().zip(model));
        all.map(|(i, (b, x))| if *i >= threshold { b + (x - b) } else { *b }).collect()
    }

    #[test]
    fn what_changes_most_is_taken() {
        for (height, width) in [(1, 7), (40, 25), (300, 301)] {
            let len = height * width;
            let base = numbers(len, 5);
            let change = numbers(len, 6);
            let model: Vec<f32> = base.iter().zip(change).map(|(b, c)| b + 0.3 * c).collect();
            let shape = [height as u64, width as u64];
            let (got, want) = (fused(&shape, &base, &model), plain(width, &base, &model));
            let taken = got.iter().zip(&base).filter(|(x, b)| x != b).count();
            assert!(taken > 0 && taken < len / 2, "{taken} of {len}");
            assert_eq!(got, want, "{height} {width}");
        }
    }

    #[test]
    fn an_unchanged_model_and_single_elements_are_the_model() {
        let base = numbers(60, 9);
        assert_eq!(fused(&[6, 10], &base, &base), base);
        // Softmax of one element says nothing: all importances are zero, and so is the threshold.
        assert_eq!(fused(&[3, 1], &[1.0, 2.0, 3.0], &[1.5, 0.5, 4.0]), [1.5, 0.5, 4.0]);
        assert_eq!(fused(&[], &[1.0], &[1.5]), [1.5]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

        #[test]
        fn any_tiling_on_any_path_gives_the_same_bits(
            shape in prop_oneof![
                (1u64..300, 1u64..400).prop_map(|(r, c)| vec![r, c]),
                (1u64..5, 1u64..40, 1u64..90).prop_map(|(e, r, c)| vec![e, r, c]),
                (1u64..9000).prop_map(|n| vec![n]),
            ],
            seed in any::<u64>(),
            tile in 1usize..50_000,
            threads in 1usize..4,
        ) {
            let len = shape.iter().product::<u64>() as usize;
            let (base, model) = (numbers(len, seed), numbers(len, seed ^ 1));
            let values = Values::new(1);
            let whole = fused(&shape, &base, &model);
            for kernels in Kernels::available() {
                let cut = in_tiles(&ENTRY, kernels, &shape, &values, (&base, &[&model]), (tile, threads));
                prop_assert!(cut.iter().zip(&whole).all(|(x, y)| x.to_bits() == y.to_bits()));
            }
        }
    }
}
