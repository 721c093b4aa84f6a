//! Samples of the next unit, taken while a unit is merged.
//!
//! ```text
//! unit 1   sample | scan | merge
//! unit 2            sample ..... | scan | merge
//! unit 3                           sample ..... | scan | merge
//! ```
//! A sample is little work and much waiting: runs of a few kilobytes from all over each input. Its passes take no parcels
//! and write nothing, so all that comes of them is a stage and a few small states. What goes wrong is told when it is
//! the unit's turn.

use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use super::Job;
use super::pieces::{cost, most};
use super::report::PassReport;
use super::run::{open_sampler, open_scattered};
use crate::engine::source::{Source, max_open_files};
use crate::engine::{self, Context, EngineError, Nothing, Sources, Tickets, Work};
use crate::method::{AnyStage, Held, Next, Sampling};
use crate::plan::{Run, SAMPLE_TILES};

/// Where a unit stands behind its samples.
pub(super) struct Sampled {
    /// What comes next.
    pub(super) stage: Box<dyn AnyStage>,
    /// What each pass has gathered, saved; the first is that of stage 0.
    pub(super) states: Vec<Vec<u8>>,
    /// Bytes that count towards the next record.
    pub(super) cost: u64,
    /// The passes.
    pub(super) passes: Vec<PassReport>,
}

/// Takes samples of one unit at a time, in a thread of its own.
pub(super) struct Ahead<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    job: &'env Job,
    context: Context<'env>,
    /// Units to sample, in their order.
    units: Vec<u32>,
    /// Those who read, between two units.
    idle: Option<Readers>,
    under_way: Option<(u32, ScopedJoinHandle<'scope, Answer>)>,
}

struct Readers {
    samples: Source,
    scattered: Source,
}

type Answer = (Readers, Result<Sampled, EngineError>);

/// The tickets that it takes.
pub(super) fn tickets() -> Tickets {
    Tickets::new(SAMPLE_TILES)
}

impl<'scope, 'env> Ahead<'scope, 'env> {
    /// Nothing is under way yet. `tickets` are its own.
    ///
    /// # Errors
    /// If its readers cannot be made.
    pub(super) fn new(
        scope: &'scope Scope<'scope, 'env>,
        job: &'env Job,
        context: &Context<'env>,
        tickets: &'env Tickets,
    ) -> Result<Self, EngineError> {
        // Two read at the same time, each from a file of every model at least.
        let can =
            job.plan.budget.samples_ahead && 2 * (job.plan.labels.len() + 3) <= max_open_files();
        let units = if can { units(job) } else { Vec::new() };
        let open = || -> Result<Readers, EngineError> {
            Ok(Readers { samples: open_sampler(job)?, scattered: open_scattered(job)? })
        };
        let idle = (!units.is_empty()).then(open).transpose()?;
        let context = Context { tickets, workers: 1, ..*context };
        Ok(Self { scope, job, context, units, idle, under_way: None })
    }

    /// Begins with the first unit behind one.
    pub(super) fn begin_behind(&mut self, unit: u32) {
        if self.under_way.is_some() {
            return;
        }
        let next = self.units.partition_point(|&next| next <= unit);
        let (Some(&next), Some(mut readers)) = (self.units.get(next), self.idle.take()) else {
            return;
        };
        let (job, context) = (self.job, self.context);
        let thread = self.scope.spawn(move || {
            let sampled = sample(job, &context, next, &mut readers);
            (readers, sampled)
        });
        self.under_way = Some((next, thread));
    }

    /// What came of the samples of a unit; `None` if nobody has taken any.
    ///
    /// # Errors
    /// Those of the passes. [`EngineError::Interrupted`] if they were stopped.
    pub(super) fn take(&mut self, unit: u32) -> Result<Option<Sampled>, EngineError> {
        let Some((next, thread)) = self.under_way.take_if(|(next, _)| *next <= unit) else {
            return Ok(None);
        };
        let (readers, sampled) = thread.join().map_err(|_| EngineError::Panicked("sampling"))?;
        self.idle = Some(readers);
        // What was passed over is of nobody.
        sampled.map(|sampled| (next == unit).then_some(sampled))
    }
}

/// Units whose samples are small enough to be taken in one go.
fn units(job: &Job) -> Vec<u32> {
    let is_small = |unit: u32| {
        let view = job.plan.view(unit);
        job.method.sampled(view).is_some_and(|(passes, sampling)| {
            let segments = job.plan.unit_segments(unit);
            let each = cost(job, segments, view.elements, false, sampling.share());
            each * passes as u64 <= most(job, false) / 4
        })
    };
    let streamed = job.plan.runs.iter().filter_map(|run| match run {
        Run::Streamed(unit) => Some(*unit),
        Run::Copies(_) | Run::Whole(_) | Run::Solved(_) => None,
    });
    streamed.filter(|&unit| is_small(unit)).collect()
}

fn sample(
    job: &Job,
    context: &Context<'_>,
    unit: u32,
    readers: &mut Readers,
) -> Result<Sampled, EngineError> {
    let (view, segments) = (context.plan.view(unit), context.plan.unit_segments(unit));
    let named = |error| EngineError::Method { unit: view.name.clone(), error };
    let mut stage = context.method.start(view).map_err(named)?;
    let (mut states, mut bytes, mut passes) = (Vec::new(), 0, Vec::new());
    while let Some(share) = stage.sample().map(Sampling::share) {
        let (begin, held) = (Instant::now(), Held::default());
        let before = readers.samples.bytes_read();
        let range = 0..view.elements;
        let work = Work::Stage { segments, stage: &*stage, range, keep: &held };
        let Readers { samples, scattered } = readers;
        let sources = Sources { tiles: &mut *samples, scattered };
        let result = engine::run(context, &work, sources, &mut Nothing)?;
        if result.done < view.elements {
            return Err(EngineError::Interrupted);
        }
        passes.push(PassReport {
            name: stage.name().to_owned(),
            read: samples.bytes_read() - before,
            seconds: begin.elapsed().as_secs_f64(),
        });
        bytes += cost(job, segments, view.elements, false, share);
        let state = result.state.unwrap_or_else(|| stage.empty());
        states.push(stage.save(&state));
        stage = match stage.finish(state, &held).map_err(named)? {
            Next::Stage(next) => next,
            // No map is a sample.
            Next::Done(_) => return Err(EngineError::Panicked("sampling")),
        };
    }
    Ok(Sampled { stage, states, cost: bytes, passes })
}
