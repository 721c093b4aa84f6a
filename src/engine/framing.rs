//! Frames of what a map keeps of each expert, made by the worker that computes it: a tile holds whole ones.

use std::path::Path;

use super::SinkError;
use crate::checkpoint::components::{FRAME, Form, Frame, Kind, TileFrames, Told};
use crate::checkpoint::unified::Packed;
use crate::kernel::Kernels;

/// One worker's space for a frame.
pub(super) struct Framer {
    kernels: &'static Kernels,
    form: Form,
    /// Its entries, of shares; its sums.
    frame: Frame,
    /// What is unified.
    packed: Packed,
    /// Rows of a block.
    rows: Vec<f32>,
    /// Sums of a block.
    sums: Vec<f64>,
    /// Masks of a block.
    masks: Vec<u8>,
}

impl Framer {
    pub(super) fn new(kernels: &'static Kernels, form: Form) -> Self {
        let (frame, packed) = (Frame::new(form), Packed::new(form.experts));
        let (rows, sums, masks) = (Vec::new(), vec![0.0; form.sums()], Vec::new());
        Self { kernels, form, frame, packed, rows, sums, masks }
    }

    /// Forgets what was begun: a tile begins.
    pub(super) fn begin(&mut self) {
        self.frame.clear();
        self.packed.clear();
    }

    /// Room for the rows of a block of so many elements, and for its sums.
    pub(super) fn room(&mut self, len: usize) -> (&mut [f32], &mut [f64]) {
        self.rows.resize(self.form.experts * len, 0.0);
        self.sums.fill(0.0);
        (&mut self.rows, &mut self.sums)
    }

    /// Takes in the block that was put there; its first element is the tile's element `at`.
    pub(super) fn add(&mut self, at: usize) {
        let (first, len) = (at as u32 % FRAME, self.rows.len() / self.form.experts.max(1));
        match self.form.kind {
            Kind::Shares => {
                for (row, list) in self.rows.chunks_exact(len.max(1)).zip(&mut self.frame.rows) {
                    let entries = (first..).zip(row.iter().copied());
                    list.extend(entries.filter(|&(_, share)| share != 0.0));
                }
            }
            Kind::Unified => {
                self.masks.resize(self.form.experts * len.div_ceil(8), 0);
                let (rows, masks) = (&self.rows, &mut self.masks);
                self.kernels.pack_unified(rows, len, masks, &mut self.packed.values);
                self.packed.add(len, masks);
            }
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
        let (stored, told) = self
            .store((tensor, number))
            .map_err(|e| SinkError::of("compress", Path::new("a frame"), 0, e))?;
        into.told.push(told);
        into.bytes.extend(stored);
        self.begin();
        Ok(())
    }

    fn store(&mut self, place: (u32, u32)) -> std::io::Result<(Vec<u8>, Told)> {
        let Self { form, frame, packed, .. } = self;
        match form.kind {
            Kind::Shares => {
                let stored = frame.store()?;
                let told = frame.told(stored.len());
                Ok((stored, told))
            }
            Kind::Unified => {
                let (stored, entries) = packed.store(place, frame.base, &frame.sums)?;
                let told = Told { entries, ..frame.told(stored.len()) };
                Ok((stored, told))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is packed as it comes is what is packed from lists of entries.
    #[test]
    fn frames_of_both_kinds_are_those_of_their_entries() {
        let len = FRAME as usize + 4099;
        let base: Vec<u8> = (0..2 * len).map(|k| (k / 3) as u8).collect();
        for (kind, none) in [(Kind::Shares, 0.0), (Kind::Unified, f32::NAN)] {
            let form = Form { kind, experts: 3 };
            // Somebody has most elements of the first frame, and nobody the last of the second.
            let there =
                |row: usize, k: usize| (k * k + row).is_multiple_of(row + 2) && k < len - 50;
            let row = |row: usize, k: usize| if there(row, k) { k as f32 + 0.5 } else { none };
            let sum = |block: usize, i: usize| (block * 7 + i) as f64 * 0.1;
            for kernels in Kernels::available() {
                let (mut framer, mut made) = (Framer::new(kernels, form), TileFrames::default());
                let mut expected = Vec::new();
                framer.begin();
                let mut frame = Frame::new(form);
                for (block, at) in (0..len).step_by(4096).enumerate() {
                    let here = 4096.min(len - at);
                    let (rows, sums) = framer.room(here);
                    for (k, value) in rows.iter_mut().enumerate() {
                        *value = row(k / here, at + k % here);
                    }
                    sums.iter_mut().enumerate().for_each(|(i, s)| *s = sum(block, i));
                    framer.add(at);
                    for (i, all) in frame.sums.iter_mut().enumerate() {
                        *all += sum(block, i);
                    }
                    for (i, list) in frame.rows.iter_mut().enumerate() {
                        let has = (at..at + here).filter(|&k| there(i, k));
                        list.extend(has.map(|k| ((k % FRAME as usize) as u32, row(i, k))));
                    }
                    let end = at + here;
                    if end.is_multiple_of(FRAME as usize) || end == len {
                        let first = (end - 1) / FRAME as usize * FRAME as usize;
                        (frame.tensor, frame.number) = (4, (first / FRAME as usize) as u32);
                        let part = &base[2 * first..2 * end];
                        frame.base = *blake3::hash(part).as_bytes();
                        expected.extend(frame.store_as(kind).unwrap());
                        framer.finish((4, frame.number), part, &mut made).unwrap();
                        let told = made.told.last().unwrap();
                        assert_eq!(*told, frame.told(told.bytes as usize));
                        frame.clear();
                    }
                }
                assert!(made.bytes == expected && made.told.len() == 2, "{kernels:?} {kind:?}");
            }
        }
    }
}
