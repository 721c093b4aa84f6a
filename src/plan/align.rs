//! Decides what happens to each tensor of the output, and whether what it is made of fits together.

use std::sync::Arc;

use safetensors::Dtype;

use super::evidence::Told;
use super::inputs::Inputs;
use super::low_rank::LowRank;
use super::origin::{Origin, Origins, Source};
use super::problem::{Problem, Problems};
use super::{Action, PlanError, SourceRef, evidence, select::Selection};
use crate::checkpoint::{Catalog, TensorInfo};
use crate::kernel::Float;
use crate::recipe::{Missing, Named, Recipe, Vocab};

/// One tensor of the output: where its parts come from.
#[derive(Clone, Debug)]
pub(super) struct Aligned<'a> {
    /// Its name in the output.
    pub name: Box<str>,
    /// The donor's tensor, which says of what type and shape it is.
    pub lent: &'a TensorInfo,
    /// The slice it belongs to.
    pub slice: usize,
    /// Its position along gradients.
    pub t: f64,
    /// The checkpoints that meet in it, the base first if there is one.
    pub checkpoints: Arc<[u32]>,
    /// Its names in the models besides the base; none if they are all the same.
    pub names: Box<[Box<str>]>,
    /// Runs of elements from the start of the tensor, without gaps.
    pub parts: Vec<Part>,
}

impl Aligned<'_> {
    /// By its names.
    pub(super) fn named(&self) -> Named<'_> {
        Named { output: &self.name, slice: self.slice, inputs: &self.names }
    }
}

/// A run of elements of one tensor that is treated alike.
#[derive(Clone, Debug)]
pub struct Part {
    /// What is done with it.
    pub action: Action,
    /// Number of elements (bytes, for [`Action::Copy`]).
    pub elements: u64,
    /// For [`Action::Merge`] all that take part in order, then what weighs each of them; else the donor, and those that
    /// must agree with it.
    pub sources: Vec<SourceRef>,
    /// What was measured of the models besides.
    pub told: Told,
}

/// The outcome of matching all tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Alignment<'a> {
    /// The output's tensors, by name.
    pub tensors: Vec<Aligned<'a>>,
    /// Names of tensors that some expert lacks and that count as unchanged there.
    pub missing: Vec<(String, String)>,
    /// Names of tensors that the base lacks and that are left out: (expert, tensor).
    pub extra: Vec<(String, String)>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Matches all tensors.
///
/// # Errors
/// [`PlanError::Inconsistent`] with everything that does not match, unless the recipe says how
/// to go on.
pub(super) fn align<'a>(
    recipe: &Recipe,
    inputs: &Inputs,
    origins: &Origins<'a>,
    selection: &Selection,
) -> Result<Alignment<'a>, PlanError> {
    let mut found = Alignment::default();
    let mut problems = Problems::default();
    let mut lineups: Vec<Arc<[u32]>> = Vec::new();
    let matcher = Matcher { recipe, inputs, selection };
    for origin in origins.iter() {
        let parts = matcher.parts(&origin, &mut found, &mut problems);
        let rows = &origin.sources[usize::from(inputs.has_base)..];
        let moved = rows.iter().any(|source| source.name != origin.name);
        let names = rows.iter().filter(|_| moved).map(|source| Box::from(&*source.name)).collect();
        let checkpoints = origin.sources.iter().map(|source| source.checkpoint as u32);
        // Neighbours have the same.
        let known = lineups.iter().rposition(|known| known.iter().copied().eq(checkpoints.clone()));
        let known = known.unwrap_or_else(|| {
            lineups.push(checkpoints.collect());
            lineups.len() - 1
        });
        let checkpoints = Arc::clone(&lineups[known]);
        let Origin { name, lent, slice, t, .. } = origin;
        let name = name.into_owned().into_boxed_str();
        found.tensors.push(Aligned { name, lent, slice, t, checkpoints, names, parts });
    }
    matcher.extras(origins, &mut found, &mut problems);
    matcher.mixed_types(&mut found.warnings);
    evidence::tell(inputs, &found.tensors, &mut found.warnings, &mut problems);
    problems.into_result()?;
    let moved = |aligned: &Aligned<'_>| {
        aligned.parts.iter().flat_map(|part| &part.sources).any(|source| source.rows.is_some())
    };
    if inputs.vocabulary.is_some() && !found.tensors.iter().any(moved) {
        return Err(PlanError::NoTable);
    }
    Ok(found)
}

pub(super) struct Matcher<'a> {
    pub(super) recipe: &'a Recipe,
    pub(super) inputs: &'a Inputs,
    selection: &'a Selection,
}

impl Matcher<'_> {
    fn parts(
        &self,
        origin: &Origin<'_>,
        found: &mut Alignment<'_>,
        problems: &mut Problems,
    ) -> Vec<Part> {
        let float = origin.lent.dtype.known().and_then(Float::from_dtype);
        let merges = self.selection.merges(&origin.name);
        if let Some(part) = self.table(origin, merges, found, problems) {
            return vec![part];
        }
        match float {
            _ if !self.selection.merges(&origin.name) => vec![self.unmerged(origin, float)],
            Some(float) if !self.block_scaled(origin) => {
                self.merged(origin, float, found, problems)
            }
            _ => vec![self.copied(origin, problems)],
        }
    }

    /// A tensor that the recipe excludes: the base's, converted if the output type asks for it.
    fn unmerged(&self, origin: &Origin<'_>, float: Option<Float>) -> Part {
        match float {
            Some(float) => Part {
                action: Action::Convert,
                elements: origin.lent.elements(),
                sources: vec![self.lent(origin, float)],
                told: Told::Nothing,
            },
            None => Self::raw(origin, vec![self.lent(origin, Float::F8E4M3)], false),
        }
    }

    /// A tensor that is not a plain float: the base's bytes, if all models agree on them.
    fn copied(&self, origin: &Origin<'_>, problems: &mut Problems) -> Part {
        let base = origin.lent;
        let mut sources = vec![self.lent(origin, Float::F8E4M3)];
        for source in origin.others() {
            match source.tensor {
                Some(other) if other.shape == base.shape && other.dtype == base.dtype => {
                    sources.push(self.source(source.checkpoint, other, Float::F8E4M3));
                }
                Some(other) => problems.push(self.not_mergeable(origin, source, other)),
                None if self.recipe.missing == Missing::Base => {}
                None => problems.push(self.missing(source)),
            }
        }
        Self::raw(origin, sources, true)
    }

    fn raw(origin: &Origin<'_>, sources: Vec<SourceRef>, check: bool) -> Part {
        Part {
            action: Action::Copy { check },
            elements: origin.lent.len,
            sources,
            told: Told::Nothing,
        }
    }

    fn merged(
        &self,
        origin: &Origin<'_>,
        float: Float,
        found: &mut Alignment<'_>,
        problems: &mut Problems,
    ) -> Vec<Part> {
        let base = origin.lent;
        let mut sources = Vec::with_capacity(origin.sources.len());
        let mut common = base.elements();
        for (at, source) in origin.sources.iter().enumerate() {
            if at == origin.donor {
                sources.push(self.lent(origin, float));
                continue;
            }
            let Some(other) = source.tensor else {
                if self.recipe.missing == Missing::Base {
                    let label = self.label(source.checkpoint);
                    found.missing.push((label, source.name.to_string()));
                    sources.push(self.lent(origin, float));
                } else {
                    problems.push(self.missing(source));
                }
                continue;
            };
            let Some(other_float) = other.dtype.known().and_then(Float::from_dtype) else {
                problems.push(self.not_mergeable(origin, source, other));
                continue;
            };
            sources.push(self.source(source.checkpoint, other, other_float));
            if other.shape == base.shape {
                continue;
            }
            let vocabulary = self.is_vocabulary(origin, other);
            if vocabulary && self.recipe.vocab == Vocab::Common {
                let (rows, columns) = (base.shape[0].min(other.shape[0]), row_len(base));
                common = common.min(rows * columns);
                found.warnings.push(format!(
                    "{}: {} has {} rows and the base {}; the {rows} rows both have are merged, \
                     the output keeps the base's rows",
                    origin.name,
                    self.label(source.checkpoint),
                    other.shape[0],
                    base.shape[0],
                ));
            } else {
                problems.push(Problem::Shape {
                    tensor: origin.name.to_string(),
                    base: base.shape.to_vec(),
                    expert: self.label(source.checkpoint),
                    other: other.shape.to_vec(),
                    vocabulary,
                });
            }
        }
        let told = evidence::match_up(self.inputs, origin, &mut sources, problems);
        self.split(origin, float, common, sources, told)
    }

    /// The part that all models have, and the base's tail.
    fn split(
        &self,
        origin: &Origin<'_>,
        float: Float,
        common: u64,
        sources: Vec<SourceRef>,
        told: Told,
    ) -> Vec<Part> {
        let total = origin.lent.elements();
        let mut tail = self.lent(origin, float);
        tail.offset += common * float.size() as u64;
        let merged = Part { action: Action::Merge, elements: common, sources, told };
        let sources = vec![tail];
        let kept = Part {
            action: Action::Convert,
            elements: total - common,
            sources,
            told: Told::Nothing,
        };
        [merged, kept].into_iter().filter(|part| part.elements > 0).collect()
    }

    fn extras(&self, origins: &Origins<'_>, found: &mut Alignment<'_>, problems: &mut Problems) {
        for extra in origins.extra() {
            if !self.selection.merges(&extra.output) {
                continue;
            }
            let (expert, tensor) = (self.label(extra.checkpoint), extra.name.to_owned());
            match self.recipe.missing {
                Missing::Base => found.extra.push((expert, tensor)),
                Missing::Error => problems.push(Problem::Extra { expert, tensor }),
            }
        }
    }

    fn mixed_types(&self, warnings: &mut Vec<String>) {
        let dominant = |catalog: &Catalog| {
            let mut bytes: Vec<(Dtype, u64)> = Vec::new();
            for tensor in &catalog.tensors {
                let Some(dtype) = tensor.model_dtype().known() else { continue };
                match bytes.iter_mut().find(|(d, _)| *d == dtype) {
                    Some((_, sum)) => *sum += tensor.len,
                    None => bytes.push((dtype, tensor.len)),
                }
            }
            bytes.into_iter().max_by_key(|&(_, sum)| sum).map(|(dtype, _)| dtype)
        };
        let base = dominant(self.inputs.donor());
        for (e, expert) in self.inputs.others() {
            let other = dominant(expert);
            if let (Some(base), Some(other), true) = (base, other, self.inputs.has_base)
                && base != other
            {
                warnings.push(format!(
                    "{} is stored as {other:?} and {} as {base:?}; rounding differences between the \
                     two count as changes of the expert",
                    self.label(e),
                    self.label(self.inputs.donor),
                ));
            }
        }
    }

    pub(super) fn missing(&self, source: &Source<'_>) -> Problem {
        Problem::Missing { expert: self.label(source.checkpoint), tensor: source.name.to_string() }
    }

    fn not_mergeable(
        &self,
        origin: &Origin<'_>,
        source: &Source<'_>,
        other: &TensorInfo,
    ) -> Problem {
        Problem::NotMergeable {
            tensor: origin.name.to_string(),
            dtype: origin.lent.dtype.to_string(),
            expert: self.label(source.checkpoint),
            other: format!("{} {:?}", other.dtype, other.shape),
        }
    }

    pub(super) fn label(&self, expert: usize) -> String {
        self.inputs.labels[expert].clone()
    }

    /// The donor's part in a tensor.
    fn lent(&self, origin: &Origin<'_>, float: Float) -> SourceRef {
        self.source(origin.lender(), origin.lent, float)
    }

    fn source(&self, checkpoint: usize, tensor: &TensorInfo, float: Float) -> SourceRef {
        let file = |file| self.inputs.file_index(checkpoint, file);
        let low_rank = tensor.adapted.as_ref().and_then(|adapted| adapted.low_rank.as_ref());
        SourceRef {
            checkpoint: checkpoint as u32,
            file: file(tensor.file),
            offset: tensor.offset,
            float,
            low_rank: low_rank.and_then(|of| LowRank::new(of, file)).map(Arc::new),
            rows: None,
        }
    }

    /// Whether the tensor's floats are codes that a scale tensor beside it gives a meaning.
    fn block_scaled(&self, origin: &Origin<'_>) -> bool {
        let (tensor, donor) = (origin.lent, &self.inputs.catalogs[origin.lender()]);
        let is_scale = |name: &str| {
            ["_scale_inv", "_scale", "_scale_2"].iter().any(|end| {
                name.strip_suffix(end)
                    .is_some_and(|stem| donor.get(stem).is_some_and(|t| t.dtype.bits_at_most(8)))
            })
        };
        let has_scale = tensor.dtype.bits_at_most(8)
            && ["_scale_inv", "_scale"]
                .iter()
                .any(|end| donor.get(&format!("{}{end}", tensor.name)).is_some());
        has_scale || is_scale(&tensor.name)
    }

    /// Whether only the number of rows of an embedding-like matrix differs.
    pub(super) fn is_vocabulary(&self, origin: &Origin<'_>, other: &TensorInfo) -> bool {
        let base = origin.lent;
        let (Some(&rows), Some(_)) = (base.shape.first(), other.shape.first()) else {
            return false;
        };
        let named = [
            "embed_tokens",
            "lm_head",
            "wte",
            "embed_in",
            "embed_out",
            "shared",
            "word_embeddings",
        ]
        .iter()
        .any(|part| base.name.split('.').any(|component| component == *part));
        let configured =
            self.inputs.catalogs[origin.lender()].config.as_ref().is_some_and(|config| {
                let size =
                    |c: &serde_json::Value| c.get("vocab_size").and_then(serde_json::Value::as_u64);
                size(config) == Some(rows) || config.get("text_config").and_then(size) == Some(rows)
            });
        base.shape[1..] == other.shape[1..] && (named || configured)
    }
}

pub(super) fn row_len(tensor: &TensorInfo) -> u64 {
    tensor.shape[1..].iter().product()
}
