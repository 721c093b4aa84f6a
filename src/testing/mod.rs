//! Helpers for unit tests.

pub(crate) mod golden;
