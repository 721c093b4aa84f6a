//! The file formats, read strictly and written deterministically.
//!
//! ```text
//!  shard file:  | N: u64, LE | N bytes of JSON, space padded | tensor data, no holes |
//!  directory:   model.safetensors.index.json -> shards, config.json, tokenizer, ..
//! ```
//!
//! What is accepted is a subset of what the specification allows; `docs/formats.md` lists the
//! rules. Nothing here reads tensor data or knows methods.

mod adapter;
mod catalog;
mod coefficients;
pub mod components;
mod dtype;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod header;
mod index;
mod json;
mod layers;
mod layout;
mod model_card;
mod natural;
mod shards;
mod sidecar;
mod statistics;
pub mod tokenizer;
pub mod unified;

pub use adapter::{Adapted, Adapter, Factor, LowRank, Product, is_adapter};
pub use catalog::{Catalog, CheckpointError, OpenOptions, ShardFile, TensorInfo};
pub use coefficients::{Coefficients, parse_order};
pub use dtype::DType;
pub use header::{Entry, Header, HeaderError};
pub use index::{Index, IndexError};
pub use layers::{LayerOrigin, layer_counts, relayered};
pub use layout::{Layout, LayoutError, OutShard, OutTensor, Placed};
pub use model_card::{CardExpert, CardFile, ModelCard, display_name};
pub use natural::compare as natural_order;
pub(crate) use shards::hex;
pub use sidecar::{config_json, side_files};
pub use statistics::{
    RowMagnitudes, STATISTICS, StatisticsError, StatisticsHead, StatisticsReader, TensorRow,
};
