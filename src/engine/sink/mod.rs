//! Writes output shards durably and without filling memory with dirty pages.
//!
//! [`ShardWriter`] takes bytes at any offset and starts writing them to disk at once, past the page cache where there
//! is a [`Lane`] for that; [`durable`] has the small-file rules: a name only ever points at bytes that are on
//! disk. Both write through a [`Storage`].

pub mod durable;

mod error;
mod file;
mod lane;
mod ranges;
mod readback;
mod shard;
mod storage;
#[cfg(test)]
mod tests;
mod trail;
mod writeback;

pub use error::SinkError;
pub use lane::Lane;
pub use ranges::Ranges;
pub use readback::{ReadOnce, read_back};
pub use shard::{ShardWriter, SinkConfig};
pub use storage::{RealDisk, Storage, StoredFile};
pub use trail::Trail;
