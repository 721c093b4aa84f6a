//! One function per command.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{
    Apply, Args, Command, Extras, Inspect, LogFormat, Merge, Plan, Recombine, RunArgs,
};
use super::progress::{self, Display};
use super::signals::Signals;
use super::{Outcome, convert, diff, inspect, methods, output, pictures, plan, report, upkeep};
use crate::checkpoint::{Adapter, Catalog, OpenOptions, is_adapter};
use crate::engine::source;
use crate::error::{Error, IoContext};
use crate::job::{Components, Job, Ties, check_free, lineage};
use crate::progress::Event;
use crate::recipe::{RecipeError, Settings, Stage};

/// Runs the command.
pub(super) fn run(args: &Args) -> Outcome {
    let display = progress::display(&args.log);
    match &args.command {
        Command::Merge(merge) => run_merge(merge, args, &*display),
        Command::Recombine(args_of) => run_recombine(args_of, args, &*display),
        Command::Apply(args_of) => run_apply(args_of, args, &*display),
        Command::Search(search) => super::search::run(search, &*display),
        Command::Plan(plan) => run_plan(plan, &*display),
        Command::Inspect(inspect) => run_inspect(inspect, &*display),
        Command::Diff(args) => diff::run(args, &*display),
        Command::Report(args) => pictures::run(args),
        Command::Methods(args) => output::data(&methods::list(args.json)),
        Command::Status(status) => upkeep::status(status),
        Command::Verify(verify) => upkeep::verify(verify, &*display),
        Command::Clean(clean) => upkeep::clean(clean, &*display),
    }
}

fn run_merge(args: &Merge, all: &Args, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let stages = convert::stages(&args.recipe, &args.out)?;
    if let [stage] = &stages[..] {
        return run_stage(args, all, stage, &args.out, &signals, display);
    }
    let dir = convert::stage_dir(&args.recipe, &args.out);
    if dir.components().as_path().starts_with(args.out.components().as_path()) {
        let reason =
            "it lies in the output, or is it; the models in it are inputs of the output".to_owned();
        let key = "--intermediate-dir".to_owned();
        return Err(RecipeError::Value { key, reason }.into());
    }
    check_free(&args.out)?;
    std::fs::create_dir_all(&dir).at("create", &dir)?;
    let count = stages.len();
    for number in 0..count {
        // With all that stages before it have made.
        let stages = convert::stages(&args.recipe, &args.out)?;
        let Some(stage) = stages.get(number) else { break };
        let out = stage.name.as_ref().map_or_else(|| args.out.clone(), |name| dir.join(name));
        let text = format!("merge {} of {count}: {}", number + 1, out.display());
        display.event(&Event::Notice { text: &text });
        let inputs: Vec<PathBuf> = stage.needs.iter().map(|name| dir.join(name)).collect();
        let inputs = lineage::of(&inputs)?;
        let noted = lineage::is_noted(&out, &inputs)?;
        if stage.name.is_some() && !noted && out.exists() {
            return Err(Error::OutputExists { path: out });
        }
        if stage.name.is_some() && !noted {
            lineage::note(&out, &inputs)?;
        }
        // A bar that has ended does not begin again.
        run_stage(args, all, stage, &out, &signals, &*progress::display(&all.log))?;
    }
    Ok(())
}

/// Runs one merge; one that others need is not made again if it is there.
fn run_stage(
    args: &Merge,
    all: &Args,
    stage: &Stage,
    out: &Path,
    signals: &Signals,
    display: &dyn Display,
) -> Outcome {
    warn(display, stage.warnings.iter().map(String::as_str));
    let (recipe, keep) = (stage.recipe.clone(), stage.recipe.kept());
    let settings = settings_of(stage, &args.run, &args.extras);
    let job = Job::plan(recipe, settings, Ties::Compare(&signals.cancel), display)?;
    let tell = Tell { json: args.json, output: stage.name.is_none(), keep };
    make(&job, out, &tell, all, signals, display)
}

/// How a stage is run. What else is to be made is made of the last one.
fn settings_of(stage: &Stage, run: &RunArgs, extras: &Extras) -> Settings {
    let last = stage.name.is_none();
    let components = extras.components.clone().filter(|_| last);
    let statistics = extras.statistics && last;
    Settings { components, statistics, ..convert::settings(run) }
}

fn run_recombine(args: &Recombine, all: &Args, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let settings = convert::settings(&args.run);
    let job = Job::recombine(&args.components, &args.base, &args.lambda, settings, display)?;
    let tell = Tell { json: args.made.json, output: true, keep: None };
    make(&job, &args.made.out, &tell, all, &signals, display)
}

fn run_apply(args: &Apply, all: &Args, display: &dyn Display) -> Outcome {
    let signals = prepare_signals()?;
    let settings = convert::settings(&args.run);
    let Apply { emr, base, task, rescale, .. } = args;
    let job = Job::apply(emr, base, task, rescale.as_deref(), settings, display)?;
    let tell = Tell { json: args.made.json, output: true, keep: None };
    make(&job, &args.made.out, &tell, all, &signals, display)
}

pub(super) fn prepare_signals() -> Result<Signals, Error> {
    let here = Path::new("signals");
    let signals = Signals::install().at("handle", here)?;
    source::install_sigbus_handler().at("handle", here)?;
    Ok(signals)
}

/// How a merge is told about.
struct Tell {
    /// With the report as JSON on standard output.
    json: bool,
    /// Whether it makes what was asked for, and not what that is made from.
    output: bool,
    /// The fraction that is asked to be kept.
    keep: Option<f64>,
}

/// Makes what is planned, and tells about it.
fn make(
    job: &Job,
    out: &Path,
    tell: &Tell,
    all: &Args,
    signals: &Signals,
    display: &dyn Display,
) -> Outcome {
    let summary = job.summary();
    warn(display, summary.warnings.iter().map(String::as_str));
    warn(display, summary.ties.iter().map(String::as_str));
    detail(display, &plan::render(&summary, &job.io_text()));
    signals.begin();
    if !tell.output && job.is_made(out, &signals.cancel) {
        display.event(&Event::Notice { text: "it is made already" });
        return Ok(());
    }
    let report = job.merge(out, display, &signals.cancel);
    display.finish();
    let report = report.map_err(|error| signals.name(error))?;
    let labels = &summary.experts;
    warn(display, report::warnings(&report, labels).iter().map(String::as_str));
    if !all.log.quiet && all.log.format == LogFormat::Text && !report.passes.is_empty() {
        output::message(report::render(&report, labels, tell.keep).trim_end());
    }
    if all.log.format == LogFormat::Json {
        let mut line = report::json(&report, labels);
        line["message_type"] = json!("summary");
        output::message(&line.to_string());
    }
    if !tell.output {
        // Standard output is about what was asked for.
        return Ok(());
    }
    if tell.json {
        output::data(&format!("{:#}\n", report::json(&report, labels)))
    } else {
        output::data(&format!("{}\n", out.display()))
    }
}

fn run_plan(args: &Plan, display: &dyn Display) -> Outcome {
    let out = args.out.as_deref().unwrap_or(Path::new("out"));
    let stages = convert::stages(&args.recipe, out)?;
    if let [stage] = &stages[..] {
        let (text, json) = plan_stage(args, stage, args.out.as_deref(), display)?;
        return output::data(&if args.json { format!("{json:#}\n") } else { text });
    }
    let dir = convert::stage_dir(&args.recipe, out);
    let (mut texts, mut all) = (Vec::new(), Vec::new());
    for stage in &stages {
        let place = stage.name.as_ref().map(|name| dir.join(name));
        let title = place.as_deref().or(args.out.as_deref()).unwrap_or(Path::new("the output"));
        let title = title.display();
        let lacking: Vec<&String> =
            stage.needs.iter().filter(|name| !dir.join(name).exists()).collect();
        if !lacking.is_empty() {
            let names: Vec<&str> = lacking.iter().map(|name| name.as_str()).collect();
            texts.push(format!("{title}: planned when {} is made\n", names.join(", ")));
            all.push(json!({ "name": stage.name, "waits_for": names }));
            continue;
        }
        // Where a stage's output will be is made when the merge begins.
        let out = args.out.as_deref().filter(|_| stage.name.is_none());
        let (text, mut json) = plan_stage(args, stage, out, display)?;
        texts.push(format!("{title}:\n{text}"));
        json["name"] = json!(stage.name);
        all.push(json);
    }
    output::data(&if args.json {
        format!("{:#}\n", json!({ "stages": all }))
    } else {
        texts.join("\n")
    })
}

/// The plan of one merge, as text and as JSON. `out` is where it will be, if that is known.
fn plan_stage(
    args: &Plan,
    stage: &Stage,
    out: Option<&Path>,
    display: &dyn Display,
) -> Result<(String, serde_json::Value), Error> {
    warn(display, stage.warnings.iter().map(String::as_str));
    let settings = settings_of(stage, &args.run, &args.extras);
    let job = Job::plan(stage.recipe.clone(), settings, Ties::Assume, display)?;
    let summary = job.summary();
    let space = out.map(|out| job.preflight(out)).transpose()?;
    if !args.json {
        warn(display, summary.warnings.iter().map(String::as_str));
    }
    let mut text = plan::render(&summary, &job.io_text());
    if let Some(space) = &space {
        text.push_str(&plan::render_space(space));
    }
    Ok((text, json!({ "plan": summary, "io": job.io_text(), "space": space })))
}

fn run_inspect(args: &Inspect, display: &dyn Display) -> Outcome {
    if let Some(components) = Components::any(&args.path)? {
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
