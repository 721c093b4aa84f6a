//! How a merge is planned: from a recipe, or from what an earlier merge has kept.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::components::{self, Components, Prepared, Recombined, Wanted};
use super::vocabulary::{self, Tokenizer};
use super::{Job, Ties, failpoint, files_read, inputs, template};
use crate::checkpoint::ShardFile;
use crate::checkpoint::components::Kind;
use crate::engine::sink::{RealDisk, Storage};
use crate::engine::source::Before;
use crate::engine::{host, source};
use crate::error::Error;
use crate::kernel::{self, Kernels};
use crate::method::{Method, Rebuilt, Weighted, registry};
use crate::plan::tied::Tie;
use crate::plan::{Beside, Inputs, Means, Plan};
use crate::progress::{Event, Progress};
use crate::recipe::{Recipe, RecipeError, Settings};
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
    pub(super) fn plan_by(
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
        let before = Arc::default();
        let ties = inputs::settle_ties(&recipe, &mut inputs, ties, &before)?;
        let (mut tokenizer, mut warnings) = vocabulary::settle(&recipe, &mut inputs)?;
        let (template, warning) = template::settle(&recipe, &inputs)?;
        tokenizer.template = template;
        warnings.extend(warning);
        for warning in warnings {
            progress.event(&Event::Warning { text: &warning });
        }
        let method = method(&recipe, kernels, &settings)?;
        let name = recipe.method.name;
        if method.unifies() && settings.components.is_some() {
            let reason = format!("{name} makes no merge that could have any");
            return Err(wrong("--components", reason).into());
        }
        if method.unifies() && settings.statistics {
            let reason = format!("{name} makes no model that they could be about");
            return Err(wrong("--statistics", reason).into());
        }
        let beside = if settings.components.is_some() || method.unifies() {
            components::beside(&recipe, &inputs, &*method)?
        } else {
            Beside::Nothing
        };
        Self::assemble(
            Parts { recipe, inputs, ties, tokenizer, method, beside, kernels, before },
            settings,
            None,
            progress,
        )
    }

    /// The method of a recipe.
    pub(super) fn method(
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
            return Err(wrong("--components", reason).into());
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
        let before = Arc::default();
        let parts = Parts { recipe, inputs, ties, tokenizer, method, beside, kernels, before };
        Self::assemble(parts, settings, Some((components, file, wanted)), progress)
    }

    fn assemble(
        parts: Parts,
        settings: Settings,
        stored: Option<(&Components, ShardFile, Wanted<'_>)>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let Parts { recipe, inputs, ties, tokenizer, method, beside, kernels, before } = parts;
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
        let sampling = source::for_samples(mode, settings.io, &paths, keep_cache);
        let storage: Box<dyn Storage> = match settings.failpoint {
            Some(point) => Box::new(failpoint::Watched::new(RealDisk, point)),
            None => Box::new(RealDisk),
        };
        let base_files = &inputs.donor().files;
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
            sampling,
            keep_cache,
            before,
            storage,
            recombined,
            findings: None,
        })
    }
}

fn wrong(key: &str, reason: String) -> RecipeError {
    RecipeError::Value { key: key.to_owned(), reason }
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
    before: Arc<Before>,
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
