//! Passes run in pieces, after each of which everything is durable.

use std::ops::Range;

use super::{Job, statistics};
use crate::plan::Segment;

/// Output bytes per piece of a map: what a kill can cost.
const WRITTEN: u64 = 256 << 20;
/// Input bytes per piece of a fold.
const READ: u64 = 4 << 30;

/// How many of `units`, each merged in one tile, make up the next piece: at least one.
pub(super) fn whole_units(job: &Job, units: &[u32]) -> usize {
    let plan = &job.plan;
    let most = job.settings.checkpoint.unwrap_or(WRITTEN);
    let ends = units.iter().scan(0, |written, &unit| {
        let before = *written;
        let segments = plan.unit_segments(unit).iter().map(|&s| &plan.segments[s as usize]);
        *written += segments.map(|s| s.elements * written_size(s)).sum::<u64>();
        Some(before)
    });
    let fits = ends.take_while(|&before| before < most).count();
    fits.min(statistics::tensors_at_once(job).unwrap_or(usize::MAX))
}

/// Bytes that a map makes of an element.
fn written_size(segment: &Segment) -> u64 {
    match segment.out_size {
        // What is made instead of an output takes about a value for each element.
        0 => 4,
        size => size.into(),
    }
}

/// The next piece of work: so many elements that the usual number of bytes is written or read.
pub(super) fn piece(
    job: &Job,
    segments: &[u32],
    from: u64,
    total: u64,
    writes: bool,
    share: f64,
) -> Range<u64> {
    let plan = &job.plan;
    let all = segments.iter().map(|&s| &plan.segments[s as usize]);
    let size = |s: &Segment| if writes { written_size(s) } else { s.element_bytes() };
    let widest = all.map(size).max().unwrap_or(1);
    let most = job.settings.checkpoint.unwrap_or(if writes { WRITTEN } else { READ });
    let elements = ((most / widest) as f64 / share) as u64;
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
