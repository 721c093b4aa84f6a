//! Statistics of several merges of the same models, over one read of these: no output is made.
//!
//! ```text
//! DIR/journal         how far the unit under way has come, as in a staging directory
//! DIR/fold-U-S-E      what its stage S had gathered then
//! DIR/kept-U-S-E      parcels of a stage; S counts the stages of all merges, one after the other
//! ```
//! What was found of a unit is durable before the next one begins. A unit that was under way is gone on with.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use super::findings::Findings;
use super::journal::{self, Cursor, Journal, Record};
use super::parcels::{Bundle, Shelf, Stored};
use super::pieces::piece;
use super::resume::UnderWay;
use super::run::open;
use super::snapshots::Snapshots;
use super::{Job, Ties};
use crate::engine::sink::SinkError;
use crate::engine::{self, Context, EngineError, Keep, Sources, TileSink, Work};
use crate::error::{Error, IoContext};
use crate::kernel;
use crate::method::{
    AnyStage, Found, Lost, MethodError, Next, Parcels, Sampling, Several, State, each_part,
};
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
        let storage = &*self.job.storage;
        let name = blake3::hash(self.keys.concat().as_bytes()).to_hex().to_string();
        let journal = Journal::open(storage, dir, &name)?;
        let cursor = journal.cursor();
        let bytes_total = wanted.iter().map(|&unit| self.job.unit_bytes(unit)).sum();
        let bytes_done = if cursor.units == wanted[0] { self.job.bytes_before(&cursor) } else { 0 };
        progress.event(&Event::Started { bytes_total, bytes_done });
        let mut pass = Pass {
            survey: self,
            tiles: open(&self.job, plan.budget.grain)?,
            sampler: open(&self.job, Grain::Sparse)?,
            scattered: open(&self.job, Grain::Sparse)?,
            shelf: Shelf::new(storage, dir),
            snapshots: Snapshots::new(storage, dir),
            journal,
            name,
            dir,
            progress,
            cancel,
            read: 0,
        };
        for unit in wanted {
            let mut done = pass.unit(unit);
            if let Err(Error::Engine(EngineError::Method { error: MethodError::Lost(_), .. })) =
                done
            {
                // Once more; a disk that loses them again is not to be trusted.
                pass.journal.take_back(0)?;
                done = pass.unit(unit);
            }
            done?;
            let name = &plan.view(unit).name;
            for (number, found) in self.found.take(name).unwrap_or_default().into_iter().enumerate()
            {
                known[number].put(name, found);
                known[number].save(storage, &files[number])?;
            }
            pass.journal.take_back(0)?;
        }
        let read = pass.read;
        pass.shelf.forget(|_| true);
        pass.snapshots.forget(|_, _, _| true);
        // Of what is left the journal is empty, and all of it goes with the directory around it.
        let _litter = storage.remove_file(&dir.join(journal::FILE));
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
    snapshots: Snapshots<'a>,
    /// Speaks of the unit under way.
    journal: Journal,
    /// What tells its records from those of other surveys.
    name: String,
    dir: &'a Path,
    progress: &'a dyn Progress,
    cancel: &'a AtomicBool,
    /// Bytes read so far.
    read: u64,
}

impl Pass<'_> {
    /// All passes over a unit, from where an earlier attempt has come to.
    fn unit(&mut self, unit: u32) -> Result<(), Error> {
        let survey = self.survey;
        let view = survey.job.plan.view(unit);
        let named = |error| EngineError::Method { unit: view.name.clone(), error };
        let mut cursor = self.journal.cursor();
        let UnderWay { mut stage, mut state } =
            if let Some(under_way) = self.replay(unit, &cursor)? {
                under_way
            } else {
                self.journal.take_back(0)?;
                cursor = Cursor { units: unit, ..Cursor::default() };
                let stage = survey.job.method.start(view).map_err(named)?;
                UnderWay { stage, state: None }
            };
        // Parcels of pieces that have no record.
        let merges = self.merges();
        self.shelf.forget(|(u, s, from)| {
            let at = s / merges;
            u != unit || at > cursor.stage || at == cursor.stage && from >= cursor.elements
        });
        self.snapshots.forget(|u, s, e| u != unit || (s, e) > (cursor.stage, cursor.elements));
        loop {
            while cursor.elements < view.elements {
                self.piece(unit, &*stage, &mut state, &mut cursor)?;
            }
            let stored = self.stored(unit, cursor.stage)?;
            let state = state.take().unwrap_or_else(|| stage.empty());
            stage = match stage.finish(state, &stored) {
                Ok(Next::Stage(next)) => next,
                Ok(Next::Done(_)) => return Ok(()),
                Err(error) => return Err(stored.failure().unwrap_or_else(|| named(error).into())),
            };
            (cursor.stage, cursor.elements) = (cursor.stage + 1, 0);
        }
    }

    /// Number of merges.
    fn merges(&self) -> u32 {
        self.survey.keys.len() as u32
    }

    /// The parcels of a stage.
    fn stored(&self, unit: u32, stage: u32) -> Result<Shelved, Error> {
        let merges = self.merges();
        let stored = (0..merges).map(|merge| self.shelf.of(unit, stage * merges + merge));
        Ok(Shelved(stored.collect::<Result<_, _>>()?))
    }

    /// The stage that a cursor speaks of, and its state; `None` if it speaks of nothing, or something that this takes is
    /// damaged or gone.
    fn replay(&self, unit: u32, cursor: &Cursor) -> Result<Option<UnderWay>, Error> {
        let view = self.survey.job.plan.view(unit);
        if cursor.units != unit || cursor.elements == 0 {
            return Ok(None);
        }
        let Ok(mut stage) = self.survey.job.method.start(view) else { return Ok(None) };
        for finished in 0..cursor.stage {
            let saved = self.snapshots.load(unit, finished, view.elements)?;
            let Some(state) = saved.and_then(|saved| stage.load(&saved)) else { return Ok(None) };
            let stored = self.stored(unit, finished)?;
            stage = match stage.finish(state, &stored) {
                Ok(Next::Stage(next)) => next,
                Ok(Next::Done(_)) => return Ok(None),
                Err(_) => return stored.failure().map_or(Ok(None), Err),
            };
        }
        let saved = self.snapshots.load(unit, cursor.stage, cursor.elements)?;
        let state = saved.and_then(|saved| stage.load(&saved));
        Ok(state.map(|state| UnderWay { stage, state: Some(state) }))
    }

    /// Runs a piece of a stage, and records how far it came.
    fn piece(
        &mut self,
        unit: u32,
        stage: &dyn AnyStage,
        state: &mut Option<State>,
        cursor: &mut Cursor,
    ) -> Result<(), Error> {
        let job = &self.survey.job;
        let (view, segments) = (job.plan.view(unit), job.plan.unit_segments(unit));
        let merges = self.merges();
        let share = stage.sample().map_or(1.0, Sampling::share);
        let range = piece(job, segments, cursor.elements, view.elements, false, share);
        let begin =
            |merge| self.shelf.begin((unit, cursor.stage * merges + merge, cursor.elements));
        let bundles = Bundles((0..merges).map(begin).collect());
        let work = Work::Stage { segments, stage, range: range.clone(), keep: &bundles };
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
        let tiles = if share < 1.0 { &mut self.sampler } else { &mut self.tiles };
        let name = stage.name();
        self.progress.event(&Event::PassStarted { name });
        let begin = Instant::now();
        let before = tiles.bytes_read() + self.scattered.bytes_read();
        let sources = Sources { tiles: &mut *tiles, scattered: &mut self.scattered };
        let result = engine::run(&context, &work, sources, &mut Nothing);
        let bytes = tiles.bytes_read() + self.scattered.bytes_read() - before;
        self.read += bytes;
        let seconds = begin.elapsed().as_secs_f64();
        self.progress.event(&Event::PassFinished { name, bytes, seconds });
        let interrupted = || Error::Interrupted { staging: self.dir.to_owned(), terminated: false };
        let result = match result {
            Ok(result) if result.done > 0 => result,
            Ok(_) | Err(EngineError::Interrupted) => return Err(interrupted()),
            Err(error) => return Err(error.into()),
        };
        bundles.0.into_iter().try_for_each(Bundle::seal)?;
        // What was read must be what was planned for.
        tiles.verify_unchanged().map_err(EngineError::Source)?;
        *state = match (state.take(), result.state) {
            (Some(mut into), Some(from)) => {
                stage.merge(&mut into, from);
                Some(into)
            }
            (into, from) => into.or(from),
        };
        cursor.elements += result.done;
        let (at, seen) = (cursor.stage, cursor.elements);
        if let Some(state) = &*state {
            self.snapshots.save((unit, at, seen), &stage.save(state))?;
        }
        let plan = self.name.clone();
        self.journal.append(Record { plan, cursor: cursor.clone(), ..Record::default() })?;
        self.snapshots.forget(|u, s, e| u == unit && s == at && e < seen);
        if seen < range.end { Err(interrupted()) } else { Ok(()) }
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
        let passes = self.method.passes(self.plan.view(unit)).len() as u32;
        self.bytes_before(&Cursor { units: unit, stage: passes, ..Cursor::default() })
    }

    /// Bytes of those that are read before the cursor.
    fn bytes_before(&self, cursor: &Cursor) -> u64 {
        let (view, segments) =
            (self.plan.view(cursor.units), self.plan.unit_segments(cursor.units));
        let sampled = self.method.sampled(view);
        let read = |pass: u32, bytes: u64| match sampled {
            Some((samples, sampling)) if (pass as usize) < samples => {
                (bytes as f64 * sampling.share()) as u64
            }
            _ => bytes,
        };
        let whole = self.plan.input_bytes(segments);
        let part = self.plan.first(segments, cursor.elements);
        let part = part.map(|(segment, covered)| covered * segment.element_bytes()).sum();
        (0..cursor.stage).map(|pass| read(pass, whole)).sum::<u64>() + read(cursor.stage, part)
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
