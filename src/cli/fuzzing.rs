//! What must hold for all arguments.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use clap::Parser as _;

use super::args::{Args, Command};
use super::convert;
use crate::recipe::fuzzing::lossless;

/// Arguments of `reflow merge`, one a line.
///
/// # Panics
/// If a promise is broken.
pub fn flags(lines: &[u8]) {
    let fixed = ["reflow", "merge", "--out", "out"].map(OsString::from);
    let given = lines.split(|&byte| byte == b'\n').map(|line| OsString::from_vec(line.to_vec()));
    let Ok(args) = Args::try_parse_from(fixed.into_iter().chain(given)) else { return };
    let Command::Merge(merge) = args.command else { return };
    if merge.recipe.file.is_some() {
        return;
    }
    // Errors name what was typed, as it was typed.
    for stage in convert::stages(&merge.recipe, &merge.out).into_iter().flatten() {
        lossless(&stage.recipe);
    }
}
