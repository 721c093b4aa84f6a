//! Where the tensors of an output come from: for each, which tensor of which checkpoint takes part.
//!
//! What is done with them is decided in `align`, which knows no other way from an output's tensor to
//! those of the inputs.

use std::borrow::Cow;

use super::inputs::Inputs;
use super::slices::Sliced;
use super::units::Positions;
use crate::checkpoint::TensorInfo;

/// A tensor of a checkpoint that an output's tensor is made of.
#[derive(Clone, Debug)]
pub(super) struct Source<'a> {
    /// The checkpoint, by its position among all.
    pub(super) checkpoint: usize,
    /// The tensor's name there.
    pub(super) name: Cow<'a, str>,
    /// What the catalog says about it; nothing if the checkpoint lacks it.
    pub(super) tensor: Option<&'a TensorInfo>,
}

/// One tensor of the output, and what it is made of.
#[derive(Clone, Debug)]
pub(super) struct Origin<'a> {
    /// Its name in the output.
    pub(super) name: Cow<'a, str>,
    /// One tensor of each model that takes part: the base first, if experts are seen relative to one;
    /// then the models, in recipe order.
    pub(super) sources: Vec<Source<'a>>,
    /// Which of the sources lends shape, type, and values that are not merged.
    pub(super) donor: usize,
    /// What the donor lends.
    pub(super) lent: &'a TensorInfo,
    /// The slice that says which models take part, and with which parameters.
    pub(super) slice: usize,
    /// Its position along gradients: 0 in the first layer, 1 in the last, 0 outside layers.
    pub(super) t: f64,
}

impl<'a> Origin<'a> {
    /// The checkpoint of the donor.
    pub(super) fn lender(&self) -> usize {
        self.sources[self.donor].checkpoint
    }

    /// All sources but the donor.
    pub(super) fn others(&self) -> impl Iterator<Item = &Source<'a>> {
        let donor = self.donor;
        self.sources
            .iter()
            .enumerate()
            .filter(move |&(at, _)| at != donor)
            .map(|(_, source)| source)
    }
}

/// A tensor that has no counterpart in the donor.
#[derive(Clone, Debug)]
pub(super) struct Extra<'a> {
    /// The checkpoint, by its position among all.
    pub(super) checkpoint: usize,
    /// The tensor's name there.
    pub(super) name: &'a str,
    /// The name that it would have in the output.
    pub(super) output: Cow<'a, str>,
}

/// What the tensors of an output are made of.
pub(super) enum Origins<'a> {
    /// Whole models: the donor says which tensors there are, and each is made of those of the same name.
    Whole(Whole<'a>),
    /// Runs of layers.
    Sliced(Sliced<'a>),
}

/// Tensors of the same name in all models.
pub(super) struct Whole<'a> {
    inputs: &'a Inputs,
    positions: Positions<'a>,
}

impl<'a> Origins<'a> {
    /// Origins for a merge of whole models.
    pub(super) fn whole(inputs: &'a Inputs) -> Self {
        let names = inputs.donor().tensors.iter().map(|tensor| &*tensor.name);
        Self::Whole(Whole { inputs, positions: Positions::new(names) })
    }

    /// All tensors of the output.
    pub(super) fn iter<'b>(&'b self) -> Box<dyn Iterator<Item = Origin<'a>> + 'b> {
        match self {
            Self::Whole(whole) => Box::new(whole.iter()),
            Self::Sliced(sliced) => sliced.iter(),
        }
    }

    /// Tensors of models that have no counterpart in the donor.
    pub(super) fn extra<'b>(&'b self) -> Box<dyn Iterator<Item = Extra<'a>> + 'b> {
        match self {
            Self::Whole(whole) => Box::new(whole.extra()),
            Self::Sliced(sliced) => sliced.extra(),
        }
    }
}

impl<'a> Whole<'a> {
    fn iter(&self) -> impl Iterator<Item = Origin<'a>> {
        let inputs = self.inputs;
        inputs.donor().tensors.iter().map(move |lent| {
            let sources = inputs.catalogs().enumerate().map(|(checkpoint, catalog)| {
                let own = checkpoint == inputs.donor;
                let tensor = if own { Some(lent) } else { catalog.get(&lent.name) };
                Source { checkpoint, name: Cow::Borrowed(&*lent.name), tensor }
            });
            Origin {
                name: Cow::Borrowed(&*lent.name),
                sources: sources.collect(),
                donor: inputs.donor,
                lent,
                slice: 0,
                t: self.positions.of(&lent.name),
            }
        })
    }

    fn extra(&self) -> impl Iterator<Item = Extra<'a>> {
        let inputs = self.inputs;
        inputs.others().flat_map(move |(checkpoint, catalog)| {
            let names = catalog.tensors.iter().map(|tensor| &*tensor.name);
            let extra = names.filter(move |name| inputs.donor().get(name).is_none());
            extra.map(move |name| Extra { checkpoint, name, output: Cow::Borrowed(name) })
        })
    }
}
