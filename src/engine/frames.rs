//! Rows of a merge that come from a file of shares instead of experts.

use std::collections::HashMap;
use std::path::PathBuf;

use super::EngineError;
use super::source::ByteRange;
use crate::checkpoint::components::{FRAME, Form, Frame, Kind};

/// Where the frames of all tensors lie in a file of them, which is one of the files that a source reads.
pub struct Frames {
    /// The file, for messages.
    pub path: PathBuf,
    /// Its index among the source's files.
    pub file: u32,
    /// What the file holds.
    pub form: Form,
    /// The only expert whose rows are asked for.
    pub only: Option<usize>,
    /// The frames of each segment, by its index in the plan.
    pub segments: HashMap<u32, Stored>,
}

/// The frames of one segment.
pub struct Stored {
    /// Its number in the file.
    pub number: u32,
    /// Where each frame begins in the file, and the last one ends.
    pub starts: Vec<u64>,
    /// Where the base has it, for messages: the file, the tensor, and the offset of the first element.
    pub base: (PathBuf, String, u64),
}

/// A tile, as frames know it: whole ones, but for the last of a segment.
pub(super) struct FrameRun<'a> {
    pub(super) segment: u32,
    /// First element in the segment.
    pub(super) start: u64,
    pub(super) elements: usize,
    /// The base's bytes.
    pub(super) base: &'a [u8],
    /// Those of the frames, as [`Frames::range`] says.
    pub(super) stored: &'a [u8],
}

impl FrameRun<'_> {
    /// The base's bytes of a frame, and where they begin among those of the tile.
    fn base_of(&self, number: u32) -> (usize, &[u8]) {
        let size = self.base.len() / self.elements.max(1);
        let first = (u64::from(number) * u64::from(FRAME)).saturating_sub(self.start) as usize;
        let last = self.elements.min(first + FRAME as usize);
        (first * size, self.base.get(first * size..last * size).unwrap_or_default())
    }
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
    /// an expert has none.
    ///
    /// # Errors
    /// [`EngineError::Components`] if they are not what was written, [`EngineError::OtherBase`] if they are of another base.
    pub(super) fn fill(
        &mut self,
        frames: &Frames,
        run: &FrameRun<'_>,
        (from, len): (u64, usize),
        rows: &mut [f32],
    ) -> Result<(), EngineError> {
        rows.fill(match frames.form.kind {
            Kind::Shares => 0.0,
            Kind::Unified => f32::NAN,
        });
        if len == 0 {
            return Ok(());
        }
        let ((first, last), to) = (numbers(from, len as u64), from + len as u64);
        let first_row = frames.only.unwrap_or(0);
        for number in first..=last {
            let frame = self.unpack(frames, run, number as u32)?;
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

    /// Looks at all frames of a tile.
    ///
    /// # Errors
    /// Those of [`FrameRows::fill`].
    pub(super) fn check(&mut self, frames: &Frames, run: &FrameRun<'_>) -> Result<(), EngineError> {
        let (first, last) = numbers(run.start, run.elements as u64);
        (first..=last).try_for_each(|number| self.unpack(frames, run, number as u32).map(drop))
    }

    /// A frame, which is unpacked if it is not the last one that was, and then says what the base must hold.
    fn unpack(
        &mut self,
        frames: &Frames,
        run: &FrameRun<'_>,
        number: u32,
    ) -> Result<&Frame, EngineError> {
        let known = |(of, frame): &(u32, Frame)| *of == run.segment && frame.number == number;
        if !self.last.as_ref().is_some_and(known) {
            let stored = frames.segments.get(&run.segment);
            let tensor = stored.map_or(0, |stored| stored.number);
            let damaged = || EngineError::Components { path: frames.path.clone(), tensor, number };
            let stored = stored.ok_or_else(damaged)?;
            let start = |number: usize| stored.starts.get(number).copied();
            let bytes = || {
                let begin = start(numbers(run.start, 1).0)?;
                let [a, b] = [start(number as usize)?, start(number as usize + 1)?];
                run.stored.get((a - begin) as usize..(b - begin) as usize)
            };
            let frame = bytes().and_then(|bytes| {
                let (frame, len) = Frame::load(bytes, frames.form).ok()?;
                let right = len == bytes.len() && (frame.tensor, frame.number) == (tensor, number);
                right.then_some(frame)
            });
            let frame = frame.ok_or_else(damaged)?;
            let (at, base) = run.base_of(number);
            if *blake3::hash(base).as_bytes() != frame.base {
                let (file, tensor, offset) = stored.base.clone();
                let size = run.base.len() as u64 / run.elements.max(1) as u64;
                let offset = offset + run.start * size + at as u64;
                let (bytes, made) = (base.len() as u64, frames.path.clone());
                return Err(EngineError::OtherBase { file, tensor, offset, bytes, made });
            }
            self.last = Some((run.segment, frame));
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
    use crate::checkpoint::components::FRAME_HEAD;

    /// A tile of the only segment, whose base has two bytes for each element.
    fn run<'a>(start: u64, elements: u64, stored: &'a [u8], base: &'a [u8]) -> FrameRun<'a> {
        let base = &base[2 * start as usize..][..2 * elements as usize];
        FrameRun { segment: 5, start, elements: elements as usize, base, stored }
    }

    #[test]
    fn any_cut_gives_the_same_rows() {
        let total = 3 * u64::from(FRAME) + 777;
        let dense = |i: u64| -> Vec<f32> {
            let share = |e: u64| if (e * 7 + i) % 1000 < 3 { e as f32 + 0.5 } else { 0.0 };
            // Nothing in the second frame.
            (0..total).map(|e| if e / u64::from(FRAME) == 1 { 0.0 } else { share(e) }).collect()
        };
        let dense = [dense(1), dense(500)];
        let base: Vec<u8> = (0..2 * total).map(|k| ((k * k) >> 3) as u8).collect();
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
            let len = (total - begin as u64).min(u64::from(FRAME)) as usize;
            let frame = Frame {
                tensor: 7,
                number,
                base: *blake3::hash(&base[2 * begin..2 * (begin + len)]).as_bytes(),
                rows: dense.iter().map(row).collect(),
                sums: Vec::new(),
            };
            bytes.extend(frame.store().unwrap());
        }
        starts.push(bytes.len() as u64);
        assert_eq!(starts[2] - starts[1], FRAME_HEAD as u64, "nothing is in it");
        let stored = Stored { number: 7, starts, base: ("b".into(), "w".to_owned(), 1000) };
        let frames = Frames {
            path: "c".into(),
            file: 3,
            form: Form { kind: Kind::Shares, experts: 2 },
            only: None,
            segments: [(5, stored)].into(),
        };
        let frame = u64::from(FRAME);
        for (tile, block) in [(1, 4096), (2, 1000), (3, 70_001), (4, 65_536)] {
            let (mut rows, mut got) = (FrameRows::default(), [Vec::new(), Vec::new()]);
            for start in (0..total).step_by(tile * FRAME as usize) {
                let elements = (total - start).min(tile as u64 * frame);
                let range = frames.range(5, start, elements as u32);
                let part = &bytes[range.offset as usize..][..range.len];
                let run = run(start, elements, part, &base);
                FrameRows::default().check(&frames, &run).unwrap();
                for at in (0..elements).step_by(block) {
                    let len = (elements - at).min(block as u64) as usize;
                    let mut out = vec![9.0; 2 * len];
                    rows.fill(&frames, &run, (start + at, len), &mut out).unwrap();
                    got.iter_mut()
                        .zip(out.chunks(len))
                        .for_each(|(got, row)| got.extend_from_slice(row));
                }
            }
            assert!(got == dense, "{tile} {block}");
        }
        let range = frames.range(5, 0, 10);
        let mut part = bytes[range.offset as usize..][..range.len].to_vec();
        part[100] ^= 1;
        let mut out = [0.0; 20];
        let damaged = run(0, frame, &part, &base);
        let failed = FrameRows::default().fill(&frames, &damaged, (0, 10), &mut out);
        assert!(matches!(failed, Err(EngineError::Components { tensor: 7, number: 0, .. })));
        // Any byte of the base, in a frame without entries and in the last one, too.
        for at in [1, frame + 5, 2 * frame - 1, 2 * frame, total - 1] {
            let (start, mut other) = (frame, base.clone());
            other[2 * at as usize] ^= 0x40;
            let range = frames.range(5, start, (total - start) as u32);
            let part = &bytes[range.offset as usize..][..range.len];
            let failed =
                FrameRows::default().check(&frames, &run(start, total - start, part, &other));
            let first = at / frame * frame;
            let wrong = (1000 + 2 * first, 2 * frame.min(total - first));
            match failed {
                Ok(()) => assert!(at < start),
                Err(EngineError::OtherBase { tensor, offset, bytes, .. }) => {
                    assert_eq!((&*tensor, (offset, bytes)), ("w", wrong));
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(frames.range(6, 0, 10).len, 0);
    }
}
