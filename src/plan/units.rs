//! Units: the sets of elements over which a statistic is taken.

use std::collections::HashMap;

use crate::recipe::Scope;

/// The elements that are merged together: the whole model, one layer, or one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// `model`, a layer's prefix such as `model.layers.3`, or a tensor's name.
    pub name: String,
    /// Number of elements.
    pub elements: u64,
    /// Indices of the unit's segments, in output order.
    pub segments: Vec<u32>,
}

/// Groups segments, given as (index, tensor name, elements) in output order.
pub(super) fn units<'a>(
    scope: Scope,
    segments: impl Iterator<Item = (u32, &'a str, u64)>,
) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    let mut by_name: HashMap<String, usize> = HashMap::new();
    for (segment, tensor, elements) in segments {
        let name = match scope {
            Scope::Model => "model",
            Scope::Layer => layer(tensor).unwrap_or(tensor),
            Scope::Tensor => tensor,
        };
        let at = *by_name.entry(name.to_owned()).or_insert_with(|| {
            units.push(Unit { name: name.to_owned(), elements: 0, segments: Vec::new() });
            units.len() - 1
        });
        units[at].elements += elements;
        units[at].segments.push(segment);
    }
    units
}

/// The layer that a tensor belongs to: its name up to the first component that is a number.
/// `None` for tensors outside layers (embeddings, final norm, head): each is a unit of its own.
pub fn layer(tensor: &str) -> Option<&str> {
    let mut end = 0;
    for component in tensor.split('.') {
        end += component.len();
        if !component.is_empty() && component.bytes().all(|b| b.is_ascii_digit()) {
            return Some(&tensor[..end]);
        }
        end += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_layer_in_any_naming() {
        for (name, expected) in [
            ("model.layers.12.mlp.up_proj.weight", Some("model.layers.12")),
            ("model.layers.3.mlp.experts.17.w1.weight", Some("model.layers.3")),
            ("h.0.attn.c_attn.weight", Some("h.0")),
            ("encoder.block.7.layer.1.weight", Some("encoder.block.7")),
            ("model.embed_tokens.weight", None),
            ("conv1d_2.weight", None),
            ("7", Some("7")),
            ("", None),
        ] {
            assert_eq!(layer(name), expected, "{name}");
        }
    }

    #[test]
    fn groups_by_scope_in_output_order() {
        let tensors =
            [(0, "embed", 10), (1, "l.0.a", 3), (2, "l.1.a", 4), (3, "l.0.b", 5), (4, "l.1.b", 6)];
        let sizes = |scope| {
            units(scope, tensors.into_iter())
                .into_iter()
                .map(|u| (u.name, u.elements, u.segments))
                .collect::<Vec<_>>()
        };
        assert_eq!(sizes(Scope::Model), [("model".into(), 28, vec![0, 1, 2, 3, 4])]);
        assert_eq!(
            sizes(Scope::Layer),
            [
                ("embed".into(), 10, vec![0]),
                ("l.0".into(), 8, vec![1, 3]),
                ("l.1".into(), 10, vec![2, 4])
            ]
        );
        assert_eq!(sizes(Scope::Tensor).len(), 5);
    }
}
