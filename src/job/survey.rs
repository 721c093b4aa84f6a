//! Statistics of several merges of the same models, over one read of these: no output is made.
//!
//! ```text
//! DIR/kept-U-S-0      parcels of a stage of unit U, as in a staging directory; S counts the stages of all merges
//! ```
//! What was found of a unit is durable before the next one begins. A unit that was under way is begun again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::findings::Findings;
use super::parcels::{Bundle, Shelf, Stored};
use super::run::open;
use super::{Job, Ties};
use crate::engine::sink::SinkError;
use crate::engine::{self, Context, EngineError, Keep, Sources, TileSink, Work};
use crate::error::{Error, IoContext};
use crate::kernel;
use crate::method::{Found, Lost, MethodError, Next, Parcels, Several, each_part};
use crate::plan::{Grain, Run};
use crate::progress::{Event, Progress};
use crate::recipe::{Recipe, Settings};

/// A survey that is planned and has not begun.
pub struct Survey {
    job: Job,
    found: Found,
    /// The [keys](Job::findings_key) of the merges.
    keys: Vec<String>,
}

impl Survey {
    /// Whether the statistics of a merge can be had before it.
    ///
    /// # Errors
    /// If its parameters make no sense.
    pub fn suits(recipe: &Recipe, settings: &Settings) -> Result<bool, Error> {
        Ok(Job::method(recipe, kernel::select()?, settings)?.has_findings())
    }

    /// Plans the survey of merges that differ in parameters of the whole merge only, at least one.
    ///
    /// # Errors
    /// As [`Job::plan`]; the states of all methods must fit in memory together.
    pub fn plan(
        recipes: &[Recipe],
        settings: Settings,
        ties: Ties<'_>,
        progress: &dyn Progress,
    ) -> Result<Self, Error> {
        let first = recipes.first().cloned();
        let recipe = first.ok_or(Error::Plan(crate::plan::PlanError::Nothing))?;
        let mut found = Found::default();
        let settings = Settings { components: None, statistics: false, ..settings };
        let job = Job::plan_by(recipe, settings, ties, progress, |_, kernels, settings| {
            let methods = recipes.iter().map(|recipe| Job::method(recipe, kernels, settings));
            let (several, place) = Several::new(methods.collect::<Result<_, _>>()?);
            found = place;
            Ok(Box::new(several))
        })?;
        let keys = recipes.iter().map(|recipe| job.findings_key(recipe)).collect();
        Ok(Self { job, found, keys })
    }

    /// Looks at those of the named units that a file does not know yet, and adds what was found to the files, one for each
    /// merge. `dir` is for what is put aside on the way. Returns the bytes read.
    ///
    /// # Errors
    /// Those of a merge. [`Error::Interrupted`] if it was stopped from outside.
    pub fn run(
        &self,
        units: &BTreeSet<String>,
        files: &[PathBuf],
        dir: &Path,
        progress: &dyn Progress,
        cancel: &AtomicBool,
    ) -> Result<u64, Error> {
        let known = files.iter().zip(&self.keys);
        let known = known.map(|(file, key)| {
            Findings::load(file, key).unwrap_or_else(|| Findings::new(key.clone()))
        });
        let mut known: Vec<Findings> = known.collect();
        let plan = &self.job.plan;
        let wanted = self.job.streamed().filter(|&unit| {
            let name = &plan.view(unit).name;
            units.contains(name) && !known.iter().all(|known| known.are_of([name]))
        });
        let wanted: Vec<u32> = wanted.collect();
        if wanted.is_empty() {
            return Ok(0);
        }
        std::fs::create_dir_all(dir).at("create", dir)?;
        let bytes_total = wanted.iter().map(|&unit| self.job.unit_bytes(unit)).sum();
        progress.event(&Event::Started { bytes_total, bytes_done: 0 });
        let mut pass = Pass {
            survey: self,
            tiles: open(&self.job, plan.budget.grain)?,
            sampler: open(&self.job, Grain::Sparse)?,
            scattered: open(&self.job, Grain::Sparse)?,
            shelf: Shelf::new(&*self.job.storage, dir),
            dir,
            progress,
            cancel,
            read: 0,
        };
        // Of one that was stopped.
        pass.shelf.forget(|_| true);
        for unit in wanted {
            let mut done = pass.unit(unit);
            if let Err(Error::Engine(EngineError::Method { error: MethodError::Lost(_), .. })) =
                done
            {
                // Once more; a disk that loses them again is not to be trusted.
                done = pass.unit(unit);
            }
            done?;
            let name = &plan.view(unit).name;
            for (number, found) in self.found.take(name).unwrap_or_default().into_iter().enumerate()
            {
                known[number].put(name, found);
                known[number].save(&*self.job.storage, &files[number])?;
            }
        }
        let read = pass.read;
        // It is empty now; if it is not, it goes with the directory around it.
        let _litter = std::fs::remove_dir(dir);
        Ok(read)
    }
}

struct Pass<'a> {
    survey: &'a Survey,
    tiles: engine::source::Source,
    /// Reads samples.
    sampler: engine::source::Source,
    /// Reads adapters, and rows that move.
    scattered: engine::source::Source,
    shelf: Shelf<'a>,
    dir: &'a Path,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
    /// Bytes read so far.
    read: u64,
}

impl Pass<'_> {
    /// All passes over a unit.
    fn unit(&mut self, unit: u32) -> Result<(), Error> {
        let job = &self.survey.job;
        let view = job.plan.view(unit);
        let named = |error| EngineError::Method { unit: view.name.clone(), error };
        let mut stage = job.method.start(view).map_err(named)?;
        let merges = self.survey.keys.len() as u32;
        for number in 0.. {
            let pieces = (0..merges).map(|merge| (unit, number * merges + merge, 0));
            let bundles = Bundles(pieces.clone().map(|piece| self.shelf.begin(piece)).collect());
            let range = 0..view.elements;
            let work = Work::Stage { unit, stage: &*stage, range, keep: &bundles };
            let context = Context {
                plan: &job.plan,
                method: &*job.method,
                kernels: job.kernels,
                nonfinite: job.recipe.nonfinite,
                shares: None,
                statistics: false,
                frames: None,
                progress: self.progress,
                cancel: self.cancel,
            };
            let tiles = if stage.sample().is_some() { &mut self.sampler } else { &mut self.tiles };
            let name = stage.name();
            self.progress.event(&Event::PassStarted { name });
            let begin = std::time::Instant::now();
            let before = tiles.bytes_read() + self.scattered.bytes_read();
            let sources = Sources { tiles: &mut *tiles, scattered: &mut self.scattered };
            let result = engine::run(&context, &work, sources, &mut Nothing);
            let bytes = tiles.bytes_read() + self.scattered.bytes_read() - before;
            self.read += bytes;
            let seconds = begin.elapsed().as_secs_f64();
            self.progress.event(&Event::PassFinished { name, bytes, seconds });
            let result = match result {
                Ok(result) if result.done == view.elements => result,
                Ok(_) | Err(EngineError::Interrupted) => {
                    let staging = self.dir.to_owned();
                    return Err(Error::Interrupted { staging, terminated: false });
                }
                Err(error) => return Err(error.into()),
            };
            bundles.0.into_iter().try_for_each(Bundle::seal)?;
            // What was read must be what was planned for.
            tiles.verify_unchanged().map_err(EngineError::Source)?;
            let state = result.state.unwrap_or_else(|| stage.empty());
            let stored = pieces.map(|(unit, stage, _)| self.shelf.of(unit, stage));
            let stored = Shelved(stored.collect::<Result<_, _>>()?);
            let next = stage.finish(state, &stored);
            self.shelf.forget(|_| true);
            stage = match next {
                Ok(Next::Stage(next)) => next,
                Ok(Next::Done(_)) => break,
                Err(error) => return Err(stored.failure().unwrap_or_else(|| named(error).into())),
            };
        }
        Ok(())
    }
}

impl Job {
    /// The units that are read once for each pass.
    pub(super) fn streamed(&self) -> impl Iterator<Item = u32> + '_ {
        self.plan.runs.iter().filter_map(|run| match run {
            Run::Streamed(unit) => Some(*unit),
            Run::Copies(_) | Run::Whole(_) | Run::Solved(_) => None,
        })
    }

    /// Bytes that all passes over a unit read, as planned.
    fn unit_bytes(&self, unit: u32) -> u64 {
        let view = self.plan.view(unit);
        let once = self.plan.input_bytes(self.plan.unit_segments(unit));
        let passes = self.method.passes(view).len();
        let sampled = self.method.sampled(view).map_or((0, 0.0), |(n, s)| (n, s.share()));
        let whole = passes.saturating_sub(sampled.0) as u64 * once;
        whole + sampled.0 as u64 * (once as f64 * sampled.1) as u64
    }
}

/// A survey writes nothing.
struct Nothing;

impl TileSink for Nothing {
    fn write(&mut self, _shard: usize, _offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Where the parcels of each merge go.
struct Bundles<'a>(Vec<Bundle<'a>>);

impl Keep for Bundles<'_> {
    fn keep(&self, parcel: &[u8]) -> Result<(), SinkError> {
        let mut kept = Ok(());
        // What is not a parcel of several stages is not kept, and will be missed.
        let _whole = each_part(parcel, |merge, parcel| {
            if let (Ok(()), Some(bundle)) = (&kept, self.0.get(merge as usize)) {
                kept = bundle.keep(parcel);
            }
        });
        kept
    }
}

/// The parcels of each merge.
struct Shelved(Vec<Stored>);

impl Shelved {
    fn failure(self) -> Option<Error> {
        self.0.into_iter().find_map(Stored::failure)
    }
}

impl Parcels for Shelved {
    fn visit(&self, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.0.iter().try_for_each(|stored| stored.visit(see))
    }

    fn visit_part(&self, part: u32, see: &mut dyn FnMut(&[u8])) -> Result<(), Lost> {
        self.0.get(part as usize).map_or(Ok(()), |stored| stored.visit(see))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::job::scene::{Files, Heard, Scene, files};
    use crate::method::Value;
    use crate::plan::PlanError;
    use crate::recipe::{Scope, Setting};

    const SETTINGS: [(&str, f64); 5] = [("a", 0.1), ("a", 0.3), ("b", 0.1), ("c", 0.1), ("d", 0.2)];

    /// A scene in which each layer has two tensors that are merged.
    fn scene(scope: Scope) -> Scene {
        Scene::new(scope, false).other(|recipe| recipe.exclude.clear())
    }

    fn settings() -> Settings {
        Settings { memory: Some(512 << 20), ..Scene::settings() }
    }

    fn change(recipe: &mut Recipe, (variant, keep): (&str, f64)) {
        recipe.parameters.set("variant", Setting::One(Value::Word(variant.to_owned())));
        recipe.parameters.set("keep", Setting::number(keep));
    }

    fn plan(scene: &Scene, merges: usize, settings: Settings) -> Result<Survey, Error> {
        let recipes = SETTINGS[..merges].iter().map(|&setting| {
            let mut recipe = scene.recipe.clone();
            change(&mut recipe, setting);
            recipe
        });
        let go_on = AtomicBool::new(false);
        let recipes: Vec<Recipe> = recipes.collect();
        Survey::plan(&recipes, settings, Ties::Compare(&go_on), &Heard::default())
    }

    /// Where the findings of each merge go.
    fn places(dir: &Path) -> Vec<PathBuf> {
        (0..SETTINGS.len()).map(|number| dir.join(format!("findings-{number}"))).collect()
    }

    /// Stops when so many passes have begun.
    struct Stop(AtomicUsize, AtomicBool);

    impl Progress for Stop {
        fn event(&self, event: &Event<'_>) {
            if let Event::PassStarted { .. } = event
                && self.0.fetch_sub(1, Ordering::Relaxed) == 1
            {
                self.1.store(true, Ordering::Relaxed);
            }
        }

        fn advance(&self, _bytes: u64) {}
    }

    fn run(survey: &Survey, dir: &Path, passes: usize) -> Result<u64, Error> {
        let stop = Stop(AtomicUsize::new(passes + 1), AtomicBool::new(false));
        let units = survey.job.streamed_units();
        survey.run(&units, &places(dir), &dir.join("survey"), &stop, &stop.1)
    }

    fn complete(scene: &Scene) -> (Survey, tempfile::TempDir, Files) {
        let survey = plan(scene, SETTINGS.len(), settings()).unwrap();
        let dir = scene.place();
        assert!(run(&survey, dir.path(), usize::MAX - 1).unwrap() > 0);
        let found = files(dir.path());
        assert_eq!(found.len(), SETTINGS.len(), "nothing else is left");
        (survey, dir, found)
    }

    #[test]
    fn merges_that_are_told_what_one_scan_found_are_the_merges_themselves() {
        for scope in [Scope::Model, Scope::Layer] {
            let scene = scene(scope);
            let (survey, dir, _) = complete(&scene);
            for ((place, key), setting) in places(dir.path()).iter().zip(&survey.keys).zip(SETTINGS)
            {
                let scene = scene.other(|recipe| change(recipe, setting));
                let plain = scene.job(settings());
                assert_eq!(&plain.findings_key(&plain.recipe), key);
                let found = Findings::load(place, key).unwrap();
                assert!(found.are_of(&plain.streamed_units()));
                let out = scene.place();
                let stop = Stop(AtomicUsize::new(3), AtomicBool::new(false));
                let begun = plain.merge(&out.path().join("out"), &stop, &stop.1);
                assert!(matches!(begun, Err(Error::Interrupted { .. })));
                // What was begun without them has other stages.
                let knowing = scene.job(settings()).knowing(&found);
                let heard = Heard::default();
                let other = knowing.merge(&out.path().join("out"), &heard, &heard.cancel);
                assert!(matches!(other, Err(Error::OtherPlan { .. })));
                let out = scene.place();
                let report = knowing.merge(&out.path().join("out"), &heard, &heard.cancel).unwrap();
                assert!(report.passes.iter().all(|pass| pass.name != "scan"));
                assert_eq!(scene.finished(out.path()), Ok(()));
            }
        }
    }

    #[test]
    fn a_survey_that_is_stopped_does_not_look_at_the_same_unit_again() {
        let scene = scene(Scope::Layer);
        let (survey, _, expected) = complete(&scene);
        let units: Vec<u32> = survey.job.streamed().collect();
        assert!(units.len() > 1);
        let bytes: Vec<u64> = units.iter().map(|&unit| survey.job.unit_bytes(unit)).collect();
        let dir = scene.place();
        assert!(matches!(run(&survey, dir.path(), 0), Err(Error::Interrupted { .. })));
        for left in (1..=units.len()).rev() {
            assert!(run(&survey, dir.path(), 1).is_err() || left == 1);
            if left == 2 {
                // Parcels that the stopped one has left.
                std::fs::write(dir.path().join("survey/kept-1-0-0"), "torn").unwrap();
                assert_eq!(run(&survey, dir.path(), 9).unwrap(), *bytes.last().unwrap());
                break;
            }
        }
        assert!(files(dir.path()) == expected);
        assert_eq!(run(&survey, dir.path(), 9).unwrap(), 0, "nothing is left to do");
    }

    #[test]
    fn findings_that_are_damaged_or_of_something_else_do_not_count() {
        let scene = scene(Scope::Model);
        let (survey, dir, found) = complete(&scene);
        let place = &places(dir.path())[2];
        let whole = std::fs::read(place).unwrap();
        let key = &survey.keys[2];
        assert!(Findings::load(place, key).is_some());
        assert_eq!(Findings::load(place, &survey.keys[1]), None);
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(place, &flipped).unwrap();
            assert_eq!(Findings::load(place, key), None, "{at}");
        }
        for len in 0..whole.len() {
            std::fs::write(place, &whole[..len]).unwrap();
            assert_eq!(Findings::load(place, key), None, "{len}");
        }
        assert!(run(&survey, dir.path(), 9).unwrap() > 0);
        assert!(files(dir.path()) == found, "they are made again");
        // Lambdas are no part of it; inputs are.
        let job = scene.job(settings());
        let key = |change: fn(&mut Recipe)| {
            let mut recipe = job.recipe.clone();
            change(&mut recipe);
            job.findings_key(&recipe)
        };
        let same = key(|_| {});
        assert_eq!(
            same,
            key(|recipe| recipe.models[0].parameters.set("lambda", Setting::number(3.0)))
        );
        assert_ne!(same, key(|recipe| recipe.parameters.set("keep", Setting::number(0.3))));
        assert_ne!(same, key(|recipe| recipe.scope = Scope::Layer));
        assert_ne!(same, key(|recipe| recipe.exclude = vec!["*norm*".to_owned()]));
        std::fs::File::options()
            .write(true)
            .open(scene.inputs().join("expert1/model.safetensors"))
            .unwrap()
            .set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        assert_ne!(same, scene.job(settings()).findings_key(&job.recipe));
        let found = Findings::load(&places(dir.path())[0], &survey.keys[0]).unwrap();
        assert!(scene.job(settings()).knowing(&found).findings.is_none());
    }

    #[test]
    fn more_merges_at_once_take_more_memory_and_the_plan_says_so() {
        let scene = scene(Scope::Model);
        let least = |merges| {
            let fits = |mib: &u64| {
                let memory = Some(mib << 20);
                match plan(&scene, merges, Settings { memory, ..settings() }) {
                    Ok(survey) => {
                        assert!(survey.job.plan.budget.total() <= mib << 20);
                        true
                    }
                    Err(Error::Plan(PlanError::Memory { .. })) => false,
                    Err(other) => panic!("{other}"),
                }
            };
            (16..512).find(fits).unwrap()
        };
        assert!(least(1) < least(2) && least(2) < least(4), "{} {}", least(1), least(4));
    }
}
