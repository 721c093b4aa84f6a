//! What must hold for any bytes that a parser is given. Compiled for tests and for cargo-fuzz only.
//!
//! Each target takes bytes, lets a parser read them, and panics if a promise is broken: what is accepted keeps
//! the rules that the rest of the program relies on, and is read the same after it was written again. `fuzz/` runs them with a coverage-guided fuzzer; the
//! tests here run the corpus in `fuzz/corpus`, the files in `fixtures`, and mutations of both.

use std::fmt::Display;

pub use crate::checkpoint::fuzzing::{card, checkpoint, config, frame, header, index};
pub use crate::cli::fuzzing::flags;
pub use crate::job::fuzzing::{components, journal, lock, manifest, plan};
pub use crate::recipe::fuzzing::recipe;

/// A target: takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus and of their file in `fuzz/fuzz_targets`.
pub const TARGETS: [(&str, Target); 13] = [
    ("card", card),
    ("checkpoint", checkpoint),
    ("components", components),
    ("config", config),
    ("flags", flags),
    ("frame", frame),
    ("header", header),
    ("index", index),
    ("journal", journal),
    ("lock", lock),
    ("manifest", manifest),
    ("plan", plan),
    ("recipe", recipe),
];

/// Demands that a message can be made, and says something.
///
/// # Panics
/// If it does not.
pub fn told(message: &impl Display) {
    assert!(!message.to_string().trim().is_empty(), "nothing is said");
}

/// Demands that a name holds nothing that a terminal would obey.
///
/// # Panics
/// If it does.
pub fn harmless(name: &str) {
    assert!(!name.chars().any(char::is_control), "not fit for a terminal: {name:?}");
}

#[cfg(test)]
mod tests;
