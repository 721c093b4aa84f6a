//! Recipes as YAML, in mergekit's schema.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::{
    Model, OutputDtype, Parameters, Recipe, RecipeError, SHARD_SIZE, Setting, Words, suggestion,
};
use crate::method::registry::BaseUse;
use crate::method::{Scope, Value};

/// No recipe is larger.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    merge_method: String,
    base_model: Option<Reference>,
    models: Option<Vec<Entry>>,
    #[serde(default)]
    parameters: Given,
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
    model: Reference,
    #[serde(default)]
    parameters: Given,
}

/// Parameters as they stand in the file, each with its line.
#[derive(Default)]
struct Given(Vec<(String, u64, Setting)>);

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Map;
        impl<'de> Visitor<'de> for Map {
            type Value = Given;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("parameters by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Given, A::Error> {
                let mut given = Vec::new();
                while let Some((name, setting)) = map.next_entry::<String, Spanned<Setting>>()? {
                    given.push((name, setting.referenced.line(), setting.value));
                }
                Ok(Given(given))
            }
        }
        deserializer.deserialize_map(Map)
    }
}

/// `path`, or `{model: path}`.
struct Reference(String);

impl<'de> Deserialize<'de> for Reference {
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
            Err(_) => Err(D::Error::custom("a number or a word is expected")),
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
        let mut common = document.parameters;
        let dialect = self.take(&mut common, "dialect")?;
        let method = Recipe::method(&document.merge_method, dialect.as_deref())
            .map_err(|error| self.malformed(format!("merge_{error}")))?;
        let base = document.base_model.map(|base| self.model(base)).transpose()?;
        let listed = document.models.ok_or_else(|| self.malformed("`models` is missing"))?;
        let mut recipe = Recipe::new(method, base, Vec::new());
        if method.base == BaseUse::Required && recipe.base.is_none() {
            return Err(self.malformed("`base_model` is missing"));
        }
        for entry in listed {
            let path = self.model(entry.model)?;
            // mergekit's recipes may list the base among the models.
            if recipe.has_base() && recipe.base.as_ref() == Some(&path) {
                continue;
            }
            let parameters = self.parameters(&recipe, entry.parameters)?;
            recipe.models.push(Model { path, parameters });
        }
        if recipe.models.is_empty() {
            return Err(self.malformed("`models` lists no expert"));
        }
        if let Some(scope) = self.take(&mut common, "scope")? {
            recipe.scope = self.word::<Scope>("scope", Some(scope))?.unwrap_or_default();
        }
        if let Some(seed) = self.take(&mut common, "seed")? {
            recipe.seed = seed
                .parse()
                .map_err(|_| self.malformed(format!("seed: {seed:?} is not a whole number")))?;
        }
        recipe.parameters = self.parameters(&recipe, common)?;
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

    /// Takes a key out of the parameters that decides about the merge as a whole.
    fn take(&self, given: &mut Given, key: &str) -> Result<Option<String>, RecipeError> {
        let Some(at) = given.0.iter().position(|(name, ..)| name == key) else { return Ok(None) };
        let (_, line, setting) = given.0.remove(at);
        match setting {
            Setting::One(Value::Word(word)) => Ok(Some(word)),
            Setting::One(Value::Number(number)) => Ok(Some(number.to_string())),
            _ => Err(self.malformed(format!(
                "line {line}: {key} is one word or number for the whole merge"
            ))),
        }
    }

    /// Parameters that the method has, by name.
    fn parameters(&self, recipe: &Recipe, given: Given) -> Result<Parameters, RecipeError> {
        let mut parameters = Parameters::default();
        for (name, line, setting) in given.0 {
            if recipe.method.parameter(&name).is_none() {
                let RecipeError::Value { reason, .. } = recipe.unknown(&name) else { continue };
                return Err(
                    self.malformed(format!("line {line}: unknown field `{name}`: {reason}"))
                );
            }
            if parameters.get(&name).is_some() {
                return Err(self.malformed(format!("line {line}: `{name}` is given twice")));
            }
            parameters.set(&name, setting);
        }
        Ok(parameters)
    }

    fn model(&self, Reference(path): Reference) -> Result<PathBuf, RecipeError> {
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
    let mut text = format!("merge_method: {}\n", recipe.method.name);
    if let Some(base) = &recipe.base {
        let _infallible = writeln!(text, "base_model: {}", model(base));
    }
    text.push_str("models:\n");
    for entry in &recipe.models {
        let _infallible = writeln!(text, "  - model: {}", model(&entry.path));
        if !entry.parameters.is_empty() {
            let _infallible = writeln!(text, "    parameters: {{{}}}", entry.parameters.to_yaml());
        }
    }
    // With the defaults: they may change one day, and this merge will not.
    let mut common = recipe.parameters.complete(recipe.method);
    let mut set =
        |name: &str, word: &str| common.set(name, Setting::One(Value::Word(word.to_owned())));
    if let Some(dialect) = recipe.method.dialect {
        set("dialect", dialect);
    }
    set("scope", recipe.scope.word());
    if recipe.method.random {
        common.set("seed", Setting::One(Value::Word(recipe.seed.to_string())));
    }
    let _infallible = writeln!(text, "parameters: {{{}}}", common.to_yaml());
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

    fn pcb(base: &str, models: Vec<Model>) -> Recipe {
        Recipe::new(Recipe::method("pcb", None).unwrap(), Some(base.into()), models)
    }

    #[test]
    fn defaults_are_filled_in() {
        assert_eq!(parsed(SMALL).unwrap(), pcb("b", vec![Model::new("x")]));
    }

    #[test]
    fn everything_survives_a_round_trip() {
        let mut models = vec![Model::new("x: y").with("lambda", 1.25), Model::new("z")];
        let filtered = "[{filter: mlp, value: [-0.1, 2]}, {value: 1}]";
        models[1].parameters.set("lambda", serde_saphyr::from_str(filtered).unwrap());
        let mut recipe = pcb("dir/base model", models);
        recipe.parameters.set("variant", Setting::One(Value::Word("paper".to_owned())));
        recipe.parameters.set("keep", Setting::number(0.05));
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
        let again = parsed(&text).unwrap();
        assert_eq!(again.to_yaml(|path| path.display().to_string()), text);
        recipe.parameters = recipe.parameters.complete(recipe.method);
        assert_eq!(again, recipe, "{text}");
    }

    #[test]
    fn the_habits_of_mergekit_recipes_are_understood() {
        let recipe = parsed(
            "merge_method: pcb\nbase_model: {model: b}\nmodels:\n  - model: b\n  - model: {model: {path: x}}\n    \
             parameters: {lambda: \"1.5\"}\n  - model: z\nparameters: {keep: 1e-1, lambda: 2}\nout_dtype: torch.float16\n\
             dtype: float32\nshard_size: 2GB\n",
        )
        .unwrap();
        let values = recipe.values(super::super::Place { tensor: "w", t: 0.0 }).unwrap();
        assert_eq!(values.each("lambda"), [1.5, 2.0]);
        assert_eq!(recipe.merge_values().unwrap().number("keep"), 0.1);
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
            (SMALL.replace("pcb", "pbc"), "merge_method: \"pbc\" is unknown; known: pcb"),
            (format!("{SMALL}tokenizer_source: union\n"), "`tokenizer_source` is not supported"),
            (format!("{SMALL}slices: []\n"), "`slices` is not supported"),
            (SMALL.replace("model: x", "model: x+lora"), "LoRA"),
        ] {
            let error = parsed(&text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn bad_values_name_the_key_and_what_is_known() {
        for (line, part) in [
            ("dtype: int8", "bfloat16"),
            ("shard_size: 5 parsecs", "shard_size"),
            ("merge_method: pcb", "merge_method"),
        ] {
            let error = parsed(&format!("{SMALL}{line}\n")).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
        for (line, part) in [
            ("parameters: {variant: e}", "variant: \"e\" is unknown; known: a, b, c, d, paper"),
            ("parameters: {keep: lots}", "keep: lots is not a fraction"),
            ("parameters: {keep: 1.5}", "keep: 1.5 is not a fraction between 0 and 1"),
            ("parameters: {keep: [0.1, 0.2]}", "no gradient"),
            ("    parameters: {keep: 0.1}", "it is one for all models"),
        ] {
            let recipe = parsed(&format!("{SMALL}{line}\n")).unwrap();
            let error = recipe.validate().unwrap_err().to_string();
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(parsed("merge_method: pcb\nmodels: []\n").unwrap_err().contains("base_model"));
        assert!(parsed("- just\n- a list\n").is_err() && parsed("").is_err());
    }
}
