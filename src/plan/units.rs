//! Units: the sets of elements over which a statistic is taken.

use std::collections::HashMap;

use std::sync::Arc;

use crate::method::{Scope, TensorView, UnitView, layer};
use crate::recipe::{RecipeError, Words};

/// The elements that are merged together: the whole model, one layer, or one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// What the method is told about it.
    pub view: Arc<UnitView>,
    /// Indices of the unit's segments, in output order: one for each tensor of the view.
    pub segments: Vec<u32>,
    /// The models that are the rows of its blocks, by their positions among all checkpoints, the base
    /// first if there is one.
    pub checkpoints: Arc<[u32]>,
}

/// A segment that is merged.
#[derive(Clone, Debug)]
pub(super) struct Merged {
    /// Its number.
    pub(super) segment: u32,
    /// The checkpoints that meet in it.
    pub(super) checkpoints: Arc<[u32]>,
    /// What the method is told about it.
    pub(super) tensor: TensorView,
}

/// Groups segments, given in output order. If other models meet in one part of a unit than in another, no
/// statistic is about all of it: a method without any (`plain`) has a unit for each lineup then.
///
/// # Errors
/// For other methods, if that is so.
pub(super) fn units(
    scope: Scope,
    plain: bool,
    segments: impl Iterator<Item = Merged>,
) -> Result<Vec<Unit>, RecipeError> {
    let mut units: Vec<(UnitView, Vec<u32>, Arc<[u32]>)> = Vec::new();
    let mut by_name: HashMap<_, usize> = HashMap::new();
    for Merged { segment, checkpoints, tensor } in segments {
        let name = scope.unit_of(&tensor.name);
        let lineup = plain.then(|| Arc::clone(&checkpoints));
        let at = *by_name.entry((name.to_owned(), lineup)).or_insert_with(|| {
            let (name, experts) = (name.to_owned(), tensor.values.experts.len());
            let view = UnitView { name, elements: 0, experts, tensors: Vec::new() };
            units.push((view, Vec::new(), Arc::clone(&checkpoints)));
            units.len() - 1
        });
        let (view, listed, meeting) = &mut units[at];
        if *meeting != checkpoints {
            let reason = format!(
                "statistics over the {} are about the same models all over, and not all slices or modules have the \
                 same ones; add scope: tensor to the common parameters",
                scope.word()
            );
            return Err(RecipeError::Value { key: "scope".to_owned(), reason });
        }
        let first = view.elements;
        view.elements += tensor.elements;
        view.tensors.push(TensorView { first, ..tensor });
        listed.push(segment);
    }
    let unit = |(view, segments, checkpoints)| Unit { view: Arc::new(view), segments, checkpoints };
    Ok(units.into_iter().map(unit).collect())
}

/// Positions of tensors along the layers: 0 in the first, 1 in the last.
///
/// Layers are found in the names: those that agree up to the first component that is a number are
/// counted together, so that a model with two stacks has two runs from 0 to 1.
pub struct Positions<'a>(HashMap<&'a str, u64>);

impl<'a> Positions<'a> {
    /// Looks at the names of all tensors.
    pub fn new(tensors: impl Iterator<Item = &'a str>) -> Self {
        let mut last: HashMap<&str, u64> = HashMap::new();
        for (stack, index) in tensors.filter_map(numbered) {
            let last = last.entry(stack).or_default();
            *last = index.max(*last);
        }
        Self(last)
    }

    /// The position of a tensor; 0 outside layers, 1 where there is but one layer.
    pub fn of(&self, tensor: &str) -> f64 {
        let Some((stack, index)) = numbered(tensor) else { return 0.0 };
        match self.0.get(stack) {
            Some(&last) if last > 0 => index as f64 / last as f64,
            _ => 1.0,
        }
    }
}

/// The stack of layers and the number of the layer that a tensor belongs to.
pub fn numbered(tensor: &str) -> Option<(&str, u64)> {
    let layer = layer(tensor)?;
    let (stack, number) = layer.rsplit_once('.').unwrap_or(("", layer));
    Some((stack, number.parse().ok()?))
}

/// The name with `N` for each component that is a number.
pub fn kind(name: &str) -> String {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let parts = name.split('.').map(|part| if is_number(part) { "N" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_become_n() {
        for (name, expected) in [
            ("model.layers.12.mlp.experts.3.w1.weight", "model.layers.N.mlp.experts.N.w1.weight"),
            ("lm_head.weight", "lm_head.weight"),
            ("h.0", "h.N"),
            ("a..b2", "a..b2"),
        ] {
            assert_eq!(kind(name), expected);
        }
    }

    #[test]
    fn groups_by_scope_in_output_order() {
        let tensors =
            [(0, "embed", 10), (1, "l.0.a", 3), (2, "l.1.a", 4), (3, "l.0.b", 5), (4, "l.1.b", 6)];
        let tensors = tensors.map(|(at, name, elements)| {
            let view = UnitView::array(name, elements, crate::method::Values::new(2));
            let tensor = view.tensors[0].clone();
            Merged { segment: at, checkpoints: [0, 1].into(), tensor }
        });
        let sizes = |scope| {
            units(scope, false, tensors.clone().into_iter())
                .unwrap()
                .into_iter()
                .map(|u| (u.view.name.clone(), u.view.elements, u.segments))
                .collect::<Vec<_>>()
        };
        let layer = &units(Scope::Layer, false, tensors.clone().into_iter()).unwrap()[1].view;
        assert_eq!(layer.tensors.iter().map(|t| t.first).collect::<Vec<_>>(), [0, 3]);
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
        let mut other = tensors;
        other[4].checkpoints = [0, 2].into();
        let of = |scope| units(scope, false, other.clone().into_iter()).map(|units| units.len());
        assert_eq!(of(Scope::Tensor), Ok(5));
        let plain = units(Scope::Model, true, other.clone().into_iter()).unwrap();
        assert_eq!([&plain[0].segments[..], &plain[1].segments], [&[0, 1, 2, 3][..], &[4]]);
        for scope in [Scope::Model, Scope::Layer] {
            assert!(of(scope).unwrap_err().to_string().contains("scope: tensor"));
        }
    }

    #[test]
    fn positions_run_from_the_first_layer_to_the_last() {
        let names = ["embed", "m.layers.0.a", "m.layers.4.a", "v.blocks.0.x", "head"];
        let positions = Positions::new(names.into_iter());
        for (name, t) in [
            ("embed", 0.0),
            ("head", 0.0),
            ("m.layers.0.b", 0.0),
            ("m.layers.1.b", 0.25),
            ("m.layers.4.b", 1.0),
            ("v.blocks.0.x", 1.0),
        ] {
            assert_eq!(positions.of(name), t, "{name}");
        }
    }
}
