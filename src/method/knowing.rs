//! A merge whose statistics are known: its map alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AnyStage, Method, MethodError, Operand, Sampling, TensorView, UnitView, solve};

/// A method that knows, of some units, the [findings](super::Stage::findings) of an earlier merge, and maps them at once.
/// The merged values are those of the method itself.
pub struct Knowing {
    inner: Box<dyn Method>,
    /// Findings by the names of units.
    known: BTreeMap<String, Vec<u8>>,
}

impl Knowing {
    /// The method with what is known of units, by their names.
    pub fn new(inner: Box<dyn Method>, known: BTreeMap<String, Vec<u8>>) -> Self {
        Self { inner, known }
    }

    fn knows(&self, unit: &UnitView) -> bool {
        self.known.contains_key(&unit.name)
    }
}

impl Method for Knowing {
    fn operand(&self) -> Operand {
        self.inner.operand()
    }

    fn grain(&self, tensor: &TensorView) -> u64 {
        self.inner.grain(tensor)
    }

    fn passes(&self, unit: &UnitView) -> Vec<&'static str> {
        if self.knows(unit) { vec!["merge"] } else { self.inner.passes(unit) }
    }

    fn sampled(&self, unit: &UnitView) -> Option<(usize, Sampling)> {
        if self.knows(unit) { None } else { self.inner.sampled(unit) }
    }

    fn state_bytes(&self, unit: &UnitView) -> u64 {
        // As much as without findings, which may turn out to be those of something else.
        self.inner.state_bytes(unit)
    }

    fn bits_at_hand(&self, unit: &UnitView) -> u64 {
        self.inner.bits_at_hand(unit)
    }

    fn held_bytes(&self, unit: &UnitView) -> u64 {
        self.inner.held_bytes(unit)
    }

    fn has_shares(&self) -> bool {
        self.inner.has_shares()
    }

    fn unifies(&self) -> bool {
        self.inner.unifies()
    }

    fn has_scores(&self) -> bool {
        self.inner.has_scores()
    }

    fn solver(
        &self,
        tensor: &TensorView,
        matrix: solve::Matrix,
    ) -> Result<Box<dyn solve::Solver>, MethodError> {
        self.inner.solver(tensor, matrix)
    }

    fn solver_bytes(&self, matrix: solve::Matrix) -> u64 {
        self.inner.solver_bytes(matrix)
    }

    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        let known = self.known.get(&unit.name);
        let map = known.and_then(|findings| self.inner.start_knowing(unit, findings));
        map.map_or_else(|| self.inner.start(unit), Ok)
    }

    fn start_at_hand(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.inner.start_at_hand(unit)
    }

    fn has_findings(&self) -> bool {
        self.inner.has_findings()
    }

    fn start_knowing(&self, unit: &Arc<UnitView>, findings: &[u8]) -> Option<Box<dyn AnyStage>> {
        self.inner.start_knowing(unit, findings)
    }
}
