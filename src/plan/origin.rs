//! Where the tensors of an output come from: for each, which tensor of which checkpoint takes part.
//!
//! What is done with them is decided in `align`, which knows no other way from an output's tensor to
//! those of the inputs.

use std::borrow::Cow;

use super::inputs::Inputs;
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

/// What the tensors of an output are made of.
pub(super) struct Origins<'a> {
    inputs: &'a Inputs,
}

impl<'a> Origins<'a> {
    /// Whole models: the donor says which tensors there are, and each is made of those of the same name.
    pub(super) fn whole(inputs: &'a Inputs) -> Self {
        Self { inputs }
    }

    /// All tensors of the output, by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = Origin<'a>> {
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
            }
        })
    }

    /// Tensors of other checkpoints that have no counterpart in the donor, with their checkpoint.
    pub(super) fn extra(&self) -> impl Iterator<Item = (usize, &'a str)> {
        let inputs = self.inputs;
        inputs.others().flat_map(move |(at, catalog)| {
            let names = catalog.tensors.iter().map(|tensor| &*tensor.name);
            names.filter(move |name| inputs.donor().get(name).is_none()).map(move |name| (at, name))
        })
    }
}
