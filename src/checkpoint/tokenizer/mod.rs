//! Tokenizers as far as a merge needs them: which token belongs to which row of an embedding.

mod template;
#[cfg(test)]
mod tests;
mod union;
mod vocabulary;

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::catalog::CheckpointError;
use super::shards;

pub use template::{TEMPLATE, TEMPLATE_JSON, built_in, built_in_names, template, with_template};
pub use union::{config_with_tokens, list_with_tokens, with_tokens};
pub use vocabulary::{Added, Vocabulary};

/// Name of the file that is read.
pub const TOKENIZER: &str = "tokenizer.json";
/// Name of the file with what else loaders need.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// No tokenizer is larger.
const MAX_BYTES: u64 = 512 << 20;
/// Files about tokens, which belong together.
const FILES: [&str; 11] = [
    TOKENIZER,
    "tokenizer.model",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
];

/// Whether a side file is a part of the tokenizer.
pub fn is_tokenizer_file(name: &str) -> bool {
    FILES.contains(&name) || [TEMPLATE, TEMPLATE_JSON].contains(&name)
}

/// Whether a directory has any file about tokens.
pub fn has_tokenizer(root: &Path) -> bool {
    FILES.iter().any(|name| root.join(name).exists())
}

/// The tokens of a checkpoint's directory; `None` if it has no `tokenizer.json`.
///
/// # Errors
/// If the file cannot be read, or is malformed.
pub fn vocabulary(root: &Path) -> Result<Option<Vocabulary>, CheckpointError> {
    let path = root.join(TOKENIZER);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let (file, meta) = shards::open_regular(&path)?;
    let wrong = |reason: String| CheckpointError::File { path: path.clone(), reason };
    if meta.len() > MAX_BYTES {
        return Err(wrong(format!("has {} bytes, too many for a tokenizer", meta.len())));
    }
    let mut bytes = vec![0; meta.len() as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| shards::io_error(&path, e))?;
    Vocabulary::parse(&bytes).map(Some).map_err(wrong)
}
