//! What a merge is: its recipe, and how it is run.

use std::path::PathBuf;

use clap::{Args as ClapArgs, value_parser};

use super::{failpoint, size, word};
use crate::method::Strategy;
use crate::recipe::{
    Failpoint, IoRequest, Missing, NonFinite, OutputDtype, Scope, Vocab, WriteRequest,
};

/// What decides the bytes of the output.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Recipe")]
pub(in crate::cli) struct RecipeArgs {
    /// Take the recipe from this YAML file, in mergekit's schema, instead of flags
    #[arg(value_name = "RECIPE.yml", conflicts_with = "from_flags")]
    pub(in crate::cli) file: Option<PathBuf>,
    /// Where a recipe with several merges has the models that others of its merges use [default: OUT.stages]
    #[arg(short = 'I', long, value_name = "DIR", conflicts_with = "from_flags")]
    pub(in crate::cli) intermediate_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(in crate::cli) flags: RecipeFlags,
}

#[derive(Debug, ClapArgs)]
#[group(id = "from_flags", multiple = true)]
pub(in crate::cli) struct RecipeFlags {
    /// Base checkpoint; some methods need none
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) base: Option<PathBuf>,
    /// Expert checkpoint, with its own lambda or weight if given; repeat, order matters
    #[arg(long = "expert", value_name = "DIR[=NUMBER]", required_unless_present = "file")]
    pub(in crate::cli) experts: Vec<String>,
    /// Merge method, see `reflow methods` [default: pcb]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) method: Option<String>,
    /// Which definition of a method that has several
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) dialect: Option<String>,
    /// Parameter of the method, for all models: a value, a gradient or filters as in YAML; repeat
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub(in crate::cli) parameters: Vec<String>,
    /// File of lambdas or weights: a number for each expert, tensor by tensor (JSON or safetensors)
    #[arg(long, value_name = "FILE")]
    pub(in crate::cli) coefficients: Option<PathBuf>,
    /// File that names the tensors of coefficients in positional form, one a line
    #[arg(long, value_name = "FILE", requires = "coefficients")]
    pub(in crate::cli) coefficients_order: Option<PathBuf>,
    /// Fisher information of an expert, a checkpoint of its own; repeat, in the experts' order (fisher)
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) fisher: Vec<PathBuf>,
    /// Gram matrices of an expert, a checkpoint of its own; repeat, in the experts' order (regmean)
    #[arg(long, value_name = "PATH")]
    pub(in crate::cli) gram: Vec<PathBuf>,
    /// Seed of methods that draw random numbers [default: 0]
    #[arg(long, value_name = "N")]
    pub(in crate::cli) seed: Option<u64>,
    /// PCB definition [default: a] [possible values: a, b, c, d, paper]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) variant: Option<String>,
    /// Fraction of elements kept of each expert [default: 0.1]
    #[arg(long, value_name = "FRACTION")]
    pub(in crate::cli) keep: Option<f64>,
    /// Lambda of experts that name none [default: 1.0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(in crate::cli) lambda: Option<f64>,
    /// Take statistics over the whole model, each layer or each tensor [default: the method's]
    #[arg(long, value_parser = word::<Scope>())]
    pub(in crate::cli) scope: Option<Scope>,
    /// Merge only tensors that match; repeat
    #[arg(long, value_name = "GLOB")]
    pub(in crate::cli) include: Vec<String>,
    /// Take tensors that match from the base; repeat
    #[arg(long, value_name = "GLOB")]
    pub(in crate::cli) exclude: Vec<String>,
    /// Element type of the output [default: keep]
    #[arg(long, value_parser = word::<OutputDtype>())]
    pub(in crate::cli) dtype: Option<OutputDtype>,
    /// Data per output shard, at most [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = size())]
    pub(in crate::cli) shard_size: Option<u64>,
    /// Tensors that an expert lacks: an error, or unchanged [default: error]
    #[arg(long, value_parser = word::<Missing>())]
    pub(in crate::cli) missing: Option<Missing>,
    /// Vocabularies of different size: an error, or merge the rows all have [default: error]
    #[arg(long, value_parser = word::<Vocab>())]
    pub(in crate::cli) vocab: Option<Vocab>,
    /// NaN and infinity in an input: an error, or the base's value [default: error]
    #[arg(long, value_parser = word::<NonFinite>())]
    pub(in crate::cli) nonfinite: Option<NonFinite>,
    /// Turn harmless deviations from the format into warnings
    #[arg(long)]
    pub(in crate::cli) lenient: bool,
    /// Count tied tensors as often as they are stored
    #[arg(long)]
    pub(in crate::cli) count_aliases: bool,
    /// Copy the base's Python files, too
    #[arg(long)]
    pub(in crate::cli) copy_code: bool,
}

/// How it is run; changes no byte of the output.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Run")]
pub(in crate::cli) struct RunArgs {
    /// Memory to use at most, page cache included [default: 7/8 of a container's, half of a machine's]
    #[arg(long, value_name = "SIZE", value_parser = size())]
    pub(in crate::cli) memory: Option<u64>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=1024))]
    pub(in crate::cli) threads: Option<u16>,
    /// How inputs are read
    #[arg(long, value_parser = word::<IoRequest>(), default_value = "auto")]
    pub(in crate::cli) io: IoRequest,
    /// How output is written: through the page cache or past it (for tests)
    #[arg(long, hide = true, value_parser = word::<WriteRequest>(), default_value = "auto")]
    pub(in crate::cli) write: WriteRequest,
    /// How order statistics are found: the same bytes in two reads, or in five (for tests)
    #[arg(long, hide = true, value_parser = word::<Strategy>(), default_value = "fused")]
    pub(in crate::cli) selection: Strategy,
    /// Start over instead of going on where an earlier attempt stopped
    #[arg(long)]
    pub(in crate::cli) restart: bool,
    /// Read every byte of the output once more before it is published
    #[arg(long)]
    pub(in crate::cli) verify: bool,
    /// Bytes of recorded output to read back before going on (for tests)
    #[arg(long, hide = true, value_parser = size())]
    pub(in crate::cli) reread: Option<u64>,
    /// Stop before a call that writes, kill:N or pause:N (for tests)
    #[arg(long, hide = true, value_parser = failpoint)]
    pub(in crate::cli) failpoint: Option<Failpoint>,
    /// Bytes between two records of progress (for tests)
    #[arg(long, hide = true, value_parser = size())]
    pub(in crate::cli) checkpoint: Option<u64>,
    /// Elements per tile (for tests)
    #[arg(long, hide = true, value_parser = value_parser!(u32).range(1..=1 << 30))]
    pub(in crate::cli) tile: Option<u32>,
}
