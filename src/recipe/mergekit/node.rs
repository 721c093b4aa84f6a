//! YAML as a tree in which everything knows its line and column.
//!
//! mergekit reads YAML 1.1: `yes`, `no`, `on` and `off` are booleans, `1e-5` is a word that its
//! parameter turns into a number. Here both are read as what they are meant to be.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Options, Spanned};

use super::Complaint;

/// Line and column, counted from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Line.
    pub line: u64,
    /// Column.
    pub column: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) at: Place,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key with its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) at: Place,
    pub(super) name: String,
}

impl Value {
    /// What it is, for people.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::Text(_) => "a word",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// The text of a word, or of a scalar that a word was meant to be.
    pub(super) fn text(&self, key: &str) -> Result<String, Complaint> {
        match &self.value {
            Value::Text(text) => Ok(text.clone()),
            Value::Number(number) => Ok(number.to_string()),
            other => Err(self.wrong(key, "a word", other)),
        }
    }

    /// The items of a list.
    pub(super) fn list(&self, key: &str) -> Result<&[Node], Complaint> {
        match &self.value {
            Value::List(items) => Ok(items),
            other => Err(self.wrong(key, "a list", other)),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<bool, Complaint> {
        match &self.value {
            Value::Bool(on) => Ok(*on),
            other => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn count(&self, key: &str) -> Result<u64, Complaint> {
        match &self.value {
            // Exact: a count in a recipe is far below 2^53.
            Value::Number(n) if n.fract() == 0.0 && (0.0..9e15).contains(n) => Ok(*n as u64),
            other => Err(self.wrong(key, "a whole number", other)),
        }
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Complaint {
        Complaint::new(self.at, format!("`{key}` must be {expected}, not {}", found.kind()))
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, .. } = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { at: Place { line: referenced.line(), column: referenced.column() }, value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, on: bool) -> Result<Value, E> {
        Ok(Value::Bool(on))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Value, E> {
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(Spanned { value: name, referenced, .. }) =
            map.next_key::<Spanned<String>>()?
        {
            let at = Place { line: referenced.line(), column: referenced.column() };
            entries.push((Key { at, name }, map.next_value()?));
        }
        Ok(Value::Map(entries))
    }
}

/// All documents of a YAML text.
///
/// # Errors
/// [`Complaint`] where the text is no YAML, or names a key twice.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Complaint> {
    let mut options = Options::default();
    options.legacy_octal_numbers = true;
    serde_saphyr::from_str_multiple_with_options(text, options).map_err(|error| {
        let at = error
            .location()
            .map_or(Place::default(), |l| Place { line: l.line(), column: l.column() });
        let message = error.without_snippet().to_string();
        let message = message.strip_prefix("error: ").unwrap_or(&message);
        // This advice is for programmers.
        let message = message.replace(", set DuplicateKeyPolicy in Options if acceptable", "");
        let bare = message.strip_suffix(&format!(" at {at}"));
        Complaint { at, text: bare.unwrap_or(&message).to_owned(), placed: bare.is_none() }
    })
}
