//! Merges fine-tuned experts of one base model into one checkpoint: exactly, streamed, in the memory you name.
//!
//! A merge is a [`Recipe`](recipe::Recipe), a [`Job`](job::Job) that plans it from headers alone, and one call that runs
//! the passes and publishes the output directory by a single rename:
//!
//! ```no_run
//! use std::sync::atomic::AtomicBool;
//! use reflow::job::{Job, Ties};
//! use reflow::progress::Silent;
//! use reflow::recipe::{Model, Recipe, Settings};
//!
//! # fn main() -> Result<(), reflow::error::Error> {
//! let models = vec![
//!     Model::new("math-expert").with("lambda", 1.2),
//!     Model::new("code-expert").with("lambda", 1.4),
//! ];
//! let recipe = Recipe::new(Recipe::method("pcb", None)?, Some("base-model".into()), models);
//! let settings = Settings { memory: Some(512 << 20), ..Settings::default() };
//! let stop = AtomicBool::new(false);
//! let job = Job::plan(recipe, settings, Ties::Compare(&stop), &Silent)?;
//! println!("reads {} bytes", job.summary().read);
//! let report = job.merge("merged".as_ref(), &Silent, &stop)?;
//! println!("took {:.1} s", report.seconds);
//! # Ok(())
//! # }
//! ```
//!
//! Methods can be used on arrays in memory, too: see [`method::run_in_memory`].
//!
//! How the rooms of the crate fit together is told in `docs/architecture.md`.

#![warn(missing_docs)]

pub mod checkpoint;
pub mod cli;
pub mod diff;
pub mod engine;
pub mod error;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod human;
pub mod job;
pub mod kernel;
pub(crate) mod markup;
pub mod method;
pub(crate) mod patience;
pub mod plan;
pub mod progress;
pub(crate) mod quote;
pub mod recipe;
pub mod report;
pub mod search;
pub mod stats;
#[cfg(test)]
mod testing;
