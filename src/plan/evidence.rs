//! What was measured of each model, matched with the tensors that it is about.

use std::sync::Arc;

use super::align::Aligned;
use super::inputs::Inputs;
use super::origin::Origin;
use super::problem::{Problem, Problems};
use super::solve::Solve;
use super::{Action, SourceRef};
use crate::checkpoint::{Catalog, TensorInfo};
use crate::kernel::Float;
use crate::method::Evidence;

/// How the name of a layer's weight ends.
const WEIGHT: &str = ".weight";

/// Names that are listed in a warning, at most.
const LISTED: usize = 3;

/// What was measured of the models about the elements of a segment.
#[derive(Clone, Debug)]
pub enum Told {
    /// Nothing, or not of every model.
    Nothing,
    /// Weights of their elements: so many of the segment's last sources.
    Weights(u32),
    /// Gram matrices: the segment is solved for.
    Grams(Arc<Solve>),
}

/// Adds weights of each model's elements to its sources, or finds the Gram matrices of their inputs, if there are some
/// for all models.
pub(super) fn match_up(
    inputs: &Inputs,
    origin: &Origin<'_>,
    sources: &mut Vec<SourceRef>,
    problems: &mut Problems,
) -> Told {
    let Some(kind) = inputs.evidence_kind else { return Told::Nothing };
    let models = &origin.sources[usize::from(inputs.has_base)..];
    let measured = models.iter().map(|source| {
        let (at, catalog) = inputs.measured(source.checkpoint)?;
        Some((at, find(kind, catalog, &source.name)?, source.tensor.unwrap_or(origin.lent)))
    });
    let Some(measured) = measured.collect::<Option<Vec<_>>>() else { return Told::Nothing };
    if kind == Evidence::Gram && origin.lent.shape.len() < 2 {
        return Told::Nothing;
    }
    let side =
        measured.first().and_then(|(_, tensor, _)| tensor.shape.first().copied()).unwrap_or(0);
    let mut found = Vec::with_capacity(measured.len());
    for (at, tensor, model) in measured {
        let text = match (kind, tensor.dtype.known().and_then(Float::from_dtype)) {
            (_, None) => format!("{} is {}, and should be of floats", tensor.name, tensor.dtype),
            (Evidence::Fisher, _) if tensor.shape != model.shape => {
                let (shape, wanted) = (&tensor.shape, &model.shape);
                format!("{} is {shape:?}, and {wanted:?} in the model", tensor.name)
            }
            (Evidence::Gram, _) if *tensor.shape != [side, side] => {
                let shape = &tensor.shape;
                format!(
                    "{} is {shape:?}, and should be [{side}, {side}] as that of the first model",
                    tensor.name
                )
            }
            (_, Some(float)) => {
                let file = inputs.file_index(at, tensor.file);
                let (checkpoint, offset) = (at as u32, tensor.offset);
                found.push(SourceRef {
                    checkpoint,
                    file,
                    offset,
                    float,
                    low_rank: None,
                    rows: None,
                });
                continue;
            }
        };
        problems.push(Problem::Evidence { file: inputs.labels[at].clone(), text });
        return Told::Nothing;
    }
    match kind {
        Evidence::Fisher => {
            let weights = found.len() as u32;
            sources.extend(found);
            Told::Weights(weights)
        }
        Evidence::Gram => Told::Grams(Arc::new(Solve::new(found, side))),
    }
}

/// What was measured about a tensor of that name. Gram matrices may have the name of the layer, too.
fn find<'a>(kind: Evidence, catalog: &'a Catalog, name: &str) -> Option<&'a TensorInfo> {
    let layer = || catalog.get(name.strip_suffix(WEIGHT)?);
    catalog.get(name).or_else(|| if kind == Evidence::Gram { layer() } else { None })
}

/// Says which tensors are merged without what was measured, and what of it is about none.
pub(super) fn tell(
    inputs: &Inputs,
    tensors: &[Aligned<'_>],
    warnings: &mut Vec<String>,
    problems: &mut Problems,
) {
    let Some(kind) = inputs.evidence_kind else { return };
    let key = kind.key();
    let (mut merged, mut bare) = (0, Vec::new());
    for tensor in tensors {
        let Some(part) = tensor.parts.iter().find(|part| part.action == Action::Merge) else {
            continue;
        };
        merged += 1;
        if matches!(part.told, Told::Nothing) {
            bare.push(&*tensor.name);
        }
    }
    for (catalog, label) in inputs.evidence.iter().zip(&inputs.labels[inputs.catalogs.len()..]) {
        let is_there = |name: &str| tensors.binary_search_by(|t| (*t.name).cmp(name)).is_ok();
        let is_known = |name: &str| {
            is_there(name) || kind == Evidence::Gram && is_there(&format!("{name}{WEIGHT}"))
        };
        let names = catalog.tensors.iter().map(|tensor| &*tensor.name);
        let idle: Vec<&str> = names.filter(|name| !is_known(name)).collect();
        if idle.len() == catalog.tensors.len() && merged > 0 {
            let text = format!(
                "none of its tensors has the name of one that is merged: it has {}, and the models {}",
                listed(&idle),
                listed(&tensors.iter().map(|tensor| &*tensor.name).collect::<Vec<_>>()),
            );
            problems.push(Problem::Evidence { file: label.clone(), text });
        } else if !idle.is_empty() {
            let (count, names) = (idle.len(), listed(&idle));
            warnings.push(format!(
                "{label}: {count} of its tensors are about none of the models': {names}"
            ));
        }
    }
    if !bare.is_empty() {
        let (count, names) = (bare.len(), listed(&bare));
        warnings.push(format!(
            "{count} of {merged} tensors have no {key} for every model, and are the plain mean: {names}"
        ));
    }
}

/// A few names, and the number of the others.
fn listed(names: &[&str]) -> String {
    let shown = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
