//! What can be typed.

mod recipe;

use std::path::PathBuf;

use bytesize::ByteSize;
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum, value_parser};

pub(super) use recipe::{RecipeArgs, RecipeFlags, RunArgs};

use crate::recipe::{Failpoint, IoRequest, Stop, Words};
use crate::search::Axis;

const EXIT_CODES: &str = "\
Exit codes:
  0 done                        6 no space, quota or size limit
  1 other                       7 I/O error
  2 usage, recipe or config     9 needs more memory than the limit
  3 bad or inconsistent input  10 begun by another merge (see --restart)
  4 an input changed           11 another process works on this output
  5 output exists             130, 143 interrupted, resumable
  8 damaged: not what was written
An unknown code is a failure.";

/// Merge fine-tuned experts of one base model into one checkpoint.
///
/// PCB-Merging over the whole model, and the methods of mergekit: exact, streamed from sharded safetensors to sharded safetensors in the
/// memory you name.
#[derive(Debug, Parser)]
#[command(name = "reflow", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
    #[command(flatten)]
    pub(super) log: Log,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Merge a base and its experts into a new directory
    Merge(Box<Merge>),
    /// Make an output with other lambdas from what a merge has kept
    Recombine(Box<Recombine>),
    /// Make the model of one task from what a merge with --method emr has made
    Apply(Box<Apply>),
    /// Search for the lambdas, or other settings, whose merge scores best
    Search(Box<Search>),
    /// Show what a merge would do, without reading tensor data
    Plan(Box<Plan>),
    /// Show what a checkpoint holds
    Inspect(Inspect),
    /// Show how two models differ, tensor by tensor; with a base, also their task vectors
    Diff(Diff),
    /// Show what a merge saw, as a page of pictures: sizes, shares, conflicts and directions of the task vectors
    Report(Report),
    /// Show how far an output is, and the command that goes on with it
    Status(Status),
    /// List the merge methods with their parameters
    Methods(Methods),
    /// Check that an output still holds what was written
    Verify(Verify),
    /// Remove what an unfinished merge has left
    Clean(Clean),
}

#[derive(Debug, ClapArgs)]
pub(super) struct Status {
    /// Output directory, finished or not
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Methods {
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Verify {
    /// Output directory, finished or not
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Names, sizes, headers and index only
    #[arg(long, conflicts_with_all = ["sample", "full"])]
    pub(super) quick: bool,
    /// The same, and a part of the data, for example 5%
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "full")]
    pub(super) sample: Option<f64>,
    /// Every byte, which is the default
    #[arg(long)]
    pub(super) full: bool,
    /// Chooses the sample; the same seed takes the same [default: another each time]
    #[arg(long, value_name = "N", requires = "sample")]
    pub(super) seed: Option<u64>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Clean {
    /// Output directory, or its staging directory
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Merge {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// Create this directory; it must not exist, or be empty
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) extras: Extras,
    /// Print the report as JSON to standard output
    #[arg(long, help_heading = "Messages")]
    pub(super) json: bool,
}

/// What a merge makes besides the model.
#[derive(Debug, ClapArgs)]
pub(super) struct Extras {
    /// Keep the share of each expert in this new directory, for `reflow recombine` with other lambdas (pcb)
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) components: Option<PathBuf>,
    /// Gather statistics about all tensors on the way, for `reflow report`, into reflow_statistics.json
    #[arg(long, help_heading = "Output")]
    pub(super) statistics: bool,
}

/// A merge with other lambdas, without another merge.
#[derive(Debug, ClapArgs)]
pub(super) struct Recombine {
    /// Directory that `reflow merge --components` made
    #[arg(long, value_name = "DIR")]
    pub(super) components: PathBuf,
    /// The base of that merge
    #[arg(long, value_name = "DIR")]
    pub(super) base: PathBuf,
    /// Lambda of each expert, in the order of the merge, separated by commas
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        required = true,
        allow_negative_numbers = true
    )]
    pub(super) lambda: Vec<f64>,
    #[command(flatten)]
    pub(super) run: RunArgs,
    #[command(flatten)]
    pub(super) made: Made,
}

/// The model of one task of a merge by EMR-Merging.
#[derive(Debug, ClapArgs)]
pub(super) struct Apply {
    /// Directory that `reflow merge --method emr` made
    #[arg(long, value_name = "DIR")]
    pub(super) emr: PathBuf,
    /// The task: one of the experts of that merge, by the name that `reflow inspect` shows
    #[arg(long, value_name = "NAME")]
    pub(super) task: String,
    /// The base of that merge
    #[arg(long, value_name = "DIR")]
    pub(super) base: PathBuf,
    /// Take this rescaler [default: the one that the merge's recipe names]
    #[arg(long, value_name = "FORM", value_parser = ["tensor-mean", "global-l1"])]
    pub(super) rescale: Option<String>,
    #[command(flatten)]
    pub(super) run: RunArgs,
    #[command(flatten)]
    pub(super) made: Made,
}

/// What is made, and how that is told.
#[derive(Debug, ClapArgs)]
pub(super) struct Made {
    /// Create this directory; it must not exist, or be empty
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) out: PathBuf,
    /// Print the report as JSON to standard output
    #[arg(long, help_heading = "Messages")]
    pub(super) json: bool,
}

/// A search for the settings whose merge scores best.
#[derive(Debug, ClapArgs)]
pub(super) struct Search {
    /// The merge, as a recipe file
    #[arg(value_name = "RECIPE.yml")]
    pub(super) file: PathBuf,
    /// Score a candidate with this shell command, in which {model} stands for its directory; its last line of output is
    /// the score, higher is better
    #[arg(long, value_name = "COMMAND")]
    pub(super) evaluate: String,
    /// Candidates to try, at most
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub(super) budget: usize,
    /// Try all combinations of these values instead, for example keep=0.05,0.1 scope=model,tensor dtype=bf16,f32 lambda=1,1.4
    #[arg(long, value_name = "NAME=VALUES", num_args = 1.., value_parser = Axis::parse, conflicts_with_all = ["bounds", "init", "seed"])]
    pub(super) grid: Vec<Axis>,
    /// Bounds of lambda: vision (0.8..1.3) and nlp (0.5..3.0), as PCB's authors search, or LOW..HIGH
    #[arg(long, value_name = "BOUNDS", default_value = "vision", value_parser = super::search::bounds, allow_hyphen_values = true)]
    pub(super) bounds: (f64, f64),
    /// Lambdas to begin with, one or one for each expert, separated by commas [default: 1, or the nearest within bounds]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', allow_negative_numbers = true)]
    pub(super) init: Vec<f64>,
    /// Another seed, another course of the search
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// Stop an evaluation after this time, for example 90s, 30m or 2h, and count it as failed
    #[arg(long, value_name = "TIME", value_parser = super::search::duration)]
    pub(super) timeout: Option<std::time::Duration>,
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// Directory of the search: search.json, trials.svg and the best merge in best/; the same command goes on
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) out: PathBuf,
    /// Print what was found as JSON to standard output
    #[arg(long, help_heading = "Messages")]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Plan {
    #[command(flatten)]
    pub(super) recipe: RecipeArgs,
    #[command(flatten)]
    pub(super) run: RunArgs,
    /// Check also that this directory can be created and has room
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub(super) out: Option<PathBuf>,
    #[command(flatten)]
    pub(super) extras: Extras,
    /// Print the plan as JSON
    #[arg(long, help_heading = "Messages")]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Inspect {
    /// Checkpoint: a directory, or a .safetensors file; or a directory of components, or what emr has made
    #[arg(value_name = "PATH")]
    pub(super) path: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// List every tensor by itself
    #[arg(long)]
    pub(super) tensors: bool,
    /// Turn harmless deviations from the format into warnings
    #[arg(long)]
    pub(super) lenient: bool,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Diff {
    /// Checkpoint: a directory, or a .safetensors file; distances are relative to this one
    #[arg(value_name = "A")]
    pub(super) a: PathBuf,
    /// The other checkpoint
    #[arg(value_name = "B")]
    pub(super) b: PathBuf,
    /// Base of both: compare what they have changed in it, too
    #[arg(long, value_name = "C")]
    pub(super) base: Option<PathBuf>,
    /// How many tensors to list, those that differ most first; JSON has all
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) top: usize,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
    /// Turn harmless deviations from the format into warnings
    #[arg(long)]
    pub(super) lenient: bool,
    /// Memory to use at most, page cache included [default: 7/8 of a container's, half of a machine's]
    #[arg(long, value_name = "SIZE", value_parser = size())]
    pub(super) memory: Option<u64>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(super) threads: Option<u16>,
    /// How checkpoints are read
    #[arg(long, value_parser = word::<IoRequest>(), default_value = "auto")]
    pub(super) io: IoRequest,
    /// Elements per tile (for tests)
    #[arg(long, hide = true, value_parser = value_parser!(u32).range(1..=1 << 30))]
    pub(super) tile: Option<u32>,
}

#[derive(Debug, ClapArgs)]
pub(super) struct Report {
    /// Output directory of a merge with --statistics
    #[arg(value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// The page; - for standard output [default: DIR.report.html]
    #[arg(long, value_name = "FILE.html")]
    pub(super) out: Option<PathBuf>,
    /// Print the numbers behind the pictures as JSON instead
    #[arg(long, conflicts_with = "out")]
    pub(super) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Messages")]
pub(super) struct Log {
    /// Say nothing but errors
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(super) quiet: bool,
    /// Say more
    #[arg(short, long, global = true)]
    pub(super) verbose: bool,
    /// Form of messages on standard error
    #[arg(long = "log-format", global = true, value_enum, default_value_t = LogFormat::Text, value_name = "FORMAT")]
    pub(super) format: LogFormat,
    /// Show a progress bar
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(super) progress: When,
    /// Use colour
    #[arg(long, global = true, value_enum, default_value_t = When::Auto, value_name = "WHEN")]
    pub(super) color: When,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// If standard error is a terminal
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// A parser for one of the words of an enum.
fn word<T: Words + Send + Sync>() -> impl clap::builder::TypedValueParser<Value = T> {
    use clap::builder::{PossibleValuesParser, TypedValueParser as _};
    PossibleValuesParser::new(T::WORDS.iter().map(|(word, _)| *word))
        .map(|text| T::parse(&text).unwrap_or(T::WORDS[0].1))
}

/// Parses a share: 5%, 0.05.
fn share(text: &str) -> Result<f64, String> {
    let parsed = match text.strip_suffix('%') {
        Some(number) => number.trim().parse::<f64>().map(|percent| percent / 100.0),
        None => text.parse(),
    };
    let share = parsed.ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "not a share; write for example 5% or 0.05".to_owned())
}

/// Parses a failpoint.
fn failpoint(text: &str) -> Result<Failpoint, String> {
    let (how, after) = text.split_once(':').ok_or("write kill:N or pause:N")?;
    let how = match how {
        "kill" => Stop::Kill,
        "pause" => Stop::Pause,
        _ => return Err("write kill:N or pause:N".to_owned()),
    };
    Ok(Failpoint { how, after: after.parse().map_err(|_| "not a number")? })
}

/// A parser for sizes: 512MiB, 5GB (decimal), plain bytes.
fn size() -> fn(&str) -> Result<u64, String> {
    |text: &str| -> Result<u64, String> {
        let parsed = text.parse::<ByteSize>().map(|size| size.as_u64());
        parsed.map_err(|_| "not a size; write for example 512MiB, 5GB or 1000000".to_owned())
    }
}
