//! Recipes as YAML, in the schema of mergekit 0.1.5.
//!
//! This reads what is written and refuses what is not of the schema, by line and column, with a
//! suggestion; it knows no method and no model. mergekit ignores keys it does not know, so that a
//! misspelt one changes the merge without a word.

mod document;
mod fields;
mod model;
mod node;
mod setting;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use document::{Body, Document, Dtype, Input, Module, Own, Slice, SliceSource};
pub use model::{ModelPath, ModelReference};
pub use node::Place;
pub use setting::{Assignment, Assignments};
pub use tokenizer::{OtherToken, TokenRow, TokenRule, Tokenizer, TokenizerSource};

use super::Setting;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// Where it was written.
    pub at: Place,
    /// What is wrong, and what to write instead.
    pub text: String,
    /// Whether the text names the place itself.
    placed: bool,
}

impl Complaint {
    /// A complaint about a place.
    pub fn new(at: Place, text: impl Into<String>) -> Self {
        Self { at, text: text.into(), placed: false }
    }
}

impl std::fmt::Display for Complaint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.placed { f.write_str(&self.text) } else { write!(f, "{}: {}", self.at, self.text) }
    }
}

/// All documents of a text. `exists` says whether a path exists: `+` and `@` in the name of a
/// directory mean nothing.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse(text: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<Document>, Complaint> {
    let documents = node::documents(text)?;
    if documents.is_empty() {
        return Err(Complaint::new(Place { line: 1, column: 1 }, "there is no recipe in it"));
    }
    documents.iter().map(|node| Document::new(node, exists)).collect()
}

/// A setting by itself, as after `--param NAME=`.
///
/// # Errors
/// What is wrong with it.
pub fn setting(name: &str, text: &str) -> Result<Setting, Complaint> {
    match &node::documents(text)?[..] {
        [node] => setting::setting(name, node),
        _ => Err(Complaint::new(Place { line: 1, column: 1 }, format!("`{name}` has no value"))),
    }
}
