//! Passes run in pieces, after each of which everything is durable.

use std::ops::Range;

use super::{Job, statistics};

/// Output bytes per piece of a map: what a kill can cost.
pub(super) const WRITTEN: u64 = 256 << 20;
/// Input bytes per piece of a fold.
const READ: u64 = 4 << 30;

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
    let widest = segments
        .iter()
        .map(|&s| &plan.segments[s as usize])
        .map(|s| match s.out_size {
            // What is made instead of an output takes about a value for each element.
            0 if writes => 4,
            size if writes => size.into(),
            _ => s.element_bytes(),
        })
        .max()
        .unwrap_or(1);
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
