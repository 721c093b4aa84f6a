//! Frames of what a map keeps of each expert, made by the worker that computes it: a tile holds whole ones.

use std::path::Path;

use super::SinkError;
use crate::checkpoint::components::{FRAME, Form, Frame, Kind, TileFrames};

/// One worker's space for a frame.
pub(super) struct Framer {
    form: Form,
    frame: Frame,
    /// Rows of a block.
    rows: Vec<f32>,
    /// Sums of a block.
    sums: Vec<f64>,
}

impl Framer {
    pub(super) fn new(form: Form) -> Self {
        Self { form, frame: Frame::new(form), rows: Vec::new(), sums: vec![0.0; form.sums()] }
    }

    /// Forgets what was begun: a tile begins.
    pub(super) fn begin(&mut self) {
        self.frame.clear();
    }

    /// Room for the rows of a block of so many elements, and for its sums.
    pub(super) fn room(&mut self, len: usize) -> (&mut [f32], &mut [f64]) {
        self.rows.resize(self.form.experts * len, 0.0);
        self.sums.fill(0.0);
        (&mut self.rows, &mut self.sums)
    }

    /// Takes in the block that was put there; its first element is the tile's element `at`.
    pub(super) fn add(&mut self, at: usize) {
        let there = |share: f32| match self.form.kind {
            Kind::Shares => share != 0.0,
            Kind::Unified => !share.is_nan(),
        };
        let (first, len) = (at as u32 % FRAME, self.rows.len() / self.form.experts.max(1));
        for (row, list) in self.rows.chunks_exact(len.max(1)).zip(&mut self.frame.rows) {
            let entries = (first..).zip(row.iter().copied());
            list.extend(entries.filter(|&(_, share)| there(share)));
        }
        self.frame.sums.iter_mut().zip(&self.sums).for_each(|(all, sum)| *all += sum);
    }

    /// Hands on the frame that is whole, which is `number` of `tensor`. It says what `base` holds of its elements.
    ///
    /// # Errors
    /// What zstd says.
    pub(super) fn finish(
        &mut self,
        (tensor, number): (u32, u32),
        base: &[u8],
        into: &mut TileFrames,
    ) -> Result<(), SinkError> {
        (self.frame.tensor, self.frame.number) = (tensor, number);
        self.frame.base = *blake3::hash(base).as_bytes();
        let stored = self.frame.store(self.form.kind);
        let stored = stored.map_err(|e| SinkError::of("compress", Path::new("a frame"), 0, e))?;
        into.told.push(self.frame.told(stored.len()));
        into.bytes.extend(stored);
        self.frame.clear();
        Ok(())
    }
}
