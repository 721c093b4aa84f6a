//! A directory of components: the share of each expert in a merge, from which any lambdas make an output.
//!
//! ```text
//! DIR/components.bin     the shares, see `checkpoint::components`
//! DIR/components.json    what they belong to: recipe, base, tensors, and where the frames of each lie
//! ```
//! It grows in the staging directory of the output (`OUT.partial/components/`) and gets its name by a rename of its own,
//! just before the output does.

mod place;
mod recombine;
mod scan;
mod verify;
mod writer;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(super) use place::check;
pub(super) use recombine::{Prepared, Recombined, frames, prepare};
pub(super) use verify::verify;
pub(super) use writer::{Grown, Writer, is_there};

use super::reading::read_file;
use crate::checkpoint::components::{FRAME, FRAME_HEAD, HEAD};
use crate::error::Error;
use crate::method::Method;
use crate::plan::{Beside, Inputs};
use crate::recipe::{ChatTemplate, Recipe, RecipeError};

/// The name of the data file.
pub(super) const DATA: &str = "components.bin";
/// The name of the file that says what is in it.
pub(super) const FILE: &str = "components.json";
const FORMAT: &str = "reflow components 1";
/// Far above that of a model with 100,000 tensors and 64 experts.
const LARGEST: u64 = 1 << 30;

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
    /// A hash of samples of all tensors of the base.
    base_sample: String,
    /// Base and experts, in order.
    inputs: Vec<StoredInput>,
    /// Bytes of the data file.
    pub bytes: u64,
    /// Its SHA-256.
    pub sha256: String,
    /// The tensors, in the order of their frames.
    pub tensors: Vec<StoredShares>,
}

/// The shares in one tensor, or in the rows of it that are merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredShares {
    /// Its name.
    pub name: String,
    /// The first element of the tensor that is merged.
    pub first: u64,
    /// Number of elements that are merged.
    pub elements: u64,
    /// The first byte of its frames.
    pub offset: u64,
    /// Entries of each expert.
    pub entries: Vec<u64>,
    /// Bytes of each frame; 0 for one that is left out.
    pub frames: Vec<u32>,
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
    fn starts(&self) -> Vec<u64> {
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

/// What a merge keeps beside its output, if components are asked for.
///
/// # Errors
/// [`RecipeError::Value`] if it is none that they can be kept of.
pub(super) fn beside(
    recipe: &Recipe,
    inputs: &Inputs,
    method: &dyn Method,
) -> Result<Beside, RecipeError> {
    let refuse = |reason: &str| {
        Err(RecipeError::Value { key: "--components".to_owned(), reason: reason.to_owned() })
    };
    if !recipe.slices.is_empty() || recipe.module.is_some() {
        return refuse("they are kept of merges of whole models only, without slices and modules");
    }
    if recipe.tokenizer.is_some() {
        return refuse("they are not kept where rows may move; leave `tokenizer_source` out");
    }
    if recipe.chat_template == Some(ChatTemplate::Auto) {
        return refuse(
            "whose chat template is taken depends on all models; name one or leave it out",
        );
    }
    if inputs.has_base && inputs.donor().adapter.is_some() {
        return refuse("the base has an adapter; merge it into the base first");
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

    /// Bytes of the largest frame.
    fn largest(&self) -> u64 {
        let frames = self.tensors.iter().flat_map(|tensor| &tensor.frames);
        u64::from(frames.copied().max().unwrap_or(0))
    }

    /// The text of the file, with its check.
    fn render(&mut self) -> String {
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
    fn parse(text: &[u8]) -> Option<Self> {
        let components: Self = serde_json::from_slice(text).ok()?;
        let same = components.text().as_bytes() == text && components.check() == components.blake3;
        (same && components.format == FORMAT && components.is_possible()).then_some(components)
    }

    /// Whether tables and sizes agree.
    fn is_possible(&self) -> bool {
        let experts = self.experts();
        let whole = self.tensors.iter().try_fold(HEAD, |end, tensor| {
            let frames = tensor.elements.div_ceil(u64::from(FRAME));
            let sized = tensor.frames.iter().all(|&b| b == 0 || b as usize > FRAME_HEAD);
            let fits = tensor.offset == end
                && tensor.frames.len() as u64 == frames
                && tensor.entries.len() == experts
                && sized;
            fits.then(|| tensor.end())
        });
        experts > 0
            && self.inputs.len() == experts + 1
            && whole == Some(self.bytes)
            && self.bytes < 1 << 56
    }

    /// Reads the file of a directory; `None` if there is none, or `dir` is a single shard.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let text = match read_file(&path, LARGEST) {
            Ok(None) => return Ok(None),
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotADirectory => {
                return Ok(None);
            }
            // Nobody has written such a thing.
            Err(Error::Foreign { .. }) => Vec::new(),
            text => text?.unwrap_or_default(),
        };
        let what = "it is not as it was written; merge again with --components".to_owned();
        Self::parse(&text).ok_or(Error::Damaged { path, what }).map(Some)
    }
}
