//! Merges fine-tuned experts of one base model into one checkpoint.

pub mod checkpoint;
pub mod kernel;
pub mod stats;
