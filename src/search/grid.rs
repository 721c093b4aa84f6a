//! All combinations of a few values of a few settings.

use std::fmt;

use super::Point;
use crate::error::Error;
use crate::recipe::{Recipe, RecipeError, Setting, Words, mergekit, suggestion};

const LAMBDA: &str = "lambda";
pub(super) const SCOPE: &str = "scope";
/// The type of the output: the same merge, rounded otherwise.
pub(super) const DTYPE: &str = "dtype";

/// Settings of recipes that change how an output is stored, and none of its values.
const STORED: [&str; 2] = ["shard_size", "copy_code"];
/// Those that say what is merged, or what becomes of the files beside it.
const INPUTS: [&str; 18] = [
    "merge_method",
    "dialect",
    "base_model",
    "models",
    "slices",
    "modules",
    "include",
    "exclude",
    "missing",
    "vocab",
    "nonfinite",
    "lenient",
    "count_aliases",
    "coefficients",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "seed",
];

/// A setting and the values that are tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// Its name: a parameter of the method, `scope`, or `dtype`.
    pub name: String,
    /// Values, as they would be typed.
    pub values: Vec<String>,
}

impl Axis {
    /// Reads `NAME=VALUE,VALUE`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, values) = text.split_once('=').ok_or("write NAME=VALUE,VALUE")?;
        let values: Vec<String> = values.split(',').map(|value| value.trim().to_owned()).collect();
        if name.is_empty() || values.iter().any(String::is_empty) {
            return Err("write NAME=VALUE,VALUE".to_owned());
        }
        Ok(Self { name: name.to_owned(), values })
    }

    /// Demands that a recipe can have all these values.
    pub(super) fn check(&self, recipe: &Recipe) -> Result<(), Error> {
        self.values.iter().try_for_each(|value| {
            let mut candidate = recipe.clone();
            apply(&mut candidate, &self.name, value)?;
            candidate.validate().map(drop).map_err(Error::from)
        })
    }

    fn is_lambda(&self) -> bool {
        self.name == LAMBDA
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.values.join(","))
    }
}

/// Number of combinations.
pub(super) fn len(axes: &[Axis]) -> usize {
    axes.iter().map(|axis| axis.values.len()).fold(1, usize::saturating_mul)
}

/// All combinations; those that differ in lambda only stand together.
pub(super) fn points(axes: &[Axis]) -> Vec<Point> {
    let mut points = vec![Point::default()];
    let ordered =
        axes.iter().filter(|a| !a.is_lambda()).chain(axes.iter().filter(|a| a.is_lambda()));
    for axis in ordered {
        let more = |point: &Point| -> Vec<Point> {
            let with = |value: &String| {
                let mut point = point.clone();
                match value.parse() {
                    Ok(lambda) if axis.is_lambda() => point.lambdas = vec![lambda],
                    _ => point.settings.push((axis.name.clone(), value.clone())),
                }
                point
            };
            axis.values.iter().map(with).collect()
        };
        points = points.iter().flat_map(more).collect();
    }
    points
}

/// Sets one value in a recipe, in place of what all its models say.
pub(super) fn apply(recipe: &mut Recipe, name: &str, value: &str) -> Result<(), Error> {
    let wrong = |reason: String| -> Error {
        RecipeError::Value { key: format!("--grid {name}"), reason }.into()
    };
    match name {
        SCOPE => {
            recipe.scope = word(value).map_err(wrong)?;
            return Ok(());
        }
        DTYPE => {
            recipe.dtype = word(value).map_err(wrong)?;
            return Ok(());
        }
        _ => {}
    }
    if recipe.method.parameter(name).is_none() {
        return Err(wrong(no_axis(recipe, name)));
    }
    let setting: Setting =
        mergekit::setting(name, value).map_err(|complaint| wrong(complaint.text.clone()))?;
    for model in &mut recipe.models {
        model.parameters.remove(name);
    }
    recipe.parameters.set(name, setting);
    Ok(())
}

/// Why something can be no axis, and what can.
fn no_axis(recipe: &Recipe, name: &str) -> String {
    let names = recipe.method.parameters.iter().map(|parameter| parameter.name);
    let known: Vec<&str> = names.chain([SCOPE, DTYPE]).collect();
    let why = if STORED.contains(&name) {
        "it says how the output is stored, and every candidate would be the same model".to_owned()
    } else if INPUTS.contains(&name) {
        "it belongs to the recipe, and is the same for all candidates".to_owned()
    } else {
        // Recipes have it as `out_dtype`, too.
        let meant = name.strip_prefix("out_").unwrap_or(name);
        let meant = suggestion(meant, known.iter().copied());
        let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
        format!("{} has no such setting{meant}", recipe.method.name)
    };
    format!("{why}; what can be an axis: {}", known.join(", "))
}

/// The value of a word.
fn word<T: Words>(value: &str) -> Result<T, String> {
    let known: Vec<&str> = T::WORDS.iter().map(|(word, _)| *word).collect();
    T::parse(value).ok_or_else(|| format!("{value:?} is unknown; known: {}", known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_that_differ_in_lambda_stand_together() {
        let axes = ["lambda=0.8,1.2", "keep=0.05,0.1"].map(|text| Axis::parse(text).unwrap());
        let shown: Vec<String> = points(&axes).iter().map(ToString::to_string).collect();
        let expected = [
            "keep 0.05, lambda 0.8",
            "keep 0.05, lambda 1.2",
            "keep 0.1, lambda 0.8",
            "keep 0.1, lambda 1.2",
        ];
        assert_eq!((shown, len(&axes)), (expected.map(str::to_owned).to_vec(), 4));
        for text in ["keep", "=1", "keep=", "keep=0.1,,0.2"] {
            assert!(Axis::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_a_recipe_cannot_have_is_refused_with_a_hint() {
        let method = Recipe::method("pcb", None).unwrap();
        let recipe = Recipe::new(method, Some("b".into()), vec![crate::recipe::Model::new("x")]);
        let check =
            |text: &str| Axis::parse(text).unwrap().check(&recipe).map_err(|e| e.to_string());
        assert!(check("keep=0.05,0.1").is_ok() && check("scope=model,tensor").is_ok());
        assert!(check("variant=a,paper").is_ok() && check("lambda=1,2").is_ok());
        assert!(check("dtype=keep,bf16,f16,f32").is_ok());
        for (text, part) in [
            ("kep=0.1", "did you mean keep?"),
            ("scope=all", "known: model, layer, tensor"),
            ("keep=0.1,2", "2 is not a fraction"),
            ("variant=e", "\"e\" is unknown"),
            ("dtype=int8", "\"int8\" is unknown; known: keep, bf16, f16, f32"),
            (
                "shard_size=1GB",
                "would be the same model; what can be an axis: variant, keep, lambda, scope, dtype",
            ),
            ("tokenizer=union", "the same for all candidates; what can be an axis: variant,"),
            ("lambda=x", "\"x\" is not a number"),
        ] {
            let error = check(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
