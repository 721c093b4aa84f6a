//! The keys of one mapping: known ones are handed out, unknown ones are refused with a suggestion.

use super::node::{Key, Node, Value};
use super::{Complaint, Place};
use crate::recipe::suggestion;

/// A mapping whose keys are all known.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    /// What the mapping is, for messages.
    what: &'static str,
    at: Place,
    entries: &'a [(Key, Node)],
}

impl<'a> Fields<'a> {
    /// The mapping `node`, which may have the keys `known`.
    ///
    /// # Errors
    /// If it is no mapping, or has another key.
    pub(super) fn new(
        node: &'a Node,
        what: &'static str,
        known: &[&str],
    ) -> Result<Self, Complaint> {
        let Value::Map(entries) = &node.value else {
            let text = format!("{what} must be a mapping, not {}", node.value.kind());
            return Err(Complaint::new(node.at, text));
        };
        let fields = Self { what, at: node.at, entries };
        match entries.iter().find(|(key, _)| !known.contains(&key.name.as_str())) {
            Some((key, _)) => Err(fields.unknown(key, known)),
            None => Ok(fields),
        }
    }

    fn unknown(&self, key: &Key, known: &[&str]) -> Complaint {
        let empty = self.entries.iter().any(|(k, node)| k.name == "parameters" && node.is_null());
        let hint = if empty {
            "; `parameters` is empty: indent the parameters below it".to_owned()
        } else if let Some(meant) = suggestion(&key.name, known.iter().copied()) {
            format!("; did you mean `{meant}`?")
        } else if known.contains(&"parameters") {
            "; a method's parameters belong below `parameters`".to_owned()
        } else {
            format!("; known: {}", known.join(", "))
        };
        Complaint::new(key.at, format!("unknown key `{}` in {}{hint}", key.name, self.what))
    }

    /// The value of a key; nothing if it is absent or empty.
    pub(super) fn get(&self, key: &str) -> Option<&'a Node> {
        self.entries.iter().find(|(k, _)| k.name == key).map(|(_, v)| v).filter(|v| !v.is_null())
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn need(&self, key: &str) -> Result<&'a Node, Complaint> {
        self.get(key).ok_or_else(|| Complaint::new(self.at, format!("{} lacks `{key}`", self.what)))
    }
}
