//! Whether an output, finished or not, holds what was written.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::components::{self, Components};
use super::manifest::{self, Manifest, ManifestExtent, ManifestFile};
use super::output::file_of;
use super::staging::{self, PlanFile};
use crate::checkpoint::components::Kind;
use crate::checkpoint::{Catalog, CheckpointError, OpenOptions, hex};
use crate::engine::EngineError;
use crate::engine::sink::{SinkError, read_back};
use crate::error::Error;
use crate::human;
use crate::progress::{Event, Progress};

/// How much is looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Depth {
    /// Names, sizes, headers and index; every byte of the small files.
    Quick,
    /// The same, and a part of all extents.
    Sample {
        /// Which part.
        share: f64,
        /// Another seed, other extents.
        seed: u64,
    },
    /// Every byte.
    Full,
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The file.
    pub file: String,
    /// First byte of the run that is wrong, and how many are in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<(u64, u64)>,
    /// The tensor that these belong to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        match (&self.tensor, self.range) {
            (Some(tensor), Some((at, len))) => {
                write!(f, ": tensor {tensor} ({len} bytes at {at})")?;
            }
            (None, Some((at, len))) => write!(f, ": {len} bytes at {at}")?,
            _ => {}
        }
        write!(f, ": {}", self.what)
    }
}

/// What was looked at and found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Number of files.
    pub files: usize,
    /// Bytes whose hash was compared.
    pub bytes: u64,
    /// Whether there were hashes to compare with.
    pub manifest: bool,
    /// Whether the output is finished.
    pub finished: bool,
    /// What is wrong, by file and offset.
    pub findings: Vec<Finding>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

impl fmt::Display for VerifyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.finished { "" } else { " of an output that is not finished" };
        write!(f, "{} compared in {} files{what}", human::bytes(self.bytes), self.files)
    }
}

impl VerifyReport {
    /// Reports warnings and findings.
    pub(super) fn tell(&self, progress: &dyn Progress) {
        for text in &self.warnings {
            progress.event(&Event::Warning { text });
        }
        for finding in &self.findings {
            progress.event(&Event::Warning { text: &finding.to_string() });
        }
    }

    /// Demands that nothing was found.
    ///
    /// # Errors
    /// [`Error::Unsound`].
    pub fn sound(&self, dir: &Path) -> Result<(), Error> {
        match self.findings.len() {
            0 => Ok(()),
            findings => Err(Error::Unsound { path: dir.to_owned(), findings }),
        }
    }

    fn find(&mut self, file: &str, what: impl Into<String>) {
        let (file, what) = (file.to_owned(), what.into());
        self.findings.push(Finding { file, range: None, tensor: None, what });
    }
}

/// Looks at a finished output, or at what is durable of one that is not finished.
///
/// # Errors
/// If files cannot be read, or it is stopped. What is found is no error here.
pub fn verify(
    dir: &Path,
    depth: Depth,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<VerifyReport, Error> {
    if let Some(found) = Components::load(dir, Kind::Shares)? {
        return components::verify(dir, &found, depth, cancel);
    }
    match staging::find_unpublished(dir) {
        Some((place, root)) => unfinished(&root, &place.out(&root), depth, progress, cancel),
        None => finished(dir, depth, progress, cancel),
    }
}

/// Looks at a finished output.
pub(super) fn finished(
    dir: &Path,
    depth: Depth,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<VerifyReport, Error> {
    let mut report = VerifyReport { finished: true, ..VerifyReport::default() };
    match form(dir) {
        Ok(None) => {}
        Ok(Some(catalog)) => report.warnings.extend(catalog.warnings),
        Err(error) => {
            let denied = matches!(&error, Error::Checkpoint(CheckpointError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied);
            // What cannot be read now may well be sound; what is not there is nothing to look at.
            if denied || error.exit_code() == 7 || !dir.is_dir() {
                return Err(error);
            }
            report.find(&dir.display().to_string(), error.to_string());
        }
    }
    let manifest = match Manifest::load(dir) {
        Ok(Some(manifest)) => manifest,
        Ok(None) => {
            report.warnings.push(format!(
                "{} has no {}: only the form was checked",
                dir.display(),
                manifest::FILE
            ));
            return Ok(report);
        }
        Err(Error::Damaged { what, .. }) => {
            report.find(manifest::FILE, what);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    report.manifest = true;
    report.files = manifest.files.len();
    strangers(dir, &manifest, &mut report)?;
    let mut tasks = Vec::new();
    for file in &manifest.files {
        match dir.join(&file.name).metadata() {
            // Opening a pipe would wait for its other end.
            Ok(meta) if !meta.is_file() => report.find(&file.name, "is not a regular file"),
            Ok(meta) if meta.len() == file.bytes => tasks.push(Task::new(file, depth)),
            Ok(meta) => {
                let (is, was) = (meta.len(), file.bytes);
                report.find(&file.name, format!("has {is} bytes and not {was}"));
            }
            Err(error) => report.find(&file.name, error.to_string()),
        }
    }
    run(dir, &tasks, &mut report, progress, cancel)?;
    Ok(report)
}

/// The form of a finished output: a model, or what EMR-Merging makes, of which there is nothing more to tell.
fn form(dir: &Path) -> Result<Option<Catalog>, Error> {
    match Components::load(dir, Kind::Unified)? {
        Some(_) => Ok(None),
        None => Ok(Some(Catalog::open(dir, OpenOptions::default())?)),
    }
}

/// Looks at what the journal of an unfinished output speaks of.
fn unfinished(
    root: &Path,
    out: &Path,
    depth: Depth,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<VerifyReport, Error> {
    let mut report = VerifyReport { manifest: true, ..VerifyReport::default() };
    let Some(plan) = PlanFile::load(&staging::state_of(root))? else { return Ok(report) };
    let records = staging::records(root)?;
    let open = records.last().and_then(|last| last.open.clone());
    let model = staging::model_of(root);
    let mut tasks: Vec<Task> = (plan.shards.iter())
        .map(|shard| Task { file: shard.file.clone(), sha256: None, extents: Vec::new() })
        .collect();
    for written in records.iter().flat_map(|record| &record.extents).chain(&open) {
        if let Some(task) = tasks.get_mut(written.shard as usize) {
            task.extents.push(ManifestExtent {
                offset: written.offset,
                bytes: written.bytes,
                blake3: written.blake3.clone(),
                tensor: None,
            });
        }
    }
    for task in &mut tasks {
        task.extents.sort_by_key(|extent| extent.offset);
        sample(&mut task.extents, &task.file, depth);
    }
    tasks.retain(|task| !task.extents.is_empty());
    report.files = tasks.len();
    // Some are where they belong already, if files are published one by one.
    let (moved, here): (Vec<_>, _) = tasks
        .into_iter()
        .partition(|task| !file_of(&model, &task.file).exists() && out.join(&task.file).exists());
    run(&model, &here, &mut report, progress, cancel)?;
    run(out, &moved, &mut report, progress, cancel)?;
    let grown = records.last().and_then(|last| last.components.as_ref());
    if let Some(grown) = grown.filter(|_| depth != Depth::Quick) {
        let dirs = [staging::components_of(root), model, out.to_owned()];
        components::verify_grown(&dirs, grown, &mut report)?;
    }
    report.findings.sort();
    Ok(report)
}

/// Shards that the manifest does not know: a loader that takes whatever is there would load them.
fn strangers(dir: &Path, manifest: &Manifest, report: &mut VerifyReport) -> Result<(), Error> {
    let known: HashSet<&str> = manifest.files.iter().map(|file| file.name.as_str()).collect();
    for name in staging::entries(dir)? {
        if name.ends_with(".safetensors") && !known.contains(name.as_str()) {
            report.find(&name, "is not in the manifest");
        }
    }
    Ok(())
}

/// What is to be compared of one file.
struct Task {
    file: String,
    /// The hash of the whole file, if that is compared.
    sha256: Option<String>,
    /// The runs to compare; all of the file if its own hash is to be compared and it has none.
    extents: Vec<ManifestExtent>,
}

impl Task {
    fn new(file: &ManifestFile, depth: Depth) -> Self {
        let mut extents = file.extents.clone();
        sample(&mut extents, &file.name, depth);
        let whole = depth == Depth::Full || file.extents.is_empty();
        Self { file: file.name.clone(), sha256: whole.then(|| file.sha256.clone()), extents }
    }
}

/// Leaves as many extents as the depth asks for.
fn sample(extents: &mut Vec<ManifestExtent>, file: &str, depth: Depth) {
    match depth {
        Depth::Full => {}
        Depth::Quick => extents.clear(),
        Depth::Sample { share, seed } => extents.retain(|extent| {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&seed.to_le_bytes());
            hasher.update(file.as_bytes());
            hasher.update(&extent.offset.to_le_bytes());
            let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
            f64::from(u32::from_le_bytes([a, b, c, d])) < share * 2f64.powi(32)
        }),
    }
}

/// Compares, some files at a time.
fn run(
    dir: &Path,
    tasks: &[Task],
    report: &mut VerifyReport,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<(), Error> {
    let sizes = tasks.iter().map(|task| (task, size(dir, task)));
    let bytes = sizes.clone().map(|(_, bytes)| bytes).sum();
    progress.event(&Event::Started { bytes_total: bytes, bytes_done: 0 });
    progress.event(&Event::PassStarted { name: "verify" });
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Ok(Vec::new())));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(tasks.len()) {
            let _joined = scope.spawn(|| {
                while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let here = compare(dir, task, progress, cancel);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    match (&mut *found, here) {
                        (Ok(all), Ok(here)) => all.extend(here),
                        (Ok(_), Err(error)) => *found = Err(error),
                        (Err(_), _) => {}
                    }
                }
            });
        }
    });
    report.findings.extend(found.into_inner().unwrap_or_else(PoisonError::into_inner)?);
    report.findings.sort();
    report.bytes += bytes;
    Ok(())
}

fn size(dir: &Path, task: &Task) -> u64 {
    match task.sha256 {
        Some(_) => file_of(dir, &task.file).metadata().map_or(0, |meta| meta.len()),
        None => task.extents.iter().map(|extent| extent.bytes).sum(),
    }
}

fn compare(
    dir: &Path,
    task: &Task,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Vec<Finding>, Error> {
    let path = file_of(dir, &task.file);
    let (mut whole, mut end, mut findings) = (Sha256::new(), 0, Vec::new());
    let all =
        ManifestExtent { offset: 0, bytes: size(dir, task), blake3: String::new(), tensor: None };
    let extents = if task.extents.is_empty() { std::slice::from_ref(&all) } else { &task.extents };
    for extent in extents {
        if cancel.load(Ordering::Relaxed) {
            return Err(EngineError::Interrupted.into());
        }
        let mut hasher = blake3::Hasher::new();
        let read = read_back(&path, extent.offset..extent.offset + extent.bytes, |bytes| {
            hasher.update(bytes);
            if task.sha256.is_some() {
                whole.update(bytes);
            }
            progress.advance(bytes.len() as u64);
        });
        let sound = match read {
            Ok(()) => {
                extent.blake3.is_empty() || hasher.finalize().to_hex().as_str() == extent.blake3
            }
            Err(SinkError::Damaged { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !sound {
            findings.push(Finding {
                file: task.file.clone(),
                range: Some((extent.offset, extent.bytes)),
                tensor: extent.tensor.clone(),
                what: "is not what was written".to_owned(),
            });
        }
        end = extent.offset + extent.bytes;
    }
    let differs = task.sha256.as_ref().is_some_and(|sha256| hex(&whole.finalize()) != *sha256);
    if differs && findings.is_empty() {
        let what = "is not what was written (SHA-256)".to_owned();
        findings.push(Finding { file: task.file.clone(), range: None, tensor: None, what });
    }
    debug_assert!(task.sha256.is_none() || end == size(dir, task), "extents are without a hole");
    Ok(findings)
}
