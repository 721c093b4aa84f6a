//! Runs all passes of a planned merge and commits the result.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;

use super::output::Output;
use super::staging::Staging;
use super::{Job, publish};
use crate::engine::sink::SinkConfig;
use crate::engine::source::{Source, SourceConfig};
use crate::engine::{self, Context, EngineError, PassResult, Work, host};
use crate::error::Error;
use crate::method::{Next, Outcome};
use crate::plan::{PassSummary, Run};
use crate::progress::{Event, Progress};

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

/// What was merged and what it took.
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
    let staging = Staging::create(out, |name| shard(name) || publish::makes(job, name))?;
    let merged = in_staging(job, &staging, progress, cancel);
    let report = merged.map_err(|error| match error {
        Error::Engine(EngineError::Interrupted) => {
            Error::Interrupted { staging: staging.root().to_owned(), terminated: false }
        }
        error => error,
    })?;
    staging.commit()?;
    Ok(report)
}

fn in_staging(
    job: &Job,
    staging: &Staging,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<Report, Error> {
    let begin = Instant::now();
    staging.describe(&describe(job))?;
    let context = Context {
        plan: &job.plan,
        method: &*job.method,
        kernels: job.kernels,
        nonfinite: job.recipe.nonfinite,
        progress,
        cancel,
    };
    let mut reading = SourceConfig::new(job.mode);
    reading.keep_cache = job.keep_cache;
    reading.grain = job.plan.budget.grain;
    let source = Source::open(job.input_files(), &reading).map_err(EngineError::Source)?;
    let write = SinkConfig { chunk: job.plan.budget.write_behind, keep_cache: job.keep_cache };
    let output = Output::new(&job.plan.layout, staging.model(), write, progress);
    let expected: u64 = job.summary().passes.iter().map(|p: &PassSummary| p.read).sum();
    progress.event(&Event::Started { bytes_total: expected, bytes_done: 0 });
    let mut passes = Passes { context, source, output, report: Report::default() };
    for run in &job.plan.runs {
        passes.run(run)?;
    }
    let Passes { source, mut output, mut report, .. } = passes;
    source.verify_unchanged().map_err(EngineError::Source)?;
    output.finish()?;
    publish::write(job, &staging.model(), &report)?;
    report.written = job.plan.layout.shards.iter().map(|s| s.len).sum();
    report.read = report.passes.iter().map(|p| p.read).sum();
    report.seconds = begin.elapsed().as_secs_f64();
    report.memory = host::usage::snapshot();
    Ok(report)
}

struct Passes<'a> {
    context: Context<'a>,
    source: Source,
    output: Output<'a>,
    report: Report,
}

impl Passes<'_> {
    fn run(&mut self, run: &Run) -> Result<(), Error> {
        let plan = self.context.plan;
        match run {
            Run::Copies(segments) => {
                let _nothing = self.pass("copy", segments, &Work::Copies { segments })?;
            }
            Run::Whole(units) => {
                let segments: Vec<u32> =
                    units.iter().flat_map(|&u| plan.unit_segments(u)).copied().collect();
                let result =
                    self.pass("all passes in memory", &segments, &Work::Whole { units })?;
                self.report.replaced += result.replaced;
                for (unit, outcome) in result.outcomes {
                    self.done(unit, outcome);
                }
            }
            Run::Streamed(unit) => self.streamed(*unit)?,
        }
        Ok(())
    }

    fn streamed(&mut self, unit: u32) -> Result<(), Error> {
        let plan = self.context.plan;
        let named =
            |error| EngineError::Method { unit: plan.units[unit as usize].name.clone(), error };
        let segments = plan.unit_segments(unit);
        let mut stage =
            self.context.method.start(plan.units[unit as usize].elements).map_err(named)?;
        loop {
            let work = Work::Stage { unit, stage: &*stage };
            let result = self.pass(stage.name(), segments, &work)?;
            if stage.writes() {
                self.report.replaced += result.replaced;
            }
            // A unit has elements, so some worker has made a state.
            let state = result.state.unwrap_or_else(|| stage.empty());
            match stage.finish(state).map_err(named)? {
                Next::Stage(next) => stage = next,
                Next::Done(outcome) => {
                    self.done(unit, outcome);
                    return Ok(());
                }
            }
        }
    }

    fn done(&mut self, unit: u32, outcome: Outcome) {
        self.report.units.push((self.context.plan.units[unit as usize].name.clone(), outcome));
    }

    fn pass(
        &mut self,
        name: &'static str,
        segments: &[u32],
        work: &Work<'_>,
    ) -> Result<PassResult, EngineError> {
        let read = self.context.plan.input_bytes(segments);
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

/// What is being made, for the staging directory.
fn describe(job: &Job) -> String {
    let plan = serde_json::json!({
        "tool": "reflow",
        "version": env!("CARGO_PKG_VERSION"),
        "recipe": job.recipe.to_yaml(|path| path.display().to_string()),
        "plan": job.summary(),
    });
    format!("{plan:#}\n")
}
