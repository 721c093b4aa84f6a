//! Statistics that methods share: mergeable, deterministic under any tiling and thread count.
//!
//! Everything here counts in integers, so adding tiles in another order, on other threads or in
//! another session gives the same bits.

mod codec;
mod rows;
mod select;
mod sum;

pub use codec::{Reader, Writer};
pub use rows::{Ranked, RowCounts, RowSelection, Selected};
pub use select::{Counts, SMALL, Selector};
pub use sum::FixedSum;
