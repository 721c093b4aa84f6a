//! The registry as text and as JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::method::registry::{BaseUse, ENTRIES, Entry, Evidence, Kind, Parameter, Per, Preset};
use crate::recipe::Words;

/// All methods.
pub(super) fn list(as_json: bool) -> String {
    if as_json {
        let all: Vec<Value> = ENTRIES.iter().map(|entry| entry_json(entry)).collect();
        return format!("{:#}\n", Value::from(all));
    }
    let all: Vec<String> = ENTRIES.iter().map(|entry| text(entry)).collect();
    all.join("\n")
}

fn text(entry: &Entry) -> String {
    let dialect = entry.dialect.map_or_else(String::new, |name| format!(" (dialect {name})"));
    let mut text = format!("{}{dialect}: {}\n", entry.name, entry.about);
    let scopes: Vec<&str> = entry.scopes.iter().map(|scope| scope.word()).collect();
    let mut line = |label: &str, value: &str| {
        let _infallible = writeln!(text, "  {label:9} {value}");
    };
    line("source", entry.source);
    line("models", &models(entry));
    if let Some(evidence) = entry.evidence {
        line("needs", &format!("{} (--{})", evidence.about(), evidence.key()));
    }
    line("scope", &scopes.join(", "));
    line("reads", &reads(entry));
    for parameter in entry.parameters {
        line(parameter.name, &format!("{}; {}", describe(parameter), parameter.about));
    }
    text
}

fn models(entry: &Entry) -> String {
    let count = match (*entry.models.start(), *entry.models.end()) {
        (least, usize::MAX) => format!("{least} or more"),
        (least, most) if least == most => least.to_string(),
        (least, most) => format!("{least} to {most}"),
    };
    match entry.base {
        BaseUse::Required => format!("a base and {count}"),
        BaseUse::Optional => format!("{count}, and a base if wanted"),
        BaseUse::Model => format!("{count}, no base"),
    }
}

fn reads(entry: &Entry) -> String {
    match entry.reads {
        (small, large) if small == large => large.to_string(),
        (small, large) => format!("{large}; {small} where a unit fits in memory"),
    }
}

fn per(parameter: &Parameter) -> &'static str {
    match parameter.per {
        Per::Merge => "merge",
        Per::Tensor => "tensor",
        Per::Model => "model",
    }
}

fn describe(parameter: &Parameter) -> String {
    let kind = match parameter.kind {
        Kind::Number { least, most, .. } if least > f64::MIN && most < f64::MAX => {
            format!("number from {least} to {most}")
        }
        Kind::Number { least, .. } if least > f64::MIN => format!("number from {least}"),
        Kind::Number { .. } => "number".to_owned(),
        Kind::Count { least, most } => format!("whole number from {least} to {most}"),
        Kind::Flag => "true or false".to_owned(),
        Kind::Word(words) => words.join(" | "),
    };
    let preset = match parameter.preset {
        Preset::Required => "required".to_owned(),
        Preset::Number(number) => format!("default {number}"),
        Preset::Flag(flag) => format!("default {flag}"),
        Preset::Word(word) => format!("default {word}"),
    };
    let each = if parameter.per == Per::Model { ", for each model" } else { "" };
    format!("{kind}, {preset}{each}")
}

fn entry_json(entry: &Entry) -> Value {
    let parameters = entry.parameters.iter().map(|parameter| {
        let preset = match parameter.preset {
            Preset::Required => Value::Null,
            Preset::Number(number) => json!(number),
            Preset::Flag(flag) => json!(flag),
            Preset::Word(word) => json!(word),
        };
        let kind = match parameter.kind {
            Kind::Number { least, most, open } => {
                let bound = |bound: f64| if bound.abs() < f64::MAX { json!(bound) } else { Value::Null };
                json!({ "type": "number", "least": bound(least), "most": bound(most), "open": open })
            }
            Kind::Count { least, most } => {
                json!({ "type": "integer", "least": least, "most": most, "open": false })
            }
            Kind::Flag => json!({ "type": "boolean" }),
            Kind::Word(words) => json!({ "type": "word", "words": words }),
        };
        json!({ "name": parameter.name, "about": parameter.about, "per": per(parameter),
                "kind": kind, "default": preset, "required": parameter.preset == Preset::Required })
    });
    let base = match entry.base {
        BaseUse::Required => "required",
        BaseUse::Optional => "optional",
        BaseUse::Model => "none",
    };
    let most = *entry.models.end();
    json!({
        "name": entry.name, "dialect": entry.dialect, "about": entry.about, "source": entry.source,
        "base": base, "least_models": entry.models.start(),
        "most_models": if most == usize::MAX { Value::Null } else { json!(most) },
        "scopes": entry.scopes.iter().map(|scope| scope.word()).collect::<Vec<_>>(),
        "reads": { "streamed": entry.reads.1, "in_memory": entry.reads.0 },
        "evidence": entry.evidence.map(Evidence::key), "random": entry.random, "expert_number": entry.per_expert,
        "parameters": parameters.collect::<Vec<_>>(),
    })
}
