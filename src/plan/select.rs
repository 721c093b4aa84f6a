//! Which tensors take part, by `--include` and `--exclude`.

use globset::{Glob, GlobSet, GlobSetBuilder};

use super::PlanError;

/// Compiled patterns.
#[derive(Clone, Debug)]
pub struct Selection {
    include: Option<GlobSet>,
    exclude: GlobSet,
}

impl Selection {
    /// Compiles the patterns; no `include` means all.
    ///
    /// # Errors
    /// [`PlanError::Pattern`] naming the pattern.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, PlanError> {
        let include = if include.is_empty() { None } else { Some(compile(include)?) };
        Ok(Self { include, exclude: compile(exclude)? })
    }

    /// Whether a tensor of that name is merged (others are the base's).
    pub fn merges(&self, name: &str) -> bool {
        self.include.as_ref().is_none_or(|set| set.is_match(name)) && !self.exclude.is_match(name)
    }
}

fn compile(patterns: &[String]) -> Result<GlobSet, PlanError> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = Glob::new(pattern).map_err(|error| PlanError::Pattern {
            pattern: pattern.clone(),
            reason: error.kind().to_string(),
        })?;
        let _: &mut GlobSetBuilder = set.add(glob);
    }
    set.build().map_err(|error| PlanError::Pattern {
        pattern: patterns.join(" "),
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(patterns: &[&str]) -> Vec<String> {
        patterns.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn exclude_wins_over_include_and_a_star_crosses_dots() {
        let selection =
            Selection::new(&strings(&["model.*"]), &strings(&["*norm*", "*.bias"])).unwrap();
        assert!(selection.merges("model.layers.0.mlp.up_proj.weight"));
        assert!(!selection.merges("model.layers.0.input_layernorm.weight"));
        assert!(!selection.merges("lm_head.weight"));
        assert!(Selection::new(&[], &[]).unwrap().merges("anything"));
    }

    #[test]
    fn names_the_pattern_that_does_not_compile() {
        let error = Selection::new(&[], &strings(&["a[b"])).unwrap_err();
        assert!(error.to_string().contains("`a[b`"), "{error}");
    }
}
