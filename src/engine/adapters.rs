//! The matrices of adapters, read for one segment at a time.

use std::sync::Arc;

use super::source::{ByteRange, Source};
use super::{Context, EngineError};
use crate::kernel::{Float, LowRank};
use crate::plan::low_rank::{self, CHUNK, Factor};
use crate::recipe::NonFinite;

/// What is added to each source of a segment; empty if nothing is to any.
pub(super) type Products = Arc<[Option<LowRank>]>;

/// Reads what tiles need, and keeps that of the segment before.
#[derive(Default)]
pub(super) struct Adapters {
    last: Option<(u32, Products)>,
}

/// Which of the two matrices.
#[derive(Clone, Copy)]
enum Side {
    Left,
    Right,
}

impl Adapters {
    /// What is added to the sources of a segment.
    ///
    /// # Errors
    /// If an adapter cannot be read, or holds values that are not finite.
    pub(super) fn of(
        &mut self,
        context: &Context<'_>,
        segment: u32,
        source: &mut Source,
    ) -> Result<Products, EngineError> {
        if let Some((last, products)) = &self.last
            && *last == segment
        {
            return Ok(Arc::clone(products));
        }
        // Its memory may be needed.
        self.last = None;
        let sources = &context.plan.segments[segment as usize].sources;
        if sources.iter().all(|source| source.low_rank.is_none()) {
            return Ok(Products::default());
        }
        let mut products = Vec::with_capacity(sources.len());
        for at in sources {
            let product = at.low_rank.as_deref();
            let read = |of| self::read(context, at.checkpoint, of, source);
            products.push(product.map(read).transpose()?);
        }
        let products: Products = products.into();
        self.last = Some((segment, Arc::clone(&products)));
        Ok(products)
    }
}

fn read(
    context: &Context<'_>,
    checkpoint: u32,
    of: &low_rank::LowRank,
    source: &mut Source,
) -> Result<LowRank, EngineError> {
    let (rows, columns) = (of.rows() as usize, of.columns() as usize);
    let mut product = LowRank::new(rows, columns, of.rank, of.scale);
    for (factor, side) in [(&of.left, Side::Left), (&of.right, Side::Right)] {
        let mut set = |row: usize, column: usize, value: f32| {
            let (row, column) = if factor.transposed { (column, row) } else { (row, column) };
            match side {
                Side::Left => product.set_left(row, column, value),
                Side::Right => product.set_right(row, column, value),
            }
        };
        rows_of(context, checkpoint, factor, source, &mut set)?;
    }
    Ok(product)
}

/// Hands out the elements of a matrix as it is stored.
fn rows_of(
    context: &Context<'_>,
    checkpoint: u32,
    factor: &Factor,
    source: &mut Source,
    set: &mut impl FnMut(usize, usize, f32),
) -> Result<(), EngineError> {
    let row_bytes = factor.row_bytes();
    let step = (CHUNK / row_bytes.max(1)).max(1);
    let range = |row: u64| ByteRange {
        file: factor.file,
        offset: factor.offset + row * row_bytes,
        len: (step.min(factor.rows - row) * row_bytes) as usize,
    };
    let mut values = vec![0.0; factor.columns as usize];
    let mut row = 0;
    while row < factor.rows {
        let next = row + step;
        if next < factor.rows {
            source.prefetch(&[range(row), range(next)]);
        }
        let bytes = source.read(&[range(row)])?;
        let stored = bytes.first().map_or(&[][..], |bytes| bytes);
        for (row, stored) in (row..).zip(stored.chunks_exact(row_bytes.max(1) as usize)) {
            context.kernels.decode(factor.float, stored, &mut values);
            if context.nonfinite == NonFinite::Error
                && let Some(at) = values.iter().position(|value| !value.is_finite())
            {
                return Err(not_finite(context, checkpoint, factor, row, at, values[at]));
            }
            for (column, &value) in values.iter().enumerate() {
                set(row as usize, column, value);
            }
        }
        row = next;
    }
    Ok(())
}

#[cold]
fn not_finite(
    context: &Context<'_>,
    checkpoint: u32,
    factor: &Factor,
    row: u64,
    column: usize,
    value: f32,
) -> EngineError {
    let element = row * factor.columns + column as u64;
    EngineError::NonFinite {
        checkpoint: context.plan.labels[checkpoint as usize].clone(),
        tensor: factor.name.to_string(),
        element,
        offset: factor.offset + element * Float::size(factor.float) as u64,
        value,
    }
}
