//! Model references: `path[@revision][+lora[@revision]]`, or the mapping that says the same.

use std::fmt;

use super::fields::Fields;
use super::node::{Node, Value};
use super::{Complaint, Place};

/// A directory, or the name of a model on the Hugging Face Hub.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModelPath {
    /// Path or `user/name`.
    pub path: String,
    /// A branch, tag or commit of a model on the hub.
    pub revision: Option<String>,
}

/// A model, perhaps with an adapter on top.
#[derive(Clone, Debug, Eq)]
pub struct ModelReference {
    /// The model.
    pub model: ModelPath,
    /// A LoRA adapter that is applied to it.
    pub lora: Option<ModelPath>,
    /// Where it was written.
    pub at: Place,
}

/// The same model wherever it is written.
impl PartialEq for ModelReference {
    fn eq(&self, other: &Self) -> bool {
        (&self.model, &self.lora) == (&other.model, &other.lora)
    }
}

impl fmt::Display for ModelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

impl fmt::Display for ModelReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.model)?;
        self.lora.as_ref().map_or(Ok(()), |lora| write!(f, "+{lora}"))
    }
}

/// Says whether a path exists on this machine: a directory may have `+` and `@` in its name.
pub(super) type Exists<'a> = &'a dyn Fn(&str) -> bool;

impl ModelReference {
    pub(super) fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        match &node.value {
            Value::Text(text) => Self::parse(text, node.at, exists),
            Value::Map(_) => Self::mapping(node, exists),
            Value::Number(number) => {
                let text = format!("{number} is a number; in quotes it would be a model");
                Err(Complaint::new(node.at, text))
            }
            other => {
                let text = format!("a model is a path, or {{model: path}}, not {}", other.kind());
                Err(Complaint::new(node.at, text))
            }
        }
    }

    pub(super) fn parse(text: &str, at: Place, exists: Exists<'_>) -> Result<Self, Complaint> {
        if exists(text) {
            let model = ModelPath { path: text.to_owned(), revision: None };
            return Ok(Self { model, lora: None, at });
        }
        let (model, lora) = match text.split('+').collect::<Vec<_>>()[..] {
            [model] => (model, None),
            [model, lora] => (model, Some(lora)),
            _ => {
                // Directories may have it in their names.
                let between = text.match_indices('+').map(|(i, _)| (&text[..i], &text[i + 1..]));
                let mut between = between.filter(|(model, lora)| exists(model) && exists(lora));
                let Some((model, lora)) = between.next_back() else {
                    return Err(Complaint::new(at, format!("{text:?} has more than one `+`")));
                };
                (model, Some(lora))
            }
        };
        Ok(Self {
            model: ModelPath::parse(model, at, exists)?,
            lora: lora.map(|lora| ModelPath::parse(lora, at, exists)).transpose()?,
            at,
        })
    }

    fn mapping(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        let known = ["model", "lora", "override_architecture"];
        let fields = Fields::new(node, "a model reference", &known)?;
        if let Some(node) = fields.get("override_architecture") {
            return Err(Complaint::new(
                node.at,
                "`override_architecture` is not supported: reflow goes by the tensors' names, \
                 whatever the architecture; leave it out",
            ));
        }
        Ok(Self {
            model: ModelPath::new(fields.need("model")?, exists)?,
            lora: fields.get("lora").map(|lora| ModelPath::new(lora, exists)).transpose()?,
            at: node.at,
        })
    }
}

impl ModelPath {
    fn new(node: &Node, exists: Exists<'_>) -> Result<Self, Complaint> {
        if let Value::Map(_) = node.value {
            let fields = Fields::new(node, "a model path", &["path", "revision"])?;
            let revision = fields.get("revision").map(|node| node.text("revision")).transpose()?;
            return Ok(Self { path: fields.need("path")?.text("path")?, revision });
        }
        Self::parse(&node.text("model")?, node.at, exists)
    }

    fn parse(text: &str, at: Place, exists: Exists<'_>) -> Result<Self, Complaint> {
        let whole = Self { path: text.to_owned(), revision: None };
        let parsed = match text.split('@').collect::<Vec<_>>()[..] {
            _ if exists(text) => whole,
            [_] => whole,
            [path, revision] => Self { path: path.to_owned(), revision: Some(revision.to_owned()) },
            _ => return Err(Complaint::new(at, format!("{text:?} has more than one `@`"))),
        };
        if parsed.path.is_empty() || parsed.revision.as_deref() == Some("") {
            return Err(Complaint::new(at, format!("{text:?} is no model: a part is empty")));
        }
        Ok(parsed)
    }
}
