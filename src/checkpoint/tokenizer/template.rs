//! Chat templates: which one a checkpoint has, and files that say another.

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;

use super::super::catalog::CheckpointError;
use super::super::json::Entries;
use super::super::shards;
use super::TOKENIZER_CONFIG;

/// The file that loaders look at first.
pub const TEMPLATE: &str = "chat_template.jinja";
/// Older files of processors: `{"chat_template": TEXT}`.
pub const TEMPLATE_JSON: &str = "chat_template.json";
/// The key of the template in `tokenizer_config.json` and [`TEMPLATE_JSON`].
const KEY: &str = "chat_template";
/// No file with a template is larger.
const MAX_BYTES: u64 = 64 << 20;

/// Formats of conversations that have a name, in the order of names. Written from what their inventors have published.
const BUILT_IN: [(&str, &str); 5] = [
    ("alpaca", include_str!("templates/alpaca.jinja")),
    ("chatml", include_str!("templates/chatml.jinja")),
    ("exaone", include_str!("templates/exaone.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
];

/// The names of the templates that need no model.
pub fn built_in_names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// The template of that name.
pub fn built_in(name: &str) -> Option<&'static str> {
    BUILT_IN.iter().find(|(known, _)| *known == name).map(|(_, text)| text.trim())
}

/// The template that loaders find in a checkpoint's directory, trimmed; of several, the default one.
///
/// # Errors
/// If a file that may have it cannot be read, or is malformed.
pub fn template(root: &Path) -> Result<Option<String>, CheckpointError> {
    let wanted = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    if let Some(bytes) = read(&root.join(TEMPLATE))? {
        let wrong = |error| CheckpointError::File {
            path: root.join(TEMPLATE),
            reason: format!("is not UTF-8: {error}"),
        };
        return Ok(wanted(std::str::from_utf8(&bytes).map_err(wrong)?));
    }
    for name in [TOKENIZER_CONFIG, TEMPLATE_JSON] {
        let path = root.join(name);
        let Some(bytes) = read(&path)? else { continue };
        let found = in_config(&bytes);
        let found = found.map_err(|reason| CheckpointError::File { path, reason })?;
        if let Some(text) = found.as_deref().and_then(wanted) {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// A file's bytes, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let (file, meta) = shards::open_regular(path)?;
    if meta.len() > MAX_BYTES {
        let reason = format!("has {} bytes, too many for a chat template", meta.len());
        return Err(CheckpointError::File { path: path.to_owned(), reason });
    }
    let mut bytes = vec![0; meta.len() as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| shards::io_error(path, e))?;
    Ok(Some(bytes))
}

/// What a config says: a text, or a list of `{name, template}`, of which one is called `default`.
fn in_config(json: &[u8]) -> Result<Option<String>, String> {
    let Entries::<&RawValue>(top) =
        serde_json::from_slice(json).map_err(|error| format!("is malformed: {error}"))?;
    let Some((_, raw)) = top.iter().find(|(key, _)| key == KEY) else { return Ok(None) };
    let value =
        serde_json::from_str(raw.get()).map_err(|error| format!("is malformed: {error}"))?;
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text)),
        Value::Array(list) => {
            let default = list.iter().find(|one| one.get("name") == Some(&"default".into()));
            Ok(default.and_then(|one| Some(one.get("template")?.as_str()?.to_owned())))
        }
        _ => Err(format!("has a `{KEY}` that is neither a text nor a list of them")),
    }
}

/// `tokenizer_config.json` or [`TEMPLATE_JSON`] with this template; all else stays as it is, to the byte.
///
/// # Errors
/// If it is not the JSON it should be.
pub fn with_template(json: &[u8], template: &str) -> Result<Vec<u8>, String> {
    let Entries::<&RawValue>(top) =
        serde_json::from_slice(json).map_err(|error| format!("is malformed: {error}"))?;
    let text = std::str::from_utf8(json).map_err(|error| format!("is not UTF-8: {error}"))?;
    let new = Value::from(template);
    if let Some((_, old)) = top.iter().find(|(key, _)| key == KEY) {
        // The value is a part of the text.
        let at = old.get().as_ptr() as usize - text.as_ptr() as usize;
        return Ok(format!("{}{new}{}", &text[..at], &text[at + old.get().len()..]).into_bytes());
    }
    let rest = text.trim_start().strip_prefix('{').ok_or("is no object")?;
    let comma = if top.is_empty() { "" } else { "," };
    Ok(format!("{{\n  \"{KEY}\": {new}{comma}{rest}").into_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_template_is_where_loaders_look_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let found = || template(dir.path());
        assert_eq!(found().unwrap(), None);
        write(TEMPLATE_JSON, r#"{"chat_template": "of the processor"}"#);
        assert_eq!(found().unwrap().as_deref(), Some("of the processor"));
        write("tokenizer_config.json", r#"{"chat_template": null}"#);
        assert_eq!(found().unwrap().as_deref(), Some("of the processor"));
        let list =
            json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": " d\n"}]);
        write("tokenizer_config.json", &json!({"chat_template": list}).to_string());
        assert_eq!(found().unwrap().as_deref(), Some("d"));
        write("tokenizer_config.json", r#"{"chat_template": "old"}"#);
        write(TEMPLATE, "\n{{ new }}\n\n");
        assert_eq!(found().unwrap().as_deref(), Some("{{ new }}"));
        write(TEMPLATE, " \n");
        assert_eq!(found().unwrap(), None);
        std::fs::remove_file(dir.path().join(TEMPLATE)).unwrap();
        for (text, part) in [
            (r#"{"chat_template": 3}"#, "neither a text nor"),
            ("{", "malformed"),
            (r#"{"chat_template": "a", "chat_template": "b"}"#, "twice"),
        ] {
            write("tokenizer_config.json", text);
            let error = found().unwrap_err().to_string();
            assert!(error.contains(part) && error.contains("tokenizer_config.json"), "{error}");
        }
    }

    #[test]
    fn one_value_changes_and_nothing_else() {
        let template = "{{ \"a\" }}\n\u{1f}é";
        for (old, rest) in [
            (r#"{ "z": 1e30, "chat_template" : [{"name": "default"}] , "a": 2}"#, r#" , "a": 2}"#),
            (" {\"model_max_length\": 1000000000000000019884624838656}\n", "624838656}\n"),
            ("{}", "}"),
        ] {
            let new = String::from_utf8(with_template(old.as_bytes(), template).unwrap()).unwrap();
            let value: Value = serde_json::from_str(&new).unwrap();
            assert_eq!(value["chat_template"], template, "{new}");
            assert!(new.ends_with(rest), "{new}");
            assert_eq!(in_config(new.as_bytes()).unwrap().as_deref(), Some(template));
        }
        assert!(with_template(b"[]", template).is_err());
    }

    #[test]
    fn built_in_templates_are_known_by_sorted_names() {
        let names: Vec<_> = built_in_names().collect();
        assert!(names.is_sorted() && names.len() == BUILT_IN.len());
        for name in names {
            let text = built_in(name).unwrap();
            assert!(
                text.contains("{%") && text.matches("{%").count() == text.matches("%}").count()
            );
            assert!(text == text.trim(), "{name}");
        }
        assert_eq!(built_in("auto"), None);
    }
}
