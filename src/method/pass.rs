//! Passes that many methods share: a map without statistics of its own.

use super::{Block, MethodError, Next, Outcome, Stage};

/// The last pass of a method that has no more to tell than the merged values: a function from blocks to
/// values, with room for rows of scratch.
pub(super) struct Map<F> {
    elements: u64,
    work: F,
}

impl<F: Fn(&Block<'_>, &mut Scratch, &mut [f32]) + Send + Sync + 'static> Map<F> {
    /// A map over a unit of so many elements.
    pub(super) fn new(elements: u64, work: F) -> Self {
        Self { elements, work }
    }
}

/// Rows of values that a worker keeps from block to block.
#[derive(Default)]
pub(super) struct Scratch(Vec<f32>);

impl Scratch {
    /// The space itself, of whatever length and content.
    pub(super) fn space(&mut self) -> &mut Vec<f32> {
        &mut self.0
    }

    /// `N` rows of `len` values, of whatever was in them.
    pub(super) fn rows<const N: usize>(&mut self, len: usize) -> [&mut [f32]; N] {
        if self.0.len() < N * len {
            self.0.resize(N * len, 0.0);
        }
        let mut rest = self.0.as_mut_slice();
        std::array::from_fn(|_| {
            let (row, more) = std::mem::take(&mut rest).split_at_mut(len);
            rest = more;
            row
        })
    }
}

impl<F: Fn(&Block<'_>, &mut Scratch, &mut [f32]) + Send + Sync + 'static> Stage for Map<F> {
    type State = Scratch;

    fn name(&self) -> &'static str {
        "merge"
    }

    fn writes(&self) -> bool {
        true
    }

    fn empty(&self) -> Scratch {
        Scratch::default()
    }

    fn add(&self, scratch: &mut Scratch, block: &Block<'_>, out: &mut [f32]) {
        (self.work)(block, scratch, out);
    }

    fn merge(&self, _into: &mut Scratch, _from: Scratch) {}

    fn save(&self, _state: &Scratch) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<Scratch> {
        saved.is_empty().then(Scratch::default)
    }

    fn finish(self, _state: Scratch) -> Result<Next, MethodError> {
        Ok(Next::Done(Outcome { elements: self.elements, ..Outcome::default() }))
    }
}
