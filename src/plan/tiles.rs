//! Tiles: the units of flow, cut from segments on the way.

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

/// Cuts the listed segments into tiles of at most `most` elements, in order.
pub fn tiles<'a>(
    segments: &'a [Segment],
    listed: &'a [u32],
    most: u32,
) -> impl Iterator<Item = Tile> + 'a {
    listed.iter().flat_map(move |&segment| {
        let total = segments[segment as usize].elements;
        (0..total.div_ceil(u64::from(most))).map(move |k| {
            let start = k * u64::from(most);
            Tile { segment, start, elements: (total - start).min(u64::from(most)) as u32 }
        })
    })
}
