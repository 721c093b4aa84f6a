//! What was tried, and how it ended.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A candidate: what it sets otherwise than the recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Settings of the whole merge, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<(String, String)>,
    /// The lambda of each expert, or one for all; none if they are the recipe's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lambdas: Vec<f64>,
}

impl Point {
    /// One that differs in lambdas only.
    pub fn of_lambdas(lambdas: &[f64]) -> Self {
        Self { settings: Vec::new(), lambdas: lambdas.to_vec() }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings.iter().map(|(name, value)| format!("{name} {value}"));
        let lambdas: Vec<String> = self.lambdas.iter().map(ToString::to_string).collect();
        let lambdas = (!lambdas.is_empty()).then(|| format!("lambda {}", lambdas.join(", ")));
        let all: Vec<String> = settings.chain(lambdas).collect();
        f.write_str(&all.join(", "))
    }
}

/// How an evaluation ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// With a score; higher is better.
    Score(f64),
    /// Without one, for this reason.
    Failure(String),
}

impl Outcome {
    /// The score.
    pub fn score(&self) -> Option<f64> {
        match self {
            Outcome::Score(score) => Some(*score),
            Outcome::Failure(_) => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Score(score) => write!(f, "{score}"),
            Outcome::Failure(why) => write!(f, "failed: {why}"),
        }
    }
}

/// A candidate that was evaluated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// The candidate.
    pub point: Point,
    /// How its evaluation ended.
    pub outcome: Outcome,
    /// Seconds that the evaluation took.
    pub seconds: f64,
    /// Bytes of models read to make the candidate, and to find what others to come are made with.
    #[serde(default)]
    pub read: u64,
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.outcome, self.point)
    }
}
