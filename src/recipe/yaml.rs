//! Recipes as YAML, in mergekit's schema.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny};

use super::{
    Expert, Method, OutputDtype, PcbOptions, Recipe, RecipeError, SHARD_SIZE, Words, suggestion,
};
use crate::method::pcb::Variant;

/// No recipe is larger.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    merge_method: String,
    base_model: Option<Model>,
    models: Option<Vec<Entry>>,
    #[serde(default)]
    parameters: Parameters,
    dtype: Option<String>,
    out_dtype: Option<String>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    shard_size: Option<Scalar>,
    missing: Option<String>,
    vocab: Option<String>,
    nonfinite: Option<String>,
    #[serde(default)]
    lenient: bool,
    #[serde(default)]
    count_aliases: bool,
    #[serde(default)]
    copy_code: bool,
    // Known to mergekit, refused by name.
    slices: Option<IgnoredAny>,
    modules: Option<IgnoredAny>,
    tokenizer: Option<IgnoredAny>,
    tokenizer_source: Option<IgnoredAny>,
    chat_template: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    model: Model,
    #[serde(default)]
    parameters: ModelParameters,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ModelParameters {
    lambda: Option<Scalar>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Parameters {
    variant: Option<String>,
    keep: Option<Scalar>,
    scope: Option<String>,
    lambda: Option<Scalar>,
}

/// `path`, or `{model: path}`.
struct Model(String);

impl<'de> Deserialize<'de> for Model {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Path(String),
            Reference { model: ModelPath },
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum ModelPath {
            Path(String),
            Nested { path: String },
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Path(path) | Form::Reference { model: ModelPath::Path(path) }) => {
                Ok(Self(path))
            }
            Ok(Form::Reference { model: ModelPath::Nested { path } }) => Ok(Self(path)),
            Err(_) => Err(D::Error::custom("a model is a path, or {model: path}")),
        }
    }
}

/// A number or a word; YAML 1.1 habits make `1e-5` a word.
struct Scalar(String);

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Whole(i64),
            Number(f64),
            Word(String),
        }
        match Form::deserialize(deserializer) {
            Ok(Form::Whole(number)) => Ok(Self(number.to_string())),
            Ok(Form::Number(number)) => Ok(Self(number.to_string())),
            Ok(Form::Word(word)) => Ok(Self(word)),
            Err(_) => Err(D::Error::custom(
                "one value is expected; gradients and filters are not supported by reflow",
            )),
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Recipe, RecipeError> {
    let unreadable = |reason: String| RecipeError::Unreadable { path: path.to_owned(), reason };
    let meta = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !meta.is_file() {
        return Err(unreadable("it is not a regular file".to_owned()));
    }
    if meta.len() > MAX_BYTES {
        return Err(unreadable(format!("{} bytes are too many for a recipe", meta.len())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Recipe, RecipeError> {
    let document: Document = serde_saphyr::from_str(text).map_err(|error| {
        let message = error.without_snippet().to_string();
        let mut reason = message.strip_prefix("error: ").unwrap_or(&message).to_owned();
        if let Some(meant) = meant(&reason) {
            let _infallible = write!(reason, "; did you mean `{meant}`?");
        }
        RecipeError::Malformed { path: path.to_owned(), reason }
    })?;
    let reader = Reader { path };
    reader.refuse_unsupported(&document)?;
    reader.recipe(document)
}

/// The known key that an "unknown field" message is probably about.
fn meant(message: &str) -> Option<String> {
    let rest = message.split("unknown field `").nth(1)?;
    let (typed, rest) = rest.split_once('`')?;
    let known = rest.split(|c: char| !c.is_alphanumeric() && c != '_');
    let known = known.filter(|word| !["", "expected", "one", "of", "or"].contains(word));
    suggestion(typed, known).map(str::to_owned)
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn malformed(&self, reason: impl Into<String>) -> RecipeError {
        RecipeError::Malformed { path: self.path.to_owned(), reason: reason.into() }
    }

    fn unsupported(&self, what: impl Into<String>, instead: &'static str) -> RecipeError {
        RecipeError::Unsupported { path: self.path.to_owned(), what: what.into(), instead }
    }

    fn refuse_unsupported(&self, document: &Document) -> Result<(), RecipeError> {
        let method = document.merge_method.as_str();
        if method != "pcb" {
            return Err(self.unsupported(format!("merge_method: {method}"), "the method is pcb"));
        }
        let keys = [
            ("slices", document.slices.is_some(), "list whole models under `models`"),
            ("modules", document.modules.is_some(), "list whole models under `models`"),
            ("tokenizer", document.tokenizer.is_some(), "the base's tokenizer is used"),
            (
                "tokenizer_source",
                document.tokenizer_source.is_some(),
                "the base's tokenizer is used",
            ),
            ("chat_template", document.chat_template.is_some(), "the base's template is used"),
        ];
        match keys.into_iter().find(|(_, present, _)| *present) {
            Some((key, _, instead)) => Err(self.unsupported(format!("`{key}`"), instead)),
            None => Ok(()),
        }
    }

    fn recipe(&self, document: Document) -> Result<Recipe, RecipeError> {
        let base = document.base_model.ok_or_else(|| self.malformed("`base_model` is missing"))?;
        let base = self.model(base)?;
        let common = document.parameters;
        let lambda = self.number("lambda", common.lambda)?.unwrap_or(1.0);
        let mut experts = Vec::new();
        for entry in document.models.ok_or_else(|| self.malformed("`models` is missing"))? {
            let path = self.model(entry.model)?;
            let own = self.number("lambda", entry.parameters.lambda)?;
            // mergekit's recipes may list the base among the models.
            if path == base && own.is_none() {
                continue;
            }
            experts.push(Expert { path, lambda: own.unwrap_or(lambda) });
        }
        if experts.is_empty() {
            return Err(self.malformed("`models` lists no expert"));
        }
        let mut recipe = Recipe::new(base, experts);
        recipe.method = Method::Pcb(PcbOptions {
            variant: self.word("variant", common.variant)?.unwrap_or(Variant::A),
            keep: self.number("keep", common.keep)?.unwrap_or(0.1),
        });
        recipe.scope = self.word("scope", common.scope)?.unwrap_or_default();
        recipe.dtype = match document.out_dtype.or(document.dtype) {
            Some(name) => self.dtype(&name)?,
            None => OutputDtype::Keep,
        };
        recipe.include = document.include;
        recipe.exclude = document.exclude;
        recipe.shard_size = match document.shard_size {
            Some(Scalar(size)) => size
                .parse::<bytesize::ByteSize>()
                .map_err(|error| self.malformed(format!("shard_size: {size:?}: {error}")))?
                .as_u64(),
            None => SHARD_SIZE,
        };
        recipe.missing = self.word("missing", document.missing)?.unwrap_or_default();
        recipe.vocab = self.word("vocab", document.vocab)?.unwrap_or_default();
        recipe.nonfinite = self.word("nonfinite", document.nonfinite)?.unwrap_or_default();
        recipe.lenient = document.lenient;
        recipe.count_aliases = document.count_aliases;
        recipe.copy_code = document.copy_code;
        Ok(recipe)
    }

    fn model(&self, Model(path): Model) -> Result<PathBuf, RecipeError> {
        let local = PathBuf::from(&path);
        if local.exists() {
            return Ok(local);
        }
        if path.contains('+') {
            return Err(self.unsupported(
                format!("the LoRA reference {path:?}"),
                "merge the adapter into its model first",
            ));
        }
        if path.contains('@') {
            return Err(
                self.unsupported(format!("the revision in {path:?}"), "name a local directory")
            );
        }
        Ok(local)
    }

    fn number(&self, key: &str, value: Option<Scalar>) -> Result<Option<f64>, RecipeError> {
        let Some(Scalar(text)) = value else { return Ok(None) };
        let number: Option<f64> = text.trim().parse().ok().filter(|n: &f64| n.is_finite());
        number.map(Some).ok_or_else(|| self.malformed(format!("{key}: {text:?} is not a number")))
    }

    fn word<T: Words>(&self, key: &str, value: Option<String>) -> Result<Option<T>, RecipeError> {
        let Some(text) = value else { return Ok(None) };
        let words: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
        T::parse(&text).map(Some).ok_or_else(|| {
            self.malformed(format!("{key}: {text:?} is unknown; known: {}", words.join(", ")))
        })
    }

    fn dtype(&self, name: &str) -> Result<OutputDtype, RecipeError> {
        match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" => Ok(OutputDtype::Bf16),
            "float16" => Ok(OutputDtype::F16),
            "float32" => Ok(OutputDtype::F32),
            _ => Err(self.malformed(format!(
                "dtype: {name:?} is unknown; known: bfloat16, float16, float32"
            ))),
        }
    }
}

pub(super) fn write(recipe: &Recipe, name: impl Fn(&Path) -> String) -> String {
    // JSON strings are YAML strings.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let model = |path: &Path| quoted(&name(path));
    let Method::Pcb(options) = &recipe.method;
    let mut text = format!("merge_method: pcb\nbase_model: {}\nmodels:\n", model(&recipe.base));
    for expert in &recipe.experts {
        let _infallible = write!(
            text,
            "  - model: {}\n    parameters: {{lambda: {}}}\n",
            model(&expert.path),
            expert.lambda
        );
    }
    let _infallible = writeln!(
        text,
        "parameters: {{variant: {}, keep: {}, scope: {}}}",
        options.variant.word(),
        options.keep,
        recipe.scope.word()
    );
    let mut key = |key: &str, value: String| {
        let _infallible = writeln!(text, "{key}: {value}");
    };
    match recipe.dtype {
        OutputDtype::Keep => {}
        OutputDtype::Bf16 => key("dtype", "bfloat16".to_owned()),
        OutputDtype::F16 => key("dtype", "float16".to_owned()),
        OutputDtype::F32 => key("dtype", "float32".to_owned()),
    }
    for (name, patterns) in [("include", &recipe.include), ("exclude", &recipe.exclude)] {
        if !patterns.is_empty() {
            let list: Vec<String> = patterns.iter().map(|p| quoted(p)).collect();
            key(name, format!("[{}]", list.join(", ")));
        }
    }
    key("shard_size", recipe.shard_size.to_string());
    key("missing", recipe.missing.word().to_owned());
    key("vocab", recipe.vocab.word().to_owned());
    key("nonfinite", recipe.nonfinite.word().to_owned());
    for (name, on) in [
        ("lenient", recipe.lenient),
        ("count_aliases", recipe.count_aliases),
        ("copy_code", recipe.copy_code),
    ] {
        if on {
            key(name, "true".to_owned());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Missing, NonFinite, Scope, Vocab};
    use super::*;

    fn parsed(text: &str) -> Result<Recipe, String> {
        parse(Path::new("r.yml"), text).map_err(|error| error.to_string())
    }

    const SMALL: &str = "merge_method: pcb\nbase_model: b\nmodels:\n  - model: x\n";

    #[test]
    fn defaults_are_filled_in() {
        let recipe = parsed(SMALL).unwrap();
        let expert = Expert { path: "x".into(), lambda: 1.0 };
        assert_eq!(recipe, Recipe::new("b".into(), vec![expert]));
    }

    #[test]
    fn everything_survives_a_round_trip() {
        let mut recipe = Recipe::new(
            "dir/base model".into(),
            vec![
                Expert { path: "x: y".into(), lambda: 1.25 },
                Expert { path: "z".into(), lambda: -0.1 },
            ],
        );
        recipe.method = Method::Pcb(PcbOptions { variant: Variant::Paper, keep: 0.05 });
        recipe.scope = Scope::Layer;
        recipe.include = vec!["*.weight".into()];
        recipe.exclude = vec!["*{a,b}*".into(), "\"quoted\"".into()];
        recipe.dtype = OutputDtype::F16;
        recipe.shard_size = 123_456;
        recipe.missing = Missing::Base;
        recipe.vocab = Vocab::Common;
        recipe.nonfinite = NonFinite::Base;
        recipe.lenient = true;
        recipe.count_aliases = true;
        recipe.copy_code = true;
        let text = recipe.to_yaml(|path| path.display().to_string());
        assert_eq!(parsed(&text).unwrap(), recipe, "{text}");
    }

    #[test]
    fn the_habits_of_mergekit_recipes_are_understood() {
        let recipe = parsed(
            "merge_method: pcb\nbase_model: {model: b}\nmodels:\n  - model: b\n  - model: {model: {path: x}}\n    \
             parameters: {lambda: \"1.5\"}\n  - model: z\nparameters: {keep: 1e-1, lambda: 2}\nout_dtype: torch.float16\n\
             dtype: float32\nshard_size: 2GB\n",
        )
        .unwrap();
        let lambdas: Vec<f64> = recipe.experts.iter().map(|e| e.lambda).collect();
        assert_eq!(lambdas, [1.5, 2.0]);
        assert_eq!(recipe.dtype, OutputDtype::F16);
        assert_eq!(recipe.shard_size, 2_000_000_000);
    }

    #[test]
    fn unknown_keys_are_named_with_line_and_suggestion() {
        for (text, key, meant) in [
            (format!("{SMALL}paramters: {{keep: 0.1}}\n"), "paramters", "parameters"),
            (format!("{SMALL}parameters: {{kep: 0.1}}\n"), "kep", "keep"),
            (format!("{SMALL}    parameters: {{lamda: 0.1}}\n"), "lamda", "lambda"),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(&format!("`{key}`")), "{error}");
            assert!(error.contains(&format!("did you mean `{meant}`?")), "{error}");
            assert!(error.contains("line 5"), "{error}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (text, part) in [
            (SMALL.replace("pcb", "ties"), "merge_method: ties is not supported"),
            (format!("{SMALL}tokenizer_source: union\n"), "`tokenizer_source` is not supported"),
            (format!("{SMALL}slices: []\n"), "`slices` is not supported"),
            (SMALL.replace("model: x", "model: x+lora"), "LoRA"),
            (format!("{SMALL}parameters: {{keep: [0.1, 0.2]}}\n"), "gradients"),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn bad_values_name_the_key_and_what_is_known() {
        for (line, part) in [
            ("parameters: {variant: e}", "variant: \"e\" is unknown; known: a, b, c, d, paper"),
            ("parameters: {keep: lots}", "keep: \"lots\" is not a number"),
            ("dtype: int8", "bfloat16"),
            ("shard_size: 5 parsecs", "shard_size"),
            ("merge_method: pcb", "merge_method"),
        ] {
            let error = parsed(&format!("{SMALL}{line}\n")).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(parsed("merge_method: pcb\nmodels: []\n").unwrap_err().contains("base_model"));
        assert!(parsed("- just\n- a list\n").is_err() && parsed("").is_err());
    }
}
