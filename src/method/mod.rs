//! Merge methods: numbers in, numbers out. No files, no channels, no threads.
//!
//! A method merges one *unit* (the whole model, a layer or a tensor, by scope) in a chain of
//! [`Stage`]s. Each stage is one pass over the unit's elements: a *fold* gathers statistics, a
//! *map* writes merged values. A finished stage hands on the next one, so a method decides by
//! what it has seen how many passes it needs.
//!
//! ```text
//! Method::start(unit) -> stage -> pass over all blocks -> finish -> stage -> .. -> Outcome
//! ```
//!
//! The state of a stage is a monoid: [`Stage::empty`], [`Stage::add`], [`Stage::merge`]. A pass
//! may therefore be cut into any tiles on any number of threads.

mod adamerging;
mod arcee_fusion;
mod arithmetic;
mod band;
mod emr;
mod erased;
mod fisher;
mod knowing;
mod linear;
mod memory;
mod nearswap;
mod nested;
mod parcels;
mod pass;
mod passthrough;
pub mod pcb;
mod ram;
pub mod registry;
mod regmean;
mod sampling;
mod sce;
mod scope;
mod several;
pub mod solve;
mod sphere;
#[cfg(test)]
mod testing;
mod ties;
mod unit;
mod weighted;

use std::fmt;
use std::sync::Arc;

pub use emr::Rebuilt;
pub use erased::{AnyStage, Pass, State};
pub use knowing::Knowing;
pub use memory::{block_len, run_in_memory};
pub use nested::{Member, Nested, Room, Strand, Together};
pub use parcels::{Held, Lost, Parcels};
pub use registry::{Entry, Evidence, Setup};
pub use sampling::Sampling;
pub use scope::{Scope, layer};
pub use several::{Found, Several, each_part};
pub use unit::{Part, PerTensor, TensorView, UnitView, Value, Values};
pub use weighted::Weighted;

/// The number of elements that a kernel works on at a time: small enough that base, task
/// vectors and scores of a few experts stay in the second-level cache.
pub const BLOCK: usize = 4096;

/// A run of elements of one tensor, decoded to `f32`: up to [`BLOCK`] of them, or one
/// [grain](Method::grain) if that is more.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// The tensor, by its place in the unit.
    pub tensor: usize,
    /// The first element, counted in the tensor.
    pub first: u64,
    /// The base's values; empty in a merge without a base.
    pub base: &'a [f32],
    /// One row per expert, in recipe order, of equal length: task vectors or plain values, as
    /// [`Method::operand`] asks.
    pub rows: &'a [&'a [f32]],
    /// What [`Evidence`] says about these values, a row for each expert; none where there is none.
    pub weights: &'a [&'a [f32]],
}

impl Block<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows.first().map_or(self.base.len(), |row| row.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the rows of a [`Block`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// Expert minus base.
    TaskVector,
    /// The expert's values themselves.
    Value,
}

/// A merge method. Its parameters come with each unit: they may differ from tensor to tensor.
pub trait Method: Send + Sync {
    /// What the rows of the blocks must hold.
    fn operand(&self) -> Operand;

    /// How many elements of a tensor must meet in one block: blocks begin at multiples of it,
    /// counted in the tensor, and hold whole multiples of it, except at the tensor's end. 1 lets
    /// blocks begin anywhere. A method that looks at whole rows asks for the length of a row; one
    /// whose sums are added block by block asks for [`BLOCK`], so that blocks are the same
    /// whatever the tiles.
    fn grain(&self, _tensor: &TensorView) -> u64 {
        1
    }

    /// The passes over a unit, the last one being the map. Methods without statistics have no other.
    fn passes(&self, _unit: &UnitView) -> Vec<&'static str> {
        vec!["merge"]
    }

    /// The sample that the first so many of these passes read; the others read everything.
    fn sampled(&self, _unit: &UnitView) -> Option<(usize, Sampling)> {
        None
    }

    /// An upper bound for the bytes of state that one worker holds during any pass.
    fn state_bytes(&self, _unit: &UnitView) -> u64 {
        0
    }

    /// An upper bound for the bits that one worker keeps of each element of a unit that is in memory, beside its state.
    fn bits_at_hand(&self, _unit: &UnitView) -> u64 {
        0
    }

    /// Bytes of parcels that are kept of a unit at hand, at most. More of them are none: [`Parcels::is_whole`].
    fn held_bytes(&self, _unit: &UnitView) -> u64 {
        0
    }

    /// Whether merged values are the base plus lambda_i times a share of each expert that depends on no lambda.
    fn has_shares(&self) -> bool {
        false
    }

    /// Whether it makes no model, but what the model of each task is made from later.
    fn unifies(&self) -> bool {
        false
    }

    /// Whether experts have scores, which [`Stage::count_kept`] sums.
    fn has_scores(&self) -> bool {
        false
    }

    /// Starts to solve for a tensor that is a matrix, and of which there are Gram matrices of all models: see
    /// [`Evidence::Gram`].
    ///
    /// # Errors
    /// If the parameters make no sense for it, or the method solves for nothing.
    fn solver(
        &self,
        _tensor: &TensorView,
        _matrix: solve::Matrix,
    ) -> Result<Box<dyn solve::Solver>, MethodError> {
        Err(MethodError::NoSolver)
    }

    /// Bytes that a solver for such a tensor holds.
    fn solver_bytes(&self, _matrix: solve::Matrix) -> u64 {
        0
    }

    /// Starts the merge of a unit.
    ///
    /// # Errors
    /// If the parameters make no sense for it.
    fn start(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError>;

    /// Starts the merge of a unit whose elements are all in memory. What its stages hand out stays there with them, up to
    /// [`Method::held_bytes`].
    ///
    /// # Errors
    /// Those of [`Method::start`].
    fn start_at_hand(&self, unit: &Arc<UnitView>) -> Result<Box<dyn AnyStage>, MethodError> {
        self.start(unit)
    }

    /// Whether its maps have [findings](Stage::findings), which may be those of another merge.
    fn has_findings(&self) -> bool {
        false
    }

    /// Starts the merge of a unit with its map, from the [findings](Stage::findings) of a merge with the same parameters,
    /// but for those that a map alone looks at. `None` if the bytes are not such findings.
    fn start_knowing(&self, _unit: &Arc<UnitView>, _findings: &[u8]) -> Option<Box<dyn AnyStage>> {
        None
    }
}

/// One pass over the elements of a unit.
pub trait Stage: Send + Sync + 'static {
    /// What a worker accumulates, scratch space included.
    type State: Send + 'static;

    /// The pass's name, as shown in plan and progress.
    fn name(&self) -> &'static str;

    /// Whether this pass is a map, which fills `out` in [`Stage::add`].
    fn writes(&self) -> bool {
        false
    }

    /// The sample of the unit that this pass reads instead of all elements. What it finds may
    /// change how fast the merge goes on, never its result. Only for methods whose blocks may begin
    /// anywhere.
    fn sample(&self) -> Option<Sampling> {
        None
    }

    /// The neutral element.
    fn empty(&self) -> Self::State;

    /// Works on one block. `out` has the length of the block in a map and is empty in a fold.
    fn add(&self, state: &mut Self::State, block: &Block<'_>, out: &mut [f32]);

    /// Like [`Stage::add`], for maps of methods that [have shares](Method::has_shares): fills `shares`, too, a row of the
    /// block's length for each expert. The merged values are the same. A method that [unifies](Method::unifies) fills a
    /// row with the value of the element, and with NaN where the expert has none; and `sums`, two for each expert: of
    /// its task vector's magnitudes, and of what its mask leaves of the unified one's.
    fn add_shares(
        &self,
        state: &mut Self::State,
        block: &Block<'_>,
        out: &mut [f32],
        _shares: &mut [f32],
        _sums: &mut [f64],
    ) {
        self.add(state, block, out);
    }

    /// Counts what each expert has given to a block, for statistics about the merge. Asked right after the block was added,
    /// and of all blocks or none. `false` if there is nothing to tell: all experts have a part in every element.
    fn count_kept(&self, _state: &mut Self::State, _block: &Block<'_>, _kept: &mut [Kept]) -> bool {
        false
    }

    /// Adds what another worker has gathered.
    fn merge(&self, into: &mut Self::State, from: Self::State);

    /// Takes out of the state what it should not hold any longer, to be kept elsewhere and seen
    /// again in [`Stage::conclude`]. Asked after every block; the flag demands all of it, before the state is
    /// merged or saved.
    fn hand_out(&self, _state: &mut Self::State, _all: bool) -> Option<Vec<u8>> {
        None
    }

    /// What a map was given by the stages before it, as bytes that [`Method::start_knowing`] makes the same map of. None
    /// of stages that are no maps, and of methods that know no such thing.
    fn findings(&self) -> Option<Vec<u8>> {
        None
    }

    /// The state as bytes, so that an interrupted pass can go on later.
    fn save(&self, state: &Self::State) -> Vec<u8>;

    /// A saved state of this stage; `None` if the bytes are not one.
    fn load(&self, saved: &[u8]) -> Option<Self::State>;

    /// Ends the pass, with the merged state of all workers.
    ///
    /// # Errors
    /// If the statistics show that the unit cannot be merged.
    fn finish(self, state: Self::State) -> Result<Next, MethodError>;

    /// Like [`Stage::finish`], for stages that have handed out parcels.
    ///
    /// # Errors
    /// Those of [`Stage::finish`], and [`MethodError::Lost`].
    fn conclude(self, state: Self::State, _parcels: &dyn Parcels) -> Result<Next, MethodError>
    where
        Self: Sized,
    {
        self.finish(state)
    }
}

/// What a map has taken of an expert. Integers, so that it may be gathered in any order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Elements in which the expert has a part.
    pub elements: u64,
    /// The sum of its scores in units of 2^-22; 0 if the method gives none.
    pub score: u64,
}

impl Kept {
    /// Units in a score of 1.
    pub const SCORE: f64 = 4_194_304.0;

    /// Adds what was taken elsewhere.
    pub fn add(&mut self, other: Self) {
        self.elements += other.elements;
        self.score += other.score;
    }
}

/// What follows a finished pass.
pub enum Next {
    /// Another pass.
    Stage(Box<dyn AnyStage>),
    /// Nothing: the unit is merged.
    Done(Outcome),
}

impl Next {
    /// The next pass.
    pub fn stage(stage: impl Stage) -> Self {
        Next::Stage(Box::new(stage))
    }
}

/// How order statistics are found. Changes no byte of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// From a sample, a scan that counts around what the sample says, and a merge: two reads.
    #[default]
    Fused,
    /// By counting the digits of keys: two reads for each statistic.
    Radix,
}

/// What is worth telling about a merged unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Elements of the unit.
    pub elements: u64,
    /// Brackets from a sample that did not hold what they should, so that more was read. An expert
    /// may count twice.
    pub missed: u64,
    /// One entry per expert, in recipe order; none if there is nothing to tell.
    pub experts: Vec<ExpertOutcome>,
}

/// What is worth telling about one expert in a merged unit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExpertOutcome {
    /// Elements in which this expert has weight.
    pub kept: u64,
    /// The sum of its weights over all elements.
    pub weight: f64,
    /// Named statistics, such as `("threshold", 0.25)`.
    pub figures: Vec<(&'static str, f32)>,
    /// Degenerate cases met.
    pub notes: Vec<Note>,
}

impl ExpertOutcome {
    /// The statistic of that name.
    pub fn figure(&self, name: &str) -> Option<f32> {
        self.figures.iter().find(|(n, _)| *n == name).map(|&(_, value)| value)
    }
}

/// A degenerate case that a method met in one expert, and what it did about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// All task-vector elements are zero.
    IdenticalToBase,
    /// The upper clamp bound was raised from the lower one to the maximum.
    BoundsCoincide,
    /// All magnitudes are equal, so their min-max form is zero.
    MagnitudesEqual,
    /// No score lies above the threshold.
    NothingAboveThreshold,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Note::IdenticalToBase => "is identical to the base and has no weight",
            Note::BoundsCoincide => {
                "has so many equal magnitudes that both clamp bounds coincide; \
                 the upper bound is its largest magnitude instead"
            }
            Note::MagnitudesEqual => "has one magnitude only; its competition term is constant",
            Note::NothingAboveThreshold => "has no score above its threshold and no weight",
        })
    }
}

/// Why a method cannot merge a unit.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MethodError {
    /// What a pass had handed out is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The rank of the threshold lies past the last element.
    #[error(
        "keep = {keep} is too small to keep any of {elements} elements; use a larger keep or a wider scope"
    )]
    KeepTooSmall {
        /// Fraction kept.
        keep: f64,
        /// Elements of the unit.
        elements: u64,
    },
    /// A parameter differs within a unit that has one statistic.
    #[error(
        "{parameter} differs between tensors, but statistics are taken over all of them together; \
         give it one value, or use --scope tensor"
    )]
    Varies {
        /// The parameter.
        parameter: &'static str,
    },
    /// The sum of the weights, by which is to be divided, is zero.
    #[error(
        "the weights add up to zero, so there is no mean; change a weight, or set normalize: false where the \
         method has it"
    )]
    NoWeight,
    /// The directions of the models, weighted, cancel.
    #[error(
        "the weights add up to zero, or the directions that they give the models in this tensor cancel, so that \
         none is left; change a weight"
    )]
    NoDirection,
    /// Probabilities are none.
    #[error(
        "density {density} with epsilon {epsilon} asks for probabilities from {} to {}; density must lie \
         above epsilon and below 1 - epsilon, or be 0 or 1",
        density - epsilon.abs(), density + epsilon.abs()
    )]
    Odds {
        /// The mean probability.
        density: f64,
        /// How far probabilities lie from it.
        epsilon: f64,
    },
    /// A plan asks a method to solve that does not: a bug in reflow.
    #[error("this method solves for no tensor; this is a bug in reflow")]
    NoSolver,
    /// What should be a Gram matrix is not symmetric.
    #[error(
        "the Gram matrix of model {expert} (counted from 1) is not symmetric: row and column {input} differ; it should be \
         the sum of x x^T over the layer's inputs x"
    )]
    NotSymmetric {
        /// Model, counted from 1.
        expert: usize,
        /// Row, counted from 0.
        input: usize,
    },
    /// A linear system has no single solution.
    #[error(
        "the sum of the Gram matrices is not positive definite at input {input}: the models' inputs do not tell all \
         weights; use a larger ridge, or an alpha below 1"
    )]
    Singular {
        /// Input, counted from 0.
        input: usize,
    },
    /// A score is infinite or NaN although all weights are finite.
    #[error(
        "the competition score of expert {expert} (counted from 1) overflows f32: its weights or \
         their sum over the experts are beyond about 1e38"
    )]
    ScoreOverflow {
        /// Expert, counted from 1.
        expert: usize,
    },
}
