//! Stacks of layers, found in the names of tensors.
//!
//! A layer is all tensors whose names agree up to the first component that is a number, and a stack all
//! layers whose names agree before it: `model.layers.12.mlp.up_proj.weight` is of layer 12 of the stack
//! `model.layers`. Later numbers (experts, for example) are parts of a layer.

use std::collections::BTreeMap;

use crate::checkpoint::{Catalog, TensorInfo, layer_counts};
use crate::method;

/// A stack of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    /// What the names of its tensors have before the number.
    pub(super) prefix: String,
    /// One more than the number of its last layer.
    pub(super) layers: u64,
}

/// Words in the names of towers that feed a text model, or guess ahead of it.
const SIDE: [&str; 11] = [
    "vision",
    "visual",
    "image",
    "audio",
    "speech",
    "video",
    "projector",
    "connector",
    "resampler",
    "mtp",
    "draft",
];

/// All stacks of a checkpoint, by name.
pub(super) fn stacks(catalog: &Catalog) -> Vec<Stack> {
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    for (prefix, number) in catalog.tensors.iter().filter_map(|tensor| place(&tensor.name)) {
        let layers = found.entry(prefix).or_default();
        *layers = (*layers).max(number.saturating_add(1));
    }
    let stack = |(prefix, layers): (&str, u64)| Stack { prefix: prefix.to_owned(), layers };
    found.into_iter().map(stack).collect()
}

/// The stack and the layer of a tensor; nothing outside layers.
pub(super) fn place(tensor: &str) -> Option<(&str, u64)> {
    let layer = method::layer(tensor)?;
    let (prefix, digits) = layer.rsplit_once('.').unwrap_or(("", layer));
    // Another way to write the same number would be another layer.
    let plain = digits == "0" || !digits.starts_with('0');
    digits.parse().ok().filter(|_| plain).map(|number| (prefix, number))
}

/// The stack that slices are about: the text model's, of those whose names are wanted. Where several may be it, config.json decides by its
/// number of layers, and then length does.
///
/// # Errors
/// In words, if there is none or no way to tell.
pub(super) fn text(catalog: &Catalog, own: impl Fn(&str) -> bool) -> Result<Stack, String> {
    let counts = catalog.config.as_ref().map(layer_counts).unwrap_or_default();
    let rank = |stack: &Stack| {
        let side = SIDE.iter().any(|word| stack.prefix.contains(word));
        (!side, counts.contains(&stack.layers), stack.layers)
    };
    let mut stacks = stacks(catalog);
    stacks.retain(|stack| own(&stack.prefix));
    stacks.sort_by_key(rank);
    let Some(chosen) = stacks.pop() else {
        return Err("no tensor has a number in its name, so there are no layers".to_owned());
    };
    match stacks.last() {
        Some(other) if rank(other) == rank(&chosen) => Err(format!(
            "it has the stacks {} and {} of {} layers each, and slices are about one",
            shown(&other.prefix),
            shown(&chosen.prefix),
            chosen.layers,
        )),
        _ => Ok(chosen),
    }
}

/// Whether a tensor outside the stack `main` comes before its layers, as embeddings do, or after them.
pub(super) fn comes_before(tensor: &str, main: &str, others: &[Stack]) -> bool {
    let begins = |component: &str| {
        (component.contains("emb") && component != "embed_out")
            || ["wte", "wpe", "relative_pe"].contains(&component)
            || SIDE.iter().any(|word| component.contains(word) && !["mtp", "draft"].contains(word))
    };
    let of_tower = |stack: &Stack| {
        let own = stack.prefix.split('.').zip(tensor.split('.'));
        let apart = stack.prefix.split('.').zip(main.split('.')).position(|(a, b)| a != b);
        apart.is_some_and(|at| own.take(at + 1).all(|(a, b)| a == b))
            && stack.prefix.split('.').any(begins)
    };
    tensor.split('.').any(begins) || others.iter().any(of_tower)
}

/// The tensors of one layer of a stack, by name.
pub(super) fn layer<'a>(
    catalog: &'a Catalog,
    prefix: &str,
    number: u64,
) -> impl Iterator<Item = &'a TensorInfo> + use<'a> {
    let name = layer_name(prefix, number);
    let whole = catalog.get(&name);
    let name = format!("{name}.");
    let begin = catalog.tensors.partition_point(|tensor| *tensor.name < *name);
    let rest = catalog.tensors[begin..].iter();
    whole.into_iter().chain(rest.take_while(move |tensor| tensor.name.starts_with(&name)))
}

/// The name of a layer.
pub(super) fn layer_name(prefix: &str, number: u64) -> String {
    if prefix.is_empty() { number.to_string() } else { format!("{prefix}.{number}") }
}

/// A stack's name for people.
pub(super) fn shown(prefix: &str) -> String {
    if prefix.is_empty() { "N".to_owned() } else { format!("{prefix}.N") }
}
