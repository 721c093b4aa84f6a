//! Runs passes over the tiles of a plan: reads, computes, writes, in bounded memory.
//!
//! The engine knows plans and stages; it does not know which method runs, nor what a staging
//! directory or a journal is. Finished bytes go to a [`TileSink`].

mod adapters;
mod ahead;
mod alarm;
mod buffer;
mod decode;
mod frames;
mod framing;
pub mod host;
mod observe;
mod pipeline;
mod rows;
pub mod sink;
mod solve;
pub mod source;
mod tickets;
mod worker;

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use crate::checkpoint::components::{Form, TileFrames};
use crate::kernel::Kernels;
use crate::method::{Method, MethodError, Outcome, Pass, State};
use crate::plan::{Plan, Tile};
use crate::progress::Progress;
use crate::recipe::NonFinite;

pub use frames::{Frames, Stored};
pub use observe::Seen;
use sink::SinkError;
use source::{Source, SourceError};
pub use tickets::{Tickets, TileOut};

/// What all passes of a merge share.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The method.
    pub method: &'a dyn Method,
    /// The kernels of this machine.
    pub kernels: &'static Kernels,
    /// What to do with values that are not finite.
    pub nonfinite: NonFinite,
    /// The form of the frames that maps make, for [`TileSink::frames`], if they do.
    pub shares: Option<Form>,
    /// Whether maps gather statistics about what they merge, for [`TileSink::seen`].
    pub statistics: bool,
    /// Where the rows of blocks come from, if not from experts.
    pub frames: Option<&'a Frames>,
    /// Told about every tile.
    pub progress: &'a dyn Progress,
    /// Set from outside to stop after the tiles under way.
    pub cancel: &'a AtomicBool,
    /// As many as the plan has output buffers, the same for all passes.
    pub tickets: &'a Tickets,
    /// Worker threads.
    pub workers: usize,
}

/// What one pass, or a part of one, does.
pub enum Work<'a> {
    /// Writes segments that need no statistics.
    Copies {
        /// Their indices.
        segments: &'a [u32],
        /// Which of their elements, laid end to end.
        range: Range<u64>,
    },
    /// One stage of one streamed unit, or of several that lie in it.
    Stage {
        /// Their segments.
        segments: &'a [u32],
        /// The stage.
        stage: &'a dyn Pass,
        /// Which of the segments' elements, laid end to end.
        range: Range<u64>,
        /// Takes what the stage hands out.
        keep: &'a dyn Keep,
    },
    /// All stages of units that fit in a tile each.
    Whole {
        /// The units.
        units: &'a [u32],
        /// Those that the next pass begins with: what of them there is room for is asked for, and stays asked for.
        then: &'a [u32],
    },
    /// A unit that is one tensor, for which is solved.
    Solve {
        /// The unit.
        unit: u32,
    },
}

impl Work<'_> {
    fn writes(&self) -> bool {
        match self {
            Work::Copies { .. } | Work::Whole { .. } | Work::Solve { .. } => true,
            Work::Stage { stage, .. } => stage.writes(),
        }
    }
}

/// What a pass leaves behind.
#[derive(Default)]
pub struct PassResult {
    /// The merged state of a stage.
    pub state: Option<State>,
    /// The outcomes of units merged whole, by unit.
    pub outcomes: Vec<(u32, Outcome)>,
    /// How many expert values were not finite and counted as the base's.
    pub replaced: u64,
    /// How much of the work is done: elements from the start of the range, or units merged whole. All of
    /// it, unless the pass was stopped from outside.
    pub done: u64,
}

/// Takes what stages hand out, from any worker.
pub trait Keep: Sync {
    /// Keeps a parcel.
    ///
    /// # Errors
    /// If the disk refuses.
    fn keep(&self, parcel: &[u8]) -> Result<(), SinkError>;
}

/// Takes finished bytes.
pub trait TileSink: Send {
    /// Writes `bytes` at an absolute offset of an output shard. Called once for every output
    /// byte, from one thread, in plan order. As long as the sink keeps some of them, there are fewer tiles in flight.
    ///
    /// # Errors
    /// If the disk refuses.
    fn write(&mut self, shard: usize, offset: u64, bytes: &TileOut) -> Result<(), SinkError>;

    /// Takes the frames of a tile that was merged. Called after its bytes were written.
    ///
    /// # Errors
    /// If the disk refuses.
    fn frames(&mut self, _frames: &TileFrames) -> Result<(), SinkError> {
        Ok(())
    }

    /// Takes what was seen of a tile that was merged. Called after its bytes were written.
    fn seen(&mut self, _tile: &Tile, _seen: &Seen) {}
}

/// For passes that write nothing.
pub struct Nothing;

impl TileSink for Nothing {
    fn write(&mut self, _shard: usize, _offset: u64, _bytes: &TileOut) -> Result<(), SinkError> {
        Ok(())
    }
}

/// How a pass reads.
pub struct Sources<'a> {
    /// Reads tiles, ahead of time.
    pub tiles: &'a mut Source,
    /// Reads what lies scattered, and little beside what is asked for: matrices of adapters, and rows that move.
    pub scattered: &'a mut Source,
}

/// Runs one pass. When it is stopped from outside, what it has begun is finished, and the result says how
/// far it came.
///
/// # Errors
/// [`EngineError`]; what was written stays written. [`EngineError::Interrupted`] only if a stop came amid a
/// tile of a fold, too large to be finished first.
pub fn run(
    context: &Context<'_>,
    work: &Work<'_>,
    sources: Sources<'_>,
    sink: &mut dyn TileSink,
) -> Result<PassResult, EngineError> {
    match work {
        Work::Solve { unit } => solve::run(context, *unit, sources, sink),
        _ => pipeline::run(context, work, sources, sink),
    }
}

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// An input could not be read, or has changed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The output could not be written.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// A value is NaN or infinite, or the difference of two values is.
    #[error(
        "{checkpoint}: tensor {tensor}, element {element} (file offset {offset}) is {value}, or \
         its difference from the base is not finite; --nonfinite base takes the base's value there"
    )]
    NonFinite {
        /// Display name of the checkpoint.
        checkpoint: String,
        /// Name of the tensor.
        tensor: String,
        /// Element, counted from 0 in storage order.
        element: u64,
        /// Its absolute offset in the file.
        offset: u64,
        /// The value.
        value: f32,
    },
    /// What was measured of a model is nothing that can be.
    #[error(
        "{file}: tensor {tensor} has {value} at element {element} (file offset {offset}), and {rule}; gather it again"
    )]
    Measured {
        /// Display name of the file.
        file: String,
        /// Name of the tensor.
        tensor: String,
        /// Element, counted from 0 in storage order.
        element: u64,
        /// Its absolute offset in the file.
        offset: u64,
        /// The value.
        value: f32,
        /// What holds for such values.
        rule: &'static str,
    },
    /// A merged value is too large for the output type.
    #[error(
        "merged value {value} of tensor {tensor}, element {element}, does not fit in {dtype}; {}",
        wider(dtype)
    )]
    Overflow {
        /// Name of the tensor.
        tensor: String,
        /// Element, counted from 0 in storage order.
        element: u64,
        /// The value.
        value: f32,
        /// The output type.
        dtype: String,
    },
    /// A tensor that can only be copied differs between models.
    #[error(
        "tensor {tensor} holds integers, booleans or packed codes, which cannot be averaged, and \
         {checkpoint} differs from the base at byte {offset} of it; --exclude {tensor} takes the \
         base's"
    )]
    CopiesDiffer {
        /// Display name of the expert.
        checkpoint: String,
        /// Name of the tensor.
        tensor: String,
        /// Byte in the tensor.
        offset: u64,
    },
    /// Shares of an earlier merge are not what was written.
    #[error(
        "{} is damaged: frame {number} of its tensor {tensor} is not what was written; make it again by the merge that it \
         comes from", path.display()
    )]
    Components {
        /// The file.
        path: std::path::PathBuf,
        /// The tensor's number in it.
        tensor: u32,
        /// The frame's number in the tensor.
        number: u32,
    },
    /// The base is not the one that shares of an earlier merge belong to.
    #[error(
        "{}: bytes {offset} to {} (in tensor {tensor}) are not those that {} was made with; give the base of that merge, \
         unchanged", file.display(), offset + bytes - 1, made.display()
    )]
    OtherBase {
        /// The file.
        file: std::path::PathBuf,
        /// The tensor.
        tensor: String,
        /// The first byte that was compared.
        offset: u64,
        /// Number of bytes.
        bytes: u64,
        /// The file of shares.
        made: std::path::PathBuf,
    },
    /// The method gave up.
    #[error("{unit}: {error}")]
    Method {
        /// Name of the unit.
        unit: String,
        /// Why.
        error: MethodError,
    },
    /// Stopped from outside.
    #[error("interrupted")]
    Interrupted,
    /// A thread panicked: a bug in reflow.
    #[error("the {0} thread panicked; this is a bug in reflow")]
    Panicked(&'static str),
}

/// What helps against a value that is too large for an output type.
fn wider(dtype: &str) -> &'static str {
    match dtype {
        "BF16" | "F32" => "no type holds much larger ones: use smaller weights or lambdas",
        _ => "use --dtype bf16 or --dtype f32",
    }
}
