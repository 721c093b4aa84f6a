//! The runs of output bytes that have a hash each.

use crate::plan::Plan;

/// Bytes per extent, at most. A segment that is larger has several.
const MOST: u64 = 256 << 20;

/// A run of bytes of one shard: its header, or (a part of) one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// Which shard.
    pub(super) shard: u32,
    /// Which tensor; none for the header.
    pub(super) tensor: Option<u32>,
    /// First byte in the file.
    pub(super) offset: u64,
    /// Number of bytes.
    pub(super) bytes: u64,
}

/// All extents of an output, by shard and offset. They depend on the plan's segments alone.
pub(super) struct Extents {
    all: Vec<Extent>,
}

impl Extents {
    /// Those of a plan.
    pub(super) fn new(plan: &Plan) -> Self {
        Self::cut(plan, MOST)
    }

    fn cut(plan: &Plan, most: u64) -> Self {
        let mut all: Vec<Extent> = (plan.layout.shards.iter().enumerate())
            .map(|(shard, s)| Extent {
                shard: shard as u32,
                tensor: None,
                offset: 0,
                bytes: s.header.len() as u64,
            })
            .collect();
        for segment in &plan.segments {
            let bytes = segment.elements * u64::from(segment.out_size);
            all.extend((0..bytes).step_by(most as usize).map(|start| Extent {
                shard: segment.shard,
                tensor: Some(segment.tensor),
                offset: segment.offset + start,
                bytes: most.min(bytes - start),
            }));
        }
        all.sort_by_key(|extent| (extent.shard, extent.offset));
        Self { all }
    }

    /// Number of extents.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// An extent by its number.
    pub(super) fn get(&self, number: usize) -> Option<Extent> {
        self.all.get(number).copied()
    }

    /// The extent that holds a byte of a shard, by its number.
    pub(super) fn find(&self, shard: u32, offset: u64) -> Option<(usize, Extent)> {
        let after = self.all.partition_point(|e| (e.shard, e.offset) <= (shard, offset));
        let at = after.checked_sub(1)?;
        let extent = self.all[at];
        let inside = extent.shard == shard && offset < extent.offset + extent.bytes;
        inside.then_some((at, extent))
    }

    /// The extents of a shard, each with its number.
    pub(super) fn of_shard(&self, shard: u32) -> impl Iterator<Item = (usize, Extent)> + '_ {
        let first = self.all.partition_point(|e| e.shard < shard);
        let end = self.all.partition_point(|e| e.shard <= shard);
        (first..end).map(|at| (at, self.all[at]))
    }
}
