//! Passes run in pieces: none is longer than what may be done between two records.

use std::ops::Range;

use super::{Job, statistics};
use crate::plan::Segment;

/// Output bytes that maps write between two records: what a kill can cost.
const WRITTEN: u64 = 256 << 20;
/// Input bytes that folds take between two records.
const READ: u64 = 4 << 30;

/// Bytes of work of a kind between two records.
pub(super) fn most(job: &Job, writes: bool) -> u64 {
    job.settings.checkpoint.unwrap_or(if writes { WRITTEN } else { READ })
}

/// How many of `units`, each merged in one tile, make up the next piece, if so much was written since the last record: at
/// least one.
pub(super) fn whole_units(job: &Job, units: &[u32], done: u64) -> usize {
    let most = most(job, true).saturating_sub(done);
    let ends = units.iter().scan(0, |written, &unit| {
        let before = *written;
        *written += whole_cost(job, &[unit]);
        Some(before)
    });
    let fits = ends.take_while(|&before| before < most).count().max(1);
    fits.min(statistics::tensors_at_once(job).unwrap_or(usize::MAX))
}

/// Bytes that merging whole units writes.
pub(super) fn whole_cost(job: &Job, units: &[u32]) -> u64 {
    let plan = &job.plan;
    let segments = units.iter().flat_map(|&unit| plan.unit_segments(unit));
    let written =
        |&s: &u32| plan.segments[s as usize].elements * written_size(&plan.segments[s as usize]);
    segments.map(written).sum()
}

/// Bytes that a map makes of an element.
fn written_size(segment: &Segment) -> u64 {
    match segment.out_size {
        // What is made instead of an output takes about a value for each element.
        0 => 4,
        size => size.into(),
    }
}

/// Bytes of the widest element, written or read.
fn widest(job: &Job, segments: &[u32], writes: bool) -> u64 {
    let all = segments.iter().map(|&s| &job.plan.segments[s as usize]);
    let size = |s: &Segment| if writes { written_size(s) } else { s.element_bytes() };
    all.map(size).max().unwrap_or(1)
}

/// Bytes that work on so many elements writes or reads, if they are of the widest.
pub(super) fn cost(job: &Job, segments: &[u32], elements: u64, writes: bool, share: f64) -> u64 {
    (elements.saturating_mul(widest(job, segments, writes)) as f64 * share) as u64
}

/// The next piece of work on elements `left`: so many that no more is written or read than may be between two records, of
/// which `done` is done.
pub(super) fn piece(
    job: &Job,
    segments: &[u32],
    left: Range<u64>,
    writes: bool,
    share: f64,
    done: u64,
) -> Range<u64> {
    let (plan, Range { start: from, end: total }) = (&job.plan, left);
    let most = most(job, writes).saturating_sub(done);
    let elements = ((most / widest(job, segments, writes)) as f64 / share) as u64;
    let mut to = total.min(from.saturating_add(elements.max(1)));
    if let Some(most) = statistics::tensors_at_once(job).filter(|_| writes) {
        let end = |&s: &u32| plan.segments[s as usize].elements;
        let ends = segments.iter().map(end).scan(0, |sum, it| {
            *sum += it;
            Some(*sum)
        });
        to = ends.filter(|&end| end > from).nth(most - 1).map_or(to, |end| end.min(to));
    }
    // No piece ends amid elements that must meet, and each has some.
    from..if to < total { plan.aligned(segments, from, to) } else { total }
}
