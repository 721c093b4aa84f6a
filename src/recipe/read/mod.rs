//! From a document in mergekit's schema to a recipe.
//!
//! What reflow cannot do is refused by name, with the way out; nothing is ignored.

mod inputs;
pub(super) mod stages;
mod tokenizer;

use std::fmt::Display;
use std::path::{Path, PathBuf};

use super::mergekit::{self, Assignments, Body, Document, Dtype, ModelPath, ModelReference, Place};
use super::parameters::Reach;
use super::{
    Coefficients, OutputDtype, Parameters, Recipe, RecipeError, SHARD_SIZE, Scope, Setting, Words,
    hub, reference, suggestion,
};
use crate::method::Value;
use crate::method::registry::{BaseUse, Entry};

/// No recipe is larger.
const MAX_BYTES: u64 = 1 << 20;
/// Parameters that decide about the merge as a whole.
const WHOLE: [&str; 3] = ["dialect", "scope", "seed"];
/// A parameter of mergekit about its memory. It changes no value.
const INT8_MASK: &str = "int8_mask";

/// What lies around a recipe: files and methods.
pub(super) struct Around<'a> {
    /// Whether a path exists.
    pub(super) exists: &'a dyn Fn(&str) -> bool,
    /// The directory of a model, or why there is none.
    pub(super) locate: &'a dyn Fn(&str) -> Result<PathBuf, String>,
    /// The method of that name and dialect.
    pub(super) method: fn(&str, Option<&str>) -> Result<&'static Entry, RecipeError>,
}

/// Reads a file with one merge. Returns the recipe, and what looks suspicious in it.
pub(super) fn file(path: &Path) -> Result<(Recipe, Vec<String>), RecipeError> {
    let around = Around {
        exists: &|path| Path::new(path).exists(),
        locate: &hub::locate,
        method: Recipe::method,
    };
    let (mut recipe, warnings) = parse(path, &text(path)?, &around)?;
    with_coefficients(&mut recipe)?;
    Ok((recipe, warnings))
}

/// The text of a file.
fn text(path: &Path) -> Result<String, RecipeError> {
    let unreadable = |reason: String| RecipeError::Unreadable { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !meta.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if meta.len() > MAX_BYTES {
        return Err(unreadable(format!("{} bytes are too many for a recipe", meta.len())));
    }
    std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))
}

/// Reads the file of coefficients that a recipe names.
fn with_coefficients(recipe: &mut Recipe) -> Result<(), RecipeError> {
    if let Some(coefficients) = recipe.coefficients.take() {
        recipe.coefficients = Some(coefficients.read(recipe.models.len())?);
    }
    Ok(())
}

/// Reads a recipe as an output has it, with names for people instead of paths.
pub(super) fn published(path: &Path, text: &str) -> Result<Recipe, RecipeError> {
    let around = Around {
        exists: &|_| true,
        locate: &|name| Ok(PathBuf::from(name)),
        method: Recipe::method,
    };
    parse(path, text, &around).map(|(recipe, _)| recipe)
}

/// Reads a text; `path` is for messages. A file of coefficients that it names is not read.
pub(super) fn parse(
    path: &Path,
    text: &str,
    around: &Around<'_>,
) -> Result<(Recipe, Vec<String>), RecipeError> {
    let mut reader = Reader { path, around, several: false, warnings: Vec::new() };
    let documents = mergekit::parse(text, around.exists);
    let documents = documents.map_err(|complaint| reader.malformed(complaint.to_string()))?;
    let [document] = &documents[..] else {
        let what = format!("a file with {} merges in this place", documents.len());
        let instead = "read it as stages, or put each into a file of its own";
        return Err(reader.unsupported(what, instead));
    };
    let recipe = reader.recipe(document)?;
    Ok((recipe, reader.warnings))
}

struct Reader<'a> {
    path: &'a Path,
    around: &'a Around<'a>,
    /// Whether the file has other merges, too.
    several: bool,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn malformed(&self, reason: impl Into<String>) -> RecipeError {
        RecipeError::Malformed { path: self.path.to_owned(), reason: reason.into() }
    }

    fn at(&self, at: Place, reason: impl Display) -> RecipeError {
        self.malformed(format!("{at}: {reason}"))
    }

    fn unsupported(&self, what: impl Into<String>, instead: impl Into<String>) -> RecipeError {
        let path = self.path.to_owned();
        RecipeError::Unsupported { path, what: what.into(), instead: instead.into() }
    }

    fn recipe(&mut self, document: &Document) -> Result<Recipe, RecipeError> {
        let mut common = document.parameters.clone();
        let dialect = self.take(&mut common, "dialect")?;
        let (name, at) = &document.merge_method;
        let method = (self.around.method)(name, dialect.as_ref().map(|(word, _)| word.as_str()))
            .map_err(|error| self.at(*at, format!("merge_{error}")))?;
        let base = document.base_model.as_ref().map(|base| self.model(base)).transpose()?;
        if method.base == BaseUse::Required && base.is_none() && !every_slice_has_one(document) {
            return Err(self.malformed(format!("`base_model` is missing: {name} needs one")));
        }
        let mut recipe = Recipe::new(method, base, Vec::new());
        if let Some((scope, at)) = self.take(&mut common, "scope")? {
            recipe.scope = self.word::<Scope>("scope", &scope, at)?;
        }
        if let Some((seed, at)) = self.take(&mut common, "seed")? {
            let wrong = |_| self.at(at, format!("seed: {seed:?} is not a whole number"));
            recipe.seed = seed.parse().map_err(wrong)?;
        }
        recipe.parameters = self.parameters(&recipe, &common, Reach::Merge)?;
        self.inputs(&mut recipe, document)?;
        recipe.dtype = match document.out_dtype.or(document.dtype) {
            None => OutputDtype::Keep,
            Some(Dtype::Bf16) => OutputDtype::Bf16,
            Some(Dtype::F16) => OutputDtype::F16,
            Some(Dtype::F32) => OutputDtype::F32,
        };
        self.own_keys(&mut recipe, document)?;
        if let Some(tokenizer) = &document.tokenizer {
            recipe.tokenizer = Some(self.tokenizer(&recipe, tokenizer)?);
            if !tokenizer.named {
                let (path, at) = (self.path.display(), tokenizer.at);
                self.warnings.push(format!(
                    "{path}: {at}: `tokenizer` has no `source`: union, as in mergekit"
                ));
            }
        }
        recipe.chat_template = self.chat_template(document)?;
        if document.name.is_some() && !self.several {
            let text = "`name` has no effect in a file with one merge";
            self.warnings.push(format!("{}: {text}", self.path.display()));
        }
        Ok(recipe)
    }

    /// Takes a key out of the parameters that decides about the merge as a whole.
    fn take(
        &self,
        given: &mut Assignments,
        key: &str,
    ) -> Result<Option<(String, Place)>, RecipeError> {
        let Some(i) = given.0.iter().position(|other| other.name == key) else { return Ok(None) };
        let taken = given.0.remove(i);
        match taken.setting {
            Setting::One(Value::Word(word)) => Ok(Some((word, taken.at))),
            // Beyond that, neighbours are the same number.
            Setting::One(Value::Number(number)) if number.abs() < 2_f64.powi(53) => {
                Ok(Some((number.to_string(), taken.at)))
            }
            Setting::One(Value::Number(_)) => {
                Err(self.at(taken.at, format!("{key}: write so large a number in quotes")))
            }
            _ => Err(self.at(taken.at, format!("{key} is one word or number for the whole merge"))),
        }
    }

    /// Parameters that the method has, by name.
    fn parameters(
        &mut self,
        recipe: &Recipe,
        given: &Assignments,
        reach: Reach,
    ) -> Result<Parameters, RecipeError> {
        let mut parameters = Parameters::default();
        for assignment in &given.0 {
            let (name, setting) = (assignment.name.as_str(), &assignment.setting);
            if name == INT8_MASK && recipe.method.parameter(name).is_none() {
                let at = assignment.at;
                self.warnings.push(format!(
                    "{}: {at}: int8_mask changes no value and has no effect here",
                    self.path.display()
                ));
                continue;
            }
            if let Err(error) = recipe.check_setting(name, setting, reach) {
                let names = recipe.method.parameters.iter().map(|parameter| parameter.name);
                let near = suggestion(name, names).is_some();
                let meant = suggestion(name, WHOLE).filter(|_| reach == Reach::Merge && !near);
                return Err(match (error, meant) {
                    (RecipeError::Value { .. }, Some(meant)) => self.at(
                        assignment.at,
                        format!("unknown parameter `{name}`; did you mean `{meant}`?"),
                    ),
                    (RecipeError::Value { reason, .. }, None) => {
                        self.at(assignment.at, format!("`{name}`: {reason}"))
                    }
                    (other, _) => other,
                });
            }
            parameters.set(name, setting.clone());
        }
        Ok(parameters)
    }

    fn model(&self, reference: &ModelReference) -> Result<PathBuf, RecipeError> {
        let ModelReference { model, lora, at } = reference;
        let locate = |model: &ModelPath| {
            (self.around.locate)(&model.to_string()).map_err(|reason| self.at(*at, reason))
        };
        let path = locate(model)?;
        Ok(match lora {
            Some(lora) => reference::join(&path, &locate(lora)?),
            None => path,
        })
    }

    /// reflow's own keys.
    fn own_keys(&self, recipe: &mut Recipe, document: &Document) -> Result<(), RecipeError> {
        let own = &document.own;
        recipe.include.clone_from(&own.include);
        recipe.exclude.clone_from(&own.exclude);
        recipe.shard_size = match own.get("shard_size") {
            Some((size, at)) => size
                .parse::<bytesize::ByteSize>()
                .map_err(|error| self.at(at, format!("shard_size: {size:?}: {error}")))?
                .as_u64(),
            None => SHARD_SIZE,
        };
        if let Some((word, at)) = own.get("missing") {
            recipe.missing = self.word("missing", word, at)?;
        }
        if let Some((word, at)) = own.get("vocab") {
            recipe.vocab = self.word("vocab", word, at)?;
        }
        if let Some((word, at)) = own.get("nonfinite") {
            recipe.nonfinite = self.word("nonfinite", word, at)?;
        }
        for (key, flag) in [
            ("lenient", &mut recipe.lenient),
            ("count_aliases", &mut recipe.count_aliases),
            ("copy_code", &mut recipe.copy_code),
        ] {
            *flag = match own.get(key) {
                None | Some(("false", _)) => false,
                Some(("true", _)) => true,
                Some((other, at)) => {
                    return Err(self.at(at, format!("{key}: {other:?} is neither true nor false")));
                }
            };
        }
        for (key, paths, at) in &own.evidence {
            let paths = paths.iter().map(PathBuf::from).collect();
            recipe.take_evidence([(*key, paths)]).map_err(|error| self.at(*at, error))?;
        }
        let file = |key: &str| own.get(key).map(|(text, _)| PathBuf::from(text));
        recipe.coefficients = match (file("coefficients"), file("coefficients_order")) {
            (Some(path), order) => Some(Coefficients::at(path, order)),
            (None, None) => None,
            (None, Some(_)) => {
                let at = own.get("coefficients_order").map(|(_, at)| at).unwrap_or_default();
                return Err(self.at(
                    at,
                    "`coefficients_order` names the rows of `coefficients`, which is missing",
                ));
            }
        };
        Ok(())
    }

    fn word<T: Words>(&self, key: &str, text: &str, at: Place) -> Result<T, RecipeError> {
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        T::parse(text).ok_or_else(|| {
            self.at(at, format!("{key}: {text:?} is unknown; known: {}", words.join(", ")))
        })
    }
}

/// Whether the inputs are slices that all name a base of their own.
fn every_slice_has_one(document: &Document) -> bool {
    let all = |body: &Body| match body {
        Body::Slices(slices) => slices.iter().all(|slice| slice.base_model.is_some()),
        Body::Models(_) | Body::Modules(_) => false,
    };
    match &document.body {
        Body::Modules(modules) => modules.iter().all(|module| all(&module.body)),
        body => all(body),
    }
}
