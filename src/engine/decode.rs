//! Stored bytes to blocks of `f32`, and back.

use super::frames::{FrameRows, FrameRun, Frames};
use super::{Context, EngineError};
use crate::checkpoint::components::FRAME;
use crate::kernel::{Float, Kernels, LowRank};
use crate::method::{Block, Operand};
use crate::plan::Segment;
use crate::recipe::NonFinite;

/// Above this, and with the sign bit cleared, the bits of an `f32` are those of infinity or NaN.
pub(super) const INFINITY: u32 = 0x7f80_0000;

/// Space for one decoded block of base and experts.
pub(super) struct Decoder {
    base: Vec<f32>,
    rows: Vec<f32>,
    weights: Vec<f32>,
    frames: FrameRows,
    /// Elements that were not finite and count as the base's.
    pub(super) replaced: u64,
}

/// The tile that blocks are decoded from.
pub(super) struct TileData<'a> {
    pub(super) segment: &'a Segment,
    /// The segment's index in the plan.
    pub(super) index: u32,
    /// First element of the tile in the segment.
    pub(super) start: u64,
    pub(super) elements: usize,
    /// The tile's bytes in each source.
    pub(super) bytes: Vec<&'a [u8]>,
    /// What adapters add to each source; empty if nothing.
    pub(super) products: &'a [Option<LowRank>],
}

/// What frames are asked for about a tile: the base's bytes come first, then those of the frames.
fn run_of<'a>(tile: &TileData<'a>) -> FrameRun<'a> {
    FrameRun {
        segment: tile.index,
        start: tile.start,
        elements: tile.elements,
        base: tile.bytes[0],
        stored: tile.bytes[1],
    }
}

impl TileData<'_> {
    /// The number of the frame in which element `at` lies.
    pub(super) fn frame(&self, at: usize) -> u32 {
        ((self.start + at as u64) / u64::from(FRAME)) as u32
    }

    /// The bytes of elements `at..at + len` in source `i`.
    pub(super) fn part(&self, i: usize, at: usize, len: usize) -> &[u8] {
        let size = self.segment.source_size(i) as usize;
        &self.bytes[i][at * size..(at + len) * size]
    }

    /// What an adapter adds to source `i`.
    fn product(&self, i: usize) -> Option<&LowRank> {
        self.products.get(i)?.as_ref()
    }

    /// Decodes elements `at..at + out.len()` of source `i`, with what an adapter adds to them.
    pub(super) fn decode(&self, kernels: &Kernels, i: usize, at: usize, out: &mut [f32]) {
        kernels.decode(self.segment.sources[i].float, self.part(i, at, out.len()), out);
        if let Some(product) = self.product(i) {
            kernels.add_low_rank(product, self.segment.first + self.start + at as u64, out);
        }
    }

    /// The same. Returns the largest magnitude, as bits.
    pub(super) fn decode_with_largest(
        &self,
        kernels: &Kernels,
        i: usize,
        at: usize,
        out: &mut [f32],
    ) -> u32 {
        if self.product(i).is_some() {
            self.decode(kernels, i, at, out);
            kernels.max_magnitude_bits(out)
        } else {
            let part = self.part(i, at, out.len());
            kernels.decode_with_largest(self.segment.sources[i].float, part, out)
        }
    }

    /// The same, relative to the base.
    pub(super) fn decode_minus_base(
        &self,
        kernels: &Kernels,
        i: usize,
        at: usize,
        base: &[f32],
        out: &mut [f32],
    ) -> u32 {
        if self.product(i).is_some() {
            self.decode(kernels, i, at, out);
            kernels.subtract(base, out);
            kernels.max_magnitude_bits(out)
        } else {
            let part = self.part(i, at, out.len());
            kernels.decode_minus_base(self.segment.sources[i].float, part, base, out)
        }
    }

    /// Whether source `i` is what its bytes say.
    pub(super) fn is_plain(&self, i: usize) -> bool {
        self.product(i).is_none()
    }
}

impl Decoder {
    pub(super) fn new() -> Self {
        let frames = FrameRows::default();
        Self { base: Vec::new(), rows: Vec::new(), weights: Vec::new(), frames, replaced: 0 }
    }

    /// Decodes elements `at..at + len` of a tile and hands them to `work` as a block.
    ///
    /// # Errors
    /// [`EngineError::NonFinite`], unless the recipe takes the base instead; [`EngineError::Measured`].
    pub(super) fn block<T>(
        &mut self,
        context: &Context<'_>,
        tile: &TileData<'_>,
        at: usize,
        len: usize,
        work: impl FnOnce(&Block<'_>) -> T,
    ) -> Result<T, EngineError> {
        let kernels = context.kernels;
        let sources = &tile.segment.sources;
        let before = usize::from(context.plan.has_base);
        let values = tile.segment.valued();
        let experts = context.frames.map_or(values - before, Frames::rows);
        self.base.resize(before * len, 0.0);
        self.rows.resize(experts * len, 0.0);
        let operand = context.method.operand();
        let mut finite = true;
        if before == 1 {
            let largest = tile.decode_with_largest(kernels, 0, at, &mut self.base);
            // A base value that is not finite shows in the difference.
            finite = operand == Operand::TaskVector || largest < INFINITY;
        }
        if let Some(frames) = context.frames {
            // What had to be finite was when the shares were made.
            finite = true;
            let run = (tile.start + at as u64, len);
            self.frames.fill(frames, &run_of(tile), run, &mut self.rows)?;
        } else {
            for (i, row) in self.rows.chunks_exact_mut(len).enumerate() {
                let largest = match operand {
                    Operand::TaskVector => {
                        tile.decode_minus_base(kernels, i + before, at, &self.base, row)
                    }
                    Operand::Value => tile.decode_with_largest(kernels, i + before, at, row),
                };
                finite &= largest < INFINITY;
            }
        }
        if !finite {
            self.repair(context, tile, at, len)?;
        }
        self.weights.resize((sources.len() - values) * len, 0.0);
        for (i, row) in self.weights.chunks_exact_mut(len).enumerate() {
            tile.decode(kernels, values + i, at, row);
            if kernels.max_magnitude_bits(row) >= INFINITY || kernels.any_negative(row) {
                return Err(Self::no_weight(context, tile, at, values + i, row));
            }
        }
        let rows: Vec<&[f32]> = self.rows.chunks_exact(len).collect();
        let weights: Vec<&[f32]> = self.weights.chunks_exact(len).collect();
        let (tensor, first) = (tile.segment.place as usize, tile.start + at as u64);
        Ok(work(&Block { tensor, first, base: &self.base, rows: &rows, weights: &weights }))
    }

    /// Demands that the base holds what the frames of a tile without rows say.
    ///
    /// # Errors
    /// [`EngineError::OtherBase`], [`EngineError::Components`].
    pub(super) fn check(
        &mut self,
        frames: &Frames,
        tile: &TileData<'_>,
    ) -> Result<(), EngineError> {
        self.frames.check(frames, &run_of(tile))
    }

    /// Base and rows of the block that was decoded last.
    pub(super) fn last(&self) -> (&[f32], &[f32]) {
        (&self.base, &self.rows)
    }

    /// Names the first value that is not finite, or replaces all of them, as the recipe says.
    #[cold]
    fn repair(
        &mut self,
        context: &Context<'_>,
        tile: &TileData<'_>,
        at: usize,
        len: usize,
    ) -> Result<(), EngineError> {
        let neutral = |base: f32| match context.method.operand() {
            Operand::TaskVector => 0.0,
            Operand::Value => base,
        };
        for e in 0..len {
            let base = self.base.get(e).copied().unwrap_or(0.0);
            for (i, row) in self.rows.chunks_exact_mut(len).enumerate() {
                if base.is_finite() && row[e].is_finite() {
                    continue;
                }
                if context.nonfinite == NonFinite::Error {
                    let before = usize::from(context.plan.has_base);
                    let culprit = if base.is_finite() { i + before } else { 0 };
                    return Err(Self::culprit(context, tile, at + e, culprit));
                }
                row[e] = neutral(base);
                self.replaced += 1;
            }
        }
        Ok(())
    }

    /// Names the first value of a block that cannot be a weight.
    #[cold]
    fn no_weight(
        context: &Context<'_>,
        tile: &TileData<'_>,
        at: usize,
        source: usize,
        row: &[f32],
    ) -> EngineError {
        let bad = |x: &f32| !x.is_finite() || *x < 0.0;
        let k = row.iter().position(bad).unwrap_or(0);
        let segment = tile.segment;
        let from = &segment.sources[source];
        let element = tile.start + (at + k) as u64;
        EngineError::Measured {
            file: context.plan.labels[from.checkpoint as usize].clone(),
            tensor: context.plan.tensors[segment.tensor as usize].name.to_string(),
            element: segment.first + element,
            offset: from.offset + element * from.float.size() as u64,
            value: row[k],
            rule: "weights of elements are finite and not negative",
        }
    }

    pub(super) fn culprit(
        context: &Context<'_>,
        tile: &TileData<'_>,
        at: usize,
        source: usize,
    ) -> EngineError {
        let segment = tile.segment;
        let float = segment.sources[source].float;
        let mut value = [0.0];
        tile.decode(context.kernels, source, at, &mut value);
        let element = tile.start + at as u64;
        EngineError::NonFinite {
            checkpoint: context.plan.labels[segment.sources[source].checkpoint as usize].clone(),
            tensor: context.plan.tensors[segment.tensor as usize].name.to_string(),
            element: segment.first + element,
            offset: segment.sources[source]
                .at(segment.first + element, element * float.size() as u64),
            value: value[0],
        }
    }
}

/// Encodes merged values of elements `at..` of a tile, refusing those that the type cannot hold.
///
/// # Errors
/// [`EngineError::Overflow`].
pub(super) fn encode(
    context: &Context<'_>,
    tile: &TileData<'_>,
    at: usize,
    values: &[f32],
    out: &mut [u8],
) -> Result<(), EngineError> {
    let segment = tile.segment;
    let limit = overflow_bits(segment.out);
    if context.kernels.max_magnitude_bits(values) >= limit {
        let base_is_finite = |e: usize| {
            let mut base = [0.0];
            tile.decode(context.kernels, 0, at + e, &mut base);
            base[0].is_finite()
        };
        let too_large =
            |&e: &usize| values[e].to_bits() & 0x7fff_ffff >= limit && base_is_finite(e);
        if let Some(e) = (0..values.len()).find(too_large) {
            return Err(EngineError::Overflow {
                tensor: context.plan.tensors[segment.tensor as usize].name.to_string(),
                element: segment.first + tile.start + (at + e) as u64,
                value: values[e],
                dtype: format!("{:?}", segment.out),
            });
        }
    }
    context.kernels.encode(segment.out, values, out);
    Ok(())
}

/// The least magnitude, as bits, that rounds to infinity. F8 saturates by definition.
fn overflow_bits(float: Float) -> u32 {
    match float {
        Float::F16 => 65520f32.to_bits(),
        Float::BF16 => 0x7f7f_8000,
        Float::F64 | Float::F32 | Float::F8E4M3 | Float::F8E5M2 => INFINITY,
    }
}
