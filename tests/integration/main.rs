//! Integration tests: the program as a user runs it.

#![allow(unreachable_pub, reason = "the modules of one test binary share freely")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failed helper is a failed test")]

mod support;
mod survey;

mod at_hand;
mod bases;
mod cli;
mod coefficients;
mod components;
mod diff;
mod emr;
mod evidence;
mod failures;
mod lora;
mod malformed;
mod matching;
mod memory;
mod methods;
mod output;
mod parity;
mod parity_random;
mod parity_slices;
mod properties;
mod recipes;
mod reference;
mod regmean;
mod report;
mod resume;
mod search;
mod slices;
mod stages;
mod statistics;
mod templates;
mod tokenizer;
