//! Tensors that are solved for, each as a whole.

use std::sync::Arc;

use super::evidence::Told;
use super::problem::{Problem, Problems};
use super::{PlanError, Segment, SourceRef, Unit};
use crate::method::solve::Matrix;
use crate::method::{Method, TensorView};

/// Bytes that are read at a time, unless four rows are more.
const READ: u64 = 1 << 20;

/// Where statistics about what comes out have the models from, beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Models {
    /// There are none.
    Unseen,
    /// What was read of them to set up the system is held.
    Held,
    /// They are read once more, since there is no room to hold them.
    Again,
}

/// What a tensor is solved from.
#[derive(Clone, Debug)]
pub struct Solve {
    /// The Gram matrix of each model, in order.
    pub grams: Box<[SourceRef]>,
    /// Its rows and columns.
    pub inputs: u64,
    /// Rows of weights.
    pub outputs: u64,
    /// Whether weights are stored as rows of outputs.
    pub transposed: bool,
    /// What statistics look at.
    pub models: Models,
}

impl Solve {
    pub(super) fn new(grams: Vec<SourceRef>, inputs: u64) -> Self {
        Self { grams: grams.into(), inputs, outputs: 0, transposed: false, models: Models::Unseen }
    }

    /// The matrix that is solved for.
    pub fn matrix(&self) -> Matrix {
        // They were elements of one file, in memory of 64 bits.
        Matrix { outputs: self.outputs as usize, inputs: self.inputs as usize }
    }

    /// Bytes of the Gram matrices.
    pub fn gram_bytes(&self) -> u64 {
        let bytes = |gram: &SourceRef| gram.float.size() as u64 * self.inputs * self.inputs;
        self.grams.iter().map(bytes).sum()
    }

    /// Rows of a Gram matrix that are read at a time, if the solver takes no more than `most`.
    pub fn rows(&self, most: u64) -> u64 {
        let row = 8 * self.inputs.max(1);
        (READ / row / 4 * 4).clamp(4, most.max(4))
    }

    /// Elements of weights that are read at a time, of so many files.
    pub fn elements(&self, files: usize) -> u64 {
        (READ / 4 / files.max(2) as u64).max(crate::method::BLOCK as u64)
    }

    /// Bytes that one read of this kind takes, at most.
    pub(super) fn chunk(&self) -> u64 {
        READ.max(32 * self.inputs)
    }
}

impl Segment {
    /// What the segment is solved from, if it is.
    pub fn solve(&self) -> Option<&Solve> {
        match &self.told {
            Told::Grams(solve) => Some(solve),
            Told::Nothing | Told::Weights(_) => None,
        }
    }

    /// Bytes that solving for it reads: each Gram matrix once, the weights of each model beside those of the first, and
    /// these, or for statistics those of all unless they are held, once more at the end.
    pub fn solve_bytes(&self) -> u64 {
        let grams = self.solve().map_or(0, Solve::gram_bytes);
        let bytes = |i: usize| self.elements * self.source_size(i);
        let pairs = (1..self.sources.len()).map(
            |i| if self.sources[i].shares(&self.sources[0]) { 0 } else { bytes(i) } + bytes(0),
        );
        let again = self.solve().is_some_and(|solve| solve.models == Models::Again);
        grams + pairs.sum::<u64>() + if again { self.read().map(bytes).sum() } else { bytes(0) }
    }

    /// Bytes of all models but the first.
    fn other_bytes(&self) -> u64 {
        self.read().skip(1).map(|i| self.elements * self.source_size(i)).sum()
    }
}

/// Settles which side of each weight its inputs are on, and whether statistics are taken of what comes out, for which models are
/// read once more unless [`hold`] finds room for them.
///
/// # Errors
/// If they are as many as neither, or the method's parameter says otherwise.
pub(super) fn settle(
    segments: &mut [Segment],
    units: &[Unit],
    labels: &[String],
    seen: bool,
) -> Result<(), PlanError> {
    let mut problems = Problems::default();
    let models = if seen { Models::Again } else { Models::Unseen };
    for unit in units {
        for (tensor, &at) in unit.view.tensors.iter().zip(&unit.segments) {
            let segment = &mut segments[at as usize];
            let Told::Grams(solve) = &segment.told else { continue };
            let transposed = tensor.values.word("layout") == "in_out";
            match outputs(tensor, solve.inputs, transposed) {
                Ok(outputs) => {
                    let solve = Solve { outputs, transposed, models, ..(**solve).clone() };
                    segment.told = Told::Grams(Arc::new(solve));
                }
                Err(text) => {
                    let file = solve.grams.first().map_or(0, |gram| gram.checkpoint) as usize;
                    problems.push(Problem::Evidence { file: labels[file].clone(), text });
                }
            }
        }
    }
    problems.into_result()
}

fn outputs(tensor: &TensorView, inputs: u64, transposed: bool) -> Result<u64, String> {
    let (name, shape) = (&tensor.name, &tensor.shape);
    let rows = shape.first().copied().unwrap_or(1);
    let columns = tensor.elements / rows.max(1);
    let (layout, own, other) =
        if transposed { ("in_out", rows, columns) } else { ("out_in", columns, rows) };
    if own == inputs {
        return Ok(other);
    }
    let hint = match (other == inputs, transposed) {
        (true, false) => {
            "; for weights that are stored as GPT-2 has them (Conv1D), set layout: in_out"
        }
        (true, true) => "; for weights that are stored as nn.Linear has them, set layout: out_in",
        (false, _) => "",
    };
    Err(format!(
        "the Gram matrix of {name} is about {inputs} inputs, and {name} is {shape:?}, which are {own} inputs \
         (layout {layout}){hint}"
    ))
}

/// What solving takes, for the tensor that needs most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Need {
    /// Bytes of the system itself, and of the weights beside it.
    pub held: u64,
    /// Bytes of one read of a file, if two are read at a time.
    pub chunk: u64,
    /// Files that are read at a time.
    pub files: u64,
    /// The tensor.
    pub tensor: String,
}

impl Need {
    pub(super) fn new(segments: &[Segment], units: &[Unit], method: &dyn Method) -> Self {
        let mut most = Self::default();
        for (tensor, at) in tensors(units) {
            let Some(solve) = segments[at].solve() else { continue };
            let held = held(&segments[at], solve, method);
            let again = solve.models == Models::Again;
            let files = if again { segments[at].read().count().max(2) } else { 2 };
            let all = 8 * solve.elements(files) * files as u64;
            most.chunk = most.chunk.max(solve.chunk()).max(all / 2);
            most.files = most.files.max(files as u64);
            if held > most.held {
                (most.held, most.tensor) = (held, tensor.name.to_string());
            }
        }
        most
    }
}

/// All tensors that are merged, with their segments.
fn tensors(units: &[Unit]) -> impl Iterator<Item = (&TensorView, usize)> {
    units
        .iter()
        .flat_map(|unit| unit.view.tensors.iter().zip(&unit.segments))
        .map(|(t, &s)| (t, s as usize))
}

/// Bytes of the system for a tensor, and of the weights beside it.
fn held(segment: &Segment, solve: &Solve, method: &dyn Method) -> u64 {
    let deltas = 4 * solve.inputs * solve.outputs;
    // Values of a few rows, and of a block.
    let values = 2 * solve.chunk() + 64 * crate::method::BLOCK as u64;
    let models = if solve.models == Models::Held { segment.other_bytes() } else { 0 };
    method.solver_bytes(solve.matrix()) + deltas + values + models
}

/// Has the models held for statistics that would be read once more, wherever the tensor then takes at most `room`. Returns
/// whether there are such tensors.
pub(super) fn hold(
    segments: &mut [Segment],
    units: &[Unit],
    method: &dyn Method,
    room: u64,
) -> bool {
    let mut any = false;
    for (_, at) in tensors(units) {
        let segment = &segments[at];
        let Some(solve) = segment.solve().filter(|solve| solve.models == Models::Again) else {
            continue;
        };
        let solve = Solve { models: Models::Held, ..solve.clone() };
        if held(segment, &solve, method) <= room {
            segments[at].told = Told::Grams(Arc::new(solve));
            any = true;
        }
    }
    any
}
