//! `manifest.json`: what a finished output consists of, hash by hash.
//!
//! One line per extent. The file is canonical: whatever does not render to the same bytes was changed.

use std::fmt::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::reading::read_file;
use crate::error::Error;

/// The name of the manifest's file.
pub(super) const FILE: &str = "manifest.json";
const FORMAT: &str = "reflow manifest 1";
/// Far above that of a checkpoint with a million tensors.
const LARGEST: u64 = 1 << 30;

/// What a finished output consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format.
    format: String,
    /// BLAKE3 of the rest.
    blake3: String,
    /// The version of reflow that made the output.
    pub reflow: String,
    /// Fingerprint of recipe and inputs.
    pub plan: String,
    /// All files but this one.
    pub files: Vec<ManifestFile>,
}

/// One file of an output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestFile {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, as the Hugging Face hub shows it.
    pub sha256: String,
    /// Its runs of bytes, without a hole; shards only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<ManifestExtent>,
}

/// A run of bytes of a shard: its header, or (a part of) a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestExtent {
    /// First byte in the file.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Their BLAKE3 hash.
    pub blake3: String,
    /// The tensor that they belong to; none for the header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
}

impl Manifest {
    /// A manifest of these files.
    pub(super) fn new(plan: String, files: Vec<ManifestFile>) -> Self {
        let reflow = env!("CARGO_PKG_VERSION").to_owned();
        let mut manifest =
            Self { format: FORMAT.to_owned(), blake3: String::new(), reflow, plan, files };
        manifest.blake3 = blake3::hash(manifest.body().as_bytes()).to_hex().to_string();
        manifest
    }

    /// The text of the file.
    pub(super) fn render(&self) -> String {
        format!(
            "{{\n\"format\":{},\n\"blake3\":{},\n{}",
            json(&self.format),
            json(&self.blake3),
            self.body()
        )
    }

    fn body(&self) -> String {
        let mut text = format!(
            "\"reflow\":{},\n\"plan\":{},\n\"files\":[\n",
            json(&self.reflow),
            json(&self.plan)
        );
        for (i, file) in self.files.iter().enumerate() {
            let plain = ManifestFile { extents: Vec::new(), ..file.clone() };
            let plain = json(&plain);
            text.push_str(&plain[..plain.len() - 1]);
            for (i, extent) in file.extents.iter().enumerate() {
                let before = if i == 0 { ",\"extents\":[" } else { "," };
                let _infallible = write!(text, "{before}\n {}", json(extent));
            }
            text.push_str(if file.extents.is_empty() { "}" } else { "\n]}" });
            text.push_str(if i + 1 < self.files.len() { ",\n" } else { "\n" });
        }
        text.push_str("]\n}\n");
        text
    }

    /// Reads what [`Self::render`] made; `None` if any byte of it is another.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        let manifest: Self = serde_json::from_slice(text).ok()?;
        let check = blake3::hash(manifest.body().as_bytes()).to_hex();
        let sound = manifest.format == FORMAT && check.as_str() == manifest.blake3;
        let sound = sound && manifest.files.iter().all(ManifestFile::is_possible);
        (sound && manifest.render().as_bytes() == text).then_some(manifest)
    }

    /// Reads the manifest of an output; `None` if it has none.
    ///
    /// # Errors
    /// [`Error::Damaged`] if it is not as it was written.
    pub(super) fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let path = dir.join(FILE);
        let text = match read_file(&path, LARGEST) {
            Ok(None) => return Ok(None),
            // Nobody has written such a thing.
            Err(Error::Foreign { .. }) => Vec::new(),
            text => text?.unwrap_or_default(),
        };
        let what = "it is not as it was written".to_owned();
        Self::parse(&text).ok_or(Error::Damaged { path, what }).map(Some)
    }
}

impl ManifestFile {
    /// Whether there can be such a file beside the manifest: whoever verifies a directory did not always write it.
    fn is_possible(&self) -> bool {
        let end = self.extents.iter().try_fold(0u64, |end, extent| {
            let named = extent.tensor.iter().all(|name| !name.chars().any(char::is_control));
            (named && extent.offset == end).then(|| end.checked_add(extent.bytes))?
        });
        is_file_name(&self.name) && (self.extents.is_empty() || end == Some(self.bytes))
    }
}

/// Whether a name is that of a file in the directory that it is looked for in.
pub(super) fn is_file_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.chars().any(|c| c == '/' || c.is_control())
}

/// Numbers, strings and lists: nothing that could fail.
fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_json_and_any_flipped_bit_is_found() {
        let extent = |offset, tensor: Option<&str>| ManifestExtent {
            offset,
            bytes: 10,
            blake3: "0f".repeat(32),
            tensor: tensor.map(str::to_owned),
        };
        let file = |name: &str, extents| ManifestFile {
            name: name.to_owned(),
            bytes: 20,
            sha256: "ab".repeat(32),
            extents,
        };
        let shard = vec![extent(0, None), extent(10, Some("a \"quoted\" näme"))];
        let files = vec![file("model.safetensors", shard), file("config.json", Vec::new())];
        let manifest = Manifest::new("plan".to_owned(), files);
        let text = manifest.render().into_bytes();
        assert_eq!(Manifest::parse(&text), Some(manifest));
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[at] ^= 1 << bit;
                assert_eq!(Manifest::parse(&flipped), None, "byte {at}, bit {bit}");
            }
        }
    }
}
