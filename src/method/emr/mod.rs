//! EMR-Merging (arXiv 2405.17461): elect one task vector for all experts, mask it for each, and rescale it.
//!
//! ```text
//! sign     = +1 where the task vectors sum up to more than 0, else -1
//! unified  = sign * max { |tau_t| : tau_t * sign > 0 }, 0 if nobody has moved
//! mask_t   = [ tau_t * sign > 0 ]
//! lambda_t = mass of |tau_t| / mass of |mask_t * unified|; 1 if that is 0 / 0
//! task t   = base + lambda_t * mask_t * unified
//! ```
//! The mass is the sum over tensors of the mean (`tensor-mean`), as in the authors' programs, or the sum over all elements
//! (`global-l1`). What is kept is not `unified` itself but the value of the expert that has it: base plus a rounded
//! difference is not always what the difference was taken of, and so one expert, or several that are the same, come back
//! to the bit.

mod rebuilt;

use std::sync::Arc;

pub use rebuilt::Rebuilt;

use super::registry::{BaseUse, Entry, Kind, Parameter, Per, Preset, Scope};
use super::{
    AnyStage, BLOCK, Block, Method, MethodError, Next, Operand, Outcome, Stage, TensorView,
    UnitView,
};

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "emr",
    dialect: None,
    about: "one task vector for all, and a mask and a rescaler for each: `reflow apply` makes any task's model",
    source: "arXiv 2405.17461; github.com/harveyhuang18/EMR_Merging",
    base: BaseUse::Required,
    models: 1..=usize::MAX,
    scopes: &[Scope::Model],
    reads: (1, 1),
    random: false,
    per_expert: None,
    evidence: None,
    parameters: &[Parameter::new(
        "rescale",
        Per::Merge,
        Kind::Word(&["tensor-mean", "global-l1"]),
        Preset::Word("tensor-mean"),
        "whether a tensor's mean counts in an expert's mass, or each element",
    )],
    build: |_| Box::new(Emr),
};

struct Emr;

impl Method for Emr {
    /// The values themselves: they are kept.
    fn operand(&self) -> Operand {
        Operand::Value
    }

    /// Masses are summed up block by block.
    fn grain(&self, _tensor: &TensorView) -> u64 {
        BLOCK as u64
    }

    fn passes(&self, _unit: &UnitView) -> Vec<&'static str> {
        vec!["unify"]
    }

    fn unifies(&self) -> bool {
        true
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        Ok(Box::new(Unify { elements: unit.elements }))
    }
}

/// The only pass: elects, and masks.
struct Unify {
    elements: u64,
}

/// The task vector of an element: finite for finite values. One that is not counts as the base's, as the recipe demands.
#[inline(always)]
fn moved(value: f32, base: f32) -> f32 {
    let moved = value - base;
    if moved.is_nan() { 0.0 } else { moved.clamp(-f32::MAX, f32::MAX) }
}

impl Stage for Unify {
    type State = ();

    fn name(&self) -> &'static str {
        "unify"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) {}

    /// Fills `out` with the unified task vector.
    fn add(&self, state: &mut (), block: &Block<'_>, out: &mut [f32]) {
        let (n, len) = (block.rows.len(), block.len());
        let (mut shares, mut sums) = (vec![0.0; n * len], vec![0.0; 2 * n]);
        Stage::add_shares(self, state, block, out, &mut shares, &mut sums);
    }

    fn add_shares(
        &self,
        _state: &mut (),
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        sums: &mut [f64],
    ) {
        let len = block.len();
        let mut winners = [0f32; BLOCK];
        let mut totals = [0f32; BLOCK];
        for (total, e) in totals.iter_mut().zip(0..len) {
            let add = |sum: f32, row: &&[f32]| sum + moved(row[e], block.base[e]);
            *total = block.rows.iter().fold(0.0, add);
        }
        out[..len].fill(0.0);
        for row in block.rows {
            for e in 0..len {
                let own = moved(row[e], block.base[e]);
                if agrees(own, totals[e]) && own.abs() > out[e].abs() {
                    (out[e], winners[e]) = (own, row[e]);
                }
            }
        }
        for e in 0..len {
            let base = block.base[e];
            // Zero may have another sign than the base's: no task vector tells, and the expert is to come back to the bit.
            if let Some(row) = block.rows.iter().find(|row| differs(row[e], base))
                && out[e] == 0.0
            {
                winners[e] = row[e];
            }
        }
        let rows = shares.chunks_exact_mut(len).zip(block.rows);
        for ((share, row), sums) in rows.zip(sums.chunks_exact_mut(2)) {
            let (mut all, mut left) = (Lanes::default(), Lanes::default());
            for e in 0..len {
                let own = moved(row[e], block.base[e]);
                let whole = out[e] != 0.0;
                let has =
                    if whole { agrees(own, totals[e]) } else { differs(row[e], block.base[e]) };
                share[e] = if has { winners[e] } else { f32::NAN };
                all.add(e, own);
                left.add(e, if has { out[e] } else { 0.0 });
            }
            sums.copy_from_slice(&[all.sum(), left.sum()]);
        }
    }

    fn merge(&self, _into: &mut (), _from: ()) {}

    fn save(&self, _state: &()) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<()> {
        saved.is_empty().then_some(())
    }

    fn finish(self, _state: ()) -> Result<Next, MethodError> {
        Ok(Next::Done(Outcome { elements: self.elements, ..Outcome::default() }))
    }
}

/// Whether a task vector's element has the sign that was elected, by the sum of all.
#[inline(always)]
fn agrees(own: f32, total: f32) -> bool {
    if total > 0.0 { own > 0.0 } else { own < 0.0 }
}

/// Whether two values that do not differ in size do in their bits: zeros of both signs.
#[inline(always)]
fn differs(value: f32, base: f32) -> bool {
    value == base && value.to_bits() != base.to_bits()
}

/// The sum of the magnitudes of a block, in an order that depends on places alone.
#[derive(Default)]
struct Lanes([f64; 8]);

impl Lanes {
    #[inline(always)]
    fn add(&mut self, at: usize, value: f32) {
        self.0[at % 8] += f64::from(value.abs());
    }

    fn sum(&self) -> f64 {
        let [a, b, c, d, e, f, g, h] = self.0;
        ((a + b) + (c + d)) + ((e + f) + (g + h))
    }
}

#[cfg(test)]
mod tests;
