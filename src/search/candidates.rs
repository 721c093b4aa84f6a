//! Makes candidates: recombined where only lambdas differ, else merged. One at a time is on the disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};

use super::{Point, Request, grid, remove};
use crate::checkpoint::components::Kind;
use crate::error::{Error, IoContext};
use crate::job::{self, Components, Findings, Job, Status, Survey, Ties, Units};
use crate::plan::PlanError;
use crate::progress::{Event, Progress, Silent};
use crate::recipe::{Recipe, RecipeError, Setting, Settings};

const LAMBDA: &str = "lambda";
/// How directories of components begin; the rest tells of which settings they are.
const KEPT: &str = "components-";
/// The same of files of findings.
const FINDINGS: &str = "findings-";
/// Settings that make no other scan necessary.
const SCANNED: [&str; 3] = ["keep", "variant", grid::SCOPE];

/// Makes the candidates of a search in its work directory.
pub(super) struct Candidates<'a> {
    request: &'a Request,
    work: PathBuf,
    /// Warnings that were told already.
    told: Mutex<HashSet<String>>,
    /// Settings whose statistics were looked for, or are not to be found beforehand.
    surveyed: Mutex<HashSet<String>>,
}

impl<'a> Candidates<'a> {
    pub(super) fn new(request: &'a Request, work: &Path) -> Self {
        Self { request, work: work.to_owned(), told: Mutex::default(), surveyed: Mutex::default() }
    }

    /// Makes a candidate in place of the one before. Of those that are to come, the ones that need no scan of their own are
    /// looked at in the scan for this one. Also tells how many bytes were read.
    ///
    /// # Errors
    /// Those of the merge.
    pub(super) fn make(
        &self,
        point: &Point,
        coming: &[Point],
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<(PathBuf, u64), Error> {
        let out = self.work.join("candidate");
        remove(&out)?;
        let read = self.build(point, coming, &out, true, progress, stop)?;
        Ok((out, read))
    }

    /// Makes the best candidate once more, as an output of its own.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something lies there that is no output of reflow's; those of the merge.
    pub(super) fn publish(
        &self,
        point: &Point,
        out: &Path,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<(), Error> {
        if out.exists() {
            if !matches!(job::status(out)?, Status::Finished { .. }) {
                return Err(Error::OutputExists { path: out.to_owned() });
            }
            // The best of a smaller budget.
            remove(out)?;
        }
        self.build(point, &[], out, false, progress, stop).map(drop)
    }

    /// Removes candidates and components.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn clear(&self) -> Result<(), Error> {
        remove(&self.work.join("candidate"))?;
        remove(&self.work.join("candidate.partial"))?;
        remove(&self.work.join("survey"))?;
        for name in self.named(FINDINGS)? {
            std::fs::remove_file(&name).at("remove", &name)?;
        }
        self.keep_only(None)
    }

    /// Names of the experts, as they were given.
    pub(super) fn experts(&self) -> Vec<String> {
        let models = self.request.recipe.models.iter();
        models.map(|model| crate::checkpoint::display_name(&model.path)).collect()
    }

    fn build(
        &self,
        point: &Point,
        coming: &[Point],
        out: &Path,
        keep: bool,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<u64, Error> {
        let told = Inner { progress, told: &self.told };
        let recipe = self.recipe(point)?;
        let split = self.splits() && !point.lambdas.is_empty();
        let kept = self.work.join(format!("{KEPT}{}", key(point)));
        let base = recipe
            .base
            .clone()
            .filter(|_| split && Components::load(&kept, Kind::Shares).is_ok_and(|c| c.is_some()));
        if let Some(base) = base {
            // The merge that made them may have been stopped just before its own end.
            let _bytes = job::clean(out)?;
            let lambdas = self.lambdas(point);
            let settings = self.settings(None, !keep);
            let job = Job::recombine(&kept, &base, &lambdas, settings, &Silent)?;
            return self.run(&job, out, &Silent, stop);
        }
        if split && keep {
            self.keep_only(Some(&kept))?;
        }
        let components = (split && keep).then_some(kept);
        let surveyed = self.survey(point, coming, progress, stop)?;
        let plan = || -> Result<Job, Error> {
            let settings = self.settings(components.clone(), !keep);
            let job = Job::plan(recipe.clone(), settings, Ties::Compare(stop), &told)?;
            if !job.makes_model() {
                let reason = format!("{} makes no model that could be scored", recipe.method.name);
                return Err(RecipeError::Value { key: "merge_method".to_owned(), reason }.into());
            }
            let found = Findings::load(&self.findings(point), &job.findings_key(&recipe));
            Ok(match found {
                Some(found) => job.knowing(&found),
                None => job,
            })
        };
        let merged = match self.run(&plan()?, out, &told, stop) {
            // Of another candidate, before a search was stopped.
            Err(Error::OtherPlan { .. }) => {
                let _bytes = job::clean(out)?;
                self.run(&plan()?, out, &told, stop)
            }
            done => done,
        };
        Ok(surveyed + merged?)
    }

    /// Finds the statistics of a candidate, and of those to come that need no scan of their own, unless that was done.
    /// Returns the bytes read.
    fn survey(
        &self,
        point: &Point,
        coming: &[Point],
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<u64, Error> {
        let surveyed = || self.surveyed.lock().unwrap_or_else(PoisonError::into_inner);
        if surveyed().contains(&statistics(point)) {
            return Ok(0);
        }
        let mut seen = HashSet::new();
        let mut merges: Vec<Merge<'_>> = Vec::new();
        for other in std::iter::once(point).chain(coming) {
            // Those that differ in lambda are one.
            if unscanned(other) != unscanned(point) || !seen.insert(key(other)) {
                continue;
            }
            let recipe = self.recipe(other)?;
            if Survey::suits(&recipe, &self.request.settings)? {
                merges.push(Merge { point: other, recipe, outputs: 1 });
            }
            let _new = surveyed().insert(statistics(other));
        }
        // A scan for one merge is as good when it is made.
        if merges.len() < 2 {
            return Ok(0);
        }
        let (units, merges) = self.lacking(merges)?;
        self.scan(&merges, &units, progress, stop)
    }

    /// The units that these merges would scan for themselves, and those that lack findings about them: each once,
    /// whatever outputs are made of it, the coarsest scopes first.
    fn lacking<'p>(&self, all: Vec<Merge<'p>>) -> Result<(Units, Vec<Merge<'p>>), Error> {
        let mut units = Units::new();
        let mut planned = Vec::new();
        let mut keys: Vec<String> = Vec::new();
        for Merge { recipe, .. } in &all {
            let output = (recipe.scope, recipe.dtype);
            if planned.contains(&output) {
                continue;
            }
            planned.push(output);
            // Before what is planned in earnest: two plans would not fit in the memory of one.
            let settings = self.settings(None, false);
            let job = Job::plan(recipe.clone(), settings, Ties::Assume, &Silent)?;
            let (scope, names) = job.streamed_units();
            units.entry(scope).or_default().extend(names);
            if keys.is_empty() {
                keys = all.iter().map(|merge| job.findings_key(&merge.recipe)).collect();
            }
        }
        units.retain(|_, names| !names.is_empty());
        let mut lacking: Vec<Merge<'_>> = Vec::new();
        for (key, merge) in keys.into_iter().zip(all) {
            let Some(units) = units.get(&merge.recipe.scope) else { continue };
            let found = Findings::load(&self.findings(merge.point), &key);
            if found.is_some_and(|found| found.are_of(units)) {
                continue;
            }
            let same = |other: &&mut Merge<'_>| statistics(other.point) == statistics(merge.point);
            match lacking.iter_mut().find(same) {
                Some(same) => same.outputs += 1,
                None => lacking.push(merge),
            }
        }
        lacking.sort_by_key(|merge| merge.recipe.scope);
        Ok((units, lacking))
    }

    /// One scan for several merges, or as many as memory demands.
    fn scan(
        &self,
        merges: &[Merge<'_>],
        units: &Units,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<u64, Error> {
        let outputs: usize = merges.iter().map(|merge| merge.outputs).sum();
        if outputs < 2 {
            return Ok(0);
        }
        let told = Inner { progress, told: &self.told };
        let recipes: Vec<Recipe> = merges.iter().map(|merge| merge.recipe.clone()).collect();
        let settings = self.settings(None, false);
        let survey = match Survey::plan(&recipes, units, &settings, Ties::Compare(stop), &told) {
            Err(Error::Plan(PlanError::Memory { .. })) if merges.len() > 1 => {
                let (some, others) = merges.split_at(merges.len().div_ceil(2));
                let read = self.scan(some, units, progress, stop)?;
                return Ok(read + self.scan(others, units, progress, stop)?);
            }
            Err(Error::Plan(PlanError::Memory { .. })) => return Ok(0),
            survey => survey?,
        };
        let files: Vec<PathBuf> = merges.iter().map(|merge| self.findings(merge.point)).collect();
        let read = survey.run(&files, &self.work.join("survey"), &told, stop);
        let read = read.map_err(|error| self.stopped(error))?;
        let text = format!("one scan for {outputs} settings: {} read", crate::human::bytes(read));
        progress.event(&Event::Notice { text: &text });
        Ok(read)
    }

    /// Where findings of a merge with these settings are kept.
    fn findings(&self, point: &Point) -> PathBuf {
        self.work.join(format!("{FINDINGS}{}", statistics(point)))
    }

    fn run(
        &self,
        job: &Job,
        out: &Path,
        progress: &dyn Progress,
        stop: &AtomicBool,
    ) -> Result<u64, Error> {
        let report = job.merge(out, progress, stop).map_err(|error| self.stopped(error))?;
        Ok(report.read)
    }

    /// What is left behind is the search.
    fn stopped(&self, error: Error) -> Error {
        match error {
            Error::Interrupted { terminated, .. } => {
                Error::Interrupted { staging: self.work.clone(), terminated }
            }
            error => error,
        }
    }

    /// Whether lambdas alone make no other merge necessary.
    fn splits(&self) -> bool {
        self.request.recipe.method.name == "pcb"
    }

    /// The lambda of each expert.
    fn lambdas(&self, point: &Point) -> Vec<f64> {
        match point.lambdas[..] {
            [lambda] => vec![lambda; self.request.recipe.models.len()],
            _ => point.lambdas.clone(),
        }
    }

    /// The recipe of a candidate.
    fn recipe(&self, point: &Point) -> Result<Recipe, Error> {
        let mut recipe = self.request.recipe.clone();
        for (name, value) in &point.settings {
            grid::apply(&mut recipe, name, value)?;
        }
        if point.lambdas.is_empty() {
            return Ok(recipe);
        }
        if !self.splits() {
            grid::apply(&mut recipe, LAMBDA, &point.lambdas[0].to_string())?;
            return Ok(recipe);
        }
        // As a recombination has it.
        recipe.parameters.remove(LAMBDA);
        for (model, lambda) in recipe.models.iter_mut().zip(self.lambdas(point)) {
            model.parameters.set(LAMBDA, Setting::number(lambda));
        }
        Ok(recipe)
    }

    fn settings(&self, components: Option<PathBuf>, last: bool) -> Settings {
        let settings = self.request.settings.clone();
        let verify = settings.verify && last;
        Settings { components, verify, restart: false, command: None, ..settings }
    }

    /// Removes all components but these.
    fn keep_only(&self, kept: Option<&Path>) -> Result<(), Error> {
        for path in self.named(KEPT)? {
            if Some(path.as_path()) != kept {
                remove(&path)?;
            }
        }
        Ok(())
    }

    /// What is in the work directory under names that begin so.
    fn named(&self, prefix: &str) -> Result<Vec<PathBuf>, Error> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.work).at("list", &self.work)? {
            let path = entry.at("list", &self.work)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(prefix) {
                found.push(path);
            }
        }
        Ok(found)
    }
}

/// A merge whose statistics are looked for.
struct Merge<'p> {
    point: &'p Point,
    recipe: Recipe,
    /// Outputs that are made with them.
    outputs: usize,
}

/// The settings of a candidate but for those that one scan looks at side by side, or that it does not depend on.
fn unscanned(point: &Point) -> Vec<&(String, String)> {
    let other = |name: &str| !SCANNED.contains(&name) && name != grid::DTYPE;
    point.settings.iter().filter(|(name, _)| other(name)).collect()
}

/// Tells settings apart.
fn key(point: &Point) -> String {
    hash(point.settings.iter())
}

/// Tells settings apart that statistics depend on.
fn statistics(point: &Point) -> String {
    hash(point.settings.iter().filter(|(name, _)| name != grid::DTYPE))
}

fn hash<'a>(settings: impl Iterator<Item = &'a (String, String)>) -> String {
    let text: Vec<String> = settings.map(|(name, value)| format!("{name}={value}\n")).collect();
    blake3::hash(text.concat().as_bytes()).to_hex()[..12].to_owned()
}

/// What is told of the merges of a search: how far they are, and each warning once.
struct Inner<'a> {
    progress: &'a dyn Progress,
    told: &'a Mutex<HashSet<String>>,
}

impl Progress for Inner<'_> {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Warning { text } => {
                let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
                if told.insert((*text).to_owned()) {
                    self.progress.event(event);
                }
            }
            Event::Notice { .. } => {}
            _ => self.progress.event(event),
        }
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
    }
}
