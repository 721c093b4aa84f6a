//! Tiles: the units of flow, cut from segments on the way.

use std::ops::Range;

use super::Segment;

/// A run of elements of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Index of the segment.
    pub segment: u32,
    /// First element, counted from the start of the segment.
    pub start: u64,
    /// Number of elements.
    pub elements: u32,
}

/// Cuts runs of elements of the listed segments, laid end to end, into tiles of at most `most`
/// elements. Runs come in ascending order. Each tile comes with where it ends, laid end to end.
pub fn sampled<'a>(
    segments: &'a [Segment],
    listed: &'a [u32],
    runs: impl Iterator<Item = Range<u64>> + 'a,
    most: u32,
) -> impl Iterator<Item = (Tile, u64)> + 'a {
    let (mut at, mut before) = (0, 0);
    runs.flat_map(move |run| {
        let (mut start, mut tiles) = (run.start, Vec::new());
        while start < run.end
            && let Some(&segment) = listed.get(at)
        {
            let total = segments[segment as usize].elements;
            if before + total <= start {
                (at, before) = (at + 1, before + total);
                continue;
            }
            let end = run.end.min(before + total).min(start + u64::from(most));
            let elements = (end - start) as u32;
            tiles.push((Tile { segment, start: start - before, elements }, end));
            start = end;
        }
        tiles
    })
}

/// Cuts the elements `range` of the listed segments, laid end to end, into tiles of at most `most`
/// elements, in order. No tile reaches over a segment's end, and none begins amid a grain of its
/// segment if `range` does not.
pub fn tiles<'a>(
    segments: &'a [Segment],
    listed: &'a [u32],
    range: Range<u64>,
    most: u32,
) -> impl Iterator<Item = Tile> + 'a {
    let mut before = 0;
    listed.iter().flat_map(move |&segment| {
        let total = segments[segment as usize].elements;
        let first = range.start.saturating_sub(before).min(total);
        let last = range.end.saturating_sub(before).min(total);
        before += total;
        let step = segments[segment as usize].tile(most);
        (0..last.saturating_sub(first).div_ceil(step)).map(move |k| {
            let start = first + k * step;
            Tile { segment, start, elements: (last - start).min(step) as u32 }
        })
    })
}
