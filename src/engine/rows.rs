//! Rows of tables brought into the order of the output, in `f32`.

use std::sync::Arc;

use super::source::{ByteRange, Source};
use super::{Context, EngineError};
use crate::kernel::Float;
use crate::plan::Tile;
use crate::plan::low_rank::CHUNK;
use crate::plan::rows::{RowMap, Run};

/// Reads rows, and keeps the means of the tables that it read last.
#[derive(Default)]
pub(super) struct Rows {
    means: Vec<(Arc<RowMap>, Vec<f32>)>,
    sum: Vec<f32>,
    other: Vec<f32>,
}

impl Rows {
    /// The elements of a tile, as little-endian `f32`. `first` is that of the segment in the tensor, which has `sources`
    /// of its kind.
    ///
    /// # Errors
    /// If a table cannot be read.
    pub(super) fn gather(
        &mut self,
        context: &Context<'_>,
        (map, sources): (&Arc<RowMap>, usize),
        first: u64,
        tile: Tile,
        source: &mut Source,
    ) -> Result<Vec<u8>, EngineError> {
        let begin = first + tile.start;
        let end = begin + u64::from(tile.elements);
        let mut out = vec![0; tile.elements as usize * 4];
        for run in map.runs(begin, end) {
            // Elements of the output that are both in the run and in the tile.
            let (from, to) = (run.first * map.columns, (run.first + run.rows) * map.columns);
            let (mut at, to) = (from.max(begin), to.min(end));
            while at < to {
                let mut len = (to - at).min(CHUNK / 4);
                let values = if run.mean {
                    let column = at % map.columns;
                    len = len.min(map.columns - column);
                    let mean = self.mean(context, (map, sources), source)?;
                    &mean[column as usize..(column + len) as usize]
                } else if run.from.is_empty() {
                    at += len;
                    continue;
                } else {
                    self.one(context, map, run, (at - from, len), source)?;
                    &self.sum
                };
                let place = (at - begin) as usize * 4;
                let out = &mut out[place..place + len as usize * 4];
                context.kernels.encode(Float::F32, values, out);
                at += len;
            }
        }
        Ok(out)
    }

    /// The mean of all rows of tokens, a value for each column: added in `f64`, row after row.
    fn mean(
        &mut self,
        context: &Context<'_>,
        (map, sources): (&Arc<RowMap>, usize),
        source: &mut Source,
    ) -> Result<&[f32], EngineError> {
        if let Some(at) = self.means.iter().position(|(known, _)| Arc::ptr_eq(known, map)) {
            return Ok(&self.means[at].1);
        }
        // Those of another tensor.
        if self.means.len() >= sources {
            self.means.clear();
        }
        let columns = map.columns as usize;
        let (mut sums, mut rows) = (vec![0.0f64; columns], 0);
        for run in map.runs.iter().filter(|run| !run.mean) {
            rows += run.rows;
            let (mut at, end) = (0, run.rows * map.columns);
            while at < end && !run.from.is_empty() {
                let len = (end - at).min(CHUNK / 4);
                self.one(context, map, run, (at, len), source)?;
                let first = (at % map.columns) as usize;
                for (k, &value) in self.sum.iter().enumerate() {
                    sums[(first + k) % columns] += f64::from(value);
                }
                at += len;
            }
        }
        let count = rows.max(1) as f64;
        let mean = sums.into_iter().map(|sum| (sum / count) as f32).collect();
        self.means.push((Arc::clone(map), mean));
        Ok(self.means.last().map_or(&[], |(_, mean)| mean))
    }

    /// Leaves in `sum` `len` elements of the rows that a run is made of, from element `skip` of it on: their mean if there
    /// are several for each.
    fn one(
        &mut self,
        context: &Context<'_>,
        map: &RowMap,
        run: &Run,
        (skip, len): (u64, u64),
        source: &mut Source,
    ) -> Result<(), EngineError> {
        let (sum, other) = (&mut self.sum, &mut self.other);
        sum.resize(len as usize, 0.0);
        other.resize(len as usize, 0.0);
        for (k, &(table, row)) in run.from.iter().enumerate() {
            let table = &map.tables[table as usize];
            let size = table.float.size() as u64;
            let range = ByteRange {
                file: table.file,
                offset: table.offset + (row * map.columns + skip) * size,
                len: (len * size) as usize,
            };
            let bytes = source.read(&[range])?;
            let bytes = bytes.first().map_or(&[][..], |bytes| bytes);
            if k == 0 {
                context.kernels.decode(table.float, bytes, sum);
            } else {
                context.kernels.decode(table.float, bytes, other);
                sum.iter_mut().zip(&*other).for_each(|(sum, x)| *sum += x);
            }
        }
        if run.from.len() > 1 {
            context.kernels.divide_by(run.from.len() as f32, sum);
        }
        Ok(())
    }
}
