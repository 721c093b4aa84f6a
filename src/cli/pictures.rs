//! `reflow report`: what a merge has seen, as a page or as JSON.

use std::path::PathBuf;

use serde_json::json;

use super::args::Report;
use super::{Outcome, output};
use crate::report::{self, Figures};

/// Reads the statistics of an output, and writes what they tell.
pub(super) fn run(args: &Report) -> Outcome {
    let figures = Figures::read(&args.dir)?;
    if args.json {
        return output::data(&format!("{:#}\n", json!(figures)));
    }
    let page = figures.page();
    match &args.out {
        Some(out) if out.as_os_str() == "-" => output::data(&page),
        Some(out) => {
            report::write(&page, out)?;
            output::data(&format!("{}\n", out.display()))
        }
        None => {
            let out = beside(args);
            report::write(&page, &out)?;
            output::data(&format!("{}\n", out.display()))
        }
    }
}

/// `DIR.report.html`: what lies in an output stays as it was written.
fn beside(args: &Report) -> PathBuf {
    let mut name = args.dir.components().as_path().as_os_str().to_owned();
    // A directory such as `.` has no name that a file could lie beside.
    if args.dir.file_name().is_none() {
        return PathBuf::from("report.html");
    }
    name.push(".report.html");
    PathBuf::from(name)
}
