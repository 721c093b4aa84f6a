//! Writes output shards durably and without filling memory with dirty pages.
//!
//! [`ShardWriter`] takes bytes at any offset and starts writing them back at once; [`durable`] has
//! the small-file rules: a name only ever points at bytes that are on disk.

pub mod durable;

mod error;
mod shard;
mod writeback;

pub use error::SinkError;
pub use shard::{ShardWriter, SinkConfig};
