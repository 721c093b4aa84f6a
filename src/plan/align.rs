//! Matches the tensors of base and experts by name and decides what happens to each.

use safetensors::Dtype;

use super::problem::{Problem, Problems};
use super::{Action, PlanError, SourceRef, select::Selection};
use crate::checkpoint::{Catalog, TensorInfo};
use crate::kernel::Float;
use crate::recipe::{Missing, Recipe, Vocab};

/// All checkpoints of a merge, opened, with the names they go by in messages.
pub struct Inputs {
    /// The base first, if experts are seen relative to one; then the models, in recipe order.
    pub catalogs: Vec<Catalog>,
    /// Whether the first is the base.
    pub has_base: bool,
    /// The one that lends names, shapes, config and tensors that are not merged: the base, if there
    /// is one.
    pub donor: usize,
    /// Display names, in the order of `catalogs`.
    pub labels: Vec<String>,
}

impl Inputs {
    /// All checkpoints, in order.
    pub fn catalogs(&self) -> impl Iterator<Item = &Catalog> {
        self.catalogs.iter()
    }

    /// The checkpoint that lends what is not merged.
    pub fn donor(&self) -> &Catalog {
        &self.catalogs[self.donor]
    }

    /// All others, with their positions.
    fn others(&self) -> impl Iterator<Item = (usize, &Catalog)> {
        self.catalogs.iter().enumerate().filter(|&(at, _)| at != self.donor)
    }

    /// Position of a file of checkpoint `checkpoint` among the files of all.
    pub fn file_index(&self, checkpoint: usize, file: u32) -> u32 {
        self.catalogs().take(checkpoint).map(|c| c.files.len() as u32).sum::<u32>() + file
    }
}

/// One tensor of the output: where its parts come from.
#[derive(Clone, Debug)]
pub(super) struct Aligned {
    /// Index into the donor's catalog.
    pub index: usize,
    /// Runs of elements from the start of the tensor, without gaps.
    pub parts: Vec<Part>,
}

/// A run of elements of one tensor that is treated alike.
#[derive(Clone, Debug)]
pub struct Part {
    /// What is done with it.
    pub action: Action,
    /// Number of elements (bytes, for [`Action::Copy`]).
    pub elements: u64,
    /// For [`Action::Merge`] all checkpoints in order; else the donor, and those that must agree with it.
    pub sources: Vec<SourceRef>,
}

/// The outcome of matching all tensors.
#[derive(Clone, Debug, Default)]
pub(super) struct Alignment {
    /// The output's tensors, in the donor's name order.
    pub tensors: Vec<Aligned>,
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
pub(super) fn align(
    recipe: &Recipe,
    inputs: &Inputs,
    selection: &Selection,
) -> Result<Alignment, PlanError> {
    let mut found = Alignment::default();
    let mut problems = Problems::default();
    let matcher = Matcher { recipe, inputs, selection };
    for (index, tensor) in inputs.donor().tensors.iter().enumerate() {
        let parts = matcher.parts(tensor, &mut found, &mut problems);
        found.tensors.push(Aligned { index, parts });
    }
    matcher.extras(&mut found, &mut problems);
    matcher.mixed_types(&mut found.warnings);
    problems.into_result()?;
    Ok(found)
}

struct Matcher<'a> {
    recipe: &'a Recipe,
    inputs: &'a Inputs,
    selection: &'a Selection,
}

impl Matcher<'_> {
    fn parts(
        &self,
        base: &TensorInfo,
        found: &mut Alignment,
        problems: &mut Problems,
    ) -> Vec<Part> {
        let float = base.dtype.known().and_then(Float::from_dtype);
        match float {
            _ if !self.selection.merges(&base.name) => vec![self.unmerged(base, float)],
            Some(float) if !self.block_scaled(base) => self.merged(base, float, found, problems),
            _ => vec![self.copied(base, problems)],
        }
    }

    /// A tensor that the recipe excludes: the base's, converted if the output type asks for it.
    fn unmerged(&self, base: &TensorInfo, float: Option<Float>) -> Part {
        match float {
            Some(float) => Part {
                action: Action::Convert,
                elements: base.elements(),
                sources: vec![self.lent(base, float)],
            },
            None => Self::raw(base, vec![self.lent(base, Float::F8E4M3)], false),
        }
    }

    /// A tensor that is not a plain float: the base's bytes, if all models agree on them.
    fn copied(&self, base: &TensorInfo, problems: &mut Problems) -> Part {
        let mut sources = vec![self.lent(base, Float::F8E4M3)];
        for (e, expert) in self.inputs.others() {
            match expert.get(&base.name) {
                Some(other) if other.shape == base.shape && other.dtype == base.dtype => {
                    sources.push(self.source(e, other, Float::F8E4M3));
                }
                Some(other) => problems.push(Problem::NotMergeable {
                    tensor: base.name.to_string(),
                    dtype: base.dtype.to_string(),
                    expert: self.label(e),
                    other: format!("{} {:?}", other.dtype, other.shape),
                }),
                None if self.recipe.missing == Missing::Base => {}
                None => problems.push(self.missing(e, base)),
            }
        }
        Self::raw(base, sources, true)
    }

    fn raw(base: &TensorInfo, sources: Vec<SourceRef>, check: bool) -> Part {
        Part { action: Action::Copy { check }, elements: base.len, sources }
    }

    fn merged(
        &self,
        base: &TensorInfo,
        float: Float,
        found: &mut Alignment,
        problems: &mut Problems,
    ) -> Vec<Part> {
        let mut sources = vec![(self.inputs.donor, self.lent(base, float))];
        let mut common = base.elements();
        for (e, expert) in self.inputs.others() {
            let Some(other) = expert.get(&base.name) else {
                if self.recipe.missing == Missing::Base {
                    found.missing.push((self.label(e), base.name.to_string()));
                    sources.push((e, self.lent(base, float)));
                } else {
                    problems.push(self.missing(e, base));
                }
                continue;
            };
            let Some(other_float) = other.dtype.known().and_then(Float::from_dtype) else {
                problems.push(Problem::NotMergeable {
                    tensor: base.name.to_string(),
                    dtype: base.dtype.to_string(),
                    expert: self.label(e),
                    other: format!("{} {:?}", other.dtype, other.shape),
                });
                continue;
            };
            sources.push((e, self.source(e, other, other_float)));
            if other.shape == base.shape {
                continue;
            }
            let vocabulary = self.is_vocabulary(base, other);
            if vocabulary && self.recipe.vocab == Vocab::Common {
                let (rows, columns) = (base.shape[0].min(other.shape[0]), row_len(base));
                common = common.min(rows * columns);
                found.warnings.push(format!(
                    "{}: {} has {} rows and the base {}; the {rows} rows both have are merged, \
                     the output keeps the base's rows",
                    base.name,
                    self.label(e),
                    other.shape[0],
                    base.shape[0],
                ));
            } else {
                problems.push(Problem::Shape {
                    tensor: base.name.to_string(),
                    base: base.shape.to_vec(),
                    expert: self.label(e),
                    other: other.shape.to_vec(),
                    vocabulary,
                });
            }
        }
        // Lent tensors stand where their checkpoint stands.
        sources.sort_by_key(|source: &(usize, SourceRef)| source.0);
        let sources = sources.into_iter().map(|(_, source)| source).collect();
        self.split(base, float, common, sources)
    }

    /// The part that all models have, and the base's tail.
    fn split(
        &self,
        base: &TensorInfo,
        float: Float,
        common: u64,
        sources: Vec<SourceRef>,
    ) -> Vec<Part> {
        let total = base.elements();
        let mut tail = self.lent(base, float);
        tail.offset += common * float.size() as u64;
        let merged = Part { action: Action::Merge, elements: common, sources };
        let kept = Part { action: Action::Convert, elements: total - common, sources: vec![tail] };
        [merged, kept].into_iter().filter(|part| part.elements > 0).collect()
    }

    fn extras(&self, found: &mut Alignment, problems: &mut Problems) {
        for (e, expert) in self.inputs.others() {
            for tensor in &expert.tensors {
                if self.inputs.donor().get(&tensor.name).is_some()
                    || !self.selection.merges(&tensor.name)
                {
                    continue;
                }
                if self.recipe.missing == Missing::Base {
                    found.extra.push((self.label(e), tensor.name.to_string()));
                } else {
                    problems.push(Problem::Extra {
                        expert: self.label(e),
                        tensor: tensor.name.to_string(),
                    });
                }
            }
        }
    }

    fn mixed_types(&self, warnings: &mut Vec<String>) {
        let dominant = |catalog: &Catalog| {
            let mut bytes: Vec<(Dtype, u64)> = Vec::new();
            for tensor in &catalog.tensors {
                let Some(dtype) = tensor.dtype.known() else { continue };
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

    fn missing(&self, expert: usize, base: &TensorInfo) -> Problem {
        Problem::Missing { expert: self.label(expert), tensor: base.name.to_string() }
    }

    fn label(&self, expert: usize) -> String {
        self.inputs.labels[expert].clone()
    }

    /// The donor's part in a tensor.
    fn lent(&self, tensor: &TensorInfo, float: Float) -> SourceRef {
        self.source(self.inputs.donor, tensor, float)
    }

    fn source(&self, checkpoint: usize, tensor: &TensorInfo, float: Float) -> SourceRef {
        let file = self.inputs.file_index(checkpoint, tensor.file);
        SourceRef { checkpoint: checkpoint as u32, file, offset: tensor.offset, float }
    }

    /// Whether the tensor's floats are codes that a scale tensor beside it gives a meaning.
    fn block_scaled(&self, tensor: &TensorInfo) -> bool {
        let is_scale = |name: &str| {
            ["_scale_inv", "_scale", "_scale_2"].iter().any(|end| {
                name.strip_suffix(end).is_some_and(|stem| {
                    self.inputs.donor().get(stem).is_some_and(|t| t.dtype.bits_at_most(8))
                })
            })
        };
        let has_scale = tensor.dtype.bits_at_most(8)
            && ["_scale_inv", "_scale"]
                .iter()
                .any(|end| self.inputs.donor().get(&format!("{}{end}", tensor.name)).is_some());
        has_scale || is_scale(&tensor.name)
    }

    /// Whether only the number of rows of an embedding-like matrix differs.
    fn is_vocabulary(&self, base: &TensorInfo, other: &TensorInfo) -> bool {
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
        let configured = self.inputs.donor().config.as_ref().is_some_and(|config| {
            let size =
                |c: &serde_json::Value| c.get("vocab_size").and_then(serde_json::Value::as_u64);
            size(config) == Some(rows) || config.get("text_config").and_then(size) == Some(rows)
        });
        base.shape[1..] == other.shape[1..] && (named || configured)
    }
}

fn row_len(tensor: &TensorInfo) -> u64 {
    tensor.shape[1..].iter().product()
}
