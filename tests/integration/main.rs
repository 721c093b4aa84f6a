//! Integration tests: the program as a user runs it.

mod support;

mod matching;
mod memory;
mod output;
mod properties;
