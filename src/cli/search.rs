//! The search: what was typed, and the table of what was found.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::json;

use super::args::Search;
use super::commands::{prepare_signals, warn};
use super::progress::Display;
use super::{Outcome, convert, output};
use crate::recipe::{Recipe, RecipeError};
use crate::search::{self, Found, Request, Way};

/// Rows of the table, at most.
const ROWS: usize = 20;

/// Runs a search.
pub(super) fn run(args: &Search, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let (recipe, warnings) = Recipe::from_file(&args.file)?;
    warn(display, warnings.iter().map(String::as_str));
    let way = if args.grid.is_empty() {
        let experts = recipe.models.len();
        let start = match args.init[..] {
            [] => vec![1f64.clamp(args.bounds.0, args.bounds.1); experts],
            [lambda] => vec![lambda; experts],
            _ => args.init.clone(),
        };
        Way::Evolve { bounds: args.bounds, start, seed: args.seed }
    } else {
        Way::Grid(args.grid.clone())
    };
    if recipe.coefficients.is_some() {
        let reason = "a file of coefficients gives the lambdas already; leave it out".to_owned();
        return Err(RecipeError::Value { key: "coefficients".to_owned(), reason }.into());
    }
    let request = Request {
        recipe,
        evaluate: args.evaluate.clone(),
        budget: args.budget,
        way,
        limit: args.timeout,
        restart: args.run.restart,
        settings: convert::settings(&args.run),
    };
    signals.begin();
    let found = search::run(&request, &args.out, display, &signals.cancel);
    display.finish();
    let found = found.map_err(|error| signals.name(error))?;
    if args.json {
        return output::data(&format!("{:#}\n", json!(found)));
    }
    output::data(&output::printable(&render(&found)))
}

/// The best trials as a table.
fn render(found: &Found) -> String {
    let mut ranked: Vec<(usize, &search::Trial)> = (1..).zip(&found.trials).collect();
    let score = |trial: &search::Trial| trial.outcome.score().unwrap_or(f64::NEG_INFINITY);
    ranked.sort_by(|a, b| score(b.1).total_cmp(&score(a.1)));
    let failed = ranked.iter().filter(|(_, trial)| trial.outcome.score().is_none()).count();
    let read: u64 = found.trials.iter().map(|trial| trial.read).sum();
    let read = crate::human::bytes(read);
    let mut text =
        format!("{} trials, {failed} failed; {read} read to make them\n\n", ranked.len());
    let rows: Vec<[String; 4]> = (ranked.iter().take(ROWS))
        .map(|(number, trial)| {
            let seconds = format!("{:.1} s", trial.seconds);
            [number.to_string(), trial.outcome.to_string(), seconds, trial.point.to_string()]
        })
        .collect();
    let head = ["trial", "score", "took", "settings"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]).map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).min(48)
    };
    let (number, score, took) = (width(0), width(1), width(2));
    for row in [&head].into_iter().chain(&rows) {
        let [a, b, c, d] = row;
        let _infallible = writeln!(text, "{a:>number$}  {b:<score$}  {c:>took$}  {d}");
    }
    if ranked.len() > ROWS {
        let _infallible = writeln!(text, "{} more in search.json", ranked.len() - ROWS);
    }
    let _infallible = writeln!(text, "\nthe best, trial {}: {}", found.best, found.place.display());
    text
}

/// Bounds: `vision`, `nlp` or LOW..HIGH.
pub(super) fn bounds(text: &str) -> Result<(f64, f64), String> {
    let text = match text {
        "vision" => "0.8..1.3",
        "nlp" => "0.5..3.0",
        text => text,
    };
    let parsed = text.split_once("..").and_then(|(low, high)| {
        let bounds: (f64, f64) = (low.parse().ok()?, high.parse().ok()?);
        (bounds.0 < bounds.1 && bounds.0.is_finite() && bounds.1.is_finite()).then_some(bounds)
    });
    parsed.ok_or_else(|| "write LOW..HIGH, for example 0.8..1.3, or vision or nlp".to_owned())
}

/// A duration: seconds, or with s, m or h behind.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3600.0),
        _ => (text, 1.0),
    };
    let seconds = number.parse::<f64>().ok().filter(|number| *number > 0.0);
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds * unit).ok());
    duration.ok_or_else(|| "not a duration; write for example 90s, 30m or 2h".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_and_durations_are_read() {
        assert_eq!(bounds("vision"), Ok((0.8, 1.3)));
        assert_eq!(bounds("nlp"), Ok((0.5, 3.0)));
        assert_eq!(bounds("-1..2.5"), Ok((-1.0, 2.5)));
        for text in ["", "1", "2..1", "1..1", "a..b", "0..inf"] {
            assert!(bounds(text).is_err(), "{text}");
        }
        for (text, seconds) in [("90", 90.0), ("1.5s", 1.5), ("30m", 1800.0), ("2h", 7200.0)] {
            assert_eq!(duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "s", "0", "-1", "1d", "1e300h", "ä"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
