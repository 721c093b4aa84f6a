//! What a worker does with one tile.

use std::sync::atomic::Ordering;

use super::decode::{Decoder, TileData, encode};
use super::framing::Framer;
use super::observe::{Observer, Seen};
use super::{Context, EngineError, Keep, SinkError, Work};
use crate::checkpoint::components::{FRAME, TileFrames};
use crate::method::{BLOCK, Held, Next, Outcome, Pass, Sampling, State, block_len};
use crate::plan::Action;

/// Tiles of up to this many elements are finished before a merge stops: that takes milliseconds, and all that a
/// fold has gathered stays good.
const PROMPT: usize = 4 << 20;

/// One worker's space and statistics.
pub(super) struct Worker<'a> {
    context: &'a Context<'a>,
    work: &'a Work<'a>,
    decoder: Decoder,
    values: Vec<f32>,
    /// Where frames are kept.
    framer: Option<Framer>,
    /// The state of a streamed stage.
    pub(super) state: Option<State>,
    /// Where statistics are asked for.
    observer: Option<Observer>,
    /// (unit, outcome) of units merged whole.
    pub(super) outcomes: Vec<(u32, Outcome)>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(context: &'a Context<'a>, work: &'a Work<'a>) -> Self {
        let state = match work {
            Work::Stage { stage, .. } => Some(stage.empty()),
            Work::Whole { .. } | Work::Copies { .. } | Work::Solve { .. } => None,
        };
        Self {
            context,
            work,
            decoder: Decoder::new(),
            values: vec![0.0; BLOCK],
            framer: context.shares.map(|form| Framer::new(context.kernels, form)),
            state,
            observer: context.statistics.then(Observer::new),
            outcomes: Vec::new(),
        }
    }

    /// Elements that were not finite and count as the base's.
    pub(super) fn replaced(&self) -> u64 {
        self.decoder.replaced
    }

    /// What was seen of the tile that was merged last, if statistics are asked for.
    pub(super) fn seen(&mut self) -> Option<Seen> {
        self.observer.as_mut().map(Observer::take)
    }

    /// Works on a tile. `out` has the tile's output size where something is written.
    ///
    /// # Errors
    /// If the data cannot be merged.
    pub(super) fn tile(
        &mut self,
        unit: Option<u32>,
        tile: &TileData<'_>,
        out: &mut [u8],
        frames: &mut TileFrames,
    ) -> Result<(), EngineError> {
        frames.clear();
        match (self.work, unit) {
            (Work::Copies { .. }, _) => self.copy(tile, (out, frames)),
            (Work::Stage { stage, keep, .. }, _) => {
                let Some(mut state) = self.state.take() else { return Ok(()) };
                let done = self.stage((*stage, None), &mut state, tile, (out, frames), *keep);
                self.state = Some(state);
                done
            }
            (Work::Whole { .. }, Some(unit)) => {
                let outcome = self.whole(unit, tile, (out, frames))?;
                self.outcomes.push((unit, outcome));
                Ok(())
            }
            (Work::Whole { .. }, None) | (Work::Solve { .. }, _) => Ok(()),
        }
    }

    /// Works on all of a tile, or on a sample of it.
    fn stage(
        &mut self,
        (stage, sample): (&dyn Pass, Option<Sampling>),
        state: &mut State,
        tile: &TileData<'_>,
        (out, frames): (&mut [u8], &mut TileFrames),
        keep: &dyn Keep,
    ) -> Result<(), EngineError> {
        let mut framer = self.framer.as_mut().filter(|_| stage.writes());
        if let Some(framer) = &mut framer {
            framer.begin();
        }
        let size = tile.segment.out_size as usize;
        let block = block_len(tile.segment.grain);
        if stage.writes() && self.values.len() < block {
            self.values.resize(block, 0.0);
        }
        let mut observer = self.observer.as_mut().filter(|_| stage.writes());
        if let Some(observer) = &mut observer {
            observer.begin(tile.segment.valued() - usize::from(self.context.plan.has_base));
        }
        let elements = tile.elements as u64;
        let everything = Sampling { block: elements.max(1), stride: elements.max(1) };
        let runs = sample.unwrap_or(everything).runs(0..elements, elements);
        let blocks = runs.flat_map(|run| {
            let (begin, end) = (run.start as usize, run.end as usize);
            (begin..end).step_by(block).map(move |at| (at, block.min(end - at)))
        });
        for (at, len) in blocks {
            // A tile may be a whole tensor: too much to finish first.
            if tile.elements > PROMPT && self.context.cancel.load(Ordering::Relaxed) {
                return Err(EngineError::Interrupted);
            }
            let values = &mut self.values[..if stage.writes() { len } else { 0 }];
            self.decoder.block(self.context, tile, at, len, |block| {
                if let Some(framer) = &mut framer {
                    let (rows, sums) = framer.room(len);
                    stage.add_shares(state, block, values, rows, sums);
                    framer.add(at);
                } else {
                    stage.add(state, block, values);
                }
                if let Some(observer) = &mut observer {
                    observer.count(block, |kept| stage.count_kept(state, block, kept));
                }
            })?;
            if let Some(framer) = &mut framer
                && let Some(tensor) = tile.segment.frames
                && ((at + len).is_multiple_of(FRAME as usize) || at + len == tile.elements)
            {
                let first = at / FRAME as usize * FRAME as usize;
                let base = tile.part(0, first, at + len - first);
                framer.finish((tensor, tile.frame(at)), base, frames)?;
            }
            if let Some(parcel) = stage.hand_out(state, false) {
                keep.keep(&parcel)?;
            }
            if stage.writes() && size > 0 {
                let out = &mut out[at * size..(at + len) * size];
                encode(self.context, tile, at, values, out)?;
                if let Some(observer) = &mut observer {
                    observer.add(self.context, tile, self.decoder.last(), out);
                }
            }
        }
        Ok(())
    }

    /// Hands out what the state of a streamed stage should not hold any longer.
    ///
    /// # Errors
    /// If the disk refuses.
    pub(super) fn hand_out(&mut self) -> Result<(), EngineError> {
        if let (Work::Stage { stage, keep, .. }, Some(state)) = (self.work, &mut self.state)
            && let Some(parcel) = stage.hand_out(state, true)
        {
            keep.keep(&parcel)?;
        }
        Ok(())
    }

    /// All passes over a unit that lies in one tile.
    fn whole(
        &mut self,
        unit: u32,
        tile: &TileData<'_>,
        (out, frames): (&mut [u8], &mut TileFrames),
    ) -> Result<Outcome, EngineError> {
        let named =
            |error| EngineError::Method { unit: self.context.plan.view(unit).name.clone(), error };
        let view = self.context.plan.view(unit);
        let mut stage = self.context.method.start_at_hand(view).map_err(named)?;
        let (before, room) = (self.decoder.replaced, self.context.method.held_bytes(view));
        loop {
            // Every pass meets the same values that are not finite: count those of the last.
            self.decoder.replaced = before;
            let (mut state, held) = (stage.empty(), Held::within(room));
            let pass: &dyn Pass = &*stage;
            self.stage((pass, stage.sample()), &mut state, tile, (&mut *out, &mut *frames), &held)?;
            if let Some(parcel) = stage.hand_out(&mut state, true) {
                held.keep(parcel);
            }
            match stage.finish(state, &held).map_err(named)? {
                Next::Stage(next) => stage = next,
                Next::Done(outcome) => return Ok(outcome),
            }
        }
    }

    fn copy(
        &mut self,
        tile: &TileData<'_>,
        (out, frames): (&mut [u8], &mut TileFrames),
    ) -> Result<(), EngineError> {
        let base = tile.bytes[0];
        if let Some(read) = self.context.frames {
            self.decoder.check(read, tile)?;
        }
        if let Some(framer) = &mut self.framer
            && let Some(tensor) = tile.segment.frames
        {
            framer.begin();
            for at in (0..tile.elements).step_by(FRAME as usize) {
                let base = tile.part(0, at, (tile.elements - at).min(FRAME as usize));
                framer.finish((tensor, tile.frame(at)), base, frames)?;
            }
        }
        match tile.segment.action {
            Action::Copy { check: true } => self.compare(tile)?,
            Action::Copy { check: false } | Action::Merge | Action::Convert => {}
        }
        match tile.segment.action {
            // Some merges have no room for what is the base's.
            _ if out.is_empty() => {}
            Action::Copy { .. } => out.copy_from_slice(base),
            Action::Merge | Action::Convert
                if tile.segment.sources[0].float == tile.segment.out && tile.is_plain(0) =>
            {
                out.copy_from_slice(base);
            }
            Action::Merge | Action::Convert => {
                let size = tile.segment.out_size as usize;
                for at in (0..tile.elements).step_by(BLOCK) {
                    let len = BLOCK.min(tile.elements - at);
                    let values = &mut self.values[..len];
                    tile.decode(self.context.kernels, 0, at, values);
                    encode(self.context, tile, at, values, &mut out[at * size..(at + len) * size])?;
                }
            }
        }
        Ok(())
    }

    /// Demands that all sources hold the same bytes.
    fn compare(&self, tile: &TileData<'_>) -> Result<(), EngineError> {
        let base = tile.bytes[0];
        for (source, other) in tile.segment.sources.iter().zip(&tile.bytes).skip(1) {
            if let Some(at) = base.iter().zip(*other).position(|(a, b)| a != b) {
                return Err(EngineError::CopiesDiffer {
                    checkpoint: self.context.plan.labels[source.checkpoint as usize].clone(),
                    tensor: self.context.plan.tensors[tile.segment.tensor as usize]
                        .name
                        .to_string(),
                    offset: tile.start + at as u64,
                });
            }
        }
        Ok(())
    }
}

/// Parcels of a unit that is merged in one go stay in memory with it.
impl Keep for Held {
    fn keep(&self, parcel: &[u8]) -> Result<(), SinkError> {
        Held::keep(self, parcel.to_vec());
        Ok(())
    }
}
