//! JSON objects read strictly: no key twice, after unescaping, at any level.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, Visitor};

/// The entries of an object in the order of the file, each value read as `T`.
pub(super) struct Entries<T>(pub(super) Vec<(String, T)>);

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = EntriesOf { limit: usize::MAX, value: PhantomData };
        read.deserialize(deserializer)
    }
}

/// Reads at most `limit` entries.
pub(super) struct EntriesOf<T> {
    pub(super) limit: usize,
    pub(super) value: PhantomData<T>,
}

impl<'de, T: serde::Deserialize<'de>> DeserializeSeed<'de> for EntriesOf<T> {
    type Value = Entries<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: serde::Deserialize<'de>> Visitor<'de> for EntriesOf<T> {
    type Value = Entries<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(String, T)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if entries.len() >= self.limit {
                return Err(A::Error::custom(format_args!("more than {} entries", self.limit)));
            }
            let value = map.next_value()?;
            entries.push((key, value));
        }
        let mut keys: Vec<&str> = entries.iter().map(|(key, _)| key.as_str()).collect();
        keys.sort_unstable();
        if let Some([twice, _]) = keys.array_windows().find(|[a, b]| a == b) {
            return Err(A::Error::custom(format_args!("the key {twice:?} occurs twice")));
        }
        Ok(Entries(entries))
    }
}
