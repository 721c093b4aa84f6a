//! The summary at the end of a merge.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::human::{bytes, count, seconds};
use crate::job::Report;
use crate::method::{ExpertOutcome, Note};

/// What is told about one expert, over all units.
#[derive(Default)]
struct ExpertTotal {
    /// Elements of the units that it is in.
    elements: u64,
    kept: u64,
    weight: f64,
    notes: BTreeMap<Note, Vec<String>>,
}

/// Renders a report for a terminal. `keep` is the fraction that was asked for.
pub(super) fn render(report: &Report, labels: &[String], keep: Option<f64>) -> String {
    let mut text = String::new();
    let experts = totals(report);
    let all: f64 = experts.iter().map(|e| e.weight).sum();
    let names = labels.iter().chain(report.passes.iter().map(|pass| &pass.name));
    let width = names.map(|name| name.chars().count()).max().unwrap_or(0);
    for (i, (expert, label)) in experts.iter().zip(labels).enumerate() {
        let _infallible = write!(
            text,
            "{label:width$}  keeps {} of {} parameters ({:.2} %{}), {:.1} % of the weight",
            count(expert.kept),
            count(expert.elements),
            percent(expert.kept as f64, expert.elements as f64),
            keep.map_or_else(String::new, |keep| format!(", asked {:.2} %", 100.0 * keep)),
            percent(expert.weight, all),
        );
        if let [(_, outcome)] = &report.units[..] {
            let _infallible = write!(text, "{}", figures(&outcome.experts[i]));
        }
        text.push('\n');
    }
    for pass in &report.passes {
        let rate = pass.read as f64 / pass.seconds.max(1e-9) / 1e9;
        let _infallible = writeln!(
            text,
            "{:width$}  {} read in {}, {rate:.2} GB/s",
            pass.name,
            bytes(pass.read),
            seconds(pass.seconds),
        );
    }
    let missed = missed(report);
    if missed > 0 {
        let _infallible = writeln!(
            text,
            "{} that samples promised did not hold, so more was read; the result is the same",
            if missed == 1 {
                "1 bracket".to_owned()
            } else {
                format!("{} brackets", count(missed))
            },
        );
    }
    let times = match report.inputs {
        0 => String::new(),
        inputs => format!(" ({:.2} times the inputs)", report.read as f64 / inputs as f64),
    };
    let _infallible = writeln!(
        text,
        "{} read{times} and {} written in {}; peak memory {}",
        bytes(report.read),
        bytes(report.written),
        seconds(report.seconds),
        report.memory.describe(),
    );
    text
}

/// Sentences about degenerate cases, for the warnings.
pub(super) fn warnings(report: &Report, labels: &[String]) -> Vec<String> {
    let mut sentences = Vec::new();
    let single = report.units.len() == 1;
    for (expert, label) in totals(report).iter().zip(labels) {
        for (note, units) in &expert.notes {
            let place = match &units[..] {
                _ if single => String::new(),
                [unit] => format!(" in {unit}"),
                [unit, rest @ ..] => format!(" in {unit} and {} more", rest.len()),
                [] => continue,
            };
            sentences.push(format!("{label}{place} {note}"));
        }
    }
    if report.replaced > 0 {
        sentences.push(format!(
            "{} values were not finite and count as the base's",
            count(report.replaced)
        ));
    }
    sentences
}

/// The report as JSON.
pub(super) fn json(report: &Report, labels: &[String]) -> Value {
    let units = report.units.iter().map(|(name, outcome)| {
        let experts = outcome.experts.iter().zip(labels).map(|(expert, label)| {
            let figures: serde_json::Map<String, Value> =
                expert.figures.iter().map(|&(name, x)| (name.to_owned(), json!(x))).collect();
            let notes: Vec<String> = expert.notes.iter().map(ToString::to_string).collect();
            json!({ "expert": label, "kept": expert.kept, "weight": expert.weight,
                    "figures": figures, "notes": notes })
        });
        json!({ "unit": name, "elements": outcome.elements, "experts": experts.collect::<Vec<_>>() })
    });
    let units: Vec<Value> = units.collect();
    let mut value = json!({ "units": units, "passes": report.passes, "read": report.read,
            "inputs": report.inputs, "written": report.written, "seconds": report.seconds,
            "memory": report.memory, "replaced": report.replaced });
    let missed = missed(report);
    if missed > 0 {
        value["missed"] = json!(missed);
    }
    value
}

/// Brackets from samples that did not hold, over all units.
fn missed(report: &Report) -> u64 {
    report.units.iter().map(|(_, outcome)| outcome.missed).sum()
}

fn totals(report: &Report) -> Vec<ExpertTotal> {
    let experts = report.units.first().map_or(0, |(_, outcome)| outcome.experts.len());
    let mut totals: Vec<ExpertTotal> = (0..experts).map(|_| ExpertTotal::default()).collect();
    for (unit, outcome) in &report.units {
        for (total, expert) in totals.iter_mut().zip(&outcome.experts) {
            // Not every model is in every slice: nothing is told about it there.
            if *expert != ExpertOutcome::default() {
                total.elements += outcome.elements;
            }
            total.kept += expert.kept;
            total.weight += expert.weight;
            for note in &expert.notes {
                total.notes.entry(*note).or_default().push(unit.clone());
            }
        }
    }
    totals
}

fn figures(expert: &ExpertOutcome) -> String {
    let named = expert.figures.iter().map(|(name, value)| format!("{name} {value:.4e}"));
    let named = named.collect::<Vec<_>>().join(", ");
    if named.is_empty() { named } else { format!("\n    {named}") }
}

fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { 100.0 * part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::Outcome;

    #[test]
    fn missed_brackets_and_reads_are_told_and_no_miss_is_not() {
        let unit = |missed| ("unit".to_owned(), Outcome { missed, ..Outcome::default() });
        let report = |units| Report { units, read: 630, inputs: 300, ..Report::default() };
        let (labels, quiet) = ([], report(vec![unit(0), unit(0)]));
        let text = render(&quiet, &labels, None);
        assert!(text.contains("(2.10 times the inputs)") && !text.contains("bracket"), "{text}");
        assert!(json(&quiet, &labels).get("missed").is_none());
        let loud = report(vec![unit(1), unit(2)]);
        let text = render(&loud, &labels, None);
        assert!(text.contains("3 brackets that samples promised did not hold"), "{text}");
        assert_eq!(json(&loud, &labels)["missed"], 3);
        assert_eq!(json(&loud, &labels)["inputs"], 300);
    }
}
