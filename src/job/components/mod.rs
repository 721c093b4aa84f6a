//! A directory of components: the share of each expert in a merge, from which any lambdas make an output.
//!
//! ```text
//! DIR/components.bin     the shares, see `checkpoint::components`
//! DIR/components.json    what they belong to: recipe, base, tensors, and where the frames of each lie
//! ```
//! It grows in the staging directory of the output (`OUT.partial/components/`) and gets its name by a rename of its own,
//! just before the output does.
//!
//! What EMR-Merging makes is the same, with a unified task vector and masks in place of shares: `emr.bin` and `emr.json`. They
//! are files of an output that has no other weights.

mod place;
mod recombine;
mod rescale;
mod scan;
mod table;
mod verify;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(super) use place::check;
pub(super) use recombine::{Prepared, Recombined, Wanted, frames, prepare};
pub use rescale::Rescalers;
pub(super) use verify::{verify, verify_grown};
pub(super) use writer::{Grown, Writer};

use super::reading::read_file;
use crate::checkpoint::components::{FRAME, FRAME_HEAD, Form, HEAD, Kind};
use crate::error::Error;
use crate::method::Method;
use crate::plan::{Beside, Inputs};
use crate::recipe::{ChatTemplate, Recipe, RecipeError, suggestion};

/// The names of the files of components.
pub(super) const NAMES: [&str; 2] = [SHARES_NAMES.data, SHARES_NAMES.file];
/// The names of the files that EMR-Merging makes, the one that says what is in the other last.
pub(super) const UNIFIED_NAMES: [&str; 2] = [EMR_NAMES.data, EMR_NAMES.file];
/// The file without which nobody takes a directory for one that EMR-Merging has made.
pub(super) const UNIFIED: &str = EMR_NAMES.file;

const SHARES_NAMES: Names = Names {
    data: "components.bin",
    file: "components.json",
    format: "reflow components 2",
    again: "merge again with --components",
};
const EMR_NAMES: Names = Names {
    data: "emr.bin",
    file: "emr.json",
    format: "reflow emr 2",
    again: "merge again with --method emr",
};
/// Formats that knew their base by samples only.
const EARLIER: [&str; 2] = ["reflow components 1", "reflow emr 1"];
/// Far above that of a model with 100,000 tensors and 64 experts.
const LARGEST: u64 = 1 << 30;

/// What the files of a kind are called.
struct Names {
    /// The file of frames.
    data: &'static str,
    /// The file that says what is in it.
    file: &'static str,
    /// The version of the format.
    format: &'static str,
    /// How to get others.
    again: &'static str,
}

impl Names {
    fn of(kind: Kind) -> &'static Self {
        match kind {
            Kind::Shares => &SHARES_NAMES,
            Kind::Unified => &EMR_NAMES,
        }
    }

    /// The data file in a directory.
    fn data_in(&self, dir: &Path) -> PathBuf {
        dir.join(self.data)
    }

    /// The same while it is written.
    fn part_in(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.part", self.data))
    }
}

/// Whether a path is that of a data file, or of one being written.
pub(super) fn is_data(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let name = name.strip_suffix(".part").unwrap_or(name);
    [Kind::Shares, Kind::Unified].into_iter().any(|kind| name == Names::of(kind).data)
}

/// What a directory of components holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Components {
    /// Version of the format.
    format: String,
    /// BLAKE3 of this file with this field empty.
    blake3: String,
    /// The version of reflow that made them.
    pub reflow: String,
    /// Fingerprint of the merge that they come from.
    pub plan: String,
    /// The recipe of that merge.
    pub recipe: String,
    /// The common parameters that it named itself.
    given: Vec<String>,
    /// The names of base and experts, in order.
    pub labels: Vec<String>,
    /// What was decided about tied weights.
    ties: Vec<StoredTie>,
    /// BLAKE3 of those of the base in all tensors.
    pub base: String,
    /// A hash of samples of all tensors of the base, which tells another one before anything is read.
    base_sample: String,
    /// Base and experts, in order.
    inputs: Vec<StoredInput>,
    /// Bytes of the data file.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// The rescalers of each expert; none of components.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rescalers: Vec<Rescalers>,
    /// The tensors, in the order of their frames.
    pub tensors: Vec<StoredShares>,
}

/// The frames of one tensor, or of the rows of it that are merged or copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredShares {
    /// Its name.
    pub name: String,
    /// The first of these elements.
    pub first: u64,
    /// Number of these elements.
    pub elements: u64,
    /// Whether it is not merged: then `elements` are bytes if it is copied as they are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub copied: bool,
    /// The first byte of its frames.
    pub offset: u64,
    /// BLAKE3 of the hashes of the base in its frames.
    pub base: String,
    /// Entries of each expert.
    pub entries: Vec<u64>,
    /// Bytes of each frame.
    pub frames: Vec<u32>,
}

/// What every version begins with.
#[derive(Deserialize)]
struct Version {
    format: String,
}

/// The name of a base: a hash of what its tensors hold.
fn base_of(tensors: &[StoredShares]) -> String {
    let mut hasher = blake3::Hasher::new();
    tensors.iter().for_each(|tensor| {
        hasher.update(tensor.base.as_bytes());
    });
    hasher.finalize().to_hex().to_string()
}

/// A decision about tied weights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTie {
    name: String,
    of: String,
    alias: bool,
}

/// A checkpoint that was merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredInput {
    files: Vec<StoredFile>,
    /// Tensors that are not as the base's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<StoredTensor>,
    /// Tensors of the base that it lacks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    lacks: Vec<String>,
}

/// A file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredFile {
    name: String,
    bytes: u64,
    header_sha256: String,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredTensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    bytes: u64,
}

impl StoredShares {
    /// Where its frames begin, and the last one ends.
    pub(super) fn starts(&self) -> Vec<u64> {
        let ends = self.frames.iter().scan(self.offset, |end, &bytes| {
            *end += u64::from(bytes);
            Some(*end)
        });
        std::iter::once(self.offset).chain(ends).collect()
    }

    /// The byte behind its last frame.
    fn end(&self) -> u64 {
        self.frames.iter().fold(self.offset, |end, &bytes| end.saturating_add(bytes.into()))
    }
}

/// What a merge keeps beside its output, or makes instead of one, if components are asked for or its method makes no
/// other.
///
/// # Errors
/// [`RecipeError::Value`] if it is none that they can be kept of.
pub(super) fn beside(
    recipe: &Recipe,
    inputs: &Inputs,
    method: &dyn Method,
) -> Result<Beside, RecipeError> {
    let refuse = |reason: &str| {
        let key = if method.unifies() { "merge_method" } else { "--components" };
        Err(RecipeError::Value { key: key.to_owned(), reason: reason.to_owned() })
    };
    let what = if method.unifies() { "what emr makes" } else { "the share of each expert" };
    if !recipe.slices.is_empty() || !recipe.modules.is_empty() {
        return refuse(&format!(
            "{what} is kept of merges of whole models only, without slices and modules"
        ));
    }
    if recipe.tokenizer.is_some() {
        return refuse(&format!(
            "{what} is not kept where rows may move; leave `tokenizer_source` out"
        ));
    }
    if recipe.chat_template == Some(ChatTemplate::Auto) {
        return refuse(
            "whose chat template is taken depends on all models; name one or leave it out",
        );
    }
    let base = recipe.base.as_deref();
    if let Some(model) = recipe.models.iter().find(|model| Some(&*model.path) == base) {
        let path = model.path.display();
        return refuse(&format!(
            "{path} is the base and one of the experts, too; leave it out of the experts (its task vector is zero)"
        ));
    }
    if inputs.has_base && inputs.donor().adapter.is_some() {
        return refuse("the base has an adapter; merge it into the base first");
    }
    if method.unifies() {
        return Ok(Beside::Unified);
    }
    if !method.has_shares() {
        let name = recipe.method.name;
        return refuse(&format!("{name} has no shares of experts that could be kept; pcb has"));
    }
    Ok(Beside::Shares)
}

impl Components {
    /// Number of experts.
    pub fn experts(&self) -> usize {
        self.labels.len().saturating_sub(1)
    }

    /// Those tensors that are merged.
    pub fn merged(&self) -> impl Iterator<Item = &StoredShares> {
        self.tensors.iter().filter(|tensor| !tensor.copied)
    }

    /// The form of the data file.
    fn form(&self) -> Form {
        Form { kind: self.kind(), experts: self.experts() }
    }

    /// What the data file holds.
    pub fn kind(&self) -> Kind {
        if self.format == EMR_NAMES.format { Kind::Unified } else { Kind::Shares }
    }

    /// The expert of that name.
    ///
    /// # Errors
    /// If there is none, in words.
    pub(super) fn task(&self, name: &str) -> Result<usize, String> {
        let names = self.labels.get(1..).unwrap_or_default();
        names.iter().position(|known| known == name).ok_or_else(|| {
            let meant = suggestion(name, names.iter().map(String::as_str));
            let meant = meant.map_or_else(String::new, |meant| format!(" (did you mean {meant}?)"));
            format!("{name:?} is no task of it{meant}; there are: {}", names.join(", "))
        })
    }

    /// Which rescaler the merge's recipe asks for.
    ///
    /// # Errors
    /// If it is no recipe any more.
    pub(super) fn rescale(&self, dir: &Path) -> Result<String, RecipeError> {
        let path = dir.join(Names::of(self.kind()).file);
        let values = Recipe::published(&path, &self.recipe)?.merge_values()?;
        Ok(values.word("rescale").to_owned())
    }

    /// Bytes of the largest frame.
    fn largest(&self) -> u64 {
        let frames = self.tensors.iter().flat_map(|tensor| &tensor.frames);
        u64::from(frames.copied().max().unwrap_or(0))
    }

    /// The text of the file, with its check.
    pub(super) fn render(&mut self) -> String {
        self.blake3 = self.check();
        self.text()
    }

    fn text(&self) -> String {
        // Numbers, strings and lists: nothing that could fail.
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }

    fn check(&self) -> String {
        let open = Self { blake3: String::new(), ..self.clone() };
        blake3::hash(open.text().as_bytes()).to_hex().to_string()
    }

    /// Reads what [`Self::render`] made; `None` if any byte of it is another, or what it says cannot be.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let components: Self = serde_json::from_slice(text).ok()?;
        let same = components.text().as_bytes() == text && components.check() == components.blake3;
        let known = components.format == Names::of(components.kind()).format;
        (same && known && components.is_possible()).then_some(components)
    }

    /// Whether tables and sizes agree.
    fn is_possible(&self) -> bool {
        let experts = self.experts();
        let whole = self.tensors.iter().try_fold(HEAD, |end, tensor| {
            let frames = tensor.elements.div_ceil(u64::from(FRAME));
            let sized = tensor.frames.iter().all(|&b| b as usize >= FRAME_HEAD);
            let fits = tensor.offset == end
                && tensor.frames.len() as u64 == frames
                && tensor.entries.len() == experts
                && sized;
            fits.then(|| tensor.end())
        });
        let rescalers = match self.kind() {
            Kind::Shares => 0,
            Kind::Unified => experts,
        };
        experts > 0
            && self.base == base_of(&self.tensors)
            && self.rescalers.len() == rescalers
            && self.rescalers.iter().all(|rescalers| rescalers.are_possible())
            && self.inputs.len() == experts + 1
            && self.inputs.iter().all(|input| !input.files.is_empty())
            && whole == Some(self.bytes)
            && self.bytes < 1 << 56
    }

    /// Reads the file of a directory, of whatever kind; `None` if there is none, or `dir` is a single shard.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written.
    pub fn any(dir: &Path) -> Result<Option<Self>, Error> {
        let shares = Self::load(dir, Kind::Shares)?;
        shares.map_or_else(|| Self::load(dir, Kind::Unified), |found| Ok(Some(found)))
    }

    /// Reads the file of this kind.
    ///
    /// # Errors
    /// Those of [`Components::any`].
    pub fn load(dir: &Path, kind: Kind) -> Result<Option<Self>, Error> {
        let names = Names::of(kind);
        let path = dir.join(names.file);
        let text = match read_file(&path, LARGEST) {
            Ok(None) => return Ok(None),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                return Ok(None);
            }
            // Nobody has written such a thing.
            Err(Error::Foreign { .. }) => Vec::new(),
            text => text?.unwrap_or_default(),
        };
        let what = match serde_json::from_slice(&text) {
            Ok(Version { format }) if EARLIER.contains(&&*format) => {
                format!(
                    "it is of a version ({format}) that this reflow does not read; {}",
                    names.again
                )
            }
            _ => format!("it is not as it was written; {}", names.again),
        };
        let found = Self::parse(&text).filter(|found| found.kind() == kind);
        found.ok_or(Error::Damaged { path, what }).map(Some)
    }
}
