//! What is in a data file, gathered while it grows.

use sha2::{Digest, Sha256};

use super::StoredShares;
use crate::checkpoint::components::{Form, HEAD, Told};
use crate::checkpoint::hex;
use crate::job::manifest::ManifestExtent;
use crate::plan::{Action, Plan};

/// The tables of the tensors, and the hashes of the file and of its parts.
pub(super) struct Table {
    form: Form,
    tensors: Vec<StoredShares>,
    /// For each tensor, those of its frames.
    sums: Vec<Vec<f64>>,
    /// Of the frames of each tensor that is over.
    hashes: Vec<Option<blake3::Hash>>,
    /// The tensor whose frames come, and their hash so far.
    open: Option<usize>,
    running: blake3::Hasher,
    /// That of the base's hashes in them.
    base: blake3::Hasher,
    hasher: Sha256,
}

impl Table {
    /// One of no frames of the segments of a plan.
    pub(super) fn new(plan: &Plan, form: Form) -> Self {
        let tensors = plan.framed().into_iter().map(|segment| StoredShares {
            name: plan.tensors[segment.tensor as usize].name.to_string(),
            first: segment.first,
            elements: segment.elements,
            copied: segment.action != Action::Merge,
            offset: 0,
            base: String::new(),
            entries: vec![0; form.experts],
            frames: vec![0; segment.frame_count() as usize],
        });
        Self::of(form, tensors.collect())
    }

    /// One of nothing.
    pub(super) fn empty(form: Form) -> Self {
        Self::of(form, Vec::new())
    }

    fn of(form: Form, tensors: Vec<StoredShares>) -> Self {
        Self {
            form,
            sums: vec![vec![0.0; form.sums()]; tensors.len()],
            hashes: vec![None; tensors.len()],
            open: None,
            running: blake3::Hasher::new(),
            base: blake3::Hasher::new(),
            hasher: Sha256::new_with_prefix(form.head()),
            tensors,
        }
    }

    /// Takes in the next frame. Tells whether there is a place for it that was free.
    pub(super) fn add(&mut self, told: &Told, stored: &[u8]) -> bool {
        let of = told.tensor as usize;
        let Some(tensor) = self.tensors.get_mut(of) else { return false };
        let Some(slot) = tensor.frames.get_mut(told.number as usize).filter(|slot| **slot == 0)
        else {
            return false;
        };
        *slot = told.bytes;
        let entries = tensor.entries.iter_mut().zip(&told.entries);
        entries.for_each(|(sum, &entries)| *sum += u64::from(entries));
        if self.open != Some(of) {
            self.close();
            self.open = Some(of);
        }
        self.hasher.update(stored);
        self.running.update(stored);
        self.base.update(&told.base);
        self.sums[of].iter_mut().zip(&told.sums).for_each(|(all, sum)| *all += sum);
        true
    }

    /// No frame of the tensor that is open follows.
    fn close(&mut self) {
        if let Some(of) = self.open.take() {
            self.hashes[of] = Some(self.running.finalize());
            self.tensors[of].base = self.base.finalize().to_hex().to_string();
            self.running.reset();
            self.base.reset();
        }
    }

    /// The tensors, the sums of each, the file's SHA-256, and the hashes of its parts.
    pub(super) fn finish(
        mut self,
    ) -> (Vec<StoredShares>, Vec<Vec<f64>>, String, Vec<ManifestExtent>) {
        self.close();
        let blake3 = blake3::hash(&self.form.head()).to_hex().to_string();
        let mut extents = vec![ManifestExtent { offset: 0, bytes: HEAD, blake3, tensor: None }];
        let mut end = HEAD;
        for (tensor, hash) in self.tensors.iter_mut().zip(self.hashes) {
            tensor.offset = end;
            end = tensor.end();
            if let Some(hash) = hash {
                extents.push(ManifestExtent {
                    offset: tensor.offset,
                    bytes: end - tensor.offset,
                    blake3: hash.to_hex().to_string(),
                    tensor: Some(tensor.name.clone()),
                });
            }
        }
        (self.tensors, self.sums, hex(&self.hasher.finalize()), extents)
    }
}
