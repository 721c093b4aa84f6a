//! What the user asked for, validated, with defaults filled in.
//!
//! A [`Recipe`] holds everything that decides the bytes of the output, and nothing else; how it is
//! run is in [`Settings`]. Recipes come from flags or from YAML in mergekit's schema.

mod coefficients;
mod evidence;
mod filters;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod hub;
pub mod mergekit;
pub(crate) mod modules;
mod parameters;
mod read;
pub mod reference;
mod setting;
mod settings;
pub(crate) mod slices;
mod suggest;
mod tokenizer;
mod write;

#[cfg(test)]
pub(crate) mod golden;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::method::Value;
use crate::method::registry::{self, BaseUse, Entry};

pub use crate::method::Scope;
pub use coefficients::{Coefficients, Matched};
pub use filters::Named;
pub use hub::locate;
pub use parameters::{Parameters, Place};
pub use read::stages::Stage;
pub use setting::{Filtered, Setting};
pub use settings::{Failpoint, IoRequest, Settings, Stop, WriteRequest};
pub use slices::{Module, Row, Slice, SliceSource};
pub use suggest::suggestion;
pub use tokenizer::{ChatTemplate, OtherToken, TokenRow, TokenRule, Tokenizer, TokenizerSource};

/// A model that is merged, with its own parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Its checkpoint, perhaps with an adapter: see [`mod@reference`].
    pub path: PathBuf,
    /// What it sets itself.
    pub parameters: Parameters,
}

impl Model {
    /// A model without parameters of its own.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), parameters: Parameters::default() }
    }

    /// The same with one parameter set to a number.
    #[must_use]
    pub fn with(mut self, parameter: &str, number: f64) -> Self {
        self.parameters.set(parameter, Setting::number(number));
        self
    }
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
    /// The base checkpoint. Where the method sees a base as one more model, it is one of `models`.
    pub base: Option<PathBuf>,
    /// The models besides the base; sums run in this order. Where there are slices: all of theirs, each
    /// once, without parameters.
    pub models: Vec<Model>,
    /// Runs of output layers, if the output is not made of whole models.
    pub slices: Vec<Slice>,
    /// The modules that the inputs are given for, if they are.
    pub modules: Vec<Module>,
    /// The method.
    pub method: &'static Entry,
    /// Parameters for all models.
    pub parameters: Parameters,
    /// Numbers in place of the method's [`Entry::per_expert`] parameter, tensor by tensor.
    pub coefficients: Option<Coefficients>,
    /// What was measured of each model, in their order: see [`Entry::evidence`].
    pub evidence: Vec<PathBuf>,
    /// Over what statistics are taken.
    pub scope: Scope,
    /// The seed of random methods.
    pub seed: u64,
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
    /// The output's tokenizer. Without it the donor's, and rows are merged as they are numbered.
    pub tokenizer: Option<Tokenizer>,
    /// The chat template of the output, if it is not that of its tokenizer.
    pub chat_template: Option<ChatTemplate>,
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
        instead: String,
    },
}

impl Recipe {
    /// A recipe with all defaults.
    pub fn new(method: &'static Entry, base: Option<PathBuf>, models: Vec<Model>) -> Self {
        Self {
            base,
            models,
            slices: Vec::new(),
            modules: Vec::new(),
            method,
            parameters: Parameters::default(),
            coefficients: None,
            evidence: Vec::new(),
            scope: method.scopes.first().copied().unwrap_or_default(),
            seed: 0,
            include: Vec::new(),
            exclude: Vec::new(),
            dtype: OutputDtype::default(),
            shard_size: SHARD_SIZE,
            missing: Missing::default(),
            vocab: Vocab::default(),
            tokenizer: None,
            chat_template: None,
            nonfinite: NonFinite::default(),
            lenient: false,
            count_aliases: false,
            copy_code: false,
        }
    }

    /// The method of that name, in the dialect named or its default one.
    ///
    /// # Errors
    /// [`RecipeError::Value`] with what is known and what was probably meant.
    pub fn method(name: &str, dialect: Option<&str>) -> Result<&'static Entry, RecipeError> {
        if let Some(entry) = registry::find(name, dialect) {
            return Ok(entry);
        }
        let (key, typed, known): (_, _, Vec<&str>) = match (registry::find(name, None), dialect) {
            (Some(_), Some(dialect)) => {
                let dialects = registry::ENTRIES.iter().filter(|entry| entry.name == name);
                ("dialect", dialect, dialects.filter_map(|entry| entry.dialect).collect())
            }
            _ => ("method", name, registry::names().collect()),
        };
        let meant = suggestion(typed, known.iter().copied());
        let hint = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        let known = match known.len() {
            0 => format!("{name} has only one"),
            _ => format!("known: {}", known.join(", ")),
        };
        let reason = format!("{typed:?} is unknown; {known}{hint}");
        Err(RecipeError::Value { key: key.to_owned(), reason })
    }

    /// Whether experts are seen relative to a base.
    pub fn has_base(&self) -> bool {
        self.base.is_some()
            && self.method.base != BaseUse::Model
            && (self.slices.is_empty() || self.a_slice_has_base())
    }

    /// All checkpoints: the base first, if experts are seen relative to it, then the models.
    pub fn checkpoints(&self) -> impl Iterator<Item = &Path> {
        let base = self.base.as_deref().filter(|_| self.has_base());
        base.into_iter().chain(self.models.iter().map(|model| model.path.as_path()))
    }

    /// The checkpoint that lends config, tokenizer and tensors that are not merged: the base, else the
    /// first model. An index into [`Recipe::checkpoints`].
    pub fn donor(&self) -> usize {
        let base = self.base.as_deref();
        self.checkpoints().position(|path| Some(path) == base).unwrap_or(0)
    }

    /// The method with the parameters that all models share, e.g. `pcb, variant a, keep 0.1`.
    pub fn describe(&self) -> String {
        let dialect = self.method.dialect.map_or_else(String::new, |d| format!(" ({d})"));
        let mut text = format!("{}{dialect}", self.method.name);
        for parameter in self.method.parameters {
            let preset = match parameter.preset {
                registry::Preset::Required => None,
                registry::Preset::Number(number) => Some(number.to_string()),
                registry::Preset::Flag(flag) => Some(flag.to_string()),
                registry::Preset::Word(word) => Some(word.to_owned()),
            };
            let given = self.parameters.get(parameter.name).map(ToString::to_string);
            let shown = given.or_else(|| preset.filter(|_| parameter.per != registry::Per::Model));
            if let Some(value) = shown {
                let _infallible = write!(text, ", {} {value}", parameter.name);
            }
        }
        if let (Some(_), Some(name)) = (&self.coefficients, self.method.per_expert) {
            let _infallible = write!(text, ", {name} from a file of coefficients");
        }
        if self.method.random {
            let _infallible = write!(text, ", seed {}", self.seed);
        }
        text
    }

    /// The fraction of elements that is asked to be kept of every expert, if it is one number.
    pub fn kept(&self) -> Option<f64> {
        let parameter = ["keep", "density"].iter().find_map(|name| self.method.parameter(name))?;
        let own = |parameters: &Parameters| parameters.get(parameter.name).is_some();
        let of_slices = self.slices.iter().flat_map(|slice| {
            slice.sources.iter().map(|source| &source.parameters).chain([&slice.parameters])
        });
        let of_models = self.models.iter().map(|model| &model.parameters);
        let of_module = self.modules.iter().map(|module| &module.parameters);
        if of_slices.chain(of_models).chain(of_module).any(own) {
            return None;
        }
        match (self.parameters.get(parameter.name), parameter.preset) {
            (Some(Setting::One(Value::Number(number))), _) => Some(*number),
            (None, registry::Preset::Number(number)) => Some(number),
            _ => None,
        }
    }

    /// Reads a recipe file in mergekit's schema; returns it with what looks suspicious. Names of models
    /// on the Hugging Face Hub stand for their directories in its cache on this machine.
    ///
    /// # Errors
    /// [`RecipeError`] naming file, key, line and the fix.
    pub fn from_file(path: &Path) -> Result<(Self, Vec<String>), RecipeError> {
        read::file(path)
    }

    /// The recipe of an output, in which names for people stand for paths. `path` is for messages.
    ///
    /// # Errors
    /// [`RecipeError`] if it is none.
    pub fn published(path: &Path, text: &str) -> Result<Self, RecipeError> {
        read::published(path, text)
    }

    /// Reads a recipe file with any number of merges, in the order in which they are to be run; the last makes the
    /// output. Outputs of the others lie in `dir`, each in a directory of its name, or will: read the file again
    /// before each stage.
    ///
    /// # Errors
    /// [`RecipeError`] naming file, key, line and the fix.
    pub fn stages(path: &Path, dir: &Path) -> Result<Vec<Stage>, RecipeError> {
        read::stages::file(path, dir)
    }

    /// The recipe as YAML that [`Recipe::from_file`] reads, with all values that matter. `name`
    /// says how a checkpoint's path is written.
    pub fn to_yaml(&self, name: impl Fn(&Path) -> String) -> String {
        write::write(self, name)
    }

    /// Checks values; returns what looks suspicious.
    ///
    /// # Errors
    /// [`RecipeError::Value`] for values that cannot be used.
    pub fn validate(&self) -> Result<Vec<String>, RecipeError> {
        let value =
            |key: &str, reason: String| Err(RecipeError::Value { key: key.to_owned(), reason });
        let name = self.method.name;
        if self.shard_size == 0 {
            return value("--shard-size", "must be above 0".to_owned());
        }
        if !self.method.scopes.contains(&self.scope) {
            let known: Vec<&str> = self.method.scopes.iter().map(|scope| scope.word()).collect();
            let reason = format!("{name} works in scope {} only", known.join(" or "));
            return value("scope", reason);
        }
        self.check_models()?;
        self.check_coefficients()?;
        self.check_evidence()?;
        let mut warnings = self.check_parameters()?;
        if self.seed != 0 && !self.method.random {
            warnings.push(format!("{name} draws no random numbers; the seed has no effect"));
        }
        let whole = if self.slices.is_empty() { &*self.models } else { &[] };
        for (i, model) in whole.iter().enumerate() {
            let shown = model.path.display();
            if self.has_base() && Some(&model.path) == self.base.as_ref() {
                warnings.push(format!("{shown} is the base itself: its task vector is zero"));
            }
            if whole[..i].iter().any(|other| other.path == model.path) {
                warnings.push(format!("{shown} is given more than once"));
            }
        }
        Ok(warnings)
    }

    fn check_models(&self) -> Result<(), RecipeError> {
        let value =
            |key: &str, reason: String| Err(RecipeError::Value { key: key.to_owned(), reason });
        let name = self.method.name;
        match (self.method.base, &self.base) {
            (BaseUse::Required, None) => {
                return value(
                    "base",
                    format!(
                        "{name} needs one: the checkpoint that all models were fine-tuned from"
                    ),
                );
            }
            (BaseUse::Model, Some(base)) if !self.models.iter().any(|m| m.path == *base) => {
                return value(
                    "base",
                    format!(
                        "{name} sees a base as one more model; list {} among the models, or leave it out",
                        base.display()
                    ),
                );
            }
            _ => {}
        }
        if !self.slices.is_empty() {
            self.check_slices()?;
        } else if let Some(wanted) = self.method.refusal(self.models.len()) {
            let besides = if self.has_base() { " besides the base" } else { "" };
            let count = self.models.len();
            return value("--expert", format!("{wanted}{besides}; {count} given"));
        }
        if !self.has_base() {
            let keys = [
                ("missing", self.missing == Missing::Base),
                ("vocab", self.vocab == Vocab::Common),
                ("nonfinite", self.nonfinite == NonFinite::Base),
            ];
            if let Some((key, _)) = keys.into_iter().find(|(_, asked)| *asked) {
                return value(
                    key,
                    format!("this asks for the base's values, and {name} has no base here"),
                );
            }
        }
        Ok(())
    }
}
