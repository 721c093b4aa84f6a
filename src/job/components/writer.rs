//! Writes the frames of a merge as they come, and remembers what is in them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::table::Table;
use super::{Components, Names, base_of, recombine, rescale, scan};
use crate::checkpoint::components::{Form, HEAD, TileFrames};
use crate::checkpoint::hex;
use crate::engine::sink::{SinkError, Storage, StoredFile, Trail, durable};
use crate::error::Error;
use crate::job::Job;
use crate::job::manifest::ManifestFile;
use crate::plan::Plan;

/// How far a data file has come, for the journal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::job) struct Grown {
    /// Bytes of its head and frames.
    pub(in crate::job) bytes: u64,
}

/// The data file of a directory of components, being written.
pub(in crate::job) struct Writer<'a> {
    storage: &'a dyn Storage,
    dir: PathBuf,
    form: Form,
    /// Nothing if the directory has its final name already.
    file: Option<Box<dyn StoredFile>>,
    end: u64,
    trail: Trail,
    table: Table,
}

impl<'a> Writer<'a> {
    /// Begins in its directory, or goes on behind what a record says, which it reads back.
    ///
    /// # Errors
    /// [`SinkError::Damaged`] if what the record speaks of is not there.
    pub(in crate::job) fn open(self, grown: Option<&Grown>) -> Result<Self, SinkError> {
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
            writer.recall(&part)?;
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
        Ok(writer)
    }

    /// Reads back the frames that a record speaks of.
    fn recall(&mut self, part: &Path) -> Result<(), SinkError> {
        let (table, mut wrong) = (&mut self.table, None);
        scan::frames(part, HEAD..self.end, self.form, |frame, at, stored| {
            if !table.add(&frame.told(stored.len()), stored) {
                wrong = wrong.or(Some(at));
            }
        })?;
        wrong.map_or(Ok(()), |offset| {
            let (path, len) = (part.to_owned(), self.end - offset);
            Err(SinkError::Damaged { path, offset, len })
        })
    }

    /// One whose directory has its final name: nothing is written again.
    pub(in crate::job) fn published(
        storage: &'a dyn Storage,
        dir: PathBuf,
        plan: &Plan,
        form: Form,
    ) -> Self {
        let (table, trail) = (Table::new(plan, form), Trail::default());
        Self { storage, dir, form, file: None, end: HEAD, trail, table }
    }

    /// Appends the frames of a tile; tiles come in plan order.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn add(&mut self, frames: &TileFrames) -> Result<(), SinkError> {
        let part = self.part();
        let Some(file) = self.file.as_deref() else { return Ok(()) };
        durable::write_fully(file, &part, self.end, &frames.bytes)?;
        let mut rest = &frames.bytes[..];
        for told in &frames.told {
            let (stored, behind) = rest.split_at(told.bytes as usize);
            // Tiles come once each, with frames of their own.
            let _new = self.table.add(told, stored);
            rest = behind;
        }
        self.end += frames.bytes.len() as u64;
        let grown = self.trail.grow(file, self.end);
        grown.map_err(|e| SinkError::of("write", &part, 0, e))
    }

    /// Makes all frames durable, for a record.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn sync(&mut self) -> Result<Grown, SinkError> {
        if let Some(file) = &self.file {
            file.sync().map_err(|e| SinkError::sync(&self.part(), self.end, e))?;
            file.drop_cache((0, self.end));
        }
        Ok(Grown { bytes: self.end })
    }

    /// Says what was written, and gives it its name. Returns its files, for a manifest.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn finish(&mut self, job: &Job) -> Result<Vec<ManifestFile>, Error> {
        let Some(file) = self.file.take() else { return Ok(Vec::new()) };
        let part = self.part();
        file.sync().map_err(|e| SinkError::sync(&part, self.end, e))?;
        let table = std::mem::replace(&mut self.table, Table::empty(self.form));
        let (tensors, sums, sha256, extents) = table.finish();
        let names = self.names();
        let mut components = Components {
            format: names.format.to_owned(),
            blake3: String::new(),
            reflow: env!("CARGO_PKG_VERSION").to_owned(),
            plan: job.fingerprint(),
            bytes: self.end,
            sha256: sha256.clone(),
            rescalers: rescale::rescalers(self.form, &tensors, &sums),
            base: base_of(&tensors),
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

    fn part(&self) -> PathBuf {
        self.names().part_in(&self.dir)
    }
}
