//! TIES in mergekit's dialect: the largest task-vector elements, a vote of weighted elements on each sign, and the
//! mean of those that agree.

use super::{DENSITY, Family, LAMBDA, THINNED, Thinning, WEIGHT, normalize, rescale};
use crate::method::registry::Entry;

/// The line of the registry.
pub(crate) static ENTRY: Entry = Entry {
    name: "ties",
    dialect: Some("mergekit"),
    about: "the largest elements of each task vector, an elected sign, and the mean of those that have it",
    source: "arXiv 2306.01708; mergekit 0.1.5",
    parameters: &[WEIGHT, DENSITY, LAMBDA, normalize(true), rescale(false)],
    build: |setup| Family::boxed(setup, true, Thinning::Largest),
    ..THINNED
};
