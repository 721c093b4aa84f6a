//! DELLA: task-vector elements are dropped at random, those that are small within their row sooner.

use super::{DENSITY, Family, LAMBDA, THINNED, Thinning, WEIGHT, normalize, rescale};
use crate::method::registry::{Entry, Kind, Parameter, Per, Preset};

const EPSILON: Parameter = Parameter::new(
    "epsilon",
    Per::Model,
    Kind::Number { least: -1.0, most: 1.0, open: false },
    Preset::Number(0.15),
    "how much sooner: the smallest is kept with probability density - epsilon, the largest with density + epsilon",
);

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "della",
    about: "random elements of each task vector, larger ones rather, an elected sign, and the mean of those that have it",
    source: "arXiv 2406.11617; mergekit 0.1.5",
    random: true,
    parameters: &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(true), rescale(true)],
    build: |setup| Family::boxed(setup, true, Thinning::Ranked { seed: setup.seed }),
    ..THINNED
};

/// The same without election of signs.
pub(crate) static LINEAR: Entry = Entry {
    name: "della_linear",
    about: "random elements of each task vector, larger ones rather, and their weighted sum",
    source: "arXiv 2406.11617; mergekit 0.1.5",
    random: true,
    parameters: &[WEIGHT, DENSITY, EPSILON, LAMBDA, normalize(false), rescale(true)],
    build: |setup| Family::boxed(setup, false, Thinning::Ranked { seed: setup.seed }),
    ..THINNED
};
