//! What must hold for all texts that claim to be a recipe.

use std::path::{Path, PathBuf};

use super::read::{self, Around};
use super::{Place, Recipe, RecipeError};
use crate::fuzzing::told;

fn parse(text: &str, exists: bool) -> Result<(Recipe, Vec<String>), RecipeError> {
    let around = Around {
        exists: &|_| exists,
        locate: &|name| Ok(PathBuf::from(name)),
        method: Recipe::method,
    };
    read::parse(Path::new("recipe.yml"), text, &around)
}

/// A recipe file.
///
/// # Panics
/// If a promise is broken.
pub fn recipe(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match parse(text, false) {
        Ok((recipe, warnings)) => {
            warnings.iter().for_each(told);
            lossless(&recipe);
        }
        Err(error) => told(&error),
    }
}

/// Demands that a recipe, if its values can be used, reads the same after it was written: a resume compares
/// texts, and a model card is a recipe.
///
/// # Panics
/// If it does not.
pub(crate) fn lossless(recipe: &Recipe) {
    match recipe.validate() {
        Ok(warnings) => warnings.iter().for_each(told),
        Err(error) => return told(&error),
    }
    told(&recipe.describe());
    if recipe.checkpoints().any(|path| path.to_str().is_none()) {
        return;
    }
    let write = |recipe: &Recipe| recipe.to_yaml(|path| path.to_string_lossy().into_owned());
    let text = write(recipe);
    // Whatever has been read as a path is one.
    let read = parse(&text, true);
    assert!(read.is_ok(), "{:?} in\n{text}", read.as_ref().err());
    let Ok((again, _)) = read else { return };
    assert_eq!(write(&again), text);
    assert_eq!(again.checkpoints().collect::<Vec<_>>(), recipe.checkpoints().collect::<Vec<_>>());
    assert_eq!(again.donor(), recipe.donor());
    assert!(again.validate().is_ok(), "{:?}", again.validate());
    for (tensor, t) in [("model.layers.0.mlp.up_proj.weight", 0.0), ("lm_head.weight", 0.7)] {
        let values = |recipe: &Recipe| {
            let values = (recipe.values(Place::whole(tensor, t)), recipe.merge_values());
            if let Err(error) = &values.0 {
                told(error);
            }
            // As text, in which NaN equals itself.
            format!("{values:?}")
        };
        assert_eq!(values(&again), values(recipe), "{text}");
    }
}
