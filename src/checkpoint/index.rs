//! `model.safetensors.index.json`: which shard holds which tensor.

use serde::Deserialize;
use serde_json::Value;

use super::json::Entries;

/// Name of the index file.
pub(super) const FILE: &str = "model.safetensors.index.json";
/// A larger index is refused unread.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// A parsed index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Tensor name and shard file name, sorted by tensor.
    pub shard_of: Vec<(String, String)>,
    /// `metadata.total_size`, where it is a number.
    pub total_size: Option<u64>,
}

/// The rule that an index breaks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Above 64 MiB.
    #[error("has {0} bytes, above the limit of 64 MiB")]
    TooLarge(u64),
    /// Not the JSON it should be.
    #[error("is malformed: {0}")]
    Json(String),
    /// It maps nothing.
    #[error("has no entry in weight_map")]
    Empty,
    /// A shard name that could lead elsewhere.
    #[error("maps {tensor:?} to {shard:?}, which is not a plain .safetensors file name")]
    ShardName {
        /// Tensor.
        tensor: String,
        /// Shard.
        shard: String,
    },
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    metadata: Option<Value>,
    weight_map: Entries<String>,
}

impl Index {
    /// Reads an index.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(json: &[u8]) -> Result<Self, IndexError> {
        // Twice: once for what is wanted, once for keys that occur twice beside it.
        let located = |error: serde_json::Error| IndexError::Json(error.to_string());
        let Entries::<Value>(_) = serde_json::from_slice(json).map_err(located)?;
        let raw: Raw = serde_json::from_slice(json).map_err(located)?;
        let mut shard_of = raw.weight_map.0;
        if shard_of.is_empty() {
            return Err(IndexError::Empty);
        }
        for (tensor, shard) in &shard_of {
            if !is_plain(shard) {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(IndexError::ShardName { tensor, shard });
            }
        }
        shard_of.sort();
        let total_size =
            raw.metadata.as_ref().and_then(|m| m.get("total_size")).and_then(Value::as_u64);
        Ok(Self { shard_of, total_size })
    }

    /// The shard of a tensor.
    pub fn get(&self, tensor: &str) -> Option<&str> {
        let at = self.shard_of.binary_search_by(|(name, _)| name.as_str().cmp(tensor)).ok()?;
        Some(&self.shard_of[at].1)
    }

    /// All shards, sorted, each once.
    pub fn shards(&self) -> Vec<&str> {
        let mut shards: Vec<&str> = self.shard_of.iter().map(|(_, shard)| shard.as_str()).collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }
}

/// A file name without any way out of its directory, on any operating system.
fn is_plain(name: &str) -> bool {
    name.ends_with(".safetensors")
        && !name.starts_with('.')
        && !name.chars().any(|c| matches!(c, '/' | '\\' | ':') || c.is_control())
}
