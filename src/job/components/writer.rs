//! Writes the shares of a merge as they come, in frames that do not depend on how they come.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Components, DATA, FILE, FORMAT, StoredShares, recombine, scan};
use crate::checkpoint::components::{Entry, FRAME, Frame, HEAD, head};
use crate::engine::sink::{SinkError, Storage, StoredFile, Trail, durable};
use crate::error::Error;
use crate::job::Job;
use crate::job::output::hex;
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
    /// The number of each segment that is merged, and its elements.
    numbers: HashMap<u32, (u32, u64)>,
    /// Nothing if the directory has its final name already.
    file: Option<Box<dyn StoredFile>>,
    end: u64,
    trail: Trail,
    frame: Frame,
}

impl<'a> Writer<'a> {
    /// Begins in a directory, or goes on behind what a record says; `begun` is the beginning of a frame that was saved
    /// with it.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if what the record speaks of is not there.
    pub(in crate::job) fn open(
        storage: &'a dyn Storage,
        dir: PathBuf,
        plan: &'a Plan,
        grown: Option<&Grown>,
        begun: Option<Frame>,
    ) -> Result<Self, SinkError> {
        let mut writer = Self::published(storage, dir, plan);
        let (name, part) = (writer.dir.join(DATA), writer.part());
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
            file
        } else {
            match storage.remove_file(&part) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SinkError::of("remove", &part, 0, e));
                }
                _ => {}
            }
            let file = storage.create(&part).map_err(|e| SinkError::of("create", &part, 0, e))?;
            let first = head(plan.experts().len() as u32);
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
    ) -> Self {
        let segments = plan.units.iter().flat_map(|unit| &unit.segments);
        let numbers = segments.zip(0..).map(|(&segment, number)| {
            (segment, (number, plan.segments[segment as usize].elements))
        });
        let numbers = numbers.collect();
        let frame = Frame::new(plan.experts().len());
        Self { storage, dir, plan, numbers, file: None, end: HEAD, trail: Trail::default(), frame }
    }

    /// Takes the shares of a tile; tiles come in plan order.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn add(
        &mut self,
        tile: &Tile,
        rows: &[Vec<Entry>],
    ) -> Result<(), SinkError> {
        let Some(&(number, elements)) = self.numbers.get(&tile.segment) else { return Ok(()) };
        if self.file.is_none() {
            return Ok(());
        }
        let (mut from, to) = (tile.start, tile.start + u64::from(tile.elements));
        let mut next = vec![0; rows.len()];
        while from < to {
            let frame = from / u64::from(FRAME);
            let begin = frame * u64::from(FRAME);
            let whole = (begin + u64::from(FRAME)).min(elements);
            let until = whole.min(to);
            (self.frame.tensor, self.frame.number) = (number, frame as u32);
            for ((row, next), into) in rows.iter().zip(&mut next).zip(&mut self.frame.rows) {
                let rest = &row[*next..];
                let count = rest.partition_point(|&(at, _)| tile.start + u64::from(at) < until);
                let entries = rest[..count].iter();
                into.extend(
                    entries
                        .map(|&(at, share)| ((tile.start + u64::from(at) - begin) as u32, share)),
                );
                *next += count;
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
            let stored = self.frame.store().map_err(|e| SinkError::of("compress", &part, 0, e))?;
            durable::write_fully(file, &part, self.end, &stored)?;
            let end = self.end + stored.len() as u64;
            self.end = end;
            let grown = self.trail.grow(file, end);
            grown.map_err(|e| SinkError::of("write", &part, 0, e))?;
        }
        self.frame.rows.iter_mut().for_each(Vec::clear);
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
        let begun = (!self.frame.is_empty()).then(|| self.frame.store()).transpose();
        let begun = begun.map_err(|e| SinkError::of("compress", &part, 0, e))?;
        Ok((Grown { bytes: self.end, begun: begun.is_some() }, begun))
    }

    /// Reads back what was written, says what it is, and gives it its name.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if it is not what was written; what the disk says.
    pub(in crate::job) fn finish(&mut self, job: &Job) -> Result<(), Error> {
        let Some(file) = self.file.take() else { return Ok(()) };
        let part = self.part();
        file.sync().map_err(|e| SinkError::sync(&part, self.end, e))?;
        let (tensors, sha256) = self.table(&part)?;
        let mut components = Components {
            format: FORMAT.to_owned(),
            blake3: String::new(),
            reflow: env!("CARGO_PKG_VERSION").to_owned(),
            plan: job.fingerprint(),
            bytes: self.end,
            sha256,
            tensors,
            ..recombine::described(job)?
        };
        let text = components.render();
        durable::write_atomic(self.storage, &self.dir.join(FILE), text.as_bytes())?;
        durable::rename_noreplace(self.storage, &part, &self.dir.join(DATA))?;
        Ok(durable::sync_dir(self.storage, &self.dir)?)
    }

    /// The table of the tensors, and the hash of the file.
    fn table(&self, part: &Path) -> Result<(Vec<StoredShares>, String), SinkError> {
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
        let first = head(experts as u32);
        let (mut hasher, mut wrong) = (Sha256::new_with_prefix(first), None);
        scan::frames(
            part,
            HEAD..self.end,
            experts,
            |bytes| hasher.update(bytes),
            |frame, at, len| {
                let tensor = tensors.get_mut(frame.tensor as usize);
                let slot = tensor.and_then(|tensor| {
                    let slot = tensor.frames.get_mut(frame.number as usize)?;
                    Some((slot, &mut tensor.entries))
                });
                let Some((slot, entries)) = slot.filter(|(slot, _)| **slot == 0) else {
                    wrong = wrong.or(Some(at));
                    return;
                };
                *slot = len;
                entries.iter_mut().zip(&frame.rows).for_each(|(sum, row)| *sum += row.len() as u64);
            },
        )?;
        if let Some(offset) = wrong {
            let (path, len) = (part.to_owned(), self.end - offset);
            return Err(SinkError::Damaged { path, offset, len });
        }
        let mut end = HEAD;
        for tensor in &mut tensors {
            tensor.offset = end;
            end = tensor.end();
        }
        Ok((tensors, hex(&hasher.finalize())))
    }

    fn part(&self) -> PathBuf {
        part(&self.dir)
    }
}

/// The name of the data file while it is written.
fn part(dir: &Path) -> PathBuf {
    dir.join(format!("{DATA}.part"))
}

/// Whether the frames between two records are what was written.
///
/// # Errors
/// What the disk says.
pub(in crate::job) fn is_there(
    dir: &Path,
    experts: usize,
    from: u64,
    to: u64,
) -> Result<bool, SinkError> {
    let (part, name) = (part(dir), dir.join(DATA));
    let path = if part.exists() { part } else { name };
    match scan::frames(&path, from..to, experts, |_| {}, |_, _, _| {}) {
        Ok(()) => Ok(true),
        Err(SinkError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
