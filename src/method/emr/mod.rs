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
use crate::kernel::{Kernels, Unifying};

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
    build: |setup| Box::new(Emr { kernels: setup.kernels }),
};

struct Emr {
    kernels: &'static Kernels,
}

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
        Ok(Box::new(Unify { kernels: self.kernels, elements: unit.elements }))
    }
}

/// The only pass: elects, and masks.
struct Unify {
    kernels: &'static Kernels,
    elements: u64,
}

impl Stage for Unify {
    type State = Unifying;

    fn name(&self) -> &'static str {
        "unify"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> Unifying {
        Unifying::default()
    }

    /// Fills `out` with the unified task vector.
    fn add(&self, state: &mut Unifying, block: &Block<'_>, out: &mut [f32]) {
        let (n, len) = (block.rows.len(), block.len());
        let (mut shares, mut sums) = (vec![0.0; n * len], vec![0.0; 2 * n]);
        Stage::add_shares(self, state, block, out, &mut shares, &mut sums);
    }

    fn add_shares(
        &self,
        state: &mut Unifying,
        block: &Block<'_>,
        out: &mut [f32],
        shares: &mut [f32],
        sums: &mut [f64],
    ) {
        self.kernels.unify(block.base, block.rows, state, out, shares, sums);
    }

    fn merge(&self, _into: &mut Unifying, _from: Unifying) {}

    fn save(&self, _state: &Unifying) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<Unifying> {
        saved.is_empty().then(Unifying::default)
    }

    fn finish(self, _state: Unifying) -> Result<Next, MethodError> {
        Ok(Next::Done(Outcome { elements: self.elements, ..Outcome::default() }))
    }
}

#[cfg(test)]
mod tests;
