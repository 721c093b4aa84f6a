//! What an earlier run has left, and how much of it can be gone on from.

use std::path::Path;

use super::Job;
use super::journal::{Cursor, Journal, Written};
use super::output::file_of;
use super::parcels::Shelf;
use super::snapshots::Snapshots;
use crate::engine::sink::{SinkError, read_back};
use crate::error::Error;
use crate::method::{AnyStage, Next, State};
use crate::plan::{Plan, Run};

/// Bytes of recorded output that are read back and compared before a merge goes on: the newest, which a
/// crash could have hit. `reflow verify` reads all.
const REREAD: u64 = 1 << 30;

/// The stage that was under way, and what it had gathered.
pub(super) struct UnderWay {
    pub(super) stage: Box<dyn AnyStage>,
    pub(super) state: Option<State>,
}

/// Reads back what the newest records speak of. A record whose bytes are not there is taken back, with all
/// that follow it.
///
/// # Errors
/// What the disk says.
pub(super) fn recheck(job: &Job, model: &Path, journal: &mut Journal) -> Result<(), Error> {
    let mut left = job.settings.reread.unwrap_or(REREAD);
    for at in (0..journal.len()).rev() {
        let record = journal.records().nth(at);
        let extents = record.map(|record| record.extents.clone()).unwrap_or_default();
        for written in extents.iter().rev() {
            if left == 0 {
                return Ok(());
            }
            left = left.saturating_sub(written.bytes);
            if !is_there(job, model, written)? {
                journal.take_back(at)?;
                break;
            }
        }
    }
    Ok(())
}

fn is_there(job: &Job, model: &Path, written: &Written) -> Result<bool, SinkError> {
    let Some(shard) = job.plan.layout.shards.get(written.shard as usize) else { return Ok(false) };
    let mut hasher = blake3::Hasher::new();
    let range = written.offset..written.offset + written.bytes;
    match read_back(&file_of(model, &shard.file_name), range, |bytes| {
        hasher.update(bytes);
    }) {
        Ok(()) => Ok(hasher.finalize().to_hex().as_str() == written.blake3),
        Err(SinkError::Damaged { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Brings the unit under way back to where the journal says, from saved states. Records that this cannot
/// be done for are taken back: what they speak of is done once more.
///
/// # Errors
/// What the disk says.
pub(super) fn resume(
    job: &Job,
    journal: &mut Journal,
    snapshots: &Snapshots<'_>,
    shelf: &Shelf<'_>,
) -> Result<Option<UnderWay>, Error> {
    loop {
        let cursor = journal.cursor();
        if cursor.stage == 0 && cursor.elements == 0 {
            return Ok(None);
        }
        let streamed = job.plan.runs.contains(&Run::Streamed(cursor.units));
        let found = if streamed { replay(job, snapshots, shelf, &cursor)? } else { None };
        if found.is_some() {
            return Ok(found);
        }
        journal.take_back(journal.len() - 1)?;
    }
}

/// The stage that a cursor speaks of, with its state; `None` if something that it takes is damaged or gone. What
/// cannot be read for a moment is neither.
fn replay(
    job: &Job,
    snapshots: &Snapshots<'_>,
    shelf: &Shelf<'_>,
    cursor: &Cursor,
) -> Result<Option<UnderWay>, Error> {
    let unit = cursor.units;
    let Some(view) = job.plan.units.get(unit as usize).map(|unit| &unit.view) else {
        return Ok(None);
    };
    let Ok(mut stage) = job.method.start(view) else { return Ok(None) };
    let load = |stage: &dyn AnyStage, number: u32, seen: u64| -> Result<Option<State>, Error> {
        Ok(snapshots.load(unit, number, seen)?.and_then(|saved| stage.load(&saved)))
    };
    for finished in 0..cursor.stage {
        let Some(state) = load(&*stage, finished, view.elements)? else { return Ok(None) };
        let parcels = shelf.of(unit, finished)?;
        stage = match stage.finish(state, &parcels) {
            Ok(Next::Stage(next)) => next,
            Ok(Next::Done(_)) => return Ok(None),
            Err(_) => return parcels.failure().map_or(Ok(None), Err),
        };
    }
    if stage.writes() != cursor.writes && cursor.elements > 0 {
        return Ok(None);
    }
    let state = match cursor.elements {
        0 => None,
        seen => match load(&*stage, cursor.stage, seen)? {
            None => return Ok(None),
            state => state,
        },
    };
    Ok(Some(UnderWay { stage, state }))
}

/// Bytes that earlier runs have read, of those that an undisturbed run reads.
pub(super) fn read(job: &Job, cursor: &Cursor) -> u64 {
    let plan = &job.plan;
    let part = |segments: &[u32], elements: u64| -> u64 {
        plan.first(segments, elements).map(|(s, covered)| covered * s.element_bytes()).sum()
    };
    let mut bytes = part(&copied(plan), cursor.copied);
    for run in &plan.runs {
        bytes += match run {
            Run::Whole(units) => units
                .iter()
                .filter(|&&unit| unit < cursor.units)
                .map(|&unit| plan.input_bytes(plan.unit_segments(unit)))
                .sum(),
            Run::Solved(unit) if *unit < cursor.units => plan.solve_bytes(*unit),
            Run::Copies(_) | Run::Solved(_) => 0,
            Run::Streamed(unit) => {
                let segments = plan.unit_segments(*unit);
                let view = plan.view(*unit);
                let passes = job.method.passes(view).len();
                let sampled = job.method.sampled(view);
                let whole = plan.input_bytes(segments);
                // A missed bracket adds passes that no plan knew of.
                let share = |pass: usize| match sampled {
                    Some((samples, sampling)) if pass < samples => sampling.share(),
                    _ if pass < passes => 1.0,
                    _ => 0.0,
                };
                let read = |pass: usize, bytes: u64| (bytes as f64 * share(pass)) as u64;
                let stage = cursor.stage as usize;
                match unit.cmp(&cursor.units) {
                    std::cmp::Ordering::Less => (0..passes).map(|pass| read(pass, whole)).sum(),
                    std::cmp::Ordering::Equal => {
                        (0..stage).map(|pass| read(pass, whole)).sum::<u64>()
                            + read(stage, part(segments, cursor.elements))
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
        Run::Whole(_) | Run::Streamed(_) | Run::Solved(_) => None,
    };
    plan.runs.iter().find_map(copied).unwrap_or_default()
}
