//! Tied weights: one parameter stored under two names is merged once and counted once.
//!
//! Formats cannot express aliases, so a checkpoint may hold a tied output head as a copy of the
//! embedding, or leave it out. Which pairs *may* be tied follows from config and names; whether
//! they *are* is a matter of bytes, which the caller compares.

use serde_json::Value;

use super::inputs::Inputs;
use crate::checkpoint::{Catalog, CheckpointError, TensorInfo};

/// A tensor that may be a copy of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The name that may be an alias, such as `lm_head.weight`.
    pub name: String,
    /// The name of the tensor it may be a copy of, such as `model.embed_tokens.weight`.
    pub of: String,
}

/// What was decided about a candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tie {
    /// Equal wherever both are stored: merged and counted once, not stored under this name.
    Alias(Candidate),
    /// Different in some checkpoint: a tensor of its own. Checkpoints without it lend it their
    /// embedding, and the output's config says that it is not tied.
    Untied(Candidate),
}

impl Tie {
    /// Whether an output head that the config calls tied is not.
    pub fn unties_head(&self) -> bool {
        let is_head = |name: &str| HEADS.iter().any(|head| ends_with_component(name, head));
        matches!(self, Tie::Untied(candidate) if is_head(&candidate.name))
    }
}

const HEADS: [&str; 2] = ["lm_head.weight", "embed_out.weight"];
const EMBEDDINGS: [&str; 6] = [
    "embed_tokens.weight",
    "wte.weight",
    "shared.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
];
/// Copies of `shared.weight` that encoder-decoder checkpoints store, whatever the config says.
const SHARED: [&str; 2] = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"];

/// Pairs of names that may be tied, and are stored together in at least one checkpoint.
pub fn candidates(inputs: &Inputs) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut consider = |name: &str, of: &str| {
        let both = inputs.catalogs().any(|c| pair(c, name, of).is_some());
        let candidate = Candidate { name: name.to_owned(), of: of.to_owned() };
        if both && name != of && !found.contains(&candidate) {
            found.push(candidate);
        }
    };
    for name in SHARED {
        consider(name, "shared.weight");
    }
    if inputs.donor().config.as_ref().is_some_and(tied_by_config) {
        let named = |ends: &'static [&'static str]| {
            inputs
                .catalogs()
                .flat_map(|catalog| &catalog.tensors)
                .map(|tensor| &*tensor.name)
                .filter(move |name| ends.iter().any(|end| ends_with_component(name, end)))
        };
        for head in named(&HEADS) {
            for embedding in named(&EMBEDDINGS).filter(|name| !SHARED.contains(name)) {
                consider(head, embedding);
            }
        }
    }
    found
}

/// Applies to a tied output head what an adapter does to the embedding that it is a copy of: they are one parameter.
///
/// # Errors
/// If the adapter changes the head: whoever loads the model would see the embedding changed, too.
pub fn share_adapter(catalog: &mut Catalog, candidate: &Candidate) -> Result<(), CheckpointError> {
    let product = |tensor: &TensorInfo| Some(tensor.adapted.as_ref()?.low_rank.is_some());
    let Some((head, embedding)) = pair(catalog, &candidate.name, &candidate.of) else {
        return Ok(());
    };
    if head.adapted.is_some() && product(head) == Some(true) {
        return Err(CheckpointError::File {
            path: catalog.adapter.clone().unwrap_or_default(),
            reason: format!(
                "changes {}, which the model's config ties to {}; merge the adapter into its model with PEFT \
                 (merge_and_unload), and name the result instead",
                candidate.name, candidate.of
            ),
        });
    }
    let adapted = embedding.adapted.clone().filter(|adapted| adapted.low_rank.is_some());
    let at = catalog.tensors.partition_point(|t| *t.name < *candidate.name);
    if let (Some(adapted), Some(head)) = (adapted, catalog.tensors.get_mut(at))
        && head.adapted.is_none()
    {
        head.adapted = Some(adapted);
    }
    Ok(())
}

/// The two tensors of a candidate in one checkpoint, if it has both in the same form.
pub fn pair<'a>(
    catalog: &'a Catalog,
    name: &str,
    of: &str,
) -> Option<(&'a TensorInfo, &'a TensorInfo)> {
    let (head, embedding) = (catalog.get(name)?, catalog.get(of)?);
    (head.shape == embedding.shape && head.dtype == embedding.dtype).then_some((head, embedding))
}

/// Applies a decision to the catalogs, so that matching by name does the rest.
pub fn apply(inputs: &mut Inputs, tie: &Tie) {
    for catalog in &mut inputs.catalogs {
        match tie {
            Tie::Alias(candidate) => catalog.tensors.retain(|t| *t.name != *candidate.name),
            Tie::Untied(candidate) => lend(catalog, candidate),
        }
    }
    if let Tie::Alias(candidate) = tie {
        inputs.evidence.iter_mut().for_each(|measured| rename(measured, candidate));
    }
}

/// Has what was measured of a tied tensor under its other name, or that of its layer, only under the name that is kept.
fn rename(measured: &mut Catalog, candidate: &Candidate) {
    let layer = |name: &str| name.strip_suffix(".weight").unwrap_or(name).to_owned();
    let aliases = [candidate.name.clone(), layer(&candidate.name)];
    let own = aliases.iter().find_map(|name| measured.get(name).cloned());
    measured.tensors.retain(|t| !aliases.iter().any(|name| *t.name == **name));
    let known = measured.get(&candidate.of).or_else(|| measured.get(&layer(&candidate.of)));
    if let (Some(own), None) = (own, known) {
        let at = measured.tensors.partition_point(|t| *t.name < *candidate.of);
        measured.tensors.insert(at, TensorInfo { name: candidate.of.as_str().into(), ..own });
    }
}

/// Lists the embedding under the head's name too, where there is no head.
fn lend(catalog: &mut Catalog, candidate: &Candidate) {
    if catalog.get(&candidate.name).is_some() {
        return;
    }
    let Some(embedding) = catalog.get(&candidate.of) else { return };
    let copy = TensorInfo { name: candidate.name.as_str().into(), ..embedding.clone() };
    let at = catalog.tensors.partition_point(|t| *t.name < *copy.name);
    catalog.tensors.insert(at, copy);
}

/// Whether a config asks for tied embeddings, itself or for its text model.
pub fn tied_by_config(config: &Value) -> bool {
    let says = |c: &Value| c.get("tie_word_embeddings").and_then(Value::as_bool);
    says(config).or_else(|| config.get("text_config").and_then(says)).unwrap_or(false)
}

fn ends_with_component(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|stem| stem.is_empty() || stem.ends_with('.'))
}
