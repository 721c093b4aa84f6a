//! The registry: every method by name, with all that recipes, help and plans need to know about it.
//!
//! A new method is one file in this room and one line in [`ENTRIES`].

use std::ops::RangeInclusive;

pub use super::scope::Scope;
use super::sphere::{karcher, model_stock, multislerp, nuslerp, slerp};
use super::{
    Method, Strategy, Values, adamerging, arcee_fusion, arithmetic, emr, fisher, linear, nearswap,
    passthrough, pcb, ram, regmean, sce, ties,
};
use crate::kernel::Kernels;

/// All methods; the first of a name is its default dialect.
pub static ENTRIES: &[&Entry] = &[
    &pcb::ENTRY,
    &linear::ENTRY,
    &fisher::ENTRY,
    &regmean::ENTRY,
    &arithmetic::task_arithmetic::ENTRY,
    &arithmetic::ties::ENTRY,
    &ties::ENTRY,
    &adamerging::ENTRY,
    &adamerging::PLUS,
    &emr::ENTRY,
    &arithmetic::dare::ENTRY,
    &arithmetic::dare::TIES,
    &arithmetic::della::ENTRY,
    &arithmetic::della::LINEAR,
    &arithmetic::breadcrumbs::ENTRY,
    &arithmetic::breadcrumbs::TIES,
    &sce::ENTRY,
    &ram::ENTRY,
    &ram::PLUS,
    &slerp::ENTRY,
    &nuslerp::ENTRY,
    &multislerp::ENTRY,
    &karcher::ENTRY,
    &model_stock::ENTRY,
    &nearswap::ENTRY,
    &arcee_fusion::ENTRY,
    &passthrough::ENTRY,
];

/// What a base is to a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseUse {
    /// It must be given, and experts are seen relative to it.
    Required,
    /// Experts are seen relative to it if it is given.
    Optional,
    /// One more model among the others, if it is listed.
    Model,
}

/// What a method is told about each model beside its weights: what was measured of it on data, in a checkpoint of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Fisher information: a number that is not negative for each element, in tensors of the weights' names and shapes.
    Fisher,
    /// Gram matrices: for each layer the sum of x x^T over its inputs x, in tensors with the layer's or the weight's name.
    Gram,
}

impl Evidence {
    /// The key in recipes, and the flag without its dashes.
    pub fn key(self) -> &'static str {
        match self {
            Self::Fisher => "fisher",
            Self::Gram => "gram",
        }
    }

    /// What it is, for people.
    pub fn about(self) -> &'static str {
        match self {
            Self::Fisher => "Fisher information of each model, element by element",
            Self::Gram => "Gram matrices of each model's inputs, layer by layer",
        }
    }
}

/// How many values a parameter has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// One for the whole merge.
    Merge,
    /// One for all models, though it may differ from tensor to tensor.
    Tensor,
    /// One for each model, which may differ from tensor to tensor.
    Model,
}

/// What a parameter may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A number between two bounds, which are allowed themselves unless `open`.
    Number {
        /// Smallest value.
        least: f64,
        /// Largest value.
        most: f64,
        /// Whether the bounds themselves are excluded.
        open: bool,
    },
    /// A whole number between two bounds.
    Count {
        /// Smallest value.
        least: u32,
        /// Largest value.
        most: u32,
    },
    /// True or false.
    Flag,
    /// One of these words.
    Word(&'static [&'static str]),
}

impl Kind {
    /// Any finite number.
    pub const ANY: Self = Self::Number { least: f64::MIN, most: f64::MAX, open: false };
    /// A factor or a floor of weights: so small that sums of products with any `f32` stay finite in doubles.
    pub const FACTOR: Self = Self::Number { least: 0.0, most: 1e30, open: false };
    /// 0 to 1.
    pub const FRACTION: Self = Self::Number { least: 0.0, most: 1.0, open: false };
    /// Above 0, below 1.
    pub const OPEN_FRACTION: Self = Self::Number { least: 0.0, most: 1.0, open: true };
    /// 0 or more.
    pub const NOT_NEGATIVE: Self = Self::Number { least: 0.0, most: f64::MAX, open: false };
}

/// What a parameter is if nobody says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Preset {
    /// It must be given.
    Required,
    /// A number.
    Number(f64),
    /// True or false.
    Flag(bool),
    /// A word.
    Word(&'static str),
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parameter {
    /// Its name in recipes.
    pub name: &'static str,
    /// What it does, in a few words.
    pub about: &'static str,
    /// How many values it has.
    pub per: Per,
    /// What it may be.
    pub kind: Kind,
    /// Its default.
    pub preset: Preset,
    /// Values outside are allowed, with a warning that ends in these words.
    pub usual: Option<(RangeInclusiveF64, &'static str)>,
}

/// A closed range of numbers, in constants.
pub type RangeInclusiveF64 = (f64, f64);

impl Parameter {
    /// A parameter without a usual range.
    pub const fn new(
        name: &'static str,
        per: Per,
        kind: Kind,
        preset: Preset,
        about: &'static str,
    ) -> Self {
        Self { name, about, per, kind, preset, usual: None }
    }

    /// The same, with a range outside of which a value is suspicious, and why.
    #[must_use]
    pub const fn usually(mut self, least: f64, most: f64, why: &'static str) -> Self {
        self.usual = Some(((least, most), why));
        self
    }
}

/// What a method is built from.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The kernels of this machine.
    pub kernels: &'static Kernels,
    /// Whether there is a base.
    pub base: bool,
    /// The seed of random methods.
    pub seed: u64,
    /// How order statistics are found.
    pub strategy: Strategy,
    /// The parameters that have one value for the whole merge.
    pub values: Values,
}

/// A method, or one dialect of it.
pub struct Entry {
    /// The name on the command line and in recipes.
    pub name: &'static str,
    /// The dialect, for methods that have several.
    pub dialect: Option<&'static str>,
    /// What it does, in one line.
    pub about: &'static str,
    /// Where the definition comes from.
    pub source: &'static str,
    /// What a base is to it.
    pub base: BaseUse,
    /// How many models it takes besides the base.
    pub models: RangeInclusive<usize>,
    /// Scopes it can work in, the default first.
    pub scopes: &'static [Scope],
    /// Reads of each input byte: for units that fit in memory, and for streamed ones.
    pub reads: (u8, u8),
    /// Whether it draws random numbers.
    pub random: bool,
    /// What it must be told about each model beside its weights.
    pub evidence: Option<Evidence>,
    /// The parameter that `--expert DIR=NUMBER` sets.
    pub per_expert: Option<&'static str>,
    /// Its parameters.
    pub parameters: &'static [Parameter],
    /// Makes it.
    pub build: fn(&Setup) -> Box<dyn Method>,
}

impl Entry {
    /// The parameter of that name.
    pub fn parameter(&self, name: &str) -> Option<&'static Parameter> {
        self.parameters.iter().find(|parameter| parameter.name == name)
    }

    /// How many models it takes besides the base, in words, unless it takes `count`.
    pub fn refusal(&self, count: usize) -> Option<String> {
        let (name, least, most) = (self.name, *self.models.start(), *self.models.end());
        if self.models.contains(&count) {
            return None;
        }
        Some(match (least, most) {
            (1, usize::MAX) => "at least one is needed".to_owned(),
            (least, usize::MAX) => format!("{name} needs at least {least}"),
            (least, most) if least == most => format!("{name} takes exactly {least}"),
            (least, most) => format!("{name} takes {least} to {most}"),
        })
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.name, self.dialect) == (other.name, other.dialect)
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("name", &self.name)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

/// The method of that name, in the dialect named or its default one.
pub fn find(name: &str, dialect: Option<&str>) -> Option<&'static Entry> {
    let fits =
        |entry: &&&Entry| entry.name == name && (dialect.is_none() || entry.dialect == dialect);
    ENTRIES.iter().find(fits).copied()
}

/// All names, each once.
pub fn names() -> impl Iterator<Item = &'static str> {
    let first = |(i, entry): (usize, &&'static Entry)| {
        ENTRIES[..i].iter().all(|other| other.name != entry.name).then_some(entry.name)
    };
    ENTRIES.iter().enumerate().filter_map(first)
}
