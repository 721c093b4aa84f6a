//! What scans have found about merges to come, kept by a search: findings of units, by name.
//!
//! ```text
//! work/findings-KEY   {"blake3":..,"findings":{"of":..,"units":{NAME:[BYTE,..],..}}}
//! ```
//! Whatever is not as it was written, or of other inputs or settings, does not count: it is found once more.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::reading::read_file;
use super::{Job, absolute};
use crate::engine::sink::{Storage, durable};
use crate::error::Error;
use crate::method::Knowing;
use crate::recipe::{OutputDtype, Recipe, SHARD_SIZE, Words};

/// Far above that of a model with 100,000 units and 64 experts.
const LARGEST: u64 = 1 << 30;
/// What maps alone look at.
const LAMBDA: &str = "lambda";

/// Findings of units of one merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Findings {
    /// A hash of the merge's inputs and of those of its settings that findings depend on.
    of: String,
    /// Findings by unit; none where a method has met an error, which is told when the merge is made.
    units: BTreeMap<String, Option<Vec<u8>>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Checked {
    blake3: String,
    findings: Findings,
}

impl Findings {
    /// Nothing yet, of a merge by its [key](Job::findings_key).
    pub(super) fn new(of: String) -> Self {
        Self { of, units: BTreeMap::new() }
    }

    /// Reads a file; `None` if there is none, or it is not as it was written, or speaks of a merge with another key.
    pub fn load(path: &Path, of: &str) -> Option<Self> {
        let text = read_file(path, LARGEST).ok()??;
        let Checked { blake3, findings } = serde_json::from_slice(&text).ok()?;
        (findings.hash() == blake3 && findings.of == of).then_some(findings)
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn save(&self, storage: &dyn Storage, path: &Path) -> Result<(), Error> {
        let checked = Checked { blake3: self.hash(), findings: self.clone() };
        // Numbers, strings and lists: nothing that could fail.
        let text = serde_json::to_vec(&checked).unwrap_or_default();
        Ok(durable::write_atomic(storage, path, &text)?)
    }

    /// Whether all these units were looked at.
    pub fn are_of<'a>(&self, units: impl IntoIterator<Item = &'a String>) -> bool {
        units.into_iter().all(|unit| self.units.contains_key(unit))
    }

    pub(super) fn put(&mut self, unit: &str, findings: Option<Vec<u8>>) {
        self.units.insert(unit.to_owned(), findings);
    }

    fn hash(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }
}

impl Job {
    /// A hash of the inputs, and of everything in a recipe for them that findings depend on: all but lambdas, and what
    /// is made of merged values.
    pub fn findings_key(&self, recipe: &Recipe) -> String {
        let mut recipe = recipe.clone();
        recipe.dtype = OutputDtype::default();
        recipe.shard_size = SHARD_SIZE;
        recipe.chat_template = None;
        recipe.copy_code = false;
        recipe.parameters.remove(LAMBDA);
        for model in &mut recipe.models {
            model.parameters.remove(LAMBDA);
        }
        let recipe = recipe.to_yaml(|path| absolute(path).display().to_string());
        let inputs = self.input_identities();
        let version = env!("CARGO_PKG_VERSION");
        let said = (version, self.settings.strategy.word(), recipe, inputs);
        let text = serde_json::to_vec(&said).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// The same merge, which maps at once the units whose findings are known: to the same bytes. It does not go on with
    /// what was begun without them, or with others.
    #[must_use]
    pub fn knowing(self, findings: &Findings) -> Self {
        if !self.method.has_findings() || findings.of != self.findings_key(&self.recipe) {
            return self;
        }
        let known = findings.units.iter();
        let known = known.filter_map(|(unit, found)| Some((unit.clone(), found.clone()?)));
        let (known, hash) = (known.collect(), Some(findings.hash()));
        let Self { method, .. } = self;
        Self { method: Box::new(Knowing::new(method, known)), findings: hash, ..self }
    }
}
