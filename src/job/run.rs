//! Runs all passes of a planned merge, piece by piece, and commits the result.
//!
//! After each piece everything it has written is made durable, then the journal says so. A merge that
//! is killed goes on behind the last piece; the bytes are the same, whatever the threads, the memory and
//! the tiles of either run.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;

use super::journal::{Cursor, Journal};
use super::output::Output;
use super::staging::Staging;
use super::{Job, publish};
use crate::engine::sink::SinkConfig;
use crate::engine::source::{Source, SourceConfig};
use crate::engine::{self, Context, EngineError, PassResult, Work, host};
use crate::error::Error;
use crate::method::{AnyStage, Next, Outcome, State};
use crate::plan::{Plan, Run};
use crate::progress::{Event, Progress};

/// Output bytes per piece of a map: what a kill can cost.
const WRITTEN: u64 = 256 << 20;
/// Input bytes per piece of a fold.
const READ: u64 = 4 << 30;

/// One kind of pass, as it went.
#[derive(Clone, Debug, Serialize)]
pub struct PassReport {
    /// Its name.
    pub name: String,
    /// Bytes read.
    pub read: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
}

/// What was merged and what it took. After a resume it tells of this run's part.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Per unit: its name, and what the method has to tell.
    #[serde(skip)]
    pub units: Vec<(String, Outcome)>,
    /// Passes in order of first appearance.
    pub passes: Vec<PassReport>,
    /// Bytes read over all passes.
    pub read: u64,
    /// Bytes of the output's shards.
    pub written: u64,
    /// Wall-clock seconds.
    pub seconds: f64,
    /// Peak memory of the process, and of its container if that is known.
    pub memory: host::usage::MemoryUsage,
    /// Expert values that were not finite and counted as the base's.
    pub replaced: u64,
}

/// Merges `job` into `out`.
pub(super) fn merge(
    job: &Job,
    out: &Path,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    let shard = |name: &str| job.plan.layout.shards.iter().any(|s| s.file_name == name);
    let ours = |name: &str| shard(name) || publish::makes(job, name);
    let staging = Staging::open(out, &job.identity(), job.settings.restart, ours)?;
    match in_staging(job, &staging, progress, cancel) {
        Ok(report) => {
            staging.commit()?;
            Ok(report)
        }
        Err(Error::Engine(EngineError::Interrupted)) => {
            Err(Error::Interrupted { staging: staging.root().to_owned(), terminated: false })
        }
        Err(error) => {
            staging.abandon(ours);
            Err(error)
        }
    }
}

fn in_staging(
    job: &Job,
    staging: &Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    let begin = Instant::now();
    let context = Context {
        plan: &job.plan,
        method: &*job.method,
        kernels: job.kernels,
        nonfinite: job.recipe.nonfinite,
        progress,
        cancel,
    };
    let (journal, mut cursor) = Journal::open(&staging.state())?;
    let under_way = resume(job, &journal, &mut cursor);
    if cursor != Cursor::default() {
        progress.event(&Event::Notice { text: "going on where an earlier run stopped" });
    }
    let mut reading = SourceConfig::new(job.mode);
    reading.keep_cache = job.keep_cache;
    reading.grain = job.plan.budget.grain;
    let source = Source::open(job.input_files(), &reading).map_err(EngineError::Source)?;
    let write = SinkConfig { chunk: job.plan.budget.write_behind, keep_cache: job.keep_cache };
    let done = written(&job.plan, &cursor);
    let output = Output::new(&job.plan.layout, &done, staging.model(), write, progress);
    let bytes_total = job.summary().passes.iter().map(|pass| pass.read).sum();
    progress.event(&Event::Started { bytes_total, bytes_done: read(job, &cursor) });
    let piece = job.settings.checkpoint;
    let mut passes = Passes {
        context,
        source,
        output,
        journal,
        cursor,
        under_way,
        piece,
        report: Report::default(),
    };
    for run in &job.plan.runs {
        passes.run(run)?;
    }
    let Passes { source, mut output, mut report, .. } = passes;
    source.verify_unchanged().map_err(EngineError::Source)?;
    output.finish()?;
    publish::write(job, &staging.model())?;
    report.written = job.plan.layout.shards.iter().map(|s| s.len).sum();
    report.read = report.passes.iter().map(|p| p.read).sum();
    report.seconds = begin.elapsed().as_secs_f64();
    report.memory = host::usage::snapshot();
    Ok(report)
}

/// The stage that was under way, and what it had gathered.
struct UnderWay {
    stage: Box<dyn AnyStage>,
    state: Option<State>,
}

/// Brings the unit under way back to where the cursor says, from saved states. If that cannot be done
/// the cursor goes back to the unit's start: its bytes are then written once more.
fn resume(job: &Job, journal: &Journal, cursor: &mut Cursor) -> Option<UnderWay> {
    if cursor.stage == 0 && cursor.elements == 0 {
        return None;
    }
    let streamed = job.plan.runs.contains(&Run::Streamed(cursor.units));
    let found = if streamed { replay(job, journal, cursor) } else { None };
    if found.is_none() {
        (cursor.stage, cursor.elements, cursor.writes) = (0, 0, false);
    }
    found
}

fn replay(job: &Job, journal: &Journal, cursor: &Cursor) -> Option<UnderWay> {
    let unit = cursor.units;
    let elements = job.plan.units.get(unit as usize)?.elements;
    let mut stage = job.method.start(elements).ok()?;
    for finished in 0..cursor.stage {
        let state = stage.load(&journal.state(unit, finished, elements)?)?;
        let Next::Stage(next) = stage.finish(state).ok()? else { return None };
        stage = next;
    }
    if stage.writes() != cursor.writes && cursor.elements > 0 {
        return None;
    }
    let state = match cursor.elements {
        0 => None,
        seen => Some(stage.load(&journal.state(unit, cursor.stage, seen)?)?),
    };
    Some(UnderWay { stage, state })
}

/// Bytes of data per shard that are in the output already.
fn written(plan: &Plan, cursor: &Cursor) -> Vec<u64> {
    let mut done = vec![0; plan.layout.shards.len()];
    let mut add = |segments: &[u32], elements: u64| {
        for (segment, covered) in plan.first(segments, elements) {
            done[segment.shard as usize] += covered * u64::from(segment.out_size);
        }
    };
    add(&copied(plan), cursor.copied);
    for unit in 0..cursor.units {
        add(plan.unit_segments(unit), u64::MAX);
    }
    if cursor.writes && (cursor.units as usize) < plan.units.len() {
        add(plan.unit_segments(cursor.units), cursor.elements);
    }
    done
}

/// Bytes that earlier runs have read, of those that an undisturbed run reads.
fn read(job: &Job, cursor: &Cursor) -> u64 {
    let plan = &job.plan;
    let part = |segments: &[u32], elements: u64| -> u64 {
        plan.first(segments, elements).map(|(s, covered)| covered * s.element_bytes()).sum()
    };
    let mut bytes = part(&copied(plan), cursor.copied);
    for run in &plan.runs {
        bytes += match run {
            Run::Copies(_) => 0,
            Run::Whole(units) => units
                .iter()
                .filter(|&&unit| unit < cursor.units)
                .map(|&unit| plan.input_bytes(plan.unit_segments(unit)))
                .sum(),
            Run::Streamed(unit) => {
                let segments = plan.unit_segments(*unit);
                let passes = job.method.passes(plan.units[*unit as usize].elements).len() as u64;
                match unit.cmp(&cursor.units) {
                    std::cmp::Ordering::Less => passes * plan.input_bytes(segments),
                    std::cmp::Ordering::Equal => {
                        u64::from(cursor.stage) * plan.input_bytes(segments)
                            + part(segments, cursor.elements)
                    }
                    std::cmp::Ordering::Greater => 0,
                }
            }
        };
    }
    bytes
}

fn copied(plan: &Plan) -> Vec<u32> {
    let copied = |run: &Run| match run {
        Run::Copies(segments) => Some(segments.clone()),
        Run::Whole(_) | Run::Streamed(_) => None,
    };
    plan.runs.iter().find_map(copied).unwrap_or_default()
}

struct Passes<'a> {
    context: Context<'a>,
    source: Source,
    output: Output<'a>,
    journal: Journal,
    cursor: Cursor,
    under_way: Option<UnderWay>,
    /// Bytes per piece, if not the usual.
    piece: Option<u64>,
    report: Report,
}

impl Passes<'_> {
    fn run(&mut self, run: &Run) -> Result<(), Error> {
        match run {
            Run::Copies(segments) => self.copies(segments),
            Run::Whole(units) => self.whole(units),
            Run::Streamed(unit) if *unit >= self.cursor.units => self.streamed(*unit),
            Run::Streamed(_) => Ok(()),
        }
    }

    fn copies(&mut self, segments: &[u32]) -> Result<(), Error> {
        let plan = self.context.plan;
        let total = plan.elements(segments);
        while self.cursor.copied < total {
            let range = self.piece(segments, self.cursor.copied, total, true);
            let work = Work::Copies { segments, range: range.clone() };
            let bytes = self.bytes(segments, &range);
            let _nothing = self.pass("copy", bytes, &work)?;
            self.output.sync()?;
            self.cursor.copied = range.end;
            self.journal.record(&self.cursor)?;
        }
        Ok(())
    }

    fn whole(&mut self, units: &[u32]) -> Result<(), Error> {
        let plan = self.context.plan;
        let mut left: &[u32] = &units[units.partition_point(|&unit| unit < self.cursor.units)..];
        while !left.is_empty() {
            let most = self.piece.unwrap_or(WRITTEN);
            let mut bytes = 0;
            let fits = left.iter().take_while(|&&unit| {
                let before = bytes;
                bytes += plan.input_bytes(plan.unit_segments(unit));
                before < most
            });
            let (now, later) = left.split_at(fits.count());
            let bytes = now.iter().map(|&unit| plan.input_bytes(plan.unit_segments(unit))).sum();
            let result = self.pass("all passes in memory", bytes, &Work::Whole { units: now })?;
            self.output.sync()?;
            self.report.replaced += result.replaced;
            for (unit, outcome) in result.outcomes {
                self.done(unit, outcome);
            }
            let merged = now.last().map_or(0, |&unit| unit + 1);
            self.cursor = Cursor { copied: self.cursor.copied, units: merged, ..Cursor::default() };
            self.journal.record(&self.cursor)?;
            left = later;
        }
        Ok(())
    }

    fn streamed(&mut self, unit: u32) -> Result<(), Error> {
        let plan = self.context.plan;
        let (name, total) = {
            let unit = &plan.units[unit as usize];
            (unit.name.clone(), unit.elements)
        };
        let named = |error| EngineError::Method { unit: name.clone(), error };
        let (mut stage, mut state) = if let Some(under_way) = self.under_way.take() {
            (under_way.stage, under_way.state)
        } else {
            (self.context.method.start(total).map_err(named)?, None)
        };
        loop {
            let gathered = self.stage(unit, &*stage, state.take(), total)?;
            match stage.finish(gathered).map_err(named)? {
                Next::Stage(next) => {
                    stage = next;
                    self.cursor.stage += 1;
                    (self.cursor.elements, self.cursor.writes) = (0, false);
                }
                Next::Done(outcome) => {
                    self.done(unit, outcome);
                    let copied = self.cursor.copied;
                    self.cursor = Cursor { copied, units: unit + 1, ..Cursor::default() };
                    self.journal.record(&self.cursor)?;
                    self.journal.forget(|u, _, _| u <= unit);
                    return Ok(());
                }
            }
        }
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
            let range = self.piece(segments, self.cursor.elements, total, stage.writes());
            let work = Work::Stage { unit, stage, range: range.clone() };
            let bytes = self.bytes(segments, &range);
            let result = self.pass(stage.name(), bytes, &work)?;
            if stage.writes() {
                self.report.replaced += result.replaced;
                self.output.sync()?;
            }
            state = match (state, result.state) {
                (Some(mut into), Some(from)) => {
                    stage.merge(&mut into, from);
                    Some(into)
                }
                (into, from) => into.or(from),
            };
            let before = self.cursor.elements;
            self.cursor.elements = range.end;
            if let Some(state) = &mut state {
                self.journal.save(&self.cursor, &stage.save(state))?;
            }
            self.journal.record(&self.cursor)?;
            let (at, seen) = (self.cursor.stage, range.end);
            self.journal.forget(|u, s, e| u == unit && s == at && e <= before && e < seen);
        }
        Ok(state.unwrap_or_else(|| stage.empty()))
    }

    /// The next piece of work: so many elements that the usual number of bytes is written or read.
    fn piece(&self, segments: &[u32], from: u64, total: u64, writes: bool) -> Range<u64> {
        let segments = segments.iter().map(|&s| &self.context.plan.segments[s as usize]);
        let widest = segments
            .map(|s| if writes { u64::from(s.out_size) } else { s.element_bytes() })
            .max()
            .unwrap_or(1);
        let most = self.piece.unwrap_or(if writes { WRITTEN } else { READ });
        from..total.min(from + (most / widest).max(1))
    }

    /// Input bytes of a range of elements.
    fn bytes(&self, segments: &[u32], range: &Range<u64>) -> u64 {
        let plan = self.context.plan;
        let up_to = |elements: u64| -> u64 {
            plan.first(segments, elements).map(|(s, covered)| covered * s.element_bytes()).sum()
        };
        up_to(range.end) - up_to(range.start)
    }

    fn done(&mut self, unit: u32, outcome: Outcome) {
        self.report.units.push((self.context.plan.units[unit as usize].name.clone(), outcome));
    }

    fn pass(
        &mut self,
        name: &'static str,
        read: u64,
        work: &Work<'_>,
    ) -> Result<PassResult, EngineError> {
        let progress = self.context.progress;
        progress.event(&Event::PassStarted { name, bytes: read });
        let begin = Instant::now();
        let result = engine::run(&self.context, work, &mut self.source, &mut self.output)?;
        let seconds = begin.elapsed().as_secs_f64();
        progress.event(&Event::PassFinished { name, bytes: read, seconds });
        match self.report.passes.iter_mut().find(|pass| pass.name == name) {
            Some(pass) => {
                pass.read += read;
                pass.seconds += seconds;
            }
            None => self.report.passes.push(PassReport { name: name.to_owned(), read, seconds }),
        }
        Ok(result)
    }
}
