//! Parameters evaluated like mergekit 0.1.5 does: `fixtures/parity/parameters.json`.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::read::{self, Around};
use super::{Place, Recipe, RecipeError};
use crate::method::{Value, Values};
use crate::plan::Positions;

pub(super) fn parsed(text: &str) -> Result<(Recipe, Vec<String>), RecipeError> {
    let around = Around {
        exists: &|_| false,
        locate: &|name| Ok(PathBuf::from(name)),
        method: Recipe::method,
    };
    read::parse(Path::new("r.yml"), text, &around)
}

/// The values of a recipe in all tensors of a case.
fn evaluated(case: &Json) -> Result<(Recipe, Vec<Values>), RecipeError> {
    let (recipe, _) = parsed(case["recipe"].as_str().unwrap())?;
    let _warnings = recipe.validate()?;
    let tensors = tensors(case);
    let positions = Positions::new(tensors.iter().copied());
    let places =
        tensors.iter().map(|tensor| Place { tensor, t: positions.of(tensor), coefficients: None });
    let values = places.map(|place| recipe.values(place)).collect::<Result<_, _>>()?;
    Ok((recipe, values))
}

/// A case that mergekit refuses lists none: the names of a model of that size, then.
fn tensors(case: &Json) -> Vec<&str> {
    match case["tensors"].as_array() {
        Some(list) => list.iter().map(|name| name.as_str().unwrap()).collect(),
        None => {
            vec!["model.layers.0.a", "model.layers.1.a", "model.layers.2.a", "model.layers.3.a"]
        }
    }
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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity/parameters.json");
    let cases: Vec<Json> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let (mut agree, mut refused, mut stricter, mut unsupported) = (0, 0, Vec::new(), 0);
    for case in &cases {
        let title = case["case"].as_str().unwrap();
        match (evaluated(case), case["error"].as_str()) {
            (Err(RecipeError::Unsupported { what, .. }), _) => {
                assert!(what.contains("`slices`") || what.contains("`modules`"), "{title}: {what}");
                unsupported += 1;
            }
            (Err(_), Some(_)) => refused += 1,
            (Ok(_), Some(error)) => panic!("{title}: mergekit refuses it: {error}"),
            (Err(error), None) => stricter.push((title, error.to_string())),
            (Ok((recipe, values)), None) => {
                for (i, (tensor, ours)) in tensors(case).iter().zip(&values).enumerate() {
                    for (name, theirs) in case["shared"].as_object().unwrap() {
                        let theirs = &theirs[i];
                        assert!(
                            same(&ours.shared, name, theirs),
                            "{title}: {name} in {tensor}: {theirs} {ours:?}"
                        );
                    }
                    for (model, parameters) in case["models"].as_object().unwrap() {
                        let at = recipe.models.iter().position(|m| m.path == Path::new(model));
                        let own = &ours.experts[at.unwrap_or_else(|| panic!("{title}: {model}"))];
                        for (name, theirs) in parameters.as_object().unwrap() {
                            let theirs = &theirs[i];
                            assert!(
                                same(own, name, theirs),
                                "{title}: {name} of {model} in {tensor}: {theirs} {own:?}"
                            );
                        }
                    }
                }
                agree += 1;
            }
        }
    }
    // A shared parameter below one model is ignored by mergekit.
    assert_eq!(stricter.len(), 1, "{stricter:?}");
    assert_eq!(stricter[0].0, "shared-under-a-model");
    assert!(stricter[0].1.contains("it is one for all models"), "{stricter:?}");
    // Not supported yet: slices and modules.
    assert_eq!((agree, refused, unsupported, cases.len()), (18, 5, 8, 32));
}
