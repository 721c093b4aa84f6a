//! Model Breadcrumbs: neither the largest nor the smallest task-vector elements are kept.

use super::{DENSITY, Family, LAMBDA, THINNED, Thinning, WEIGHT, normalize, rescale};
use crate::method::registry::{Entry, Kind, Parameter, Per, Preset};

const GAMMA: Parameter = Parameter::new(
    "gamma",
    Per::Model,
    Kind::FRACTION,
    Preset::Number(0.01),
    "fraction of elements, the largest ones, that is left out",
);

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "breadcrumbs",
    about: "neither the largest nor the smallest elements of each task vector, and their weighted sum",
    source: "arXiv 2312.06795; mergekit 0.1.5",
    parameters: &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale(false)],
    build: |setup| Family::boxed(setup, false, Thinning::Middle),
    ..THINNED
};

/// The same with election of signs.
pub(crate) static TIES: Entry = Entry {
    name: "breadcrumbs_ties",
    about: "the same elements, an elected sign, and the sum of those that have it",
    source: "arXiv 2312.06795; mergekit 0.1.5",
    parameters: &[WEIGHT, DENSITY, GAMMA, LAMBDA, normalize(false), rescale(false)],
    build: |setup| Family::boxed(setup, true, Thinning::Middle),
    ..THINNED
};
