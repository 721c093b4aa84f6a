//! Merges.
#![warn(missing_docs)]
pub mod checkpoint;
pub mod cli;
pub mod engine;
pub mod error;
pub mod human;
pub mod job;
pub mod kernel;
pub mod method;
pub mod plan;
pub mod progress;
pub mod recipe;
pub mod stats;
