//! Writes the shares of a merge as they come, in frames that do not depend on how they come.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Components, Names, StoredShares, recombine, rescale, scan};
use crate::checkpoint::components::{FRAME, Form, Frame, HEAD, TileShares};
use crate::checkpoint::hex;
use crate::engine::sink::{SinkError, Storage, StoredFile, Trail, durable};
use crate::error::Error;
use crate::job::Job;
use crate::job::manifest::{ManifestExtent, ManifestFile};
use crate::method::BLOCK;
use crate::plan::{Plan, Tile};

/// How far a data file has come, for the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct Grown {
    /// Bytes of whole frames.
    pub(in crate::job) bytes: u64,
    /// Whether the beginning of another frame was saved.
    pub(in crate::job) begun: bool,
}

/// The data file of a directory of components, being written.
pub(in crate::job) struct Writer<'a> {
    storage: &'a dyn Storage,
    dir: PathBuf,
    plan: &'a Plan,
    form: Form,
    /// The number of each segment that is merged, and its elements.
    numbers: HashMap<u32, (u32, u64)>,
    /// Nothing if the directory has its final name already.
    file: Option<Box<dyn StoredFile>>,
    end: u64,
    trail: Trail,
    frame: Frame,
}

impl<'a> Writer<'a> {
    /// Begins in its directory, or goes on behind what a record says; `begun` is the beginning of a frame that was saved
    /// with it.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if what the record speaks of is not there.
    pub(in crate::job) fn open(
        self,
        grown: Option<&Grown>,
        begun: Option<Frame>,
    ) -> Result<Self, SinkError> {
        let storage = self.storage;
        let mut writer = self;
        let (name, part) = (writer.names().data_in(&writer.dir), writer.part());
        match storage.create_dir(&writer.dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(SinkError::of("create", &writer.dir, 0, e));
            }
            _ => durable::sync_dir(storage, durable::parent(&writer.dir))?,
        }
        // It got its final name, and then there was a crash, or records were taken back.
        if name.exists() && !part.exists() {
            durable::rename_noreplace(storage, &name, &part)?;
        }
        writer.end = grown.map_or(HEAD, |grown| grown.bytes);
        let file = if grown.is_some() {
            let there = part.metadata().map_or(0, |meta| meta.len());
            if there < writer.end {
                let len = writer.end - there;
                return Err(SinkError::Damaged { path: part, offset: there, len });
            }
            let file = storage.open(&part).map_err(|e| SinkError::of("open", &part, 0, e))?;
            file.set_len(writer.end).map_err(|e| SinkError::of("truncate", &part, 0, e))?;
            // No record speaks of it.
            durable::write_fully(&*file, &part, 0, &writer.form.head())?;
            file
        } else {
            match storage.remove_file(&part) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SinkError::of("remove", &part, 0, e));
                }
                _ => {}
            }
            let file = storage.create(&part).map_err(|e| SinkError::of("create", &part, 0, e))?;
            let first = writer.form.head();
            durable::write_fully(&*file, &part, 0, &first)?;
            durable::sync_dir(storage, &writer.dir)?;
            file
        };
        (writer.file, writer.trail) = (Some(file), Trail::from(writer.end));
        if let Some(begun) = begun {
            writer.frame = begun;
        }
        Ok(writer)
    }

    /// One whose directory has its final name: nothing is written again.
    pub(in crate::job) fn published(
        storage: &'a dyn Storage,
        dir: PathBuf,
        plan: &'a Plan,
        form: Form,
    ) -> Self {
        let segments = plan.units.iter().flat_map(|unit| &unit.segments);
        let numbers = segments.zip(0..).map(|(&segment, number)| {
            (segment, (number, plan.segments[segment as usize].elements))
        });
        let numbers = numbers.collect();
        let (frame, trail) = (Frame::new(form), Trail::default());
        Self { storage, dir, plan, form, numbers, file: None, end: HEAD, trail, frame }
    }

    /// Takes the shares of a tile; tiles come in plan order.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn add(
        &mut self,
        tile: &Tile,
        shares: &TileShares,
    ) -> Result<(), SinkError> {
        let Some(&(number, elements)) = self.numbers.get(&tile.segment) else { return Ok(()) };
        if self.file.is_none() {
            return Ok(());
        }
        let (mut from, to) = (tile.start, tile.start + u64::from(tile.elements));
        let mut next = vec![0; shares.rows.len()];
        let mut sums = shares.sums.chunks(self.form.sums().max(1));
        while from < to {
            let frame = from / u64::from(FRAME);
            let begin = frame * u64::from(FRAME);
            let whole = (begin + u64::from(FRAME)).min(elements);
            let until = whole.min(to);
            (self.frame.tensor, self.frame.number) = (number, frame as u32);
            for ((row, next), into) in shares.rows.iter().zip(&mut next).zip(&mut self.frame.rows) {
                let rest = &row[*next..];
                let count = rest.partition_point(|&(at, _)| tile.start + u64::from(at) < until);
                let entries = rest[..count].iter();
                into.extend(
                    entries
                        .map(|&(at, share)| ((tile.start + u64::from(at) - begin) as u32, share)),
                );
                *next += count;
            }
            // Where there are sums, tiles and frames are cut between blocks.
            for sums in sums.by_ref().take((until - from).div_ceil(BLOCK as u64) as usize) {
                self.frame.sums.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
            }
            from = until;
            if until == whole {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes the frame that is whole.
    fn flush(&mut self) -> Result<(), SinkError> {
        let part = self.part();
        if let Some(file) = self.file.as_deref().filter(|_| !self.frame.is_empty()) {
            let stored = self
                .frame
                .store(self.form.kind)
                .map_err(|e| SinkError::of("compress", &part, 0, e))?;
            durable::write_fully(file, &part, self.end, &stored)?;
            let end = self.end + stored.len() as u64;
            self.end = end;
            let grown = self.trail.grow(file, end);
            grown.map_err(|e| SinkError::of("write", &part, 0, e))?;
        }
        self.frame.clear();
        Ok(())
    }

    /// Makes all whole frames durable, for a record; with the beginning of another one, to be saved with it.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn sync(&mut self) -> Result<(Grown, Option<Vec<u8>>), SinkError> {
        let part = self.part();
        if let Some(file) = &self.file {
            file.sync().map_err(|e| SinkError::sync(&part, self.end, e))?;
            file.drop_cache((0, self.end));
        }
        let begun = (!self.frame.is_empty()).then(|| self.frame.store(self.form.kind)).transpose();
        let begun = begun.map_err(|e| SinkError::of("compress", &part, 0, e))?;
        Ok((Grown { bytes: self.end, begun: begun.is_some() }, begun))
    }

    /// Reads back what was written, says what it is, and gives it its name. Returns its files, for a manifest.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if it is not what was written; what the disk says.
    pub(in crate::job) fn finish(&mut self, job: &Job) -> Result<Vec<ManifestFile>, Error> {
        let Some(file) = self.file.take() else { return Ok(Vec::new()) };
        let part = self.part();
        file.sync().map_err(|e| SinkError::sync(&part, self.end, e))?;
        let Table { tensors, sha256, extents, sums } = self.table(&part)?;
        let names = self.names();
        let mut components = Components {
            format: names.format.to_owned(),
            blake3: String::new(),
            reflow: env!("CARGO_PKG_VERSION").to_owned(),
            plan: job.fingerprint(),
            bytes: self.end,
            sha256: sha256.clone(),
            rescalers: rescale::rescalers(self.form, &tensors, &sums),
            tensors,
            ..recombine::described(job)?
        };
        let text = components.render();
        durable::write_atomic(self.storage, &self.dir.join(names.file), text.as_bytes())?;
        durable::rename_noreplace(self.storage, &part, &names.data_in(&self.dir))?;
        durable::sync_dir(self.storage, &self.dir)?;
        let of = |name: &str, bytes, sha256, extents| ManifestFile {
            name: name.to_owned(),
            bytes,
            sha256,
            extents,
        };
        let told = hex(&Sha256::digest(text.as_bytes()));
        Ok(vec![
            of(names.data, self.end, sha256, extents),
            of(names.file, text.len() as u64, told, Vec::new()),
        ])
    }

    fn names(&self) -> &'static Names {
        Names::of(self.form.kind)
    }

    /// The table of the tensors, the hashes of the file and of its parts, and the sums of all frames of each tensor.
    fn table(&self, part: &Path) -> Result<Table, SinkError> {
        let experts = self.plan.experts().len();
        let segments = self.plan.units.iter().flat_map(|unit| &unit.segments);
        let mut tensors: Vec<StoredShares> = segments
            .map(|&segment| {
                let segment = &self.plan.segments[segment as usize];
                StoredShares {
                    name: self.plan.tensors[segment.tensor as usize].name.to_string(),
                    first: segment.first,
                    elements: segment.elements,
                    offset: 0,
                    entries: vec![0; experts],
                    frames: vec![0; segment.elements.div_ceil(u64::from(FRAME)) as usize],
                }
            })
            .collect();
        let first = self.form.head();
        let (mut hasher, mut wrong) = (Sha256::new_with_prefix(first), None);
        let mut hashes = vec![None; tensors.len()];
        let (mut open, mut running) = (None, blake3::Hasher::new());
        let mut sums = vec![vec![0.0; self.form.sums()]; tensors.len()];
        scan::frames(
            part,
            HEAD..self.end,
            self.form,
            |bytes| hasher.update(bytes),
            |frame, at, stored| {
                let tensor = tensors.get_mut(frame.tensor as usize);
                let slot = tensor.and_then(|tensor| {
                    let slot = tensor.frames.get_mut(frame.number as usize)?;
                    Some((slot, &mut tensor.entries))
                });
                let Some((slot, entries)) = slot.filter(|(slot, _)| **slot == 0) else {
                    wrong = wrong.or(Some(at));
                    return;
                };
                *slot = stored.len() as u32;
                let of = frame.tensor as usize;
                if let Some(before) = open.replace(of).filter(|&before| before != of) {
                    hashes[before] = Some(running.finalize());
                    running.reset();
                }
                running.update(stored);
                sums[of].iter_mut().zip(&frame.sums).for_each(|(all, sum)| *all += sum);
                entries.iter_mut().zip(&frame.rows).for_each(|(sum, row)| *sum += row.len() as u64);
            },
        )?;
        if let Some(offset) = wrong {
            let (path, len) = (part.to_owned(), self.end - offset);
            return Err(SinkError::Damaged { path, offset, len });
        }
        if let Some(last) = open {
            hashes[last] = Some(running.finalize());
        }
        let of_head = blake3::hash(&first).to_hex().to_string();
        let mut extents =
            vec![ManifestExtent { offset: 0, bytes: HEAD, blake3: of_head, tensor: None }];
        let mut end = HEAD;
        for (tensor, hash) in tensors.iter_mut().zip(hashes) {
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
        Ok(Table { tensors, sha256: hex(&hasher.finalize()), extents, sums })
    }

    fn part(&self) -> PathBuf {
        self.names().part_in(&self.dir)
    }
}

/// What is in a finished data file.
struct Table {
    tensors: Vec<StoredShares>,
    sha256: String,
    extents: Vec<ManifestExtent>,
    /// For each tensor, those of its frames.
    sums: Vec<Vec<f64>>,
}

/// Whether the frames between two records are what was written.
///
/// # Errors
/// What the disk says.
pub(in crate::job) fn is_there(
    dir: &Path,
    form: Form,
    from: u64,
    to: u64,
) -> Result<bool, SinkError> {
    let names = Names::of(form.kind);
    let (part, name) = (names.part_in(dir), names.data_in(dir));
    let path = if part.exists() { part } else { name };
    match scan::frames(&path, from..to, form, |_| {}, |_, _, _| {}) {
        Ok(()) => Ok(true),
        Err(SinkError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
