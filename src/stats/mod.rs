//! Statistics that methods share: mergeable, deterministic under any tiling and thread count.
//!
//! Everything here counts in integers, so adding tiles in another order, on other threads or in
//! another session gives the same bits.

mod codec;
mod dot;
mod rows;
mod select;
mod sum;
mod tensor;

pub use codec::{Reader, Writer};
pub use dot::DotSum;
pub use rows::{Ranked, RowCounts, RowSelection, Selected};
pub use select::{Counts, SMALL, Selector};
pub use sum::FixedSum;
pub use tensor::{Magnitudes, TensorStats};
