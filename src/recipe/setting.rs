//! Settings: what a recipe says about a parameter, which may differ from tensor to tensor.
//!
//! ```yaml
//! weight: 0.3                                  # one value
//! weight: [0, 0.5, 1]                          # a gradient over the layers
//! weight: [{filter: mlp, value: [0, 1]}, {value: 0.5}]   # the first filter that matches
//! ```
//! This is mergekit's scheme, bit for bit: numbers are interpolated in doubles, words and flags are
//! taken from the position rounded down, and a filter is a plain part of the tensor's name.

use std::fmt;

use crate::method::Value;
use crate::quote::quoted;

/// What a recipe says about a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum Setting {
    /// One value.
    One(Value),
    /// Values along the layers, from the first to the last.
    Gradient(Vec<Value>),
    /// The first entry whose filter matches.
    Filtered(Vec<Filtered>),
}

/// An entry of a list of filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Filtered {
    /// A part of the tensor's name; none, or `*`, matches all.
    pub filter: Option<String>,
    /// One value or a gradient.
    pub value: Setting,
}

impl Filtered {
    /// Whether the filter matches a tensor of that name.
    pub fn matches(&self, tensor: &str) -> bool {
        self.matches_all() || self.filter.as_ref().is_some_and(|part| tensor.contains(&**part))
    }

    /// Whether the filter matches whatever there is.
    pub fn matches_all(&self) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter == "*" || filter.is_empty())
    }
}

impl Setting {
    /// A setting of one number.
    pub fn number(number: f64) -> Self {
        Self::One(Value::Number(number))
    }

    /// The value for a tensor at position `t` (0 for the first layer, 1 for the last, 0 outside
    /// layers); `None` if no filter matches.
    pub fn at(&self, tensor: &str, t: f64) -> Option<Value> {
        match self {
            Setting::One(value) => Some(value.clone()),
            Setting::Gradient(values) => gradient(values, t),
            Setting::Filtered(entries) => {
                entries.iter().find(|entry| entry.matches(tensor))?.value.at(tensor, t)
            }
        }
    }

    /// All values that the setting names.
    pub fn values(&self) -> Vec<&Value> {
        match self {
            Setting::One(value) => vec![value],
            Setting::Gradient(values) => values.iter().collect(),
            Setting::Filtered(entries) => {
                entries.iter().flat_map(|entry| entry.value.values()).collect()
            }
        }
    }

    /// The same setting with every value changed.
    ///
    /// # Errors
    /// The first that `change` returns.
    pub fn map<E>(&self, change: &mut impl FnMut(&Value) -> Result<Value, E>) -> Result<Self, E> {
        Ok(match self {
            Setting::One(value) => Setting::One(change(value)?),
            Setting::Gradient(values) => {
                Setting::Gradient(values.iter().map(change).collect::<Result<_, _>>()?)
            }
            Setting::Filtered(entries) => {
                let mut changed = Vec::new();
                for entry in entries {
                    let value = entry.value.map(change)?;
                    changed.push(Filtered { filter: entry.filter.clone(), value });
                }
                Setting::Filtered(changed)
            }
        })
    }
}

/// The value of a gradient at position `t`.
fn gradient(values: &[Value], t: f64) -> Option<Value> {
    let last = values.len().checked_sub(1)?;
    let position = t * last as f64;
    // A float cast to an integer truncates toward zero, as Python's int() does.
    let left = (position as usize).min(last);
    let numbers: Option<Vec<f64>> = (values.iter())
        .map(|value| match value {
            Value::Number(number) => Some(*number),
            // In quotes, a number is a word.
            Value::Word(word) => word.trim().parse().ok(),
            Value::Flag(_) => None,
        })
        .collect();
    let Some(numbers) = numbers else { return Some(values[left].clone()) };
    let part = position - left as f64;
    let right = (left + 1).min(last);
    Some(Value::Number((1.0 - part) * numbers[left] + part * numbers[right]))
}

/// The setting as YAML on one line.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Setting::One(value) => write!(f, "{}", Shown(value)),
            Setting::Gradient(values) => {
                let values: Vec<String> = values.iter().map(|v| Shown(v).to_string()).collect();
                write!(f, "[{}]", values.join(", "))
            }
            Setting::Filtered(entries) => {
                let entries: Vec<String> = (entries.iter())
                    .map(|entry| match &entry.filter {
                        Some(filter) => {
                            format!("{{filter: {}, value: {}}}", quoted(filter), entry.value)
                        }
                        None => format!("{{value: {}}}", entry.value),
                    })
                    .collect();
                write!(f, "[{}]", entries.join(", "))
            }
        }
    }
}

/// A value as YAML.
struct Shown<'a>(&'a Value);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Value::Number(number) => write!(f, "{number}"),
            Value::Flag(flag) => write!(f, "{flag}"),
            // Words that mean themselves stay bare.
            Value::Word(word) if is_plain(word) => f.write_str(word),
            Value::Word(word) => f.write_str(&quoted(word)),
        }
    }
}

fn is_plain(word: &str) -> bool {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let reserved = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    word.starts_with(|c: char| c.is_ascii_alphabetic())
        && word.chars().all(bare)
        && !reserved.contains(&word.to_ascii_lowercase().as_str())
        && word.parse::<f64>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Setting {
        crate::recipe::mergekit::setting("p", text).unwrap()
    }

    fn at(text: &str, tensor: &str, t: f64) -> Option<Value> {
        parsed(text).at(tensor, t)
    }

    #[test]
    fn a_gradient_is_interpolated_between_its_values() {
        for (t, expected) in [(0.0, 0.0), (0.25, 0.25), (0.5, 0.5), (0.75, 0.75), (1.0, 1.0)] {
            assert_eq!(at("[0, 0.5, 1]", "x", t), Some(Value::Number(expected)), "{t}");
        }
        assert_eq!(at("[3]", "x", 0.7), Some(Value::Number(3.0)));
        // Never beyond the last value, whatever the rounding.
        assert_eq!(at("[1, 2]", "x", 1.0), Some(Value::Number(2.0)));
        // (1 - p) a + p b, in doubles.
        let third = 1.0 / 3.0;
        let expected = (1.0 - third) * 0.1 + third * 0.7;
        assert_eq!(at("[0.1, 0.7]", "x", third), Some(Value::Number(expected)));
    }

    #[test]
    fn words_and_flags_of_a_gradient_are_taken_from_the_left() {
        assert_eq!(at("[true, false]", "x", 0.99), Some(Value::Flag(true)));
        assert_eq!(at("[true, false]", "x", 1.0), Some(Value::Flag(false)));
        assert_eq!(at("[a, b, c]", "x", 0.5), Some(Value::Word("b".to_owned())));
        assert_eq!(at("['0.5', 1]", "x", 0.5), Some(Value::Number(0.75)));
        assert_eq!(at("[]", "x", 0.5), None);
    }

    #[test]
    fn the_first_filter_that_matches_wins() {
        let text = "[{filter: mlp, value: [0, 1]}, {filter: self_attn, value: 5}, {value: 7}]";
        assert_eq!(at(text, "layers.0.mlp.up", 0.5), Some(Value::Number(0.5)));
        assert_eq!(at(text, "layers.0.self_attn.q", 0.5), Some(Value::Number(5.0)));
        assert_eq!(at(text, "norm", 0.5), Some(Value::Number(7.0)));
        assert_eq!(at("{filter: mlp, value: 2}", "norm", 0.0), None);
        assert_eq!(at("[{filter: '*', value: 2}]", "norm", 0.0), Some(Value::Number(2.0)));
        // A plain part of the name: no glob, no regex.
        assert_eq!(
            at("{filter: 'layers.1', value: 2}", "layers.12.q", 0.0),
            Some(Value::Number(2.0))
        );
        assert_eq!(at("{filter: 'm*p', value: 2}", "mlp", 0.0), None);
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        for text in [
            "0.3",
            "-2",
            "1e-5",
            "true",
            "paper",
            "\"two words\"",
            "\"true\"",
            "[0, 0.5, 1]",
            "[{filter: mlp, value: [0, 1]}, {value: 0.5}]",
            "[{filter: \"a: b\", value: word}]",
            "[]",
        ] {
            let setting = parsed(text);
            assert_eq!(parsed(&setting.to_string()), setting, "{text} {setting}");
        }
    }

    #[test]
    fn what_is_not_a_setting_is_refused_with_a_hint() {
        for (text, part) in [
            ("{fitler: mlp, value: 1}", "did you mean `filter`?"),
            ("{filter: mlp}", "lacks `value`"),
            ("[1, {value: 2}]", "not both"),
            ("[[1, 2]]", "not a list"),
            ("{value: {value: 1}}", "not a mapping"),
        ] {
            let error = crate::recipe::mergekit::setting("p", text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
