//! What the user asked for, validated, with defaults filled in.
//!
//! A [`Recipe`] holds everything that decides the bytes of the output, and nothing else; how it is
//! run is in [`Settings`]. Recipes come from flags or from YAML in mergekit's schema.

pub mod mergekit;
mod method;
mod settings;
mod suggest;
mod yaml;

use std::path::{Path, PathBuf};

pub use method::{Method, PcbOptions};
pub use settings::{Failpoint, IoRequest, Settings, Stop};
pub use suggest::suggestion;

/// An expert and its scale.
#[derive(Clone, Debug, PartialEq)]
pub struct Expert {
    /// Its checkpoint.
    pub path: PathBuf,
    /// Factor of its part in the merged task vector.
    pub lambda: f64,
}

/// Over what statistics are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scope {
    /// The whole model, as in the papers.
    #[default]
    Model,
    /// Each layer; tensors outside layers by themselves.
    Layer,
    /// Each tensor.
    Tensor,
}

/// The element type of merged tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutputDtype {
    /// The base's.
    #[default]
    Keep,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
    /// float32.
    F32,
}

/// What to do about tensors that an expert lacks, or has and the base lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// An error.
    #[default]
    Error,
    /// Missing ones count as unchanged; extra ones are left out.
    Base,
}

/// What to do about embeddings of different numbers of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Vocab {
    /// An error.
    #[default]
    Error,
    /// The rows all have are merged; the rest is the base's.
    Common,
}

/// What to do about NaN and infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// An error.
    #[default]
    Error,
    /// The base's value stays.
    Base,
}

/// A table of names for an enum: the words of flags and recipes.
pub trait Words: Sized + Copy + PartialEq + 'static {
    /// All values with their names; the first name of a value is the canonical one.
    const WORDS: &'static [(&'static str, Self)];

    /// The canonical name.
    fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }

    /// The value of a name.
    fn parse(text: &str) -> Option<Self> {
        Self::WORDS.iter().find(|(word, _)| *word == text).map(|&(_, value)| value)
    }
}

macro_rules! words {
    ($($type:ty { $($word:literal => $value:expr),* $(,)? })*) => {
        $(impl Words for $type {
            const WORDS: &'static [(&'static str, Self)] = &[$(($word, $value)),*];
        })*
    };
}

words! {
    Scope { "model" => Scope::Model, "layer" => Scope::Layer, "tensor" => Scope::Tensor }
    OutputDtype {
        "keep" => OutputDtype::Keep, "bf16" => OutputDtype::Bf16, "f16" => OutputDtype::F16,
        "f32" => OutputDtype::F32,
    }
    Missing { "error" => Missing::Error, "base" => Missing::Base }
    Vocab { "error" => Vocab::Error, "common" => Vocab::Common }
    NonFinite { "error" => NonFinite::Error, "base" => NonFinite::Base }
}

/// Everything that decides the bytes of an output.
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe {
    /// The base checkpoint.
    pub base: PathBuf,
    /// The experts; sums run in this order.
    pub experts: Vec<Expert>,
    /// The method and its parameters.
    pub method: Method,
    /// Over what statistics are taken.
    pub scope: Scope,
    /// Patterns of tensors to merge; none means all.
    pub include: Vec<String>,
    /// Patterns of tensors to take from the base.
    pub exclude: Vec<String>,
    /// Element type of the output.
    pub dtype: OutputDtype,
    /// Bytes of data per output shard, at most.
    pub shard_size: u64,
    /// Policy for tensors that do not match by name.
    pub missing: Missing,
    /// Policy for vocabularies of different size.
    pub vocab: Vocab,
    /// Policy for values that are not finite.
    pub nonfinite: NonFinite,
    /// Whether harmless deviations of input files are warnings.
    pub lenient: bool,
    /// Whether tied tensors count as often as they are stored.
    pub count_aliases: bool,
    /// Whether the base's Python files are copied.
    pub copy_code: bool,
}

/// Bytes per shard unless asked otherwise: transformers' habit.
pub const SHARD_SIZE: u64 = 5_000_000_000;

/// What is wrong with a recipe.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RecipeError {
    /// A value that makes no sense.
    #[error("{key}: {reason}")]
    Value {
        /// The key or flag.
        key: String,
        /// What is wrong, and what to write instead.
        reason: String,
    },
    /// The file cannot be read.
    #[error("cannot read the recipe {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file is not a recipe.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        reason: String,
    },
    /// The file uses something that mergekit has and reflow has not.
    #[error("{}: {what} is not supported by reflow; {instead}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The key or value.
        what: String,
        /// What to do.
        instead: &'static str,
    },
}

impl Recipe {
    /// A recipe with all defaults.
    pub fn new(base: PathBuf, experts: Vec<Expert>) -> Self {
        Self {
            base,
            experts,
            method: Method::default(),
            scope: Scope::default(),
            include: Vec::new(),
            exclude: Vec::new(),
            dtype: OutputDtype::default(),
            shard_size: SHARD_SIZE,
            missing: Missing::default(),
            vocab: Vocab::default(),
            nonfinite: NonFinite::default(),
            lenient: false,
            count_aliases: false,
            copy_code: false,
        }
    }

    /// Reads a recipe file in mergekit's schema.
    ///
    /// # Errors
    /// [`RecipeError`] naming file, key, line and the fix.
    pub fn from_file(path: &Path) -> Result<Self, RecipeError> {
        yaml::read(path)
    }

    /// The recipe as YAML that [`Recipe::from_file`] reads, with all values that matter. `name`
    /// says how a checkpoint's path is written.
    pub fn to_yaml(&self, name: impl Fn(&Path) -> String) -> String {
        yaml::write(self, name)
    }

    /// Checks values; returns what looks suspicious.
    ///
    /// # Errors
    /// [`RecipeError::Value`] for values that cannot be used.
    pub fn validate(&self) -> Result<Vec<String>, RecipeError> {
        let value = |key: &str, reason: &str| {
            Err(RecipeError::Value { key: key.to_owned(), reason: reason.to_owned() })
        };
        if self.experts.is_empty() {
            return value("--expert", "at least one is needed");
        }
        if self.shard_size == 0 {
            return value("--shard-size", "must be above 0");
        }
        let mut warnings = self.method.validate()?;
        for (i, expert) in self.experts.iter().enumerate() {
            let shown = expert.path.display();
            if !expert.lambda.is_finite() {
                return value("lambda", &format!("{} is not a finite number", expert.lambda));
            }
            if expert.path == self.base {
                warnings.push(format!("{shown} is the base itself: its task vector is zero"));
            }
            if self.experts[..i].iter().any(|other| other.path == expert.path) {
                warnings.push(format!("{shown} is given more than once"));
            }
            let range = self.method.usual_lambda();
            if !range.contains(&expert.lambda) {
                warnings.push(format!(
                    "lambda {} of {shown} is unusual for {}: the merged task vector has the scale \
                     of one expert, and {} to {} is common",
                    expert.lambda,
                    self.method.name(),
                    range.start(),
                    range.end()
                ));
            }
        }
        Ok(warnings)
    }
}
