//! Files with several merges, as mergekit-multi has them: a document that has a `name` makes a model that others
//! use by that name.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::super::mergekit::{self, Document};
use super::super::{Recipe, RecipeError, hub, reference};
use super::{Around, Reader, with_coefficients};

/// One of the merges of a recipe file.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its name, by which others use its output; nothing for the file's own output.
    pub name: Option<String>,
    /// What is merged. Outputs of other stages are models like any others.
    pub recipe: Recipe,
    /// What looks suspicious in it.
    pub warnings: Vec<String>,
    /// The stages that must be done before it.
    pub needs: Vec<String>,
}

/// Reads all merges of a file, in an order in which each comes after those it needs; the file's own output is the last.
/// `dir` is where outputs of the others lie, or will.
pub(in crate::recipe) fn file(path: &Path, dir: &Path) -> Result<Vec<Stage>, RecipeError> {
    let text = super::text(path)?;
    let exists = |path: &str| Path::new(path).exists();
    let mut stages = parse(path, &text, dir, &exists)?;
    for stage in &mut stages {
        with_coefficients(&mut stage.recipe)?;
    }
    Ok(stages)
}

/// The same for a text.
pub(in crate::recipe) fn parse(
    path: &Path,
    text: &str,
    dir: &Path,
    exists: &dyn Fn(&str) -> bool,
) -> Result<Vec<Stage>, RecipeError> {
    let malformed = |reason: String| RecipeError::Malformed { path: path.to_owned(), reason };
    let documents = mergekit::parse(text, exists).map_err(|error| malformed(error.to_string()))?;
    let several = documents.len() > 1;
    let names = if several { names(&documents).map_err(malformed)? } else { BTreeSet::new() };
    let locate = |name: &str| {
        if names.contains(name) { Ok(dir.join(name)) } else { hub::locate(name) }
    };
    let around = Around { exists, locate: &locate, method: Recipe::method };
    let places: Vec<(&str, PathBuf)> = names.iter().map(|name| (*name, dir.join(name))).collect();
    let mut stages = Vec::new();
    for document in &documents {
        let mut reader = Reader { path, around: &around, several, warnings: Vec::new() };
        let recipe = reader.recipe(document)?;
        let warnings = reader.warnings;
        let needs = needs(&recipe, &places);
        let name = document.name.clone().filter(|_| several);
        stages.push(Stage { name, recipe, warnings, needs });
    }
    ordered(stages).map_err(malformed)
}

/// The names of the documents, which are those of directories, too.
fn names(documents: &[Document]) -> Result<BTreeSet<&str>, String> {
    let mut names = BTreeSet::new();
    for name in documents.iter().filter_map(|document| document.name.as_deref()) {
        let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!(
                "`name`: {name:?} is also that of a directory; use letters, digits, `-`, `_` and `.` only"
            ));
        }
        if !names.insert(name) {
            return Err(format!(
                "`name`: two merges are called {name:?}; each needs a name of its own"
            ));
        }
    }
    match documents.len() - names.len() {
        0 | 1 => Ok(names),
        unnamed => Err(format!(
            "{unnamed} merges have no `name`; only the one that makes the output needs none"
        )),
    }
}

/// The stages whose outputs a recipe uses.
fn needs(recipe: &Recipe, places: &[(&str, PathBuf)]) -> Vec<String> {
    let used = |place: &Path| {
        let models = recipe.checkpoints().chain(recipe.base.as_deref());
        let mut parts = models.map(|model| (reference::split(model), model));
        parts.any(|((model, _), whole)| model == place || whole == place)
    };
    places.iter().filter(|(_, place)| used(place)).map(|(name, _)| (*name).to_owned()).collect()
}

/// Each stage after those it needs, as near to the file's order as that allows; the output last: the stage without
/// a name, or the last one of the file.
fn ordered(mut stages: Vec<Stage>) -> Result<Vec<Stage>, String> {
    let at = stages.iter().position(|stage| stage.name.is_none()).unwrap_or(stages.len() - 1);
    let mut output = stages.remove(at);
    if let Some(name) = output.name.take() {
        let user = stages.iter().find(|stage| stage.needs.contains(&name));
        if user.is_some() || output.needs.contains(&name) {
            let user = user.and_then(|user| user.name.clone()).unwrap_or_else(|| name.clone());
            return Err(format!(
                "`name`: the last merge, {name}, makes the output, but {user} uses it; put a merge last that \
                 nothing uses"
            ));
        }
    }
    let mut done: Vec<Stage> = Vec::new();
    while !stages.is_empty() {
        let is_done = |name: &String| done.iter().any(|stage| stage.name.as_ref() == Some(name));
        let next = stages.iter().position(|stage| stage.needs.iter().all(is_done));
        let Some(next) = next else {
            let left: Vec<&str> = stages.iter().filter_map(|stage| stage.name.as_deref()).collect();
            return Err(format!(
                "`name`: of the merges {}, each needs another to be done before it",
                left.join(", ")
            ));
        };
        done.push(stages.remove(next));
    }
    done.push(output);
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stage's name and needs.
    type Told = (Option<String>, Vec<String>);

    fn read(text: &str) -> Result<Vec<Told>, String> {
        let stages = parse(Path::new("r.yml"), text, Path::new("dir"), &|_| true);
        let stages = stages.map_err(|error| error.to_string())?;
        Ok(stages.into_iter().map(|stage| (stage.name, stage.needs)).collect())
    }

    fn merge(name: &str, models: &str) -> String {
        let name = if name.is_empty() { String::new() } else { format!("name: {name}\n") };
        format!("{name}merge_method: linear\nparameters: {{weight: 1}}\nmodels: [{models}]\n---\n")
    }

    fn expected(list: &[(&str, &[&str])]) -> Vec<Told> {
        let one = |(name, needs): &(&str, &[&str])| {
            let name = Some((*name).to_owned()).filter(|name| !name.is_empty());
            (name, needs.iter().map(ToString::to_string).collect())
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn each_stage_comes_after_those_it_needs_and_the_output_last() {
        let (x, y) = ("{model: ./x}", "{model: ./y}");
        let named = |name: &str| format!("{{model: {name}}}");
        let text = merge("", &named("second"))
            + &merge("second", &format!("{}, {y}", named("first")))
            + &merge("first", x)
            + &merge("alone", y);
        let order: &[(&str, &[&str])] =
            &[("first", &[]), ("second", &["first"]), ("alone", &[]), ("", &["second"])];
        assert_eq!(read(text.trim_end_matches("---\n")), Ok(expected(order)));
        // Without a nameless one, the last makes the output.
        let text = merge("a", x) + &merge("b", "{model: {model: a, lora: ./x}}");
        let order: &[(&str, &[&str])] = &[("a", &[]), ("", &["a"])];
        assert_eq!(read(text.trim_end_matches("---\n")), Ok(expected(order)));
        assert_eq!(read(merge("a", x).trim_end_matches("---\n")), Ok(expected(&[("", &[])])));
    }

    #[test]
    fn names_that_do_not_work_out_are_refused() {
        let x = "{model: ./x}";
        for (documents, part) in [
            (vec![("a", x), ("a", x)], "two merges are called \"a\""),
            (vec![("", x), ("", x)], "2 merges have no `name`"),
            (vec![("../a", x), ("", x)], "letters, digits"),
            (vec![(".", x), ("", x)], "letters, digits"),
            (vec![("a", "{model: b}"), ("b", "{model: a}"), ("", x)], "a, b, each needs another"),
            (vec![("a", "{model: a}"), ("", x)], "each needs another"),
            (
                vec![("a", "{model: b}"), ("b", x)],
                "the last merge, b, makes the output, but a uses it",
            ),
        ] {
            let text: String = documents.iter().map(|(name, models)| merge(name, models)).collect();
            let error = read(text.trim_end_matches("---\n")).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
