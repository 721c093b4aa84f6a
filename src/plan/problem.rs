//! What can be wrong between checkpoints, gathered so that one run shows all of it.

use super::PlanError;

/// One thing that keeps the checkpoints from being merged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An expert lacks a tensor of the base.
    #[error("{expert} lacks {tensor}")]
    Missing {
        /// Display name of the expert.
        expert: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// An expert has a tensor that the base lacks.
    #[error("{expert} has {tensor}, which the base lacks")]
    Extra {
        /// Display name of the expert.
        expert: String,
        /// Name of the tensor.
        tensor: String,
    },
    /// The rows of a tensor cannot follow their tokens.
    #[error("{tensor} of {expert} cannot follow the tokenizer: {text}")]
    Token {
        /// Name of the tensor.
        tensor: String,
        /// Display name of the expert.
        expert: String,
        /// Why not.
        text: String,
    },
    /// What was measured of a model is not what the method needs.
    #[error("{file}: {text}")]
    Evidence {
        /// Display name of the file.
        file: String,
        /// What is wrong with it.
        text: String,
    },
    /// Shapes differ.
    #[error("{tensor} is {other:?} in {expert} and {base:?} in the base")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Its shape in the base.
        base: Vec<u64>,
        /// Display name of the expert.
        expert: String,
        /// Its shape there.
        other: Vec<u64>,
        /// Whether only the number of vocabulary rows differs.
        vocabulary: bool,
    },
    /// A tensor that can only be copied differs in type or shape, or is a float on one side only.
    #[error(
        "{tensor} is {dtype} in the base and {other} in {expert}: such tensors cannot be averaged"
    )]
    NotMergeable {
        /// Name of the tensor.
        tensor: String,
        /// Its type in the base.
        dtype: String,
        /// Display name of the expert.
        expert: String,
        /// Its type and shape there.
        other: String,
    },
}

/// A list of problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// An error if there is any.
    ///
    /// # Errors
    /// [`PlanError::Inconsistent`].
    pub fn into_result(self) -> Result<(), PlanError> {
        if self.0.is_empty() { Ok(()) } else { Err(PlanError::Inconsistent(self)) }
    }

    /// What to do about the problems, as one sentence each.
    pub fn hints(&self) -> Vec<&'static str> {
        let mut hints = Vec::new();
        let has = |test: fn(&Problem) -> bool| self.0.iter().any(test);
        if has(|p| matches!(p, Problem::Shape { vocabulary: true, .. })) {
            hints.push("--vocab common merges the vocabulary rows all models have");
        }
        if has(|p| matches!(p, Problem::Missing { .. } | Problem::Extra { .. })) {
            hints.push(
                "--missing base treats missing tensors as unchanged and leaves out extra ones",
            );
        }
        if has(|p| matches!(p, Problem::Shape { .. } | Problem::NotMergeable { .. })) {
            hints.push("--exclude GLOB takes matching tensors from the base");
        }
        hints
    }
}

impl std::fmt::Display for Problems {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 12;
        let count = self.0.len();
        write!(f, "the checkpoints do not fit together ({count} {}):", plural(count))?;
        for problem in self.0.iter().take(SHOWN) {
            write!(f, "\n  {problem}")?;
        }
        if count > SHOWN {
            write!(f, "\n  and {} more", count - SHOWN)?;
        }
        Ok(())
    }
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "problem" } else { "problems" }
}
