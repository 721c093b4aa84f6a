//! `reflow diff`: how two models differ, as text and as JSON.

use std::fmt::Write as _;

use serde_json::json;

use super::args::Diff;
use super::commands::prepare_signals;
use super::progress::Display;
use super::{Outcome, output};
use crate::checkpoint::OpenOptions;
use crate::diff::{self, DiffReport, Form, Group, Numbers, Row};
use crate::human::{bytes, count};
use crate::recipe::Settings;

/// Compares, and prints what there is to tell.
pub(super) fn run(args: &Diff, display: &dyn Display) -> Outcome {
    // There is nothing to lose: a signal ends the program at once.
    let signals = prepare_signals()?;
    let settings = Settings {
        memory: args.memory,
        threads: args.threads.map(usize::from),
        io: args.io,
        tile: args.tile.map(|tile| tile as usize),
        ..Settings::default()
    };
    let options = OpenOptions { lenient: args.lenient, unknown_types: true };
    let report = diff::diff(
        [&args.a, &args.b],
        args.base.as_deref(),
        options,
        &settings,
        display,
        &signals.cancel,
    );
    display.finish();
    let report = report?;
    output::data(&if args.json {
        format!("{:#}\n", json!(report))
    } else {
        render(&report, args.top)
    })
}

/// Renders a comparison for a terminal; `top` tensors are listed.
fn render(report: &DiffReport, top: usize) -> String {
    let mut text = format!("A: {}\nB: {}\n", report.a, report.b);
    if let Some(base) = &report.base {
        let _infallible = writeln!(text, "C: {base}");
    }
    let _infallible = writeln!(text, "{} read", bytes(report.read));
    let based = report.base.is_some();
    let all = &report.total;
    let _infallible = writeln!(
        text,
        "{} tensors in both, {} of them equal byte for byte; {} parameters, {} of them equal",
        all.tensors,
        all.equal_tensors,
        count(all.numbers.elements),
        count(all.numbers.equal_elements),
    );
    if all.numbers.nonfinite > 0 {
        let bad = count(all.numbers.nonfinite);
        let _infallible =
            writeln!(text, "{bad} elements are NaN or infinite somewhere and count nowhere");
    }
    let group = |group: &Group| -> (String, String, Numbers) {
        let note = format!("{} of {} equal", group.equal_tensors, group.tensors);
        (group.name.clone(), note, group.numbers.clone())
    };
    table(&mut text, "all", based, std::iter::once(all).map(group));
    table(&mut text, "layer", based, report.layers.iter().map(group));
    table(&mut text, "kind", based, report.kinds.iter().map(group));
    table(&mut text, "tensor", based, report.tensors.iter().take(top).map(tensor));
    more(&mut text, report.tensors.len(), top);
    lists(&mut text, report, top);
    output::printable(&text)
}

fn tensor(row: &Row) -> (String, String, Numbers) {
    let mut notes = Vec::new();
    if row.dtype_a != row.dtype_b {
        notes.push(format!("{} and {}", row.dtype_a, row.dtype_b));
    }
    if row.equal_bytes {
        notes.push("equal".to_owned());
    }
    if row.numbers.nonfinite > 0 {
        notes.push(format!("{} not finite", count(row.numbers.nonfinite)));
    }
    (row.name.clone(), notes.join(", "), row.numbers.clone())
}

/// A table, its columns as wide as they need to be. Nothing if there are no rows.
fn table(
    text: &mut String,
    title: &str,
    based: bool,
    rows: impl Iterator<Item = (String, String, Numbers)>,
) {
    let mut head = vec![title, "|A-B|/|A|", "|A-B|", "|A|", "|B|", "cos(A,B)", "max|A-B|"];
    if based {
        head.extend(["|A-C|/|C|", "|B-C|/|C|", "cos(A-C,B-C)", "conflict", "A=C", "B=C"]);
    }
    head.push("");
    let mut lines: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for (name, note, numbers) in rows {
        let mut line = vec![name];
        line.extend(columns(&numbers, based));
        line.push(note);
        lines.push(line);
    }
    if lines.len() == 1 {
        return;
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|k| lines.iter().map(|line| line[k].chars().count()).max().unwrap_or(0))
        .collect();
    text.push('\n');
    for line in lines {
        let last = line.len() - 1;
        let mut row = format!("{:width$}", line[0], width = widths[0]);
        for (cell, width) in line[1..last].iter().zip(&widths[1..last]) {
            let _infallible = write!(row, "  {cell:>width$}");
        }
        let _infallible = write!(row, "  {}", line[last]);
        text.push_str(row.trim_end());
        text.push('\n');
    }
}

fn columns(numbers: &Numbers, based: bool) -> Vec<String> {
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), number);
    let cosine = |c: Option<f64>| c.map_or_else(|| "-".to_owned(), |c| format!("{c:.6}"));
    let mut cells = vec![
        ratio(numbers.relative),
        number(numbers.distance),
        number(numbers.norm_a),
        number(numbers.norm_b),
        cosine(numbers.cosine),
        number(numbers.max_difference.into()),
    ];
    match &numbers.task {
        Some(task) => {
            let share =
                |part: u64| format!("{:.1} %", 100.0 * part as f64 / task.elements.max(1) as f64);
            cells.extend([
                ratio(task.relative_a),
                ratio(task.relative_b),
                cosine(task.cosine),
                share(task.conflicts),
                share(task.zeros_a),
                share(task.zeros_b),
            ]);
        }
        None if based => cells.extend(std::iter::repeat_n("-".to_owned(), 6)),
        None => {}
    }
    cells
}

/// Four digits; with an exponent where many zeros would come first or last.
fn number(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        0.001..10.0 => format!("{x:.5}"),
        10.0..100_000.0 => format!("{x:.2}"),
        _ => format!("{x:.3e}"),
    }
}

fn more(text: &mut String, all: usize, top: usize) {
    if all > top {
        let _infallible = writeln!(text, ".. and {} more", all - top);
    }
}

/// What was not compared as numbers.
fn lists(text: &mut String, report: &DiffReport, top: usize) {
    let mut list = |title: &str, lines: Vec<String>| {
        if lines.is_empty() {
            return;
        }
        let _infallible = writeln!(text, "\n{title}: {}", lines.len());
        for line in lines.iter().take(top) {
            let _infallible = writeln!(text, "  {line}");
        }
        more(text, lines.len(), top);
    };
    let form = |form: &Form| format!("{}  {} {:?}", form.name, form.dtype, form.shape);
    let forms = |forms: &[Form]| forms.iter().map(form).collect::<Vec<String>>();
    list("only in A", forms(&report.only_a));
    list("only in B", forms(&report.only_b));
    let unlike = report.unlike.iter().map(|it| {
        let (a, b) = (&it.a, &it.b);
        format!("{}  {} {:?} and {} {:?}", a.name, a.dtype, a.shape, b.dtype, b.shape)
    });
    list("of another shape or type, not compared", unlike.collect());
    let codes = report.codes.iter().map(|code| {
        let how = if code.equal_bytes { "equal" } else { "differs" };
        format!("{}  {} {how}", code.name, code.dtype)
    });
    list("no plain floats, compared byte for byte", codes.collect());
    list("not in C in this shape", report.without_base.clone());
}
