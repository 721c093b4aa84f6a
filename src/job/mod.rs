//! A merge from recipe to finished directory: open, plan, stage, run the passes, commit.
//!
//! ```text
//! OUT.partial/            staging, beside OUT (OUT/.reflow-state/ if OUT was there before)
//!   state/lock            held while a process works here
//!   state/plan.json       what is being made
//!   state/journal         how far it has come
//!   state/fold-U-S-E      what a fold has gathered
//!   state/kept-U-S-E      what it has put aside on the way
//!   state/seen-U-S-E      statistics since the record before
//!   components/           components, if they are kept
//!   model/NAME.part       shards being written; no loader looks for that name
//!   model/                finished shards, side files, index, manifest
//! OUT/                    appears by one rename of model/
//! ```
//!
//! The protocol and its promises are told in `docs/reliability.md`.

mod ahead;
mod components;
mod digests;
#[cfg(test)]
mod encounters;
mod extents;
mod failpoint;
#[cfg(test)]
mod filling;
mod findings;
#[cfg(test)]
mod flips;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod holes;
mod inputs;
mod journal;
pub mod lineage;
#[cfg(test)]
mod machine;
mod manifest;
#[cfg(test)]
mod meddler;
mod output;
mod parcels;
mod pieces;
mod planning;
#[cfg(test)]
mod powerloss;
mod preflight;
mod publish;
mod reading;
mod redo;
mod report;
mod resume;
mod run;
#[cfg(test)]
mod scene;
mod snapshots;
mod staging;
mod statistics;
mod status;
mod survey;
mod template;
mod unrecorded;
mod verify;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub use components::{Components, Rescalers, StoredShares};
pub use findings::Findings;
pub use manifest::{Manifest, ManifestExtent, ManifestFile};
pub(crate) use planning::memory;
pub use preflight::Space;
pub use report::{PassReport, Report};
pub use status::{Status, Unfinished, clean, status};
pub use survey::{Survey, Units};
pub use verify::{Depth, Finding, VerifyReport, verify};

use crate::checkpoint::components::{Form, Kind};
use crate::checkpoint::{ModelCard, ShardFile};
use crate::engine::sink::{SinkError, Storage};
use crate::engine::source;
use crate::error::Error;
use crate::kernel::Kernels;
use crate::method::Method;
use crate::plan::{Inputs, Mode, Plan, PlanSummary};
use crate::progress::{Event, Progress, Silent};
use crate::recipe::{Recipe, Settings, Words, reference};
use components::Recombined;
use staging::{Place, PlanFile};
use vocabulary::Tokenizer;

/// A merge that is planned and has not begun.
pub struct Job {
    recipe: Recipe,
    settings: Settings,
    inputs: Inputs,
    method: Box<dyn Method>,
    kernels: &'static Kernels,
    plan: Plan,
    tokenizer: Tokenizer,
    mode: Mode,
    /// How samples are read.
    sampling: Mode,
    mode_reason: String,
    keep_cache: bool,
    /// What of the inputs was in the page cache before.
    before: Arc<source::Before>,
    storage: Box<dyn Storage>,
    /// What is read instead of experts.
    recombined: Option<Recombined>,
    /// A hash of what the method knows of units beforehand.
    findings: Option<String>,
}

/// How far tied weights are looked into while planning.
#[derive(Clone, Copy, Debug)]
pub enum Ties<'a> {
    /// Believe config and names; no data is read.
    Assume,
    /// Compare the bytes, until the flag is set.
    Compare(&'a AtomicBool),
}

impl Job {
    /// Whether a model is made, and not what models are made from later.
    pub fn makes_model(&self) -> bool {
        !self.method.unifies()
    }

    /// The plan in numbers and names.
    pub fn summary(&self) -> PlanSummary {
        let mut summary = PlanSummary::new(&self.plan, &*self.method);
        summary.unified = self.method.unifies().then(|| self.shares_bytes());
        summary.warnings.extend(publish::config(self).into_iter().flat_map(|(_, notes)| notes));
        summary
    }

    /// How inputs are read, and why so, in words.
    pub fn io_text(&self) -> String {
        let mode = match self.mode {
            Mode::Mmap => "mmap",
            Mode::Pread => "pread",
            Mode::Direct => "direct reads",
        };
        format!("{mode} ({})", self.mode_reason)
    }

    /// Checks that the output can be written to `out`.
    ///
    /// # Errors
    /// If something is there already, lies inside an input, or does not fit on the disk.
    pub fn preflight(&self, out: &Path) -> Result<Space, Error> {
        let out = without_slash(out);
        preflight::check(&self.inputs, &self.plan, self.bytes_beside(), out, Place::of(out)?)
    }

    /// Merges into the directory `out`, which is new or empty.
    ///
    /// # Errors
    /// See [`Error`]; whatever happens, a new `out` exists only when it is complete, and inputs are
    /// untouched.
    pub fn merge(
        &self,
        out: &Path,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<Report, Error> {
        let out = without_slash(out);
        if staging::was_published(&*self.storage, out, || self.is_made(out, cancel))? {
            progress.event(&Event::Notice { text: "the output was complete already" });
            return Ok(Report::default());
        }
        let place = Place::of(out)?;
        let beside = self.bytes_beside();
        let _enough = preflight::check(&self.inputs, &self.plan, beside, out, place)?;
        if let Some(dir) = &self.settings.components {
            // A plan that is damaged is told of in its own words.
            let plan = PlanFile::load(&staging::state_of(&place.root(out)));
            let begun = !self.settings.restart && !matches!(plan, Ok(None));
            let _there = components::check(self, dir, out, begun)?;
        }
        if place == Place::Inside {
            progress.event(&Event::Notice {
                text: "the output directory exists: its files appear one by one at the end, the index last",
            });
        }
        run::merge(self, out, place, progress, cancel).map_err(|error| match error {
            // Its name is there, so more room is no cure: nobody knows whether it is durable.
            Error::Sink(SinkError::NoSpace { path, source, .. })
                if place == Place::Beside && out.exists() =>
            {
                Error::Sink(SinkError::Sync { path, source })
            }
            error => error,
        })
    }

    /// Whether `out` holds what this merge makes: by its manifest, names, sizes and headers.
    pub fn is_made(&self, out: &Path, cancel: &AtomicBool) -> bool {
        let out = without_slash(out);
        let manifest = Manifest::load(out).ok().flatten();
        manifest.is_some_and(|manifest| manifest.plan == self.fingerprint())
            && verify::finished(out, Depth::Quick, &Silent, cancel)
                .is_ok_and(|report| report.findings.is_empty())
    }

    fn input_files(&self) -> Vec<source::InputFile> {
        self.files_read().map(inputs::input_file).collect()
    }

    /// All files that are read, by their index.
    fn files_read(&self) -> impl Iterator<Item = &ShardFile> {
        files_read(&self.inputs, self.recombined.as_ref().map(|recombined| &recombined.file))
    }

    /// About what is written beside the output's shards.
    fn bytes_beside(&self) -> u64 {
        self.shares_bytes() + statistics::bytes(self)
    }

    /// The form of the frames that are made, if any are.
    fn form(&self) -> Option<Form> {
        let experts = self.plan.experts().len();
        match (self.method.unifies(), &self.settings.components) {
            (true, _) => Some(Form { kind: Kind::Unified, experts }),
            (false, Some(_)) => Some(Form { kind: Kind::Shares, experts }),
            (false, None) => None,
        }
    }

    /// About what the frames of all experts take on the disk.
    fn shares_bytes(&self) -> u64 {
        let Some(form) = self.form() else { return 0 };
        let elements: u64 = self.plan.units.iter().map(|unit| unit.view.elements).sum();
        if form.kind == Kind::Unified {
            // As if everything moved: the value as the widest expert stores it, and a bit for each.
            let segments = self.plan.units.iter().flat_map(|unit| &unit.segments);
            let values = segments.map(|&segment| {
                let segment = &self.plan.segments[segment as usize];
                let sizes = (1..segment.sources.len()).map(|i| segment.source_size(i).min(4));
                segment.elements * sizes.max().unwrap_or(4)
            });
            return values.sum::<u64>() + elements.div_ceil(8) * form.experts as u64;
        }
        let kept = elements as f64 * self.recipe.kept().unwrap_or(0.1);
        // A gap and a value for each.
        (kept * self.plan.experts().len() as f64 * 5.0) as u64
    }

    /// All input files as they are now.
    fn input_identities(&self) -> Vec<staging::InputIdentity> {
        let inputs = self.files_read().map(|file| staging::InputIdentity {
            path: absolute(&file.path).display().to_string(),
            bytes: file.len,
            // JSON numbers do not hold 128 bits.
            mtime_ns: file.mtime_ns.to_string(),
            header_sha256: file.header_sha256.clone(),
        });
        inputs.collect()
    }

    /// What a staging directory is told about this merge.
    fn plan_file(&self) -> Result<PlanFile, Error> {
        let shards = self.plan.layout.shards.iter();
        Ok(PlanFile {
            identity: staging::Identity {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                recipe: match &self.recombined {
                    // Its experts are names.
                    Some(_) => self.published_recipe(),
                    None => self.recipe.to_yaml(|path| absolute(path).display().to_string()),
                },
                components: self.settings.components.as_ref().map(|dir| {
                    std::path::absolute(dir).unwrap_or_else(|_| dir.clone()).display().to_string()
                }),
                statistics: self.settings.statistics,
                selection: self.settings.strategy.word().to_owned(),
                findings: self.findings.clone(),
                inputs: self.input_identities(),
            },
            shards: shards
                .map(|s| staging::ShardName { file: s.file_name.clone(), bytes: s.len })
                .collect(),
            others: publish::names(self)?,
            command: self.settings.command.clone(),
        })
    }

    /// A hash of recipe and inputs that does not depend on where and when they lie.
    fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
        hasher.update(self.published_recipe().as_bytes());
        for file in self.inputs.catalogs().chain(&self.inputs.evidence).flat_map(|c| &c.files) {
            hasher.update(file.header_sha256.as_bytes());
            hasher.update(&file.len.to_le_bytes());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The recipe as it is published: with display names instead of paths.
    fn published_recipe(&self) -> String {
        let note = self.recombined.as_ref().map_or("", |recombined| &recombined.note);
        format!("{note}{}", self.published(&self.recipe))
    }

    /// A recipe of the same models as it is published.
    fn published(&self, recipe: &Recipe) -> String {
        let measured = recipe.evidence.iter().map(PathBuf::as_path);
        let paths = recipe.checkpoints().chain(measured).map(Path::to_owned);
        let labels: Vec<(PathBuf, String)> = paths.zip(self.plan.labels.iter().cloned()).collect();
        recipe.to_yaml(|path| {
            // As the output has them, in which every row has its name.
            if recipe.coefficients.as_ref().is_some_and(|given| given.path == path) {
                return publish::COEFFICIENTS.to_owned();
            }
            labels.iter().find(|(p, _)| p == path).map_or_else(String::new, |(_, l)| l.clone())
        })
    }

    fn model_card(&self) -> ModelCard {
        publish::model_card(self)
    }
}

/// Where a model lies, and its adapter if it has one, whatever they are called.
fn absolute(path: &Path) -> PathBuf {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    match reference::split(path) {
        (model, Some(adapter)) => reference::join(&real(model), &real(adapter)),
        (path, None) => real(path),
    }
}

/// The files that a merge reads: those of all checkpoints, or of the base and what stands for the experts.
fn files_read<'a>(
    inputs: &'a Inputs,
    instead: Option<&'a ShardFile>,
) -> impl Iterator<Item = &'a ShardFile> {
    let files = if instead.is_some() { &inputs.donor().files } else { inputs.files() };
    files.iter().chain(instead)
}

/// Checks that an output can be made at `out`, as far as what is there says.
///
/// # Errors
/// [`Error::OutputExists`] if something is there.
pub fn check_free(out: &Path) -> Result<(), Error> {
    let out = without_slash(out);
    // What has been published and not been cleared away yet is looked at with the recipe in hand.
    if Place::Beside.root(out).exists() { Ok(()) } else { Place::of(out).map(drop) }
}

/// `dir/` as `dir`: the staging directory lies beside it, not in it.
fn without_slash(out: &Path) -> &Path {
    out.components().as_path()
}
