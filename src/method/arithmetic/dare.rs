//! DARE: task-vector elements are dropped at random, and the others made up for it.

use super::{DENSITY, Family, LAMBDA, THINNED, Thinning, WEIGHT, normalize, rescale};
use crate::method::registry::Entry;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "dare_linear",
    about: "random elements of each task vector, and their weighted sum",
    source: "arXiv 2311.03099; mergekit 0.1.5",
    random: true,
    parameters: &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale(true)],
    build: |setup| Family::boxed(setup, false, Thinning::Random { seed: setup.seed }),
    ..THINNED
};

/// The same with election of signs.
pub(crate) static TIES: Entry = Entry {
    name: "dare_ties",
    about: "random elements of each task vector, an elected sign, and the sum of those that have it",
    source: "arXiv 2311.03099; mergekit 0.1.5",
    random: true,
    parameters: &[WEIGHT, DENSITY, LAMBDA, normalize(false), rescale(true)],
    build: |setup| Family::boxed(setup, true, Thinning::Random { seed: setup.seed }),
    ..THINNED
};
