//! Recipes as YAML, in the schema that `read` understands.

use std::fmt::Write as _;
use std::path::Path;

use super::{OutputDtype, Recipe, Setting, Words};
use crate::method::Value;
use crate::quote::quoted;

pub(super) fn write(recipe: &Recipe, name: impl Fn(&Path) -> String) -> String {
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
    if let Some(given) = &recipe.coefficients {
        let path = quoted(&name(&given.path));
        // What they say is part of the recipe, wherever they lie.
        key("coefficients", format!("{path} # BLAKE3 {}", given.hash()));
        let order = given.order.as_deref().map(&name).filter(|order| !order.is_empty());
        if let Some(order) = order {
            key("coefficients_order", quoted(&order));
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
