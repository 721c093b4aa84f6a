//! Numbers only: slices in, slices out. No files, no threads, no policies.
//!
//! The scalar code is the definition. The vector paths are the same loops, compiled for wider
//! registers and chosen once at run time, so that one binary runs anywhere; they give the same
//! bits on every length, alignment and special value, because no operation is fused or reordered
//! and exp and tanh are our own. Equal inputs give equal outputs at every position.

mod ahead;
mod blend;
pub mod bracket;
pub mod dense;
mod dispatch;
mod divergence;
pub mod dtype;
mod fixed;
mod float8;
pub mod keys;
mod low_rank;
mod math;
mod mean;
pub mod moments;
mod pack;
pub mod pcb;
mod products;
mod ram;
pub mod random;
pub mod ranked;
mod sce;
mod thin;
mod ties;
mod unify;

pub use dispatch::{KernelError, Kernels, Level, select};
pub use divergence::Scratch as Divergence;
pub use dtype::Float;
pub use low_rank::LowRank;
pub use unify::Scratch as Unifying;
pub(crate) use unify::moved;
