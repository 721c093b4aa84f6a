//! Everything that is decided before the first data byte: which tensors meet, what happens to
//! each, over what statistics are taken, where every output byte will be, and how memory is
//! divided.
//!
//! A plan comes from headers only and is pure: the same inputs and recipe give the same plan.

mod align;
mod budget;
mod demand;
mod evidence;
mod inputs;
mod layers;
pub mod low_rank;
mod origin;
mod problem;
mod reading;
pub mod rows;
mod seen;
mod segment;
mod select;
mod slices;
pub mod solve;
mod stacks;
mod summary;
mod tables;
pub mod tied;
mod tiles;
mod units;

use std::collections::HashMap;
use std::sync::Arc;

use safetensors::Dtype;

pub use align::Part;
pub use budget::Budget;
pub(crate) use budget::{Demand, SAMPLE_TILES, budget};
pub use evidence::Told;
pub use inputs::Inputs;
pub use layers::{Layers, LeftOut, SliceLayers, SliceMember};
pub use problem::{Problem, Problems};
pub use reading::{Grain, Mode};
pub(crate) use seen::{ROWS_HELD, row_bytes};
pub use segment::{Action, Segment, SourceRef};
pub use select::Selection;
pub use solve::Solve;
pub use summary::{AdapterSummary, PassSummary, PlanSummary};
pub use tiles::{Tile, sampled, tiles};
use units::Merged;
pub use units::{Positions, Unit, kind, numbered};

use crate::checkpoint::{DType, Layout, LayoutError, OutTensor};
use crate::kernel::Float;
pub use crate::method::layer;
use crate::method::{Evidence, Method, TensorView, UnitView, Values};
use crate::recipe::{Matched, Named, OutputDtype, Place, Recipe, RecipeError};
use align::Alignment;
use origin::Origins;
use slices::Sliced;

/// Units that are read and merged in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// Segments without statistics.
    Copies(Vec<u32>),
    /// Units, each small enough to be merged inside one tile: all passes on one read.
    Whole(Vec<u32>),
    /// One unit, streamed once per pass.
    Streamed(u32),
    /// One unit, a tensor that is solved for.
    Solved(u32),
}

/// The plan of a merge.
pub struct Plan {
    /// The method with its parameters, for people.
    pub method: String,
    /// Names by which checkpoints are called in messages: the base, if there is one, then the models, then what was
    /// measured of them.
    pub labels: Vec<String>,
    /// Whether the first checkpoint is the base.
    pub has_base: bool,
    /// How many of the names are those of base and models, and what recipes call that which the others stand for.
    named: (usize, &'static str),
    /// The output's tensors.
    pub tensors: Vec<OutTensor>,
    /// The output's shards.
    pub layout: Layout,
    /// All runs of elements, in output order.
    pub segments: Vec<Segment>,
    /// All units.
    pub units: Vec<Unit>,
    /// What is done, in this order.
    pub runs: Vec<Run>,
    /// Memory by purpose.
    pub budget: Budget,
    /// What adapters do.
    pub adapters: Vec<AdapterSummary>,
    /// Decisions about tied weights.
    pub ties: Vec<tied::Tie>,
    /// (expert, tensor) pairs that count as unchanged because the expert lacks the tensor.
    pub missing: Vec<(String, String)>,
    /// (expert, tensor) pairs left out because the base lacks the tensor.
    pub extra: Vec<(String, String)>,
    /// The layers of an output that is made of slices.
    pub layers: Option<Layers>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why there is no plan.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlanError {
    /// The checkpoints do not fit together.
    #[error("{0}")]
    Inconsistent(Problems),
    /// A parameter does not fit some tensor.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A pattern is not a glob.
    #[error("`{pattern}` is not a valid tensor-name pattern: {reason}")]
    Pattern {
        /// The pattern as given.
        pattern: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No tensor is left to merge.
    #[error("nothing to merge: no floating-point tensor is selected by --include and --exclude")]
    Nothing,
    /// Tokens move, and no tensor has rows for them.
    #[error(
        "tokens have other numbers in the output than in some model, and no tensor is known as an embedding or \
         output head; leave `tokenizer` out to merge rows as they are numbered"
    )]
    NoTable,
    /// The limit is too small.
    #[error(
        "{} of memory ({source_of_limit}) are not enough: the smallest limit that works is \
         --memory {}MiB; the largest share, {}, goes to {largest}",
        crate::human::bytes(*limit), needed >> 20, crate::human::bytes(*largest_bytes)
    )]
    Memory {
        /// The limit.
        limit: u64,
        /// Who set it.
        source_of_limit: String,
        /// The smallest limit that works.
        needed: u64,
        /// The largest purpose.
        largest: String,
        /// Its bytes.
        largest_bytes: u64,
    },
    /// The output cannot be laid out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// What a run has at its disposal.
#[derive(Clone, Debug)]
pub struct Means {
    /// Bytes of memory.
    pub memory: u64,
    /// Who set that limit, for people.
    pub memory_source: String,
    /// Threads.
    pub threads: usize,
    /// How inputs are read.
    pub mode: Mode,
    /// Elements per tile, if not left to the plan.
    pub tile: Option<u32>,
    /// What flows beside base, experts and output.
    pub beside: Beside,
    /// Whether statistics are gathered about what is merged.
    pub statistics: bool,
}

/// What flows beside base, experts and output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Beside {
    /// Nothing.
    #[default]
    Nothing,
    /// The shares of all experts are kept.
    Shares,
    /// No output is made: what experts have in common is kept, and what each has of it.
    Unified,
    /// The shares of all experts are read instead of them.
    Frames {
        /// Bytes of the largest frame.
        largest: u64,
    },
}

impl Plan {
    /// Plans the merge of `inputs`, whose tied weights are already settled by `ties`.
    ///
    /// # Errors
    /// [`PlanError`] with everything that is wrong.
    pub fn new(
        recipe: &Recipe,
        inputs: &Inputs,
        ties: Vec<tied::Tie>,
        method: &dyn Method,
        means: &Means,
    ) -> Result<Self, PlanError> {
        let selection = Selection::new(&recipe.include, &recipe.exclude)?;
        let origins = if recipe.slices.is_empty() {
            Origins::whole(inputs)
        } else {
            Origins::Sliced(Sliced::new(recipe, inputs)?)
        };
        let mut alignment = align::align(recipe, inputs, &origins, &selection)?;
        let tensors = out_tensors(recipe, &alignment);
        let layout = Layout::new(&tensors, recipe.shard_size)?;
        let mut segments = segments(&mut alignment, &tensors, &layout);
        match means.beside {
            Beside::Frames { .. } => segments.iter_mut().for_each(Segment::forget_experts),
            Beside::Unified => {
                let idle = segments.iter_mut().filter(|segment| !segment.is_needed());
                idle.for_each(Segment::forget_experts);
                segments.iter_mut().for_each(Segment::forget_output);
            }
            Beside::Nothing | Beside::Shares => {}
        }
        let layout = if means.beside == Beside::Unified { layout.without_shards() } else { layout };
        let merged = segments.iter().filter(|segment| segment.action == Action::Merge);
        let merged = merged.map(|segment| alignment.tensors[segment.tensor as usize].named());
        let merged: Vec<Named<'_>> = merged.collect();
        let known = |name: &str| inputs.catalogs().any(|catalog| catalog.get(name).is_some());
        let names: Vec<&str> = merged.iter().map(|tensor| tensor.output).collect();
        let coefficients = recipe.coefficients_of(&names, known)?;
        let views = views(recipe, &segments, &alignment, &coefficients)?;
        let plain = recipe.method.reads.1 == 1;
        let units = units::units(recipe.scope, plain, views.into_iter())?;
        if units.is_empty() {
            return Err(PlanError::Nothing);
        }
        for (tensor, place, &segment) in units.iter().flat_map(|unit| {
            let placed = unit.view.tensors.iter().zip(0..).zip(&unit.segments);
            placed.map(|((tensor, place), segment)| (tensor, place, segment))
        }) {
            let segment = &mut segments[segment as usize];
            (segment.grain, segment.place) = (method.grain(tensor).max(1), place);
        }
        if means.beside != Beside::Nothing {
            let copied = (0..).zip(&segments).filter(|(_, s)| s.action != Action::Merge);
            let copied: Vec<u32> = copied.map(|(segment, _)| segment).collect();
            let merged = units.iter().flat_map(|unit| &unit.segments).copied();
            for (segment, number) in copied.into_iter().chain(merged).zip(0..) {
                segments[segment as usize].frames = Some(number);
            }
        }
        solve::settle(&mut segments, &units, &inputs.labels, means.statistics)?;
        let budget = demand::divide(recipe, inputs, &mut segments, &units, method, means)?;
        let runs = runs(&segments, &units, budget.tile_elements);
        let mut warnings = alignment.warnings.clone();
        warnings.extend(recipe.idle_filters(&merged));
        warnings.extend(coefficients.warnings);
        for warning in inputs.catalogs().chain(&inputs.evidence).flat_map(|c| &c.warnings) {
            // Models with adapters may share one.
            if !warnings.contains(warning) {
                warnings.push(warning.clone());
            }
        }
        warnings.extend(layout.warnings.iter().cloned());
        Ok(Self {
            method: recipe.describe(),
            has_base: inputs.has_base,
            named: (inputs.catalogs.len(), inputs.evidence_kind.map_or("", Evidence::key)),
            labels: inputs.labels.clone(),
            tensors,
            layout,
            segments,
            units,
            runs,
            budget,
            adapters: inputs.adapters(),
            ties,
            missing: alignment.missing,
            extra: alignment.extra,
            layers: match &origins {
                Origins::Whole(_) => None,
                Origins::Sliced(sliced) => Layers::new(sliced, inputs),
            },
            warnings,
        })
    }

    /// Names of the models besides the base.
    pub fn experts(&self) -> &[String] {
        &self.labels[usize::from(self.has_base)..self.named.0]
    }

    /// What was measured of the models: as recipes call it, and the names.
    pub fn evidence(&self) -> Option<(&'static str, &[String])> {
        let (models, key) = self.named;
        let names = self.labels.get(models..)?;
        (!names.is_empty()).then_some((key, names))
    }

    /// What the method is told about a unit.
    pub fn view(&self, unit: u32) -> &Arc<UnitView> {
        &self.units[unit as usize].view
    }

    /// A number of elements of the listed segments, laid end to end, rounded down so that none are parted that must meet
    /// ([`Segment::cut`]), but to more than `from`.
    pub fn aligned(&self, segments: &[u32], from: u64, elements: u64) -> u64 {
        let (mut before, mut to) = (0, from);
        for segment in segments.iter().map(|&s| &self.segments[s as usize]) {
            let (cut, end) = (segment.cut(), before + segment.elements);
            if end > from {
                let inside = elements.saturating_sub(before) / cut * cut;
                to = to.max(if elements < end { before + inside } else { end });
                if to == from {
                    let next = from.saturating_sub(before) / cut + 1;
                    to = end.min(before + next * cut);
                }
            }
            if end >= elements {
                break;
            }
            before = end;
        }
        to
    }

    /// The segments that frames are kept or read of, in the order of the frames: as they are written.
    pub fn framed(&self) -> Vec<&Segment> {
        let mut framed: Vec<&Segment> =
            self.segments.iter().filter(|segment| segment.frames.is_some()).collect();
        framed.sort_unstable_by_key(|segment| segment.frames);
        framed
    }

    /// Segments of a unit.
    pub fn unit_segments(&self, unit: u32) -> &[u32] {
        &self.units[unit as usize].segments
    }

    /// Elements of the listed segments.
    pub fn elements(&self, segments: &[u32]) -> u64 {
        segments.iter().map(|&s| self.segments[s as usize].elements).sum()
    }

    /// For the first `elements` elements of the listed segments, laid end to end: how many lie in each.
    pub fn first<'a>(
        &'a self,
        segments: &'a [u32],
        elements: u64,
    ) -> impl Iterator<Item = (&'a Segment, u64)> + 'a {
        let mut left = elements;
        segments.iter().map(move |&s| {
            let segment = &self.segments[s as usize];
            let covered = segment.elements.min(left);
            left -= covered;
            (segment, covered)
        })
    }

    /// Bytes that solving for a unit reads.
    pub fn solve_bytes(&self, unit: u32) -> u64 {
        self.unit_segments(unit).iter().map(|&s| self.segments[s as usize].solve_bytes()).sum()
    }

    /// Bytes that one read of the listed segments takes, over all inputs.
    pub fn input_bytes(&self, segments: &[u32]) -> u64 {
        segments.iter().map(|&s| self.segments[s as usize].input_bytes()).sum()
    }
}

fn out_tensors(recipe: &Recipe, alignment: &Alignment<'_>) -> Vec<OutTensor> {
    let wanted = match recipe.dtype {
        OutputDtype::Keep => None,
        OutputDtype::Bf16 => Some(Dtype::BF16),
        OutputDtype::F16 => Some(Dtype::F16),
        OutputDtype::F32 => Some(Dtype::F32),
    };
    let tensor = |aligned: &align::Aligned<'_>| {
        let copied = matches!(aligned.parts[..], [Part { action: Action::Copy { .. }, .. }]);
        let dtype = match (aligned.lent.model_dtype(), wanted) {
            (DType::Known(_), Some(wanted)) if !copied => DType::Known(wanted),
            (dtype, _) => dtype.clone(),
        };
        OutTensor { name: aligned.name.clone(), dtype, shape: shape(aligned) }
    };
    alignment.tensors.iter().map(tensor).collect()
}

/// The donor's shape, with as many rows as the output has tokens where these have rows.
fn shape(aligned: &align::Aligned<'_>) -> Box<[u64]> {
    let mut shape = aligned.lent.shape.clone();
    if let ([part], [rows, row @ ..]) = (&aligned.parts[..], &mut *shape)
        && part.sources.iter().any(|source| source.rows.is_some())
    {
        *rows = part.elements / row.iter().product::<u64>().max(1);
    }
    shape
}

/// The segments in output order. They take the parts of the tensors: a plan of a large model is no small thing.
fn segments(alignment: &mut Alignment<'_>, tensors: &[OutTensor], layout: &Layout) -> Vec<Segment> {
    let mut segments = Vec::with_capacity(tensors.len());
    for (shard, placed) in
        layout.shards.iter().enumerate().flat_map(|(k, s)| s.tensors.iter().map(move |p| (k, p)))
    {
        let float = tensors[placed.index].dtype.known().and_then(Float::from_dtype);
        let mut first = 0;
        let mut offset = placed.offset;
        for part in std::mem::take(&mut alignment.tensors[placed.index].parts) {
            let (out, out_size) = match (part.action, float) {
                (Action::Copy { .. }, _) | (_, None) => (Float::F8E4M3, 1),
                (_, Some(float)) => (float, float.size() as u32),
            };
            if part.elements > 0 {
                segments.push(Segment {
                    tensor: placed.index as u32,
                    first,
                    action: part.action,
                    elements: part.elements,
                    sources: part.sources.into(),
                    told: part.told,
                    grain: 1,
                    frames: None,
                    place: 0,
                    out,
                    out_size,
                    shard: shard as u32,
                    offset,
                });
            }
            first += part.elements;
            offset += part.elements * u64::from(out_size);
        }
    }
    segments
}

/// The tensors that are merged, with their parameters; equal parameters are stored once.
fn views(
    recipe: &Recipe,
    segments: &[Segment],
    alignment: &Alignment<'_>,
    coefficients: &Matched<'_>,
) -> Result<Vec<Merged>, RecipeError> {
    let mut known: HashMap<String, Arc<Values>> = HashMap::new();
    let mut views = Vec::new();
    for (i, segment) in (0..).zip(segments).filter(|(_, s)| s.action == Action::Merge) {
        let tensor = &alignment.tensors[segment.tensor as usize];
        let values = recipe.values(Place {
            tensor: &tensor.name,
            t: tensor.t,
            coefficients: coefficients.get(&tensor.name),
            slice: tensor.slice,
            names: &tensor.names,
        })?;
        let values = known.entry(format!("{values:?}")).or_insert_with(|| Arc::new(values)).clone();
        let mut shape: Box<[u64]> = (*tensor.lent.shape).into();
        if let [rows, row @ ..] = &mut *shape {
            *rows = segment.elements / row.iter().product::<u64>().max(1);
        }
        let (name, elements) = (Arc::from(&*tensor.name), segment.elements);
        views.push(Merged {
            segment: i,
            checkpoints: Arc::clone(&tensor.checkpoints),
            tensor: TensorView { name, shape, elements, first: 0, values },
        });
    }
    Ok(views)
}

/// Copies first, since they can fail; then units in output order, small neighbours together.
fn runs(segments: &[Segment], units: &[Unit], tile: u32) -> Vec<Run> {
    let mut runs = Vec::new();
    let copies: Vec<u32> = (0..segments.len() as u32)
        .filter(|&i| segments[i as usize].action != Action::Merge)
        .collect();
    if !copies.is_empty() {
        runs.push(Run::Copies(copies));
    }
    for (i, unit) in units.iter().enumerate() {
        let solved = unit.segments.iter().any(|&s| segments[s as usize].solve().is_some());
        if solved {
            runs.push(Run::Solved(i as u32));
            continue;
        }
        let whole = unit.segments.len() == 1 && unit.view.elements <= u64::from(tile);
        match (whole, runs.last_mut()) {
            (true, Some(Run::Whole(run))) => run.push(i as u32),
            (true, _) => runs.push(Run::Whole(vec![i as u32])),
            (false, _) => runs.push(Run::Streamed(i as u32)),
        }
    }
    runs
}
