//! What was measured of each model, matched with the tensors that it is about.

use super::align::Aligned;
use super::inputs::Inputs;
use super::origin::Origin;
use super::problem::{Problem, Problems};
use super::{Action, SourceRef};
use crate::checkpoint::TensorInfo;
use crate::kernel::Float;

/// Names that are listed in a warning, at most.
const LISTED: usize = 3;

/// Adds the weights of each model's elements to its sources, if there are some for all of them; returns how many.
pub(super) fn weigh(
    inputs: &Inputs,
    origin: &Origin<'_>,
    sources: &mut Vec<SourceRef>,
    problems: &mut Problems,
) -> u32 {
    let models = &origin.sources[usize::from(inputs.has_base)..];
    let measured = models.iter().map(|source| {
        let (at, catalog) = inputs.measured(source.checkpoint)?;
        Some((at, catalog.get(&source.name)?, source.tensor))
    });
    let Some(measured) = measured.collect::<Option<Vec<_>>>() else { return 0 };
    for &(at, tensor, model) in &measured {
        if let Some(text) = misfit(tensor, model.unwrap_or(origin.lent)) {
            problems.push(Problem::Evidence { file: inputs.labels[at].clone(), text });
            return 0;
        }
    }
    sources.extend(measured.iter().filter_map(|&(at, tensor, _)| {
        Some(SourceRef {
            checkpoint: at as u32,
            file: inputs.file_index(at, tensor.file),
            offset: tensor.offset,
            float: tensor.dtype.known().and_then(Float::from_dtype)?,
            low_rank: None,
            rows: None,
        })
    }));
    measured.len() as u32
}

/// Why a tensor cannot weigh the elements of another, if it cannot.
fn misfit(tensor: &TensorInfo, model: &TensorInfo) -> Option<String> {
    let (name, dtype) = (&tensor.name, &tensor.dtype);
    if tensor.shape != model.shape {
        let (shape, wanted) = (&tensor.shape, &model.shape);
        return Some(format!("{name} is {shape:?}, and {wanted:?} in the model"));
    }
    let float = dtype.known().and_then(Float::from_dtype);
    float.is_none().then(|| format!("{name} is {dtype}: weights of elements are floats"))
}

/// Says which tensors are merged without what was measured, and what of it is about none.
pub(super) fn told(
    inputs: &Inputs,
    tensors: &[Aligned<'_>],
    warnings: &mut Vec<String>,
    problems: &mut Problems,
) {
    if inputs.evidence.is_empty() {
        return;
    }
    let key = inputs.evidence_key;
    let (mut merged, mut bare) = (0, Vec::new());
    for tensor in tensors {
        let Some(part) = tensor.parts.iter().find(|part| part.action == Action::Merge) else {
            continue;
        };
        merged += 1;
        if part.weights == 0 {
            bare.push(&*tensor.name);
        }
    }
    for (catalog, label) in inputs.evidence.iter().zip(&inputs.labels[inputs.catalogs.len()..]) {
        let is_known = |name: &str| tensors.binary_search_by(|t| (*t.name).cmp(name)).is_ok();
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
