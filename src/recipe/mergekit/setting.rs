//! Parameters as they are written: a value, a gradient over layers, or a list of filters.

use super::fields::Fields;
use super::node::{Node, Value};
use super::{Complaint, Place};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    /// `true`, `yes`, `on` and their opposites.
    Bool(bool),
    /// A number.
    Number(f64),
    /// A word, or a number that YAML 1.1 takes for a word.
    Text(String),
}

/// What is written as a value: one, or several that are spread over the layers.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// The same for all layers.
    One(Written),
    /// Spread over the layers of a slice.
    Gradient(Vec<Written>),
}

/// One entry of a list of filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// Part of a tensor's name; `None` matches all.
    pub part: Option<String>,
    /// What tensors get that match.
    pub values: Values,
    /// Where it was written.
    pub at: Place,
}

/// A parameter with all that is written about it in one place of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// Where the name was written.
    pub at: Place,
    /// The first entry that matches decides; no entry at all is as good as not written.
    pub filters: Vec<Filter>,
}

/// The parameters of one place of a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(pub Vec<Parameter>);

impl Parameters {
    /// What is written about a parameter here.
    pub fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|parameter| parameter.name == name)
    }

    pub(super) fn new(node: Option<&Node>) -> Result<Self, Complaint> {
        let Some(node) = node else { return Ok(Self::default()) };
        let Value::Map(entries) = &node.value else {
            let text = format!("`parameters` must be a mapping, not {}", node.value.kind());
            return Err(Complaint::new(node.at, text));
        };
        let mut parameters = Vec::new();
        for (key, node) in entries {
            let filters = filters(&key.name, node)?;
            parameters.push(Parameter { name: key.name.clone(), at: key.at, filters });
        }
        Ok(Self(parameters))
    }
}

/// What a catch-all is written as, beside leaving the filter out.
const ALL: &str = "*";

fn filters(name: &str, node: &Node) -> Result<Vec<Filter>, Complaint> {
    match &node.value {
        Value::Null => Err(Complaint::new(node.at, format!("`{name}` has no value"))),
        Value::Map(_) => Ok(vec![filter(name, node)?]),
        Value::List(items) if items.iter().any(|item| matches!(item.value, Value::Map(_))) => {
            let filters: Vec<Filter> =
                items.iter().map(|item| filter(name, item)).collect::<Result<_, _>>()?;
            Ok(filters)
        }
        Value::List(items) if items.is_empty() => Ok(Vec::new()),
        _ => Ok(vec![Filter { part: None, values: values(name, node)?, at: node.at }]),
    }
}

fn filter(name: &str, node: &Node) -> Result<Filter, Complaint> {
    let fields = Fields::new(node, "an entry with a filter", &["filter", "value"])?;
    let part = fields.get("filter").map(|node| node.text("filter")).transpose()?;
    let values = values(name, fields.need("value")?)?;
    Ok(Filter { part: part.filter(|part| part != ALL), values, at: node.at })
}

fn values(name: &str, node: &Node) -> Result<Values, Complaint> {
    match &node.value {
        Value::List(items) if items.is_empty() => {
            Err(Complaint::new(node.at, format!("the gradient of `{name}` is empty")))
        }
        Value::List(items) => {
            let values = items.iter().map(|item| written(name, item)).collect::<Result<_, _>>()?;
            Ok(Values::Gradient(values))
        }
        _ => Ok(Values::One(written(name, node)?)),
    }
}

fn written(name: &str, node: &Node) -> Result<Written, Complaint> {
    match &node.value {
        Value::Bool(on) => Ok(Written::Bool(*on)),
        Value::Number(number) => Ok(Written::Number(*number)),
        Value::Text(text) => Ok(Written::Text(text.clone())),
        other => {
            let text = format!("`{name}` must be a value here, not {}", other.kind());
            Err(Complaint::new(node.at, text))
        }
    }
}
