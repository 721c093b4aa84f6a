//! `tokenizer.json`: which token has which number.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::super::json::Entries;

/// No vocabulary is larger.
const MAX_ID: u32 = 1 << 24;

/// A token that stands outside the model of the language, as the file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Added {
    /// Its number.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// All that is said about it.
    pub entry: Value,
}

impl Added {
    /// A token about which nothing is known but its text. It has no number yet.
    pub fn plain(content: String) -> Self {
        let entry = json!({
            "id": 0,
            "content": content,
            "single_word": false,
            "lstrip": false,
            "rstrip": false,
            "normalized": true,
            "special": false,
        });
        Self { id: 0, content, entry }
    }
}

/// The tokens of a tokenizer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vocabulary {
    /// Numbers by token.
    pub ids: HashMap<String, u32>,
    /// The added tokens, by number.
    pub added: Vec<Added>,
}

impl Vocabulary {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        let malformed = |error: serde_json::Error| format!("is malformed: {error}");
        let Entries::<&RawValue>(top) = serde_json::from_slice(json).map_err(malformed)?;
        let get =
            |key: &str| top.iter().find(|(name, _)| name == key).map(|(_, value)| value.get());
        let model = get("model").ok_or("has no `model`")?;
        let Model { vocab } = serde_json::from_str(model).map_err(malformed)?;
        let mut ids = vocab.0;
        let entries: Vec<Value> = match get("added_tokens") {
            Some(text) => serde_json::from_str(text).map_err(malformed)?,
            None => Vec::new(),
        };
        let mut added = Vec::with_capacity(entries.len());
        for entry in entries {
            let content = entry.get("content").and_then(Value::as_str);
            let id = entry.get("id").and_then(Value::as_u64);
            let id = id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id < MAX_ID);
            let (Some(content), Some(id)) = (content, id) else {
                return Err("has an added token without `content` or `id`".to_owned());
            };
            if *ids.entry(content.to_owned()).or_insert(id) != id {
                return Err(format!("gives two numbers to the token {content:?}"));
            }
            added.push(Added { id, content: content.to_owned(), entry });
        }
        added.sort_by_key(|token| token.id);
        let mut numbers: Vec<u32> = ids.values().copied().collect();
        numbers.sort_unstable();
        if let Some([number, _]) = numbers.array_windows().find(|[a, b]| a == b) {
            return Err(format!("gives the number {number} to two tokens"));
        }
        Ok(Self { ids, added })
    }

    /// One more than the highest number.
    pub fn end(&self) -> u32 {
        self.ids.values().max().map_or(0, |id| id + 1)
    }
}

#[derive(Deserialize)]
struct Model {
    vocab: Ids,
}

/// `{TOKEN: NUMBER}`, or `[[TOKEN, SCORE], ..]` in the order of numbers.
struct Ids(HashMap<String, u32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor)
    }
}

struct IdsVisitor;

fn insert<E: Error>(ids: &mut HashMap<String, u32>, token: String, id: u64) -> Result<(), E> {
    let id = u32::try_from(id).ok().filter(|id| *id < MAX_ID);
    let id = id.ok_or_else(|| E::custom("a token has a number that is too large"))?;
    match ids.insert(token, id) {
        None => Ok(()),
        Some(_) => Err(E::custom("a token occurs twice")),
    }
}

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Ids;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tokens with their numbers or scores")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ids, A::Error> {
        let mut ids = HashMap::new();
        while let Some((token, id)) = map.next_entry()? {
            insert(&mut ids, token, id)?;
        }
        Ok(Ids(ids))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Ids, A::Error> {
        let mut ids = HashMap::new();
        while let Some((token, IgnoredAny)) = seq.next_element::<(String, IgnoredAny)>()? {
            let id = ids.len() as u64;
            insert(&mut ids, token, id)?;
        }
        Ok(Ids(ids))
    }
}
