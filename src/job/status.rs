//! What there is at an output's place.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::manifest::Manifest;
use super::staging::{self, PlanFile};
use crate::engine::sink::RealDisk;
use crate::error::Error;

/// What there is at an output's place.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Status {
    /// Nothing that reflow knows.
    Nothing,
    /// A finished output.
    Finished {
        /// Number of files.
        files: usize,
        /// Bytes of all files.
        bytes: u64,
    },
    /// An output that is not finished.
    Unfinished(Box<Unfinished>),
}

/// An output that is not finished.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unfinished {
    /// The staging directory.
    pub staging: PathBuf,
    /// Who works on it now.
    pub running: Option<String>,
    /// Whether everything is made, and files are being moved to where they belong.
    pub publishing: bool,
    /// Input bytes read so far, of those that an undisturbed merge reads.
    pub read: u64,
    /// Input bytes that an undisturbed merge reads; 0 before the first record.
    pub total: u64,
    /// Shards that are whole.
    pub shards_done: usize,
    /// All shards.
    pub shards: usize,
    /// Bytes of the output that are durable.
    pub written: u64,
    /// Bytes that all shards will have.
    pub size: u64,
    /// Number of processes that have worked on it.
    pub attempts: u64,
    /// Inputs that are gone or have changed since it was begun.
    pub changed: Vec<String>,
    /// The command that goes on with it, if it was begun from the command line.
    pub command: Option<String>,
}

/// Looks at an output, or at its staging directory, without changing anything.
///
/// # Errors
/// [`Error::Damaged`] if plan or manifest are not as they were written.
pub fn status(dir: &Path) -> Result<Status, Error> {
    let Some((_, root)) = staging::find_unpublished(dir) else {
        return Ok(match Manifest::load(dir)? {
            Some(manifest) => Status::Finished {
                files: manifest.files.len() + 1,
                bytes: manifest.files.iter().map(|file| file.bytes).sum(),
            },
            None => Status::Nothing,
        });
    };
    let state = staging::state_of(&root);
    let Some(plan) = PlanFile::load(&state)? else { return Ok(Status::Nothing) };
    let records = staging::records(&root)?;
    let last = records.last();
    let open = last.and_then(|last| last.open.as_ref()).map_or(0, |open| open.bytes);
    let extents = records.iter().flat_map(|record| &record.extents);
    Ok(Status::Unfinished(Box::new(Unfinished {
        running: staging::holder(&state),
        publishing: last.is_some_and(|last| last.publishing),
        read: last.map_or(0, |last| last.read),
        total: last.map_or(0, |last| last.total),
        shards_done: records.iter().map(|record| record.shards.len()).sum(),
        shards: plan.shards.len(),
        written: extents.map(|extent| extent.bytes).fold(open, u64::saturating_add),
        size: plan.shards.iter().map(|shard| shard.bytes).fold(0, u64::saturating_add),
        attempts: last.map_or(0, |last| last.generation),
        changed: changed(&plan),
        command: plan.command,
        staging: root,
    })))
}

fn changed(plan: &PlanFile) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let differs = |input: &&staging::InputIdentity| match std::fs::metadata(&input.path) {
        Ok(meta) => {
            let mtime = i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec());
            meta.len() != input.bytes || mtime.to_string() != input.mtime_ns
        }
        Err(_) => true,
    };
    plan.identity.inputs.iter().filter(differs).map(|input| input.path.clone()).collect()
}

/// Removes what an unfinished output has left; returns the bytes that were in it, `None` if there is nothing.
/// A finished output is not touched.
///
/// # Errors
/// [`Error::Locked`] if somebody works on it, [`Error::Foreign`] if there are files that reflow did not make,
/// [`Error::Damaged`] if its plan cannot be trusted to name them.
pub fn clean(dir: &Path) -> Result<Option<u64>, Error> {
    match staging::find_any(dir) {
        Some((place, root)) => staging::clean(&RealDisk, place, root).map(Some),
        None => Ok(None),
    }
}
