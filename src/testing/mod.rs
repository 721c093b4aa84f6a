//! Helpers for unit tests.

pub(crate) mod golden;
pub(crate) mod parts;
