//! Recipes as YAML, in the schema that `read` understands.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use super::{
    ChatTemplate, OtherToken, OutputDtype, Parameters, Recipe, Row, Setting, SliceSource, TokenRow,
    Tokenizer, TokenizerSource, Words,
};
use crate::method::Value;
use crate::quote::quoted;

pub(super) fn write(recipe: &Recipe, name: impl Fn(&Path) -> String) -> String {
    let model = |path: &Path| quoted(&name(path));
    let mut text = format!("merge_method: {}\n", recipe.method.name);
    if let Some(base) = &recipe.base {
        let _infallible = writeln!(text, "base_model: {}", model(base));
    }
    if recipe.modules.is_empty() {
        text.push_str(&inputs(recipe, 0..recipe.slices.len(), model));
    } else {
        text.push_str("modules:\n");
    }
    for module in &recipe.modules {
        let _infallible = writeln!(text, "  {}:", quoted(&module.name));
        if !module.parameters.is_empty() {
            let own = module.parameters.to_yaml();
            let _infallible = writeln!(text, "    parameters: {{{own}}}");
        }
        let inputs = inputs(recipe, module.slices.clone(), model);
        inputs.lines().for_each(|line| text.extend(["    ", line, "\n"]));
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
    if let Some(evidence) = recipe.method.evidence {
        let list: Vec<String> = recipe.evidence.iter().map(|path| model(path)).collect();
        key(evidence.key(), format!("[{}]", list.join(", ")));
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
    if let Some(tokenizer) = &recipe.tokenizer {
        key("tokenizer", self::tokenizer(tokenizer, model));
    }
    match &recipe.chat_template {
        None => {}
        Some(ChatTemplate::Auto) => key("chat_template", "auto".to_owned()),
        Some(ChatTemplate::Named(name)) => key("chat_template", (*name).to_owned()),
        Some(ChatTemplate::Text(text)) => key("chat_template", quoted(text)),
    }
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

/// What is said about tokens.
fn tokenizer(tokenizer: &Tokenizer, model: impl Fn(&Path) -> String) -> String {
    // By itself, a directory `base` would mean the base.
    let model = |path: &Path| format!("{{model: {}}}", model(path));
    let mut text = match &tokenizer.source {
        TokenizerSource::Base => "{source: base".to_owned(),
        TokenizerSource::Union => "{source: union".to_owned(),
        TokenizerSource::Model(path) => format!("{{source: {}", model(path)),
    };
    if let Some(multiple) = tokenizer.multiple {
        let _infallible = write!(text, ", pad_to_multiple_of: {multiple}");
    }
    let rule = |rule: &super::TokenRule| {
        let source = rule.row.as_ref().map(|row| match row {
            TokenRow::Zero => "source: {kind: zero}".to_owned(),
            TokenRow::Own(path) => format!("source: {}", model(path)),
            TokenRow::Other(path, other) => {
                let other = match other {
                    OtherToken::Text(token) => format!("token: {}", quoted(token)),
                    OtherToken::Id(id) => format!("token_id: {id}"),
                };
                format!("source: {{kind: model_token, model: {}, {other}}}", model(path))
            }
        });
        let force = rule.force.then(|| "force: true".to_owned());
        let said: Vec<String> = source.into_iter().chain(force).collect();
        format!("{}: {{{}}}", quoted(&rule.token), said.join(", "))
    };
    let rules: Vec<String> = tokenizer.rules.iter().map(rule).collect();
    if !rules.is_empty() {
        let _infallible = write!(text, ", tokens: {{{}}}", rules.join(", "));
    }
    text + "}"
}

/// `models`, or some of the `slices`.
fn inputs(recipe: &Recipe, slices: Range<usize>, model: impl Fn(&Path) -> String) -> String {
    let mut text = String::new();
    let mut line = |line: String| text.extend([&*line, "\n"]);
    let own = |parameters: &Parameters| format!("parameters: {{{}}}", parameters.to_yaml());
    let slices = recipe.slices.get(slices).unwrap_or_default();
    let whole: Option<Vec<Row<'_>>> = match slices {
        [] => Some(recipe.rows(0)),
        [slice] if slice.whole => Some(slice.sources.iter().map(SliceSource::row).collect()),
        _ => None,
    };
    if let Some(rows) = whole {
        line("models:".to_owned());
        for entry in rows {
            line(format!("  - model: {}", model(entry.path)));
            if !entry.parameters.is_empty() {
                line(format!("    {}", own(entry.parameters)));
            }
        }
        return text;
    }
    line("slices:".to_owned());
    for slice in slices {
        line("  - sources:".to_owned());
        for source in &slice.sources {
            line(format!("      - model: {}", model(&source.path)));
            line(format!("        layer_range: [{}, {}]", source.layers.start, source.layers.end));
            if !source.parameters.is_empty() {
                line(format!("        {}", own(&source.parameters)));
            }
        }
        if let Some(base) = &slice.base {
            line(format!("    base_model: {}", model(base)));
        }
        if !slice.parameters.is_empty() {
            line(format!("    {}", own(&slice.parameters)));
        }
    }
    text
}
