//! Passes that many methods share: a map without statistics of its own.

use super::{Block, Kept, MethodError, Next, Outcome, Stage};

/// The last pass of a method that has no more to tell than the merged values: a function from blocks to
/// values, with room for rows of scratch.
pub(super) struct Map<F> {
    elements: u64,
    missed: u64,
    work: F,
    count: Option<Count>,
}

/// Counts the elements that each expert has a part in; the space is as the map's work has left it.
type Count = Box<dyn Fn(&Block<'_>, &mut Scratch, &mut [Kept]) + Send + Sync>;

impl<F: Fn(&Block<'_>, &mut Scratch, &mut [f32]) + Send + Sync + 'static> Map<F> {
    /// A map over a unit of so many elements.
    pub(super) fn new(elements: u64, work: F) -> Self {
        Self { elements, missed: 0, work, count: None }
    }

    /// The same, after so many brackets were missed.
    pub(super) fn after(self, missed: u64) -> Self {
        Self { missed, ..self }
    }

    /// The same, if experts have no part in some elements: with what counts the others.
    pub(super) fn counting(
        self,
        count: impl Fn(&Block<'_>, &mut Scratch, &mut [Kept]) + Send + Sync + 'static,
    ) -> Self {
        Self { count: Some(Box::new(count)), ..self }
    }
}

/// Adds, for each row, the number of its elements that are taken.
pub(super) fn count_taken<'a>(
    kept: &mut [Kept],
    rows: impl IntoIterator<Item = &'a [f32]>,
    mut taken: impl FnMut(usize, usize, f32) -> bool,
) {
    for ((i, row), kept) in rows.into_iter().enumerate().zip(kept) {
        let counted = row.iter().enumerate().filter(|&(k, &x)| taken(i, k, x)).count();
        kept.elements += counted as u64;
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

    fn count_kept(&self, scratch: &mut Scratch, block: &Block<'_>, kept: &mut [Kept]) -> bool {
        let Some(count) = &self.count else { return false };
        count(block, scratch, kept);
        true
    }

    fn merge(&self, _into: &mut Scratch, _from: Scratch) {}

    fn save(&self, _state: &Scratch) -> Vec<u8> {
        Vec::new()
    }

    fn load(&self, saved: &[u8]) -> Option<Scratch> {
        saved.is_empty().then(Scratch::default)
    }

    fn finish(self, _state: Scratch) -> Result<Next, MethodError> {
        let Self { elements, missed, .. } = self;
        Ok(Next::Done(Outcome { elements, missed, ..Outcome::default() }))
    }
}
