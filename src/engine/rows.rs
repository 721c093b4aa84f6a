//! Rows of tables brought into the order of the output, in `f32`.

use super::source::{ByteRange, Source};
use super::{Context, EngineError};
use crate::kernel::Float;
use crate::plan::Tile;
use crate::plan::low_rank::CHUNK;
use crate::plan::rows::{RowMap, Run};

/// The elements of a tile, as little-endian `f32`. `first` is that of the segment in the tensor.
///
/// # Errors
/// If a table cannot be read.
pub(super) fn gather(
    context: &Context<'_>,
    map: &RowMap,
    first: u64,
    tile: Tile,
    source: &mut Source,
) -> Result<Vec<u8>, EngineError> {
    let begin = first + tile.start;
    let end = begin + u64::from(tile.elements);
    let mut out = vec![0; tile.elements as usize * 4];
    let (mut sum, mut other) = (Vec::new(), Vec::new());
    for run in map.runs(begin, end) {
        // Elements of the output that are both in the run and in the tile.
        let (from, to) = (run.first * map.columns, (run.first + run.rows) * map.columns);
        let (mut at, to) = (from.max(begin), to.min(end));
        while at < to {
            let len = (to - at).min(CHUNK / 4);
            if !run.from.is_empty() {
                mean(context, map, run, (at - from, len), source, (&mut sum, &mut other))?;
                let place = (at - begin) as usize * 4;
                let out = &mut out[place..place + len as usize * 4];
                context.kernels.encode(Float::F32, &sum, out);
            }
            at += len;
        }
    }
    Ok(out)
}

/// The mean of `len` elements of all tables that a run is made of, from element `skip` of it on.
fn mean(
    context: &Context<'_>,
    map: &RowMap,
    run: &Run,
    (skip, len): (u64, u64),
    source: &mut Source,
    (sum, other): (&mut Vec<f32>, &mut Vec<f32>),
) -> Result<(), EngineError> {
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
