//! The checkpoints of a merge, opened.

use crate::checkpoint::Catalog;

/// All checkpoints of a merge, opened, with the names they go by in messages.
pub struct Inputs {
    /// The base first, if experts are seen relative to one; then the models, in recipe order.
    pub catalogs: Vec<Catalog>,
    /// Whether the first is the base.
    pub has_base: bool,
    /// The one that lends config, side files and, where whole models are merged, names, shapes and
    /// tensors that are not: the base, if there is one.
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
    pub(super) fn others(&self) -> impl Iterator<Item = (usize, &Catalog)> {
        self.catalogs.iter().enumerate().filter(|&(at, _)| at != self.donor)
    }

    /// Position of a file of checkpoint `checkpoint` among the files of all.
    pub fn file_index(&self, checkpoint: usize, file: u32) -> u32 {
        self.catalogs().take(checkpoint).map(|c| c.files.len() as u32).sum::<u32>() + file
    }
}
