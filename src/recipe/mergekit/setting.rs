//! Parameters as they are written: a value, a gradient over layers, or a list of filters.

use super::fields::Fields;
use super::node::{Node, Value as Written};
use super::{Complaint, Place};
use crate::method::Value;
use crate::recipe::{Filtered, Setting};

/// A parameter with all that is written about it in one place of a recipe.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Its name.
    pub name: String,
    /// Where the name was written.
    pub at: Place,
    /// What it is set to.
    pub setting: Setting,
}

/// The parameters of one place of a recipe.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assignments(pub Vec<Assignment>);

impl Assignments {
    /// What is written about a parameter here.
    pub fn get(&self, name: &str) -> Option<&Assignment> {
        self.0.iter().find(|assignment| assignment.name == name)
    }

    pub(super) fn new(node: Option<&Node>) -> Result<Self, Complaint> {
        let Some(node) = node else { return Ok(Self::default()) };
        let Written::Map(entries) = &node.value else {
            let text = format!("`parameters` must be a mapping, not {}", node.value.kind());
            return Err(Complaint::new(node.at, text));
        };
        let assignment = |(key, node): &(super::node::Key, Node)| {
            let setting = setting(&key.name, node)?;
            Ok(Assignment { name: key.name.clone(), at: key.at, setting })
        };
        entries.iter().map(assignment).collect::<Result<_, _>>().map(Self)
    }
}

/// What a catch-all is written as, beside leaving the filter out.
const ALL: &str = "*";

/// What is written about the parameter `name`. An empty list is as good as nothing: see
/// [`Setting::at`].
pub(super) fn setting(name: &str, node: &Node) -> Result<Setting, Complaint> {
    match &node.value {
        Written::Null => Err(Complaint::new(node.at, format!("`{name}` has no value"))),
        Written::Map(_) => Ok(Setting::Filtered(vec![filtered(name, node)?])),
        Written::List(items) if items.iter().any(|item| matches!(item.value, Written::Map(_))) => {
            let entries = items.iter().map(|item| filtered(name, item));
            entries.collect::<Result<_, _>>().map(Setting::Filtered)
        }
        _ => plain(name, node),
    }
}

fn filtered(name: &str, node: &Node) -> Result<Filtered, Complaint> {
    if !matches!(node.value, Written::Map(_)) {
        let text = "a list holds either values or {filter, value}, not both";
        return Err(Complaint::new(node.at, text));
    }
    let fields = Fields::new(node, "an entry with a filter", &["filter", "value"])?;
    let filter = fields.get("filter").map(|node| node.text("filter")).transpose()?;
    let value = plain(name, fields.need("value")?)?;
    Ok(Filtered { filter: filter.filter(|filter| filter != ALL), value })
}

/// A value or a gradient.
fn plain(name: &str, node: &Node) -> Result<Setting, Complaint> {
    match &node.value {
        Written::List(items) => {
            let values = items.iter().map(|item| value(name, item));
            values.collect::<Result<_, _>>().map(Setting::Gradient)
        }
        _ => value(name, node).map(Setting::One),
    }
}

fn value(name: &str, node: &Node) -> Result<Value, Complaint> {
    match &node.value {
        Written::Bool(on) => Ok(Value::Flag(*on)),
        Written::Number(number) => Ok(Value::Number(*number)),
        Written::Text(text) => Ok(Value::Word(text.clone())),
        other => {
            let text = format!("`{name}` must be a value here, not {}", other.kind());
            Err(Complaint::new(node.at, text))
        }
    }
}
