//! Statistics that methods share: mergeable, deterministic under any tiling and thread count.
//!
//! Everything here counts in integers, so adding tiles in another order, on other threads or in
//! another session gives the same bits.

mod codec;
mod dot;
mod exact;
mod gram;
mod ladder;
mod pair;
mod pile;
mod places;
mod rows;
mod select;
mod sheaf;
mod sketch;
mod sum;
mod tensor;

pub use codec::{Reader, Writer};
pub use dot::DotSum;
pub use exact::ExactSum;
pub use gram::{Gram, Products};
pub use ladder::{Ladder, Rung};
pub use pair::PairStats;
pub use pile::{Pile, add_section, lanes, section, unpack};
pub use places::{Place, Places};
pub use rows::{Ranked, RowCounts, RowSelection, Selected};
pub use select::{Counts, SMALL, Selector, Standing};
pub use sheaf::{Sheaf, unpack_records};
pub use sketch::{Brackets, EVERYTHING, Sketch, Sketched, Sketches, Span};
pub use sum::FixedSum;
pub use tensor::{Magnitudes, TensorStats};
