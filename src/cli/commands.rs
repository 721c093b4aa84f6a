//! One function per command.

use serde_json::json;

use super::args::{Args, Command, Inspect, LogFormat, Merge, Plan, Recombine};
use super::progress::{self, Display};
use super::signals::Signals;
use super::{Outcome, convert, inspect, methods, output, plan, report, upkeep};
use crate::checkpoint::{Adapter, Catalog, OpenOptions, is_adapter};
use crate::engine::source;
use crate::error::{Error, IoContext};
use crate::job::{Components, Job, Ties};
use crate::progress::Event;
use crate::recipe::Settings;

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let display = progress::display(&args.log);
    match &args.command {
        Command::Merge(merge) => run_merge(merge, args, &*display),
        Command::Recombine(args_of) => run_recombine(args_of, args, &*display),
        Command::Search(search) => super::search::run(search, &*display),
        Command::Plan(plan) => run_plan(plan, &*display),
        Command::Inspect(inspect) => run_inspect(inspect, &*display),
        Command::Methods(args) => output::data(&methods::list(args.json)),
        Command::Status(status) => upkeep::status(status),
        Command::Verify(verify) => upkeep::verify(verify, &*display),
        Command::Clean(clean) => upkeep::clean(clean, &*display),
    }
}

fn run_merge(args: &Merge, all: &Args, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let (recipe, warnings) = convert::recipe(&args.recipe)?;
    warn(display, warnings.iter().map(String::as_str));
    let keep = recipe.kept();
    let settings = Settings { components: args.components.clone(), ..convert::settings(&args.run) };
    let job = Job::plan(recipe, settings, Ties::Compare(&signals.cancel), display)?;
    make(&job, &args.out, args.json, keep, all, &signals, display)
}

fn run_recombine(args: &Recombine, all: &Args, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let settings = convert::settings(&args.run);
    let job = Job::recombine(&args.components, &args.base, &args.lambda, settings, display)?;
    make(&job, &args.out, args.json, None, all, &signals, display)
}

pub(super) fn prepare_signals() -> Result<Signals, Error> {
    let here = std::path::Path::new("signals");
    let signals = Signals::install().at("handle", here)?;
    source::install_sigbus_handler().at("handle", here)?;
    Ok(signals)
}

/// Makes what is planned, and tells about it.
fn make(
    job: &Job,
    out: &std::path::Path,
    as_json: bool,
    keep: Option<f64>,
    all: &Args,
    signals: &Signals,
    display: &dyn Display,
) -> Outcome {
    let summary = job.summary();
    warn(display, summary.warnings.iter().map(String::as_str));
    warn(display, summary.ties.iter().map(String::as_str));
    detail(display, &plan::render(&summary, &job.io_text()));
    signals.begin();
    let report = job.merge(out, display, &signals.cancel);
    display.finish();
    let report = report.map_err(|error| signals.name(error))?;
    let labels = &summary.experts;
    warn(display, report::warnings(&report, labels).iter().map(String::as_str));
    if !all.log.quiet && all.log.format == LogFormat::Text && !report.passes.is_empty() {
        output::message(report::render(&report, labels, keep).trim_end());
    }
    if all.log.format == LogFormat::Json {
        let mut line = report::json(&report, labels);
        line["message_type"] = json!("summary");
        output::message(&line.to_string());
    }
    if as_json {
        output::data(&format!("{:#}\n", report::json(&report, labels)))
    } else {
        output::data(&format!("{}\n", out.display()))
    }
}

fn run_plan(args: &Plan, display: &dyn Display) -> Outcome {
    let (recipe, warnings) = convert::recipe(&args.recipe)?;
    warn(display, warnings.iter().map(String::as_str));
    let job = Job::plan(recipe, convert::settings(&args.run), Ties::Assume, display)?;
    let summary = job.summary();
    let space = args.out.as_ref().map(|out| job.preflight(out)).transpose()?;
    if args.json {
        let json = json!({ "plan": summary, "io": job.io_text(), "space": space });
        return output::data(&format!("{json:#}\n"));
    }
    warn(display, summary.warnings.iter().map(String::as_str));
    let mut text = plan::render(&summary, &job.io_text());
    if let Some(space) = space {
        text.push_str(&plan::render_space(&space));
    }
    output::data(&text)
}

fn run_inspect(args: &Inspect, display: &dyn Display) -> Outcome {
    if let Some(components) = Components::load(&args.path)? {
        return output::data(&if args.json {
            format!("{:#}\n", inspect::components_json(&components))
        } else {
            inspect::components(&args.path, &components, args.tensors)
        });
    }
    let options = OpenOptions { lenient: args.lenient, unknown_types: true };
    if is_adapter(&args.path) && !args.path.join("config.json").exists() {
        let adapter = Adapter::open(&args.path, options).map_err(Error::from)?;
        warn(display, adapter.warnings.iter().map(String::as_str));
        return output::data(&if args.json {
            format!("{:#}\n", inspect::adapter_json(&adapter))
        } else {
            inspect::render_adapter(&adapter, args.tensors)
        });
    }
    let catalog = Catalog::open(&args.path, options).map_err(Error::from)?;
    warn(display, catalog.warnings.iter().map(String::as_str));
    if args.json {
        return output::data(&format!("{:#}\n", inspect::json(&catalog)));
    }
    output::data(&inspect::render(&catalog, args.tensors))
}

pub(super) fn warn<'a>(display: &dyn Display, texts: impl Iterator<Item = &'a str>) {
    texts.for_each(|text| display.event(&Event::Warning { text }));
}

fn detail(display: &dyn Display, text: &str) {
    text.lines().for_each(|text| display.event(&Event::Detail { text }));
}
