//! The registry: methods by name, their options, and how to build them.

use std::ops::RangeInclusive;

use super::{Recipe, RecipeError, Words};
use crate::kernel::Kernels;
use crate::method;
use crate::method::pcb::{Pcb, Variant};

/// A method with its options.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Parameter Competition Balancing.
    Pcb(PcbOptions),
}

/// Options of PCB.
#[derive(Clone, Debug, PartialEq)]
pub struct PcbOptions {
    /// Which published definition.
    pub variant: Variant,
    /// Fraction of elements kept of each expert, between 0 and 1.
    pub keep: f64,
}

impl Words for Variant {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("a", Variant::A),
        ("b", Variant::B),
        ("c", Variant::C),
        ("d", Variant::D),
        ("paper", Variant::Paper),
    ];
}

impl Default for Method {
    fn default() -> Self {
        Method::Pcb(PcbOptions { variant: Variant::A, keep: 0.1 })
    }
}

/// Above this fraction the advantage that the authors report is gone.
const LARGE_KEEP: f64 = 0.4;

impl Method {
    /// The name on the command line and in recipes.
    pub fn name(&self) -> &'static str {
        match self {
            Method::Pcb(_) => "pcb",
        }
    }

    /// The fraction of elements kept, for methods that drop some.
    pub fn keep(&self) -> Option<f64> {
        match self {
            Method::Pcb(options) => Some(options.keep),
        }
    }

    /// Builds the method for the experts of a recipe.
    pub fn build(&self, recipe: &Recipe, kernels: &'static Kernels) -> Box<dyn method::Method> {
        let lambdas = recipe.experts.iter().map(|expert| expert.lambda as f32).collect();
        match self {
            Method::Pcb(o) => Box::new(Pcb::new(o.variant, o.keep, lambdas, kernels)),
        }
    }

    /// The lambdas that are common for the method.
    pub(super) fn usual_lambda(&self) -> RangeInclusive<f64> {
        match self {
            Method::Pcb(_) => 0.5..=3.0,
        }
    }

    /// Checks the options; returns what looks suspicious.
    pub(super) fn validate(&self) -> Result<Vec<String>, RecipeError> {
        let Method::Pcb(options) = self;
        let keep = options.keep;
        if !(keep > 0.0 && keep < 1.0) {
            return Err(RecipeError::Value {
                key: "keep".to_owned(),
                reason: format!("{keep} is not a fraction between 0 and 1; 0.1 keeps 10 %"),
            });
        }
        if keep > LARGE_KEEP {
            return Ok(vec![format!(
                "keep {keep} is large for pcb: above {LARGE_KEEP} its advantage is gone, and \
                 elements that oppose the other experts are kept"
            )]);
        }
        Ok(Vec::new())
    }
}
