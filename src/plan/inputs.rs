//! The checkpoints of a merge, opened.

use std::collections::HashMap;

use super::rows::Vocabulary;
use super::summary::AdapterSummary;
use crate::checkpoint::{Catalog, ShardFile};
use crate::method::Evidence;

/// All checkpoints of a merge, opened, with the names they go by in messages.
pub struct Inputs {
    /// The base first, if experts are seen relative to one; then the models, in recipe order.
    pub catalogs: Vec<Catalog>,
    /// Whether the first is the base.
    pub has_base: bool,
    /// The one that lends config, side files and, where whole models are merged, names, shapes and
    /// tensors that are not: the base, if there is one.
    pub donor: usize,
    /// What was measured of each model, in their order; none if the method needs nothing of the kind.
    pub evidence: Vec<Catalog>,
    /// What that is.
    pub evidence_kind: Option<Evidence>,
    /// Display names, in the order of `catalogs` and `evidence`.
    pub labels: Vec<String>,
    /// Which token is which, if rows of embeddings move.
    pub vocabulary: Option<Vocabulary>,
    /// For each checkpoint the numbers that its files have among those of all.
    numbers: Vec<Vec<u32>>,
    /// All files, each once: several models may be one with different adapters.
    files: Vec<ShardFile>,
}

impl Inputs {
    /// Checkpoints with their labels.
    pub fn new(catalogs: Vec<Catalog>, has_base: bool, donor: usize, labels: Vec<String>) -> Self {
        let (evidence, evidence_kind, vocabulary) = (Vec::new(), None, None);
        let (numbers, files) = (Vec::new(), Vec::new());
        Self {
            catalogs,
            has_base,
            donor,
            evidence,
            evidence_kind,
            labels,
            vocabulary,
            numbers,
            files,
        }
        .numbered()
    }

    /// The same with what was measured of each model.
    #[must_use]
    pub fn with_evidence(mut self, kind: Evidence, all: Vec<Catalog>, labels: Vec<String>) -> Self {
        (self.evidence_kind, self.evidence) = (Some(kind), all);
        self.labels.truncate(self.catalogs.len());
        self.labels.extend(labels);
        self.numbered()
    }

    /// Gives each file its number.
    fn numbered(mut self) -> Self {
        let (mut files, mut known): (Vec<ShardFile>, HashMap<_, u32>) = Default::default();
        let mut number = |file: &ShardFile| {
            let real = std::fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone());
            let key = (real, file.inode, file.len, file.mtime_ns, file.header_sha256.clone());
            *known.entry(key).or_insert_with(|| {
                files.push(file.clone());
                files.len() as u32 - 1
            })
        };
        let all = self.catalogs.iter().chain(&self.evidence);
        self.numbers = all.map(|c| c.files.iter().map(&mut number).collect()).collect();
        self.files = files;
        self
    }

    /// What was measured of a model, with its place among all checkpoints; none of a base.
    pub(super) fn measured(&self, checkpoint: usize) -> Option<(usize, &Catalog)> {
        let model = checkpoint.checked_sub(usize::from(self.has_base))?;
        Some((self.catalogs.len() + model, self.evidence.get(model)?))
    }

    /// What adapters do, model by model.
    pub(super) fn adapters(&self) -> Vec<AdapterSummary> {
        let adapted = self.catalogs.iter().zip(&self.labels).filter(|(c, _)| c.adapter.is_some());
        let summary = |(catalog, label): (&Catalog, &String)| {
            let all = catalog.tensors.iter().filter_map(|tensor| {
                let adapted = tensor.adapted.as_ref()?;
                // Its file is behind those of the model if the adapter stores it.
                let own = catalog.files.get(tensor.file as usize)?;
                Some((adapted, catalog.adapter.as_deref() == own.path.parent()))
            });
            let ranks: Vec<u64> =
                all.clone().filter_map(|(a, _)| Some(a.low_rank.as_ref()?.rank)).collect();
            AdapterSummary {
                model: label.clone(),
                low_rank: ranks.len(),
                ranks: ranks.iter().min().copied().zip(ranks.iter().max().copied()),
                whole: all.filter(|&(_, own)| own).count(),
            }
        };
        adapted.map(summary).collect()
    }

    /// All files, each once.
    pub fn files(&self) -> &[ShardFile] {
        &self.files
    }

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

    /// Position of a file of checkpoint `checkpoint` among [`Inputs::files`].
    pub fn file_index(&self, checkpoint: usize, file: u32) -> u32 {
        self.numbers[checkpoint][file as usize]
    }
}
