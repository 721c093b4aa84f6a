//! Rows of a merge that come from a file of shares instead of experts.

use std::collections::HashMap;
use std::path::PathBuf;

use super::EngineError;
use super::source::ByteRange;
use crate::checkpoint::components::{FRAME, Form, Frame, Kind};

/// Where the shares of all tensors lie in a component file, which is one of the files that a source reads.
pub struct Frames {
    /// The file, for messages.
    pub path: PathBuf,
    /// Its index among the source's files.
    pub file: u32,
    /// What the file holds.
    pub form: Form,
    /// The only expert whose rows are asked for.
    pub only: Option<usize>,
    /// The shares of each segment that is merged, by its index in the plan.
    pub segments: HashMap<u32, Stored>,
}

/// The frames of one segment.
pub struct Stored {
    /// Its number in the file.
    pub number: u32,
    /// Where each frame begins in the file, and the last one ends. Those that are left out have no bytes.
    pub starts: Vec<u64>,
}

impl Frames {
    /// Rows of a block.
    pub(super) fn rows(&self) -> usize {
        if self.only.is_some() { 1 } else { self.form.experts }
    }

    /// The bytes of a run of elements.
    pub(super) fn range(&self, segment: u32, start: u64, elements: u32) -> ByteRange {
        let (first, last) = numbers(start, u64::from(elements));
        let starts = self.segments.get(&segment).map_or(&[][..], |stored| &stored.starts);
        let at = |number: usize| starts.get(number).copied();
        let (from, to) = (at(first).unwrap_or(0), at(last + 1).unwrap_or(0));
        ByteRange { file: self.file, offset: from, len: to.saturating_sub(from) as usize }
    }
}

/// The first and the last frame that hold `len` elements from `from` on.
fn numbers(from: u64, len: u64) -> (usize, usize) {
    let frame = u64::from(FRAME);
    ((from / frame) as usize, ((from + len).saturating_sub(1) / frame) as usize)
}

/// The rows of one worker.
#[derive(Default)]
pub(super) struct FrameRows {
    /// The frame that was unpacked last, with its segment.
    last: Option<(u32, Frame)>,
}

impl FrameRows {
    /// Fills rows of `len` elements with the shares of elements from `from` on, and with 0 (NaN, in what is unified) where
    /// an expert has none; `bytes` are those of [`Frames::range`] for the tile that begins at `start`.
    ///
    /// # Errors
    /// [`EngineError::Components`] if they are not what was written.
    pub(super) fn fill(
        &mut self,
        frames: &Frames,
        segment: u32,
        (start, bytes): (u64, &[u8]),
        (from, len): (u64, usize),
        rows: &mut [f32],
    ) -> Result<(), EngineError> {
        rows.fill(match frames.form.kind {
            Kind::Shares => 0.0,
            Kind::Unified => f32::NAN,
        });
        let Some(stored) = frames.segments.get(&segment).filter(|_| len > 0) else { return Ok(()) };
        let (begins, to) = (stored.starts.get(numbers(start, 1).0), from + len as u64);
        let (first, last) = numbers(from, len as u64);
        let first_row = frames.only.unwrap_or(0);
        for number in first..=last {
            let bounds = [number, number + 1].map(|k| stored.starts.get(k).copied());
            let ([Some(a), Some(b)], Some(&begin)) = (bounds, begins) else { continue };
            if a == b {
                continue;
            }
            let frame = self.unpack(frames, (segment, stored.number), number as u32, || {
                bytes.get((a - begin) as usize..(b - begin) as usize)
            })?;
            let before = number as u64 * u64::from(FRAME);
            for (row, entries) in rows.chunks_exact_mut(len).zip(frame.rows.iter().skip(first_row))
            {
                let skipped =
                    entries.partition_point(|&(place, _)| before + u64::from(place) < from);
                for &(place, share) in &entries[skipped..] {
                    let at = before + u64::from(place);
                    if at >= to {
                        break;
                    }
                    row[(at - from) as usize] = share;
                }
            }
        }
        Ok(())
    }

    fn unpack<'b>(
        &mut self,
        frames: &Frames,
        (segment, tensor): (u32, u32),
        number: u32,
        bytes: impl FnOnce() -> Option<&'b [u8]>,
    ) -> Result<&Frame, EngineError> {
        let known = |(of, frame): &(u32, Frame)| *of == segment && frame.number == number;
        if !self.last.as_ref().is_some_and(known) {
            let frame = bytes().and_then(|bytes| {
                let (frame, len) = Frame::load(bytes, frames.form).ok()?;
                let right = len == bytes.len() && (frame.tensor, frame.number) == (tensor, number);
                right.then_some(frame)
            });
            let damaged = || EngineError::Components { path: frames.path.clone(), tensor, number };
            self.last = Some((segment, frame.ok_or_else(damaged)?));
        }
        match &self.last {
            Some((_, frame)) => Ok(frame),
            None => Err(EngineError::Panicked("worker")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_cut_gives_the_same_rows() {
        let total = 3 * u64::from(FRAME) + 777;
        let dense = |i: u64| -> Vec<f32> {
            let share = |e: u64| if (e * 7 + i) % 1000 < 3 { e as f32 + 0.5 } else { 0.0 };
            // Nothing in the second frame.
            (0..total).map(|e| if e / u64::from(FRAME) == 1 { 0.0 } else { share(e) }).collect()
        };
        let dense = [dense(1), dense(500)];
        let (mut bytes, mut starts) = (vec![9; 5], Vec::new());
        for number in 0..4u32 {
            starts.push(bytes.len() as u64);
            let begin = number as usize * FRAME as usize;
            let row = |row: &Vec<f32>| {
                let part = (0..).zip(&row[begin..row.len().min(begin + FRAME as usize)]);
                part.filter(|(_, share)| **share != 0.0)
                    .map(|(place, share)| (place, *share))
                    .collect()
            };
            let frame = Frame {
                tensor: 7,
                number,
                rows: dense.iter().map(row).collect(),
                sums: Vec::new(),
            };
            if !frame.is_empty() {
                bytes.extend(frame.store(Kind::Shares).unwrap());
            }
        }
        starts.push(bytes.len() as u64);
        assert_eq!(starts[1], starts[2]);
        let stored = Stored { number: 7, starts };
        let frames = Frames {
            path: "c".into(),
            file: 3,
            form: Form { kind: Kind::Shares, experts: 2 },
            only: None,
            segments: [(5, stored)].into(),
        };
        for (tile, block) in [(4096, 4096), (100_000, 4096), (65_536, 1000), (70_001, 70_001)] {
            let (mut rows, mut got) = (FrameRows::default(), [Vec::new(), Vec::new()]);
            for start in (0..total).step_by(tile) {
                let elements = (total - start).min(tile as u64);
                let range = frames.range(5, start, elements as u32);
                let part = &bytes[range.offset as usize..][..range.len];
                for at in (0..elements).step_by(block) {
                    let len = (elements - at).min(block as u64) as usize;
                    let mut out = vec![9.0; 2 * len];
                    rows.fill(&frames, 5, (start, part), (start + at, len), &mut out).unwrap();
                    got.iter_mut()
                        .zip(out.chunks(len))
                        .for_each(|(got, row)| got.extend_from_slice(row));
                }
            }
            assert!(got == dense, "{tile} {block}");
        }
        let range = frames.range(5, 0, 10);
        let mut part = bytes[range.offset as usize..][..range.len].to_vec();
        part[60] ^= 1;
        let mut out = [0.0; 20];
        let failed = FrameRows::default().fill(&frames, 5, (0, &part), (0, 10), &mut out);
        assert!(matches!(failed, Err(EngineError::Components { tensor: 7, number: 0, .. })));
        assert_eq!(frames.range(6, 0, 10).len, 0);
    }
}
