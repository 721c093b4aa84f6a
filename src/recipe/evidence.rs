//! What a method must be told about each model beside its weights: a file or directory for each.

use std::path::PathBuf;

use super::{Recipe, RecipeError};
use crate::method::registry::{ENTRIES, Entry, Evidence};

impl Recipe {
    /// Takes what is given for the keys of [`Evidence`] (all of them, in any order), and refuses what the method does not
    /// use.
    ///
    /// # Errors
    /// [`RecipeError::Value`] with the key.
    pub fn take_evidence(
        &mut self,
        given: impl IntoIterator<Item = (&'static str, Vec<PathBuf>)>,
    ) -> Result<(), RecipeError> {
        let wanted = self.method.evidence.map(Evidence::key);
        for (key, paths) in given.into_iter().filter(|(_, paths)| !paths.is_empty()) {
            if Some(key) != wanted {
                let users: Vec<&str> = (ENTRIES.iter())
                    .filter(|entry| entry.evidence.map(Evidence::key) == Some(key))
                    .map(|entry| entry.name)
                    .collect();
                let reason =
                    format!("{} does not use it; it is for {}", self.method.name, users.join(", "));
                return Err(RecipeError::Value { key: key.to_owned(), reason });
            }
            self.evidence = paths;
        }
        Ok(())
    }

    /// Demands something for each model, and whole models that are merged as they are numbered.
    pub(super) fn check_evidence(&self) -> Result<(), RecipeError> {
        let Entry { name, evidence: Some(evidence), .. } = self.method else { return Ok(()) };
        let key = evidence.key();
        let refuse = |reason| Err(RecipeError::Value { key: key.to_owned(), reason });
        let (given, models) = (self.evidence.len(), self.models.len());
        if given != models {
            return refuse(format!(
                "{name} needs one file or directory for each model, in their order ({}); {given} given for {models} models",
                evidence.about()
            ));
        }
        if !self.slices.is_empty() {
            return refuse(format!("{name} merges whole models, not slices or modules"));
        }
        if self.tokenizer.is_some() {
            return refuse(format!(
                "{name} merges rows as they are numbered; leave the tokenizer out"
            ));
        }
        Ok(())
    }
}
