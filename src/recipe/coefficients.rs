//! A file of coefficients: numbers of each model, tensor by tensor, in place of one parameter.
//!
//! What a file says is matched with the tensors that are merged before anything is read: names that are nowhere,
//! tensors without numbers, and rows of another length are errors.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use globset::{Glob, GlobMatcher};

use super::{Recipe, RecipeError, suggestion};
use crate::checkpoint::{Coefficients as Content, parse_order};
use crate::method::registry::Preset;
use crate::patience::patiently;

/// Far above that of any model.
const MAX_BYTES: u64 = 64 << 20;
/// Names that are listed in a message, at most.
const LISTED: usize = 5;
/// The pattern of all other tensors, wherever it stands.
const OTHERS: &str = "*";

/// A file of coefficients.
#[derive(Clone, Debug, PartialEq)]
pub struct Coefficients {
    /// The file.
    pub path: PathBuf,
    /// The file that names the rows of one in positional form.
    pub order: Option<PathBuf>,
    /// Tensor names or patterns, each with a number for each model; empty before it is read.
    rows: Vec<(String, Vec<f64>)>,
}

impl Coefficients {
    /// A file that is not read yet.
    pub fn at(path: PathBuf, order: Option<PathBuf>) -> Self {
        Self { path, order, rows: Vec::new() }
    }

    /// Reads the file, for so many models.
    ///
    /// # Errors
    /// [`RecipeError::Value`] with what is wrong in it.
    pub fn read(self, models: usize) -> Result<Self, RecipeError> {
        let content =
            Content::parse(&bytes(&self.path)?).map_err(|why| refuse(&self.path, &why))?;
        let rows = match (content, &self.order) {
            (Content::Named(rows), None) => rows,
            (Content::Named(_), Some(order)) => {
                let why = "it names its tensors itself; leave the order file out";
                return Err(refuse(&self.path, &format!("{why}: {}", order.display())));
            }
            (Content::Rows(rows), Some(order)) => {
                let names = parse_order(&bytes(order)?).map_err(|why| refuse(order, &why))?;
                if names.len() != rows.len() {
                    let (named, rows) = (names.len(), rows.len());
                    let why = format!(
                        "it names {named} tensors for {rows} rows of {}",
                        self.path.display()
                    );
                    return Err(refuse(order, &why));
                }
                names.into_iter().zip(rows).collect()
            }
            (Content::Rows(rows), None) if rows.len() == 1 => {
                rows.into_iter().map(|row| (OTHERS.to_owned(), row)).collect()
            }
            (Content::Rows(rows), None) => {
                let why = "they need a file that names a tensor for each, in the order of training; give it by \
                           coefficients_order (--coefficients-order)";
                return Err(refuse(
                    &self.path,
                    &format!("it has {} rows without names; {why}", rows.len()),
                ));
            }
        };
        let rows = rows.into_iter().map(|(name, row)| {
            let row = sized(&name, row, models).map_err(|why| refuse(&self.path, &why))?;
            Ok((name, row))
        });
        Ok(Self { rows: rows.collect::<Result<_, RecipeError>>()?, ..self })
    }

    /// The content in one form, whatever the file's.
    pub fn to_json(&self) -> String {
        let line = |(name, row): &(String, Vec<f64>)| {
            // Strings and finite numbers: nothing that could fail.
            let name = serde_json::to_string(name).unwrap_or_default();
            format!("  {name}: {}", serde_json::to_string(row).unwrap_or_default())
        };
        let lines: Vec<String> = self.rows.iter().map(line).collect();
        format!("{{\n{}\n}}\n", lines.join(",\n"))
    }

    /// A hash of what it says.
    pub fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex().to_string()
    }

    /// Bytes that it takes in memory, about.
    pub fn bytes(&self) -> u64 {
        self.rows.iter().map(|(name, row)| (2 * name.len() + 8 * row.len() + 96) as u64).sum()
    }
}

/// The bytes of a regular file.
fn bytes(path: &Path) -> Result<Vec<u8>, RecipeError> {
    let failed = |error: std::io::Error| refuse(path, &error.to_string());
    let meta = patiently(|| std::fs::metadata(path)).map_err(failed)?;
    if !meta.is_file() {
        return Err(refuse(path, "it is not a regular file"));
    }
    if meta.len() > MAX_BYTES {
        return Err(refuse(
            path,
            &format!("{} bytes are too many for numbers per tensor", meta.len()),
        ));
    }
    let (mut file, mut bytes) =
        (patiently(|| std::fs::File::open(path)).map_err(failed)?, Vec::new());
    let _read = (&mut file).take(MAX_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn refuse(path: &Path, why: &str) -> RecipeError {
    let reason = format!("{}: {why}", path.display());
    RecipeError::Value { key: "coefficients".to_owned(), reason }
}

/// A row for so many models; the authors' rows begin with the base's coefficient, which is 1.
fn sized(name: &str, row: Vec<f64>, models: usize) -> Result<Vec<f64>, String> {
    let (found, place) = (row.len(), if name == OTHERS { "all tensors" } else { name });
    match row[..] {
        _ if found == models => Ok(row),
        [first, ..] if found == models + 1 && first == 1.0 => Ok(row[1..].to_vec()),
        [first, ..] if found == models + 1 => Err(format!(
            "{place}: of {found} numbers the first is the base's coefficient, which must be 1 and is {first}; \
             give {models}, one for each expert"
        )),
        _ => Err(format!(
            "{place}: {found} numbers for {models} experts; give one for each, in the recipe's order"
        )),
    }
}

/// Which row is whose.
#[derive(Debug, Default)]
pub struct Matched<'a> {
    rows: HashMap<&'a str, &'a [f64]>,
    /// What looks suspicious.
    pub warnings: Vec<String>,
}

impl<'a> Matched<'a> {
    /// The numbers for a tensor.
    pub fn get(&self, tensor: &str) -> Option<&'a [f64]> {
        self.rows.get(tensor).copied()
    }
}

impl Recipe {
    /// Matches the coefficients with the tensors that are merged; `known` tells whether any input has a tensor of
    /// that name.
    ///
    /// # Errors
    /// [`RecipeError::Value`] with the names that do not fit.
    pub fn coefficients_of<'a>(
        &'a self,
        merged: &[&'a str],
        known: impl Fn(&str) -> bool,
    ) -> Result<Matched<'a>, RecipeError> {
        let Some(given) = &self.coefficients else { return Ok(Matched::default()) };
        let exact: HashMap<&str, &[f64]> =
            given.rows.iter().map(|(name, row)| (name.as_str(), row.as_slice())).collect();
        let is_merged: HashSet<&str> = merged.iter().copied().collect();
        let patterns = given.patterns(&is_merged)?;
        let others = exact.get(OTHERS).copied();
        let (mut matched, mut used) = (Matched::default(), vec![false; patterns.len()]);
        let (mut seen, mut missing) = (vec![false; patterns.len()], Vec::new());
        for &tensor in merged {
            let mut found = exact.get(tensor).copied();
            for (k, (matcher, row)) in patterns.iter().enumerate() {
                if matcher.is_match(tensor) {
                    seen[k] = true;
                    used[k] |= found.is_none();
                    found = found.or(Some(row));
                }
            }
            match found.or(others) {
                Some(row) => {
                    let _new = matched.rows.insert(tensor, row);
                }
                None => missing.push(tensor),
            }
        }
        let (idle, hidden) = given.idle(&is_merged, (&patterns, &seen, &used), known)?;
        matched.warnings.extend(hidden);
        matched.warnings.extend(idle);
        if !missing.is_empty() && !self.has_common_coefficient() {
            let why = format!(
                "no numbers for {}; add them, or \"*\" for all other tensors{}",
                listed(&missing, "tensor that is merged", "tensors that are merged"),
                self.method
                    .per_expert
                    .map_or_else(String::new, |name| format!(", or {name} for each expert")),
            );
            return Err(refuse(&given.path, &why));
        }
        Ok(matched)
    }

    /// Whether tensors that the file does not name have a value all the same.
    fn has_common_coefficient(&self) -> bool {
        let Some(name) = self.method.per_expert else { return false };
        let preset = self.method.parameter(name).map(|parameter| parameter.preset);
        preset != Some(Preset::Required)
            || self.parameters.get(name).is_some()
            || self.models.iter().all(|model| model.parameters.get(name).is_some())
    }

    /// Demands that the method has a parameter that coefficients stand for.
    pub(super) fn check_coefficients(&self) -> Result<(), RecipeError> {
        match (&self.coefficients, self.method.per_expert) {
            (Some(given), None) => {
                let why = format!("{} has no number for each expert", self.method.name);
                Err(refuse(&given.path, &why))
            }
            _ => Ok(()),
        }
    }
}

type Patterns<'a> = [(GlobMatcher, &'a [f64])];

impl Coefficients {
    /// The entries that are no names of tensors that are merged, as patterns.
    fn patterns(&self, merged: &HashSet<&str>) -> Result<Vec<(GlobMatcher, &[f64])>, RecipeError> {
        let patterns = self.rows.iter().filter(|(name, _)| is_pattern(name, merged));
        let compiled = patterns.map(|(name, row)| match Glob::new(name) {
            Ok(glob) => Ok((glob.compile_matcher(), row.as_slice())),
            Err(error) => Err(refuse(&self.path, &format!("{name:?}: {}", error.kind()))),
        });
        compiled.collect()
    }

    /// Entries that decide about nothing: those of tensors that are not merged, and patterns behind others.
    ///
    /// # Errors
    /// If a name or pattern fits no tensor of any input.
    fn idle(
        &self,
        merged: &HashSet<&str>,
        (patterns, seen, used): (&Patterns<'_>, &[bool], &[bool]),
        known: impl Fn(&str) -> bool,
    ) -> Result<(Option<String>, Vec<String>), RecipeError> {
        let (mut unknown, mut idle): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        for (name, _) in &self.rows {
            let is_name = name != OTHERS && !is_pattern(name, merged);
            if is_name && !merged.contains(name.as_str()) {
                if known(name) { &mut idle } else { &mut unknown }.push(name);
            }
        }
        let mut hidden = Vec::new();
        for (((matcher, _), &seen), &used) in patterns.iter().zip(seen).zip(used) {
            let pattern = matcher.glob().glob();
            if !seen {
                unknown.push(pattern);
            } else if !used {
                hidden.push(format!(
                    "coefficients: {pattern:?} is never used, since entries before it and exact names match all its \
                     tensors"
                ));
            }
        }
        if let Some(first) = unknown.first() {
            let meant = suggestion(first, merged.iter().copied());
            let meant = meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"));
            let listed = listed(&unknown, "name that fits no tensor", "names that fit no tensor");
            return Err(refuse(&self.path, &format!("{listed}{meant}")));
        }
        let idle = (!idle.is_empty()).then(|| {
            let listed = listed(&idle, "tensor that is not merged", "tensors that are not merged");
            format!("coefficients: {listed} keep the base's values")
        });
        Ok((idle, hidden))
    }
}

fn is_pattern(name: &str, merged: &HashSet<&str>) -> bool {
    name != OTHERS && name.contains(['*', '?', '[', '{']) && !merged.contains(name)
}

/// A number of names with the first few of them.
fn listed(names: &[&str], one: &str, many: &str) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
    let what = if names.len() == 1 { one } else { many };
    let more = if names.len() > LISTED { ", .." } else { "" };
    format!("{} {what} ({}{more})", names.len(), shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::Model;
    use super::*;

    const MERGED: [&str; 4] = ["embed", "layers.0.mlp", "layers.0.norm", "layers.1.mlp"];

    fn read(text: &str, order: Option<&str>, models: usize) -> Result<Coefficients, String> {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let path = place("c.json", text);
        let order = order.map(|text| place("order.txt", text));
        Coefficients::at(path, order).read(models).map_err(|error| error.to_string())
    }

    fn recipe(coefficients: Coefficients, common: Option<f64>) -> Recipe {
        let method = Recipe::method("adamerging", None).unwrap();
        let mut recipe =
            Recipe::new(method, Some("b".into()), vec![Model::new("x"), Model::new("y")]);
        recipe.coefficients = Some(coefficients);
        if let Some(common) = common {
            recipe.parameters.set("lambda", super::super::Setting::number(common));
        }
        recipe
    }

    fn found(text: &str, common: Option<f64>) -> Result<Vec<Option<f64>>, String> {
        let recipe = recipe(read(text, None, 2)?, common);
        let matched = recipe.coefficients_of(&MERGED, |name| name == "head");
        let matched = matched.map_err(|error| error.to_string())?;
        Ok(MERGED.iter().map(|name| matched.get(name).map(|row| row[0])).collect())
    }

    #[test]
    fn names_win_over_patterns_and_the_star_is_for_all_others() {
        let text = r#"{"*": [9, 0], "layers.*": [2, 0], "*mlp": [3, 0], "layers.1.mlp": [4, 0]}"#;
        assert_eq!(found(text, None).unwrap(), [9.0, 2.0, 2.0, 4.0].map(Some));
        assert_eq!(
            found(r#"{"*mlp": [3, 0]}"#, Some(0.3)).unwrap(),
            [None, Some(3.0), None, Some(3.0)]
        );
        assert_eq!(found("[7, 8]", None).unwrap(), [Some(7.0); 4]);
        // The authors' row begins with the base's coefficient.
        assert_eq!(found("[[1, 7, 8]]", None).unwrap(), [Some(7.0); 4]);
    }

    #[test]
    fn what_does_not_fit_is_named_with_the_fix() {
        for (text, parts) in [
            (
                r#"{"embed": [1, 2]}"#,
                ["3 tensors that are merged (\"layers.0.mlp\"", "\"*\" for all other"],
            ),
            (
                r#"{"*": [1, 2], "embd": [1, 2]}"#,
                ["1 name that fits no tensor (\"embd\")", "did you mean embed?"],
            ),
            (r#"{"*": [1, 2], "*.bias": [1, 2]}"#, ["fits no tensor", "\"*.bias\""]),
            (r#"{"*": [1, 2, 3]}"#, ["all tensors: of 3 numbers the first is the base's", "is 1"]),
            (r#"{"embed": [1, 2, 3, 4]}"#, ["embed: 4 numbers for 2 experts", "one for each"]),
            (r#"{"*": [1, 2], "a[": [1, 2]}"#, ["\"a[\"", "unclosed"]),
            ("[[1, 2, 3], [1, 2, 3]]", ["2 rows without names", "--coefficients-order"]),
        ] {
            // A first number of 1 is the base's.
            let text = text.replace("[1, 2, 3]}", "[1.5, 2, 3]}");
            let error = found(&text, None).unwrap_err();
            let parts = parts.map(|part| part.replace("is 1", "is 1.5"));
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
        let order = |names: &str| read("[[1, 2, 3], [1, 4, 5]]", Some(names), 2);
        assert!(order("a\nb\nc").unwrap_err().contains("names 3 tensors for 2 rows"));
        let by_name = read(r#"{"a": [1, 2]}"#, Some("a"), 2).unwrap_err();
        assert!(by_name.contains("leave the order file out"), "{by_name}");
        assert_eq!(
            order("a\nb").unwrap().to_json(),
            "{\n  \"a\": [2.0,3.0],\n  \"b\": [4.0,5.0]\n}\n"
        );
    }

    #[test]
    fn entries_that_decide_nothing_are_told() {
        let text = r#"{"*": [1, 2], "head": [1, 2], "layers.*": [1, 2], "*.0.norm": [1, 2]}"#;
        let recipe = recipe(read(text, None, 2).unwrap(), None);
        let warnings = recipe.coefficients_of(&MERGED, |name| name == "head").unwrap().warnings;
        assert_eq!(warnings.len(), 2);
        assert!(warnings[0].contains("\"*.0.norm\" is never used"), "{warnings:?}");
        assert!(warnings[1].contains("1 tensor that is not merged (\"head\")"), "{warnings:?}");
    }
}
