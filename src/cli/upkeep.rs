//! Commands about outputs that are there, finished or not: `status`, `verify`, `clean`.

use std::fmt::Write as _;

use serde_json::json;

use super::args::{Clean, Status as StatusArgs, Verify};
use super::commands::warn;
use super::progress::Display;
use super::signals::Signals;
use super::{Outcome, output};
use crate::error::IoContext;
use crate::human;
use crate::job::{self, Depth, Status, Unfinished};
use crate::progress::Event;

/// Shows how far an output is.
pub(super) fn status(args: &StatusArgs) -> Outcome {
    let status = job::status(&args.dir)?;
    if args.json {
        return output::data(&format!("{:#}\n", json!(status)));
    }
    let dir = args.dir.display();
    output::data(&output::printable(&match status {
        Status::Nothing => format!("{dir}: nothing that reflow made\n"),
        Status::Finished { files, bytes } => {
            format!("{dir}: finished, {files} files, {}\n", human::bytes(bytes))
        }
        Status::Unfinished(unfinished) => format!("{dir}: {}", render(&unfinished)),
    }))
}

fn render(it: &Unfinished) -> String {
    let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
    let mut text = match (&it.running, it.publishing) {
        (Some(holder), _) => format!("being merged now by {holder}\n"),
        (None, true) => "everything is made; its files are being moved into place\n".to_owned(),
        (None, false) => "not finished\n".to_owned(),
    };
    let mut line = |name: &str, value: String| {
        let _infallible = writeln!(text, "  {name:<9} {value}");
    };
    if it.total == 0 {
        line("done", "nothing yet".to_owned());
    } else {
        line(
            "done",
            format!(
                "{:.1} %: {} of {} read, {} left",
                share(it.read, it.total),
                human::bytes(it.read),
                human::bytes(it.total),
                human::bytes(it.total.saturating_sub(it.read)),
            ),
        );
    }
    line(
        "output",
        format!(
            "{} of {} durable, {} of {} shards whole",
            human::bytes(it.written),
            human::bytes(it.size),
            it.shards_done,
            it.shards
        ),
    );
    line("staging", it.staging.display().to_string());
    if it.attempts > 1 {
        line("attempts", it.attempts.to_string());
    }
    for input in &it.changed {
        line("changed", format!("{input}: the merge cannot go on with another input"));
    }
    if let Some(command) = it.command.as_ref().filter(|_| it.running.is_none()) {
        line("go on", command.clone());
    }
    line("give up", format!("reflow clean {}", it.staging.display()));
    text
}

/// Checks that an output holds what was written.
pub(super) fn verify(args: &Verify, display: &dyn Display) -> Outcome {
    let signals = Signals::install().at("handle", std::path::Path::new("signals"))?;
    signals.begin();
    let depth = match args.sample {
        _ if args.quick => Depth::Quick,
        Some(share) => Depth::Sample { share, seed: args.seed.unwrap_or_else(any_seed) },
        None => Depth::Full,
    };
    let report = job::verify(&args.dir, depth, display, &signals.cancel);
    display.finish();
    let report = report.map_err(|error| signals.name(error))?;
    if args.json {
        output::data(&format!("{:#}\n", json!(report)))?;
    } else {
        warn(display, report.warnings.iter().map(String::as_str));
        let findings = report.findings.iter().map(|finding| format!("{finding}\n"));
        output::data(&output::printable(&findings.collect::<String>()))?;
        if let Depth::Sample { seed, .. } = depth {
            display.event(&Event::Detail { text: &format!("seed {seed}") });
        }
        let sound = if report.findings.is_empty() { "sound" } else { "not sound" };
        output::data(&format!("{}: {sound}; {report}\n", args.dir.display()))?;
    }
    report.sound(&args.dir)
}

/// Another one each time, so that samples come to see everything.
fn any_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

/// Removes what an unfinished merge has left.
pub(super) fn clean(args: &Clean, display: &dyn Display) -> Outcome {
    let text = match job::clean(&args.dir)? {
        Some(bytes) => format!("removed {} of an unfinished merge", human::bytes(bytes)),
        None => format!("{}: no unfinished merge", args.dir.display()),
    };
    display.event(&Event::Notice { text: &text });
    Ok(())
}
