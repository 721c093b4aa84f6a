//! Parameters evaluated like mergekit 0.1.5 does: `fixtures/parity/parameters.json`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::read::{self, Around};
use super::{Place, Recipe, RecipeError};
use crate::method::{Value, Values};
use crate::plan::Positions;

pub(crate) fn parsed(text: &str) -> Result<(Recipe, Vec<String>), RecipeError> {
    let around = Around {
        exists: &|_| false,
        locate: &|name| Ok(PathBuf::from(name)),
        method: Recipe::method,
    };
    read::parse(Path::new("r.yml"), text, &around)
}

/// A recipe, and what mergekit makes of it.
pub(crate) struct Case {
    /// Its title.
    pub(crate) title: String,
    /// As YAML.
    pub(crate) recipe: String,
    /// Layers of all models.
    pub(crate) layers: u64,
    /// Names of tensors of the output.
    pub(crate) tensors: Vec<String>,
    /// For each model, the tensors that they are read from.
    pub(crate) sources: Vec<(String, Vec<Option<String>>)>,
    shared: Json,
    models: Json,
    error: Option<String>,
}

/// All of `fixtures/parity/parameters.json`.
pub(crate) fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity/parameters.json");
    let cases: Vec<Json> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let word = |json: &Json| json.as_str().map(str::to_owned);
    let words = |json: &Json| json.as_array().unwrap().iter().map(word).collect::<Vec<_>>();
    let sources = |json: &Json| {
        let models = json.as_object().into_iter().flatten();
        models.map(|(model, names)| (model.clone(), words(names))).collect()
    };
    let case = |case: &Json| Case {
        title: word(&case["case"]).unwrap(),
        recipe: word(&case["recipe"]).unwrap(),
        layers: case["layers"].as_u64().unwrap(),
        tensors: match &case["tensors"] {
            // A case that mergekit refuses lists none: the names of a model of that size, then.
            Json::Null => (0..4).map(|n| format!("model.layers.{n}.a")).collect(),
            list => words(list).into_iter().flatten().collect(),
        },
        sources: sources(&case["sources"]),
        shared: case["shared"].clone(),
        models: case["models"].clone(),
        error: word(&case["error"]),
    };
    cases.iter().map(case).collect()
}

impl Case {
    /// Compares the values in a tensor with mergekit's. `rows` are the models that take part.
    pub(crate) fn compare(&self, at: usize, ours: &Values, rows: &[&str]) -> Result<(), String> {
        let tensor = &self.tensors[at];
        for (name, theirs) in self.shared.as_object().unwrap() {
            if !same(&ours.shared, name, &theirs[at]) {
                return Err(format!("{name} in {tensor}: {} {ours:?}", theirs[at]));
            }
        }
        for (model, parameters) in self.models.as_object().unwrap() {
            let row = rows.iter().position(|row| row == model);
            for (name, theirs) in parameters.as_object().unwrap() {
                let (theirs, own) = (&theirs[at], row.map(|row| &*ours.experts[row]));
                // The base has parameters in mergekit that nothing is made of.
                let agree = match own {
                    // Where a parameter has no default and none is given, it is none in mergekit.
                    Some(own) if !theirs.is_null() => same(own, name, theirs),
                    Some(own) => own.iter().all(|(n, v)| n != name || *v == Value::Number(1.0)),
                    None => true,
                };
                if !agree {
                    return Err(format!("{name} of {model} in {tensor}: {theirs} {own:?}"));
                }
            }
        }
        Ok(())
    }
}

/// The values of a recipe in all tensors of a case.
fn evaluated(case: &Case) -> Result<(Recipe, Vec<Values>), RecipeError> {
    let (recipe, _) = parsed(&case.recipe)?;
    let _warnings = recipe.validate()?;
    let positions = Positions::new(case.tensors.iter().map(|name| &**name));
    let places = case.tensors.iter().map(|tensor| Place::whole(tensor, positions.of(tensor)));
    let values = places.map(|place| recipe.values(place)).collect::<Result<_, _>>()?;
    Ok((recipe, values))
}

fn same(ours: &[(&str, Value)], name: &str, theirs: &Json) -> bool {
    let ours = ours.iter().find(|(n, _)| *n == name).map(|(_, value)| value);
    match (ours, theirs) {
        (Some(Value::Number(ours)), Json::Number(theirs)) => Some(*ours) == theirs.as_f64(),
        (Some(Value::Flag(ours)), Json::Bool(theirs)) => ours == theirs,
        // It changes no value, and no method has it.
        (None, Json::Bool(_)) => name == "int8_mask",
        _ => false,
    }
}

#[test]
fn parameters_are_what_mergekit_makes_of_them() {
    let cases = cases();
    let whole = || cases.iter().filter(|case| !case.recipe.contains("slices:"));
    let (mut agree, mut refused, mut stricter) = (0, 0, Vec::new());
    for case in whole() {
        let title = &case.title;
        match (evaluated(case), &case.error) {
            (Err(_), Some(_)) => refused += 1,
            (Ok(_), Some(error)) => panic!("{title}: mergekit refuses it: {error}"),
            (Err(error), None) => stricter.push((title, error.to_string())),
            (Ok((recipe, values)), None) => {
                let rows: Vec<String> =
                    recipe.models.iter().map(|model| model.path.display().to_string()).collect();
                let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
                for (at, values) in values.iter().enumerate() {
                    assert_eq!(case.compare(at, values, &rows), Ok(()), "{title}");
                }
                agree += 1;
            }
        }
    }
    // A shared parameter below one model is ignored by mergekit.
    assert_eq!(stricter.len(), 1, "{stricter:?}");
    assert_eq!(stricter[0].0, "shared-under-a-model");
    assert!(stricter[0].1.contains("it is one for all models"), "{stricter:?}");
    // Slices are compared where layers are found: in `plan`.
    assert_eq!((agree, refused, whole().count(), cases.len()), (19, 5, 25, 32));
}
