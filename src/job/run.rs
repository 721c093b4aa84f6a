//! Runs all passes of a planned merge, piece by piece, and commits the result.
//!
//! When enough was done, all of it is made durable, then the journal says so. A merge that is killed goes on behind
//! the last record; the bytes are the same, whatever the threads, the memory and the tiles of either run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Instant;

use super::ahead::{self, Ahead};
use super::components::{self, Writer};
use super::journal::{Cursor, Journal, Record};
use super::output::{self, Output};
use super::parcels::Shelf;
use super::pieces::{cost, piece, whole_cost, whole_units};
use super::redo::Redo;
use super::report::{PassReport, Report};
use super::resume::{self, UnderWay};
use super::snapshots::Snapshots;
use super::staging::{Place, Staging};
use super::statistics::{self, Collector};
use super::unrecorded::Unrecorded;
use super::{Job, publish};
use crate::engine::sink::SinkConfig;
use crate::engine::source::{Source, SourceConfig};
use crate::engine::{self, Context, EngineError, PassResult, Sources, Tickets, Work, host};
use crate::error::Error;
use crate::method::{AnyStage, ExpertOutcome, MethodError, Next, Outcome, Sampling, State};
use crate::plan::{Grain, Mode, Run, Segment};
use crate::progress::{Event, Progress};
use crate::recipe::IoRequest;

/// Merges `job` into `out`.
pub(super) fn merge(
    job: &Job,
    out: &Path,
    place: Place,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    if !job.keep_cache {
        // Memory is limited, and what is freed must be free.
        host::allocator::return_large_blocks();
    }
    let restart = job.settings.restart;
    let staging = Staging::open(&*job.storage, place, out, job.plan_file()?, restart)?;
    let mut redo = Redo::default();
    let report = loop {
        match in_staging(job, &staging, progress, cancel) {
            Err(error) if redo.can(&staging, &error)? => {
                progress.event(&Event::Warning { text: &format!("{error}; it is made again") });
            }
            done => break done,
        }
    };
    match report {
        Ok(report) => {
            if let Some(dir) = &job.settings.components {
                staging.publish_components(dir)?;
            }
            staging.publish(|out| publish::check(job, out, progress, cancel))?;
            Ok(report)
        }
        Err(Error::Engine(EngineError::Interrupted)) => {
            Err(Error::Interrupted { staging: staging.root().to_owned(), terminated: false })
        }
        Err(error) => {
            staging.abandon();
            Err(error)
        }
    }
}

fn in_staging(
    job: &Job,
    staging: &Staging<'_>,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    let begin = Instant::now();
    let tickets = Tickets::new(job.plan.budget.buffers);
    let context = Context {
        plan: &job.plan,
        method: &*job.method,
        kernels: job.kernels,
        nonfinite: job.recipe.nonfinite,
        shares: job.form(),
        statistics: job.settings.statistics,
        frames: job.recombined.as_ref().map(|recombined| &recombined.frames),
        progress,
        cancel,
        tickets: &tickets,
        workers: job.plan.budget.workers,
    };
    let mut journal = staging.journal()?;
    let beside = job.recombined.as_ref().map_or(0, |recombined| recombined.file.len);
    let total = job.summary().passes.iter().map(|pass| pass.read).sum::<u64>() + beside;
    if journal.last().is_some_and(|last| last.publishing) {
        progress.event(&Event::Started { bytes_total: total, bytes_done: total });
        return Ok(Report::default());
    }
    let snapshots = Snapshots::new(&*job.storage, &staging.state());
    resume::recheck(job, &staging.model(), &mut journal)?;
    let seen = Snapshots::seen(&*job.storage, &staging.state());
    let _any = statistics::resume(job, &mut journal, &seen)?;
    let shelf = Shelf::new(&*job.storage, &staging.state());
    let under_way = resume::resume(job, &mut journal, &snapshots, &shelf)?;
    let components = match job.form() {
        None => None,
        Some(form) => {
            let there = match &job.settings.components {
                // They cannot have been there before the staging directory was.
                Some(dir) => components::check(job, dir, staging.out(), true)?,
                None => false,
            };
            let place = staging.frames(form.kind);
            let grown = journal.last().and_then(|last| last.components.as_ref());
            let writer = Writer::published(&*job.storage, place, &job.plan, form);
            Some(if there { writer } else { writer.open(grown)? })
        }
    };
    let cursor = journal.cursor();
    // Only now: no more records are taken back.
    let open_tensor = statistics::resume(job, &mut journal, &seen)?;
    let statistics = job.settings.statistics.then(|| Collector::new(job, open_tensor));
    // Parcels of pieces that have no record, or none any more.
    shelf.forget(|(u, s, from)| {
        u != cursor.units || s > cursor.stage || s == cursor.stage && from >= cursor.elements
    });
    if journal.last().is_some() {
        progress.event(&Event::Notice { text: "going on where an earlier run stopped" });
    }
    let source = open_tiles(job)?;
    let (sampler, scattered) = (open_sampler(job)?, open_scattered(job)?);
    let config = SinkConfig {
        chunk: job.plan.budget.write_behind,
        keep_cache: job.keep_cache,
        write: job.settings.write,
    };
    let place = output::Place { storage: &*job.storage, model: staging.model(), config, progress };
    let output = Output::new(&job.plan, place, journal.records())?
        .with_components(components)
        .with_statistics(statistics);
    progress.event(&Event::Started { bytes_total: total, bytes_done: resume::read(job, &cursor) });
    let samples = ahead::tickets();
    let mut report = thread::scope(|scope| {
        let mut passes = Passes {
            job,
            context,
            staging,
            source,
            sampler,
            scattered,
            ahead: Ahead::new(scope, job, &context, &samples)?,
            output,
            journal,
            snapshots,
            seen,
            shelf: &shelf,
            recorded: cursor.units,
            cursor,
            under_way,
            unrecorded: Unrecorded::default(),
            total,
            report: Report::default(),
        };
        job.plan.runs.iter().try_for_each(|run| passes.run(run))?;
        passes.record()?;
        passes.publish(&staging.model())
    })?;
    report.seconds = begin.elapsed().as_secs_f64();
    report.memory = host::usage::snapshot();
    Ok(report)
}

/// Prepares to read the tiles of the inputs.
pub(super) fn open_tiles(job: &Job) -> Result<Source, EngineError> {
    open_by(job, job.mode, job.plan.budget.grain, job.plan.budget.reach)
}

/// Prepares to read what lies scattered in the inputs.
pub(super) fn open_scattered(job: &Job) -> Result<Source, EngineError> {
    open_by(job, job.mode, Grain::Sparse, 0)
}

/// Prepares to read samples.
pub(super) fn open_sampler(job: &Job) -> Result<Source, EngineError> {
    open_by(job, job.sampling, Grain::Sparse, 0)
}

fn open_by(job: &Job, mode: Mode, grain: Grain, reach: u64) -> Result<Source, EngineError> {
    let mut reading = SourceConfig::new(mode);
    (reading.keep_cache, reading.grain, reading.reach) = (job.keep_cache, grain, reach);
    // Who asks for reads past the page cache gets them.
    let looks = job.settings.io != IoRequest::Direct;
    reading.before = looks.then(|| Arc::clone(&job.before));
    Source::open(job.input_files(), &reading).map_err(EngineError::Source)
}

struct Passes<'scope, 'a> {
    job: &'a Job,
    context: Context<'a>,
    staging: &'a Staging<'a>,
    source: Source,
    /// Reads samples, and little beside what is asked for.
    sampler: Source,
    /// Reads adapters, and rows that move.
    scattered: Source,
    /// Takes samples of the unit that comes next.
    ahead: Ahead<'scope, 'a>,
    output: Output<'a>,
    journal: Journal,
    snapshots: Snapshots<'a>,
    /// Statistics of the pieces.
    seen: Snapshots<'a>,
    shelf: &'a Shelf<'a>,
    /// Units that were merged at the last record.
    recorded: u32,
    cursor: Cursor,
    under_way: Option<UnderWay>,
    unrecorded: Unrecorded<'a>,
    /// Bytes that all passes read.
    total: u64,
    report: Report,
}

impl Passes<'_, '_> {
    fn run(&mut self, run: &Run) -> Result<(), Error> {
        match run {
            Run::Copies(segments) => self.copies(segments),
            Run::Whole(units) => self.whole(units),
            Run::Streamed(unit) if *unit >= self.cursor.units => self.streamed(*unit),
            Run::Solved(unit) if *unit >= self.cursor.units => self.solved(*unit),
            Run::Streamed(_) | Run::Solved(_) => Ok(()),
        }
    }

    fn copies(&mut self, segments: &[u32]) -> Result<(), Error> {
        let plan = self.context.plan;
        let total = plan.elements(segments);
        while self.cursor.copied < total {
            let done = self.unrecorded.done(true);
            let range = piece(self.job, segments, self.cursor.copied..total, true, 1.0, done);
            let work = Work::Copies { segments, range: range.clone() };
            let result = self.pass("copy", &work)?;
            self.cursor.copied += result.done;
            self.unrecorded.add(cost(self.job, segments, result.done, true, 1.0), true);
            self.go_on(self.cursor.copied == range.end, range.end < total)?;
        }
        Ok(())
    }

    fn whole(&mut self, units: &[u32]) -> Result<(), Error> {
        let mut left: &[u32] = &units[units.partition_point(|&unit| unit < self.cursor.units)..];
        while !left.is_empty() {
            let many = whole_units(self.job, left, self.unrecorded.done(true));
            let (now, then) = left.split_at(many);
            let work = Work::Whole { units: now, then };
            let result = self.pass("all passes in memory", &work)?;
            let done = result.done as usize;
            self.report.replaced += result.replaced;
            for (unit, outcome) in result.outcomes {
                self.done(unit, outcome);
            }
            if let Some(last) = now[..done].last() {
                let copied = self.cursor.copied;
                self.cursor = Cursor { copied, units: last + 1, ..Cursor::default() };
                self.unrecorded.add(whole_cost(self.job, &now[..done]), true);
            }
            left = &left[done..];
            self.go_on(done == now.len(), !left.is_empty())?;
        }
        Ok(())
    }

    /// A tensor that is solved for is one piece: a kill costs no more than that.
    fn solved(&mut self, unit: u32) -> Result<(), Error> {
        self.record()?;
        let result = self.pass("solve", &Work::Solve { unit })?;
        result.outcomes.into_iter().for_each(|(unit, outcome)| self.done(unit, outcome));
        let copied = self.cursor.copied;
        self.cursor = Cursor { copied, units: unit + 1, ..Cursor::default() };
        self.unrecorded.add(whole_cost(self.job, &[unit]), true);
        self.record()
    }

    fn streamed(&mut self, unit: u32) -> Result<(), Error> {
        let plan = self.context.plan;
        let view = plan.view(unit);
        let total = view.elements;
        let named = |error| EngineError::Method { unit: view.name.clone(), error };
        let (mut stage, mut state) = if let Some(under_way) = self.under_way.take() {
            (under_way.stage, under_way.state)
        } else if let Some(stage) = self.sampled(unit)? {
            (stage, None)
        } else {
            (self.context.method.start(view).map_err(named)?, None)
        };
        self.ahead.begin_behind(unit);
        loop {
            let gathered = self.stage(unit, &*stage, state.take(), total)?;
            let parcels = self.shelf.of(unit, self.cursor.stage)?;
            let next = match stage.finish(gathered, &parcels) {
                Err(error) => {
                    let failure = parcels.failure();
                    if failure.is_none() && matches!(error, MethodError::Lost(_)) {
                        // The last record tells which scan is to be made again.
                        self.record()?;
                    }
                    return Err(failure.unwrap_or_else(|| named(error).into()));
                }
                Ok(next) => next,
            };
            match next {
                Next::Stage(next) => {
                    stage = next;
                    self.cursor.stage += 1;
                    (self.cursor.elements, self.cursor.writes) = (0, false);
                }
                Next::Done(outcome) => {
                    self.done(unit, outcome);
                    let copied = self.cursor.copied;
                    self.cursor = Cursor { copied, units: unit + 1, ..Cursor::default() };
                    self.unrecorded.forget_unit();
                    return self.go_on(true, false);
                }
            }
        }
    }

    /// The stage behind the samples of a unit, if they were taken ahead.
    fn sampled(&mut self, unit: u32) -> Result<Option<Box<dyn AnyStage>>, Error> {
        let Some(sampled) = (match self.ahead.take(unit) {
            Err(EngineError::Interrupted) => return Err(self.stop()),
            taken => taken?,
        }) else {
            return Ok(None);
        };
        let elements = self.context.plan.view(unit).elements;
        for (stage, state) in (0..).zip(sampled.states) {
            self.unrecorded.hold(self.job, &self.snapshots, (unit, stage, elements), state)?;
            self.cursor.stage = stage + 1;
        }
        self.unrecorded.add(sampled.cost, false);
        sampled.passes.into_iter().for_each(|pass| self.report(pass));
        Ok(Some(sampled.stage))
    }

    /// Runs one stage to its end, from where the cursor says.
    fn stage(
        &mut self,
        unit: u32,
        stage: &dyn AnyStage,
        mut state: Option<State>,
        total: u64,
    ) -> Result<State, Error> {
        let plan = self.context.plan;
        let segments = plan.unit_segments(unit);
        self.cursor.writes = stage.writes();
        while self.cursor.elements < total {
            // A piece of a sample reaches over as many elements as cost the usual number of bytes.
            let share = stage.sample().map_or(1.0, Sampling::share);
            let (writes, left) = (stage.writes(), self.cursor.elements..total);
            let done = self.unrecorded.done(writes);
            let range = piece(self.job, segments, left, writes, share, done);
            let bundle = self.shelf.begin((unit, self.cursor.stage, self.cursor.elements));
            let work = Work::Stage { segments, stage, range: range.clone(), keep: &bundle };
            let result = match self.pass(stage.name(), &work) {
                // Nothing of the piece counts, and what came before it is whole. Of a map the output has more.
                Err(EngineError::Interrupted) if !writes => return Err(self.stop()),
                result => result?,
            };
            if result.done > 0 {
                self.unrecorded.keep(bundle);
                if stage.writes() {
                    self.report.replaced += result.replaced;
                }
                state = match (state, result.state) {
                    (Some(mut into), Some(from)) => {
                        stage.merge(&mut into, from);
                        Some(into)
                    }
                    (into, from) => into.or(from),
                };
                self.cursor.elements += result.done;
                let key = (unit, self.cursor.stage, self.cursor.elements);
                if let Some(state) = &state {
                    self.unrecorded.hold(self.job, &self.snapshots, key, stage.save(state))?;
                }
                self.unrecorded.add(cost(self.job, segments, result.done, writes, share), writes);
            }
            self.go_on(self.cursor.elements == range.end, range.end < total)?;
        }
        Ok(state.unwrap_or_else(|| stage.empty()))
    }

    /// Goes on behind a piece, with a record if one is due. Ends the merge here if the piece was stopped before its end.
    fn go_on(&mut self, whole: bool, due: bool) -> Result<(), Error> {
        if !whole {
            return Err(self.stop());
        }
        if due || self.unrecorded.is_due(self.job) { self.record() } else { Ok(()) }
    }

    /// Ends the merge here, with a record.
    fn stop(&mut self) -> Error {
        self.record().err().unwrap_or_else(|| EngineError::Interrupted.into())
    }

    /// Makes durable what has no record yet, and records how far the merge has come.
    fn record(&mut self) -> Result<(), Error> {
        if !self.unrecorded.is_any() {
            return Ok(());
        }
        self.unrecorded.settle(&self.snapshots)?;
        let has_output = self.unrecorded.has_output();
        let mut news = if has_output { self.output.sync()? } else { Record::default() };
        if let Some(components) = self.output.components() {
            news.components = Some(components.sync()?);
        }
        if let Some(told) = self.output.statistics().and_then(Collector::take) {
            let Cursor { units, stage, elements, .. } = self.cursor;
            self.seen.save((units, stage, elements), &told)?;
            news.statistics = true;
        }
        // What was read must be what was planned for, and nobody else may be at work here.
        self.source.verify_unchanged().map_err(EngineError::Source)?;
        self.staging.check_lock()?;
        let (read, total) = (resume::read(self.job, &self.cursor), self.total);
        let news = Record { cursor: self.cursor.clone(), read, total, ..news };
        self.journal.append(self.staging.record(news))?;
        self.unrecorded.recorded();
        // Those of the record before are kept, too: a resume may find some of the bytes of this one damaged.
        let (before, now) =
            (std::mem::replace(&mut self.recorded, self.cursor.units), &self.cursor);
        let (unit, stage, elements) = (now.units, now.stage, now.elements);
        self.snapshots.forget(|u, s, e| u < before || u == unit && s == stage && e < elements);
        self.shelf.forget(|(u, _, _)| u < before);
        Ok(())
    }

    /// Writes what belongs to the output beside its shards, and tells how it went.
    fn publish(self, model: &Path) -> Result<Report, Error> {
        let Self { job, context, source, mut output, mut report, journal, seen, .. } = self;
        source.verify_unchanged().map_err(EngineError::Source)?;
        output.finish()?;
        let kept =
            output.components().map_or(Ok(Vec::new()), |components| components.finish(job))?;
        let kept = if job.method.unifies() { kept } else { Vec::new() };
        let told = job.settings.statistics;
        let told = told.then(|| statistics::write(job, model, &journal, &seen)).transpose()?;
        publish::write(job, model, &output, kept, told)?;
        publish::check(job, model, context.progress, context.cancel)?;
        report.written = job.plan.layout.shards.iter().map(|s| s.len).sum();
        report.read = report.passes.iter().map(|p| p.read).sum();
        report.inputs = job.plan.segments.iter().map(Segment::input_bytes).sum::<u64>()
            + job.recombined.as_ref().map_or(0, |recombined| recombined.file.len);
        Ok(report)
    }

    fn done(&mut self, unit: u32, mut outcome: Outcome) {
        let plan = self.context.plan;
        if plan.layers.is_some() && !outcome.experts.is_empty() {
            // What is told is told by model, and not every model is in every slice.
            let before = usize::from(plan.has_base);
            let mut experts = vec![ExpertOutcome::default(); plan.experts().len()];
            let rows = plan.units[unit as usize].checkpoints.iter().skip(before);
            for (told, &checkpoint) in outcome.experts.drain(..).zip(rows) {
                if let Some(expert) = experts.get_mut((checkpoint as usize).saturating_sub(before))
                {
                    *expert = told;
                }
            }
            outcome.experts = experts;
        }
        self.report.units.push((self.context.plan.view(unit).name.clone(), outcome));
    }

    /// Runs one piece.
    fn pass(&mut self, name: &'static str, work: &Work<'_>) -> Result<PassResult, EngineError> {
        let progress = self.context.progress;
        progress.event(&Event::PassStarted { name });
        let begin = Instant::now();
        let sampled = matches!(work, Work::Stage { stage, .. } if stage.sample().is_some());
        let source = if sampled { &mut self.sampler } else { &mut self.source };
        let before = source.bytes_read() + self.scattered.bytes_read();
        let sources = Sources { tiles: &mut *source, scattered: &mut self.scattered };
        let result = engine::run(&self.context, work, sources, &mut self.output)?;
        let seconds = begin.elapsed().as_secs_f64();
        let read = source.bytes_read() + self.scattered.bytes_read() - before;
        self.report(PassReport { name: name.to_owned(), read, seconds });
        Ok(result)
    }

    /// Tells of a pass, or a part of one.
    fn report(&mut self, pass: PassReport) {
        let PassReport { name, read, seconds } = &pass;
        let (bytes, seconds) = (*read, *seconds);
        self.context.progress.event(&Event::PassFinished { name, bytes, seconds });
        self.report.add(pass);
    }
}
