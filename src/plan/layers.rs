//! What a plan tells about the layers of an output that is made of slices.

use serde::Serialize;

use super::inputs::Inputs;
use super::slices::Sliced;
use super::stacks;

/// Runs of layers that meet in one run of output layers. Ranges are the first layer, and the one behind the
/// last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SliceLayers {
    /// Layers of the output.
    pub layers: (u64, u64),
    /// The models, the base first if there is one, each with its layers.
    pub sources: Vec<SliceMember>,
}

/// A model's part in a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SliceMember {
    /// Its position among all checkpoints.
    #[serde(skip)]
    pub checkpoint: usize,
    /// Its display name.
    pub model: String,
    /// Its layers.
    pub layers: (u64, u64),
}

/// What of a checkpoint is not in the output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its display name.
    pub model: String,
    /// Runs of its layers.
    pub layers: Vec<(u64, u64)>,
    /// Tensors of these layers.
    pub tensors: usize,
    /// Tensors outside layers.
    pub outside: Vec<String>,
}

/// The layers of an output that is made of slices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Layers {
    /// The stack that slices are about, e.g. `model.layers.N`.
    pub stack: String,
    /// How many layers the donor of the config has in it.
    pub donor: u64,
    /// How many the output has.
    pub output: u64,
    /// Stacks that stay as they are in the sources of the first or last slice.
    pub other_stacks: Vec<String>,
    /// What the output's layers are made of.
    pub slices: Vec<SliceLayers>,
    /// What is in no slice.
    pub left_out: Vec<LeftOut>,
}

impl Layers {
    /// What the slices come to, if there are any.
    pub(super) fn new(sliced: &Sliced<'_>, inputs: &Inputs) -> Option<Self> {
        let stack = sliced.stack.as_ref()?;
        let slice = |lineup: &super::slices::Lineup| {
            let len = lineup.layers.end - lineup.layers.start;
            let member = |member: &super::slices::Member| SliceMember {
                checkpoint: member.checkpoint,
                model: inputs.labels[member.checkpoint].clone(),
                layers: (member.first, member.first + len),
            };
            SliceLayers {
                layers: (lineup.layers.start, lineup.layers.end),
                sources: lineup.members.iter().map(member).collect(),
            }
        };
        let left_out = (0..inputs.catalogs.len()).filter_map(|at| left_out(sliced, inputs, at));
        Some(Self {
            stack: stacks::shown(&stack.prefix),
            donor: stack.layers,
            output: sliced.lineups.last().map_or(0, |lineup| lineup.layers.end),
            other_stacks: sliced.towers.iter().map(|tower| stacks::shown(&tower.prefix)).collect(),
            slices: sliced.lineups.iter().map(slice).collect(),
            left_out: left_out.collect(),
        })
    }

    /// For each layer of the output, the checkpoint that lends its names, and the layer's number there.
    pub fn lenders(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.slices.iter().flat_map(|slice| {
            let lender = &slice.sources[0];
            (lender.layers.0..lender.layers.1).map(|layer| (lender.checkpoint, layer))
        })
    }
}

fn left_out(sliced: &Sliced<'_>, inputs: &Inputs, checkpoint: usize) -> Option<LeftOut> {
    let mut found = LeftOut {
        model: inputs.labels[checkpoint].clone(),
        layers: Vec::new(),
        tensors: 0,
        outside: Vec::new(),
    };
    let mut layers = std::collections::BTreeSet::new();
    for tensor in &inputs.catalogs[checkpoint].tensors {
        if sliced.takes(checkpoint, tensor) {
            continue;
        }
        match sliced.layer_of(&tensor.name) {
            Some(layer) => {
                let _new = layers.insert(layer);
                found.tensors += 1;
            }
            None => found.outside.push(tensor.name.to_string()),
        }
    }
    for layer in layers {
        match found.layers.last_mut() {
            Some((_, end)) if *end == layer => *end += 1,
            _ => found.layers.push((layer, layer + 1)),
        }
    }
    (found.tensors > 0 || !found.outside.is_empty()).then_some(found)
}
