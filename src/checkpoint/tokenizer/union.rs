//! A tokenizer with the added tokens of others beside its own.

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::super::json::Entries;
use super::Added;

/// Keys of an added token that `tokenizer_config.json` repeats.
const TOLD: [&str; 6] = ["content", "lstrip", "normalized", "rstrip", "single_word", "special"];

/// `tokenizer.json` with more added tokens; all else stays as it is, to the byte.
///
/// # Errors
/// If it is not the JSON it should be.
pub fn with_tokens(json: &[u8], tokens: &[Added]) -> Result<Vec<u8>, String> {
    let malformed = |error: serde_json::Error| format!("is malformed: {error}");
    let Entries::<&RawValue>(top) = serde_json::from_slice(json).map_err(malformed)?;
    let text = std::str::from_utf8(json).map_err(|error| format!("is not UTF-8: {error}"))?;
    let new: Vec<Value> = tokens.iter().map(|token| token.entry.clone()).collect();
    let found = top.iter().find(|(name, _)| name == "added_tokens").map(|(_, value)| value.get());
    let Some(old) = found else {
        let rest = text.trim_start().strip_prefix('{').ok_or("is no object")?;
        let list = Value::from(new);
        return Ok(format!("{{\n  \"added_tokens\": {list:#},{rest}").into_bytes());
    };
    let mut list: Vec<Value> = serde_json::from_str(old).map_err(malformed)?;
    list.extend(new);
    // The value is a part of the text.
    let at = old.as_ptr() as usize - text.as_ptr() as usize;
    let list = Value::from(list);
    Ok(format!("{}{list:#}{}", &text[..at], &text[at + old.len()..]).into_bytes())
}

/// `tokenizer_config.json` with more added tokens, where it lists them.
///
/// # Errors
/// If it is not the JSON it should be.
pub fn config_with_tokens(json: &[u8], tokens: &[Added]) -> Result<Vec<u8>, String> {
    edit(json, |map| {
        if let Some(Value::Object(decoder)) = map.get_mut("added_tokens_decoder") {
            for token in tokens {
                let told = TOLD
                    .iter()
                    .filter_map(|key| Some(((*key).to_owned(), token.entry.get(key)?.clone())));
                decoder.insert(token.id.to_string(), Value::Object(told.collect::<Map<_, _>>()));
            }
        }
    })
}

/// `added_tokens.json` with more added tokens.
///
/// # Errors
/// If it is not the JSON it should be.
pub fn list_with_tokens(json: &[u8], tokens: &[Added]) -> Result<Vec<u8>, String> {
    edit(json, |map| {
        for token in tokens {
            map.insert(token.content.clone(), json!(token.id));
        }
    })
}

fn edit(json: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Result<Vec<u8>, String> {
    let mut value: Value =
        serde_json::from_slice(json).map_err(|error| format!("is malformed: {error}"))?;
    let map = value.as_object_mut().ok_or("is no object")?;
    change(map);
    Ok(format!("{value:#}\n").into_bytes())
}
