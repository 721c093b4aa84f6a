//! What the tests share: families of checkpoints, running the program, comparing directories.

pub mod checkpoint;
pub mod run;

pub use checkpoint::Checkpoint;
pub use run::{files, reflow, snapshot};
