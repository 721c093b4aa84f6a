//! A merge from recipe to finished directory: open, plan, stage, run the passes, commit.
//!
//! ```text
//! OUT.partial/            staging, beside OUT (OUT/.reflow-state/ if OUT was there before)
//!   state/lock            held while a process works here
//!   state/plan.json       what is being made
//!   state/journal         how far it has come
//!   state/fold-U-S-E      what a fold has gathered
//!   state/kept-U-S-E      what it has put aside on the way
//!   state/begun-U-S-E     the frame of components that was begun
//!   state/seen-U-S-E      statistics since the record before
//!   components/           components, if they are kept
//!   model/NAME.part       shards being written; no loader looks for that name
//!   model/                finished shards, side files, index, manifest
//! OUT/                    appears by one rename of model/
//! ```
//!
//! The protocol and its promises are told in `docs/reliability.md`.

mod components;
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
#[cfg(test)]
mod powerloss;
mod preflight;
mod publish;
mod reading;
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
mod verify;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

pub use components::{Components, Rescalers, StoredShares};
pub use findings::Findings;
pub use manifest::{Manifest, ManifestExtent, ManifestFile};
pub use preflight::Space;
pub use run::{PassReport, Report};
pub use status::{Status, Unfinished, clean, status};
pub use survey::Survey;
pub use verify::{Depth, Finding, VerifyReport, verify};

use crate::checkpoint::components::{Form, Kind};
use crate::checkpoint::{ModelCard, ShardFile};
use crate::engine::sink::{RealDisk, SinkError, Storage};
use crate::engine::{host, source};
use crate::error::Error;
use crate::kernel::{self, Kernels};
use crate::method::{Evidence, Method, Rebuilt, Weighted, registry};
use crate::plan::tied::Tie;
use crate::plan::{Beside, Inputs, Means, Mode, Plan, PlanSummary};
use crate::progress::{Event, Progress, Silent};
use crate::recipe::{Recipe, RecipeError, Settings, Words, reference};
use components::{Prepared, Recombined, Wanted};
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
    mode_reason: String,
    keep_cache: bool,
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
    /// Opens all checkpoints and plans the merge.
    ///
    /// # Errors
    /// Everything that can be wrong with recipe, inputs and memory.
    pub fn plan(
        recipe: Recipe,
        settings: Settings,
        ties: Ties<'_>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        Self::plan_by(recipe, settings, ties, progress, Self::method)
    }

    /// Plans the merge by a method that is made for it.
    fn plan_by(
        recipe: Recipe,
        settings: Settings,
        ties: Ties<'_>,
        progress: &dyn Progress,
        method: impl FnOnce(&Recipe, &'static Kernels, &Settings) -> Result<Box<dyn Method>, Error>,
    ) -> Result<Self, Error> {
        let kernels = kernel::select()?;
        for warning in recipe.validate()? {
            progress.event(&Event::Warning { text: &warning });
        }
        let mut inputs = inputs::open(&recipe)?;
        let ties = inputs::settle_ties(&recipe, &mut inputs, ties)?;
        let (mut tokenizer, mut warnings) = vocabulary::settle(&recipe, &mut inputs)?;
        let (template, warning) = template::settle(&recipe, &inputs)?;
        tokenizer.template = template;
        warnings.extend(warning);
        for warning in warnings {
            progress.event(&Event::Warning { text: &warning });
        }
        let method = method(&recipe, kernels, &settings)?;
        if let (true, Some(_)) = (method.unifies(), &settings.components) {
            let reason = format!("{} makes no merge that could have any", recipe.method.name);
            return Err(RecipeError::Value { key: "--components".to_owned(), reason }.into());
        }
        if method.unifies() && settings.statistics {
            let reason = format!("{} makes no model that they could be about", recipe.method.name);
            return Err(RecipeError::Value { key: "--statistics".to_owned(), reason }.into());
        }
        if recipe.method.evidence == Some(Evidence::Gram) && settings.statistics {
            let reason =
                "tensors that are solved for are not seen element by element; leave it out"
                    .to_owned();
            return Err(RecipeError::Value { key: "--statistics".to_owned(), reason }.into());
        }
        let beside = if settings.components.is_some() || method.unifies() {
            components::beside(&recipe, &inputs, &*method)?
        } else {
            Beside::Nothing
        };
        Self::assemble(
            Parts { recipe, inputs, ties, tokenizer, method, beside, kernels },
            settings,
            None,
            progress,
        )
    }

    /// The method of a recipe.
    fn method(
        recipe: &Recipe,
        kernels: &'static Kernels,
        settings: &Settings,
    ) -> Result<Box<dyn Method>, Error> {
        let setup = registry::Setup {
            kernels,
            base: recipe.has_base(),
            seed: recipe.seed,
            strategy: settings.strategy,
            values: recipe.merge_values()?,
        };
        Ok((recipe.method.build)(&setup))
    }

    /// Plans an output with other lambdas from what [`Settings::components`] of an earlier merge has kept in `dir`, and its
    /// base: the very files that a merge with these lambdas would make.
    ///
    /// # Errors
    /// If components and base do not belong together, or are damaged; everything else as in [`Job::plan`].
    pub fn recombine(
        dir: &Path,
        base: &Path,
        lambdas: &[f64],
        settings: Settings,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let kernels = kernel::select()?;
        let Some(components) = Components::load(dir, Kind::Shares)? else {
            let reason = format!("{} holds no components", dir.display());
            return Err(RecipeError::Value { key: "--components".to_owned(), reason }.into());
        };
        let wanted = Wanted::Lambdas(lambdas);
        let method = Box::new(Weighted { kernels });
        Self::made_of(dir, &components, base, wanted, (kernels, method), settings, progress)
    }

    /// Plans the model of one task from what a merge by EMR-Merging has made in `dir`, and its base. `rescale` says which
    /// rescaler is taken, if not the one of that merge's recipe.
    ///
    /// # Errors
    /// If there is no such task, or `dir` and base do not belong together, or are damaged; everything else as in
    /// [`Job::plan`].
    pub fn apply(
        dir: &Path,
        base: &Path,
        task: &str,
        rescale: Option<&str>,
        settings: Settings,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let kernels = kernel::select()?;
        let wrong = |key: &str, reason: String| RecipeError::Value { key: key.to_owned(), reason };
        let Some(found) = Components::load(dir, Kind::Unified)? else {
            let reason =
                format!("{} is no directory that reflow merge --method emr made", dir.display());
            return Err(wrong("--emr", reason).into());
        };
        let expert = found.task(task).map_err(|reason| wrong("--task", reason))?;
        let form = match rescale {
            Some(form) => form.to_owned(),
            None => found.rescale(dir)?,
        };
        let lambda = found.rescalers[expert].of(&form);
        let note = format!(
            "# The model of task {task:?}, made by reflow apply; rescaler {form} {lambda}\n"
        );
        let wanted = Wanted::Task { expert, note };
        let method = Box::new(Rebuilt { lambda });
        Self::made_of(dir, &found, base, wanted, (kernels, method), settings, progress)
    }

    fn made_of(
        dir: &Path,
        components: &Components,
        base: &Path,
        wanted: Wanted<'_>,
        (kernels, method): (&'static Kernels, Box<dyn Method>),
        settings: Settings,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let Prepared { recipe, inputs, ties, beside, file } =
            components::prepare(dir, components, base, &wanted)?;
        for warning in recipe.validate()? {
            progress.event(&Event::Warning { text: &warning });
        }
        let (template, _) = template::settle(&recipe, &inputs)?;
        let tokenizer = Tokenizer { template, ..Tokenizer::default() };
        let parts = Parts { recipe, inputs, ties, tokenizer, method, beside, kernels };
        Self::assemble(parts, settings, Some((components, file, wanted)), progress)
    }

    fn assemble(
        parts: Parts,
        settings: Settings,
        stored: Option<(&Components, ShardFile, Wanted<'_>)>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let Parts { recipe, inputs, ties, tokenizer, method, beside, kernels } = parts;
        let (memory, memory_source) = memory(&settings, progress);
        let threads = settings.threads.unwrap_or_else(|| {
            std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
        });
        let extra = stored.as_ref().map(|(_, file, _)| file);
        let files: Vec<&ShardFile> = files_read(&inputs, extra).collect();
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path.clone()).collect();
        let (mode, mode_reason) = source::choose(settings.io, &paths, settings.memory.is_some());
        let tile = settings.tile.map(|tile| tile.clamp(1, 1 << 30) as u32);
        let statistics = settings.statistics;
        let means = Means { memory, memory_source, threads, mode, tile, beside, statistics };
        let plan = Plan::new(&recipe, &inputs, ties, &*method, &means)?;
        let read = files.iter().map(|file| file.len).sum();
        let keep_cache = keeps_cache(&settings, read, &plan);
        let storage: Box<dyn Storage> = match settings.failpoint {
            Some(point) => Box::new(failpoint::Watched::new(RealDisk, point)),
            None => Box::new(RealDisk),
        };
        let base_files = inputs.donor().files.len() as u32;
        let recombined = stored.map(|(components, file, wanted)| {
            let frames = components::frames(components, &plan, base_files, &file, &wanted)?;
            let note = match wanted {
                Wanted::Lambdas(_) => String::new(),
                Wanted::Task { note, .. } => note,
            };
            Ok::<_, Error>(Recombined { frames, file, note })
        });
        let recombined = recombined.transpose()?;
        Ok(Self {
            recipe,
            settings,
            inputs,
            method,
            kernels,
            plan,
            tokenizer,
            mode,
            mode_reason,
            keep_cache,
            storage,
            recombined,
            findings: None,
        })
    }

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
            let begun = !self.settings.restart
                && staging::records(&place.root(out)).is_ok_and(|records| !records.is_empty());
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
        let file = |f: &crate::checkpoint::ShardFile| source::InputFile {
            path: f.path.clone(),
            len: f.len,
            inode: f.inode,
            mtime_ns: f.mtime_ns,
        };
        self.files_read().map(file).collect()
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

/// What a plan is made from.
struct Parts {
    recipe: Recipe,
    inputs: Inputs,
    ties: Vec<Tie>,
    tokenizer: Tokenizer,
    method: Box<dyn Method>,
    beside: Beside,
    kernels: &'static Kernels,
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

/// The limit to plan for: `--memory`, or a share of what container and machine allow.
pub(crate) fn memory(settings: &Settings, progress: &dyn Progress) -> (u64, String) {
    let found = host::memory::discover();
    let found = found.effective().cloned().unwrap_or(host::memory::Limit {
        // Nothing is known about this machine: a size that works on any that runs large merges.
        bytes: 2 << 30,
        source: "no limit found".to_owned(),
    });
    match settings.memory {
        Some(bytes) if bytes <= found.bytes => (bytes, "--memory".to_owned()),
        Some(bytes) => {
            let text = format!(
                "--memory {} is more than there is; planning for {} ({})",
                crate::human::bytes(bytes),
                crate::human::bytes(found.bytes),
                found.source,
            );
            progress.event(&Event::Warning { text: &text });
            (found.bytes, found.source)
        }
        // A container's limit is ours alone, and the plan counts all that it is charged for; the
        // machine's memory is everybody's.
        None if found.source.contains("/memory.") => {
            (found.bytes / 8 * 7, format!("seven eighths of {}", found.source))
        }
        None => (found.bytes / 2, format!("half of {}", found.source)),
    }
}

/// Input pages stay in the page cache only if nobody named a limit and there is room for all
/// inputs and the output twice over. Otherwise a pass would push out what the next one needs.
fn keeps_cache(settings: &Settings, read: u64, plan: &Plan) -> bool {
    let all = read + plan.layout.total_size;
    let limits = host::memory::discover();
    let room = limits.effective().map_or(0, |limit| limit.bytes);
    settings.memory.is_none() && limits.cgroup().is_none() && room > 2 * all
}
