//! The command line: arguments in, text out. The only place that prints.

mod args;
mod commands;
mod convert;
mod diff;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod inspect;
mod methods;
mod output;
mod pictures;
mod plan;
mod progress;
mod report;
mod search;
mod signals;
mod upkeep;

use std::process::ExitCode;

use clap::Parser;

use crate::error::Error;
use args::{Args, LogFormat};

/// Runs the program; returns its exit code.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // Help and version go to stdout, usage errors to stderr; a closed pipe is no news.
            let _closed = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match commands::run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = error.exit_code();
            output::failure(&error, code, args.log.format == LogFormat::Json);
            ExitCode::from(code)
        }
    }
}

/// What a command returns.
type Outcome = Result<(), Error>;
