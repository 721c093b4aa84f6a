//! The shards being written: opened when first touched, finished when whole.

use std::path::PathBuf;

use crate::checkpoint::Layout;
use crate::engine::TileSink;
use crate::engine::sink::{ShardWriter, SinkConfig, SinkError, durable};
use crate::progress::{Event, Progress};

/// Writes tiles into `NAME.part` files and renames each to `NAME` once all its bytes are durable.
pub(super) struct Output<'a> {
    layout: &'a Layout,
    model: PathBuf,
    config: SinkConfig,
    progress: &'a dyn Progress,
    shards: Vec<Shard>,
}

enum Shard {
    Untouched,
    Open { writer: ShardWriter, missing: u64 },
    Done,
}

impl<'a> Output<'a> {
    pub(super) fn new(
        layout: &'a Layout,
        model: PathBuf,
        config: SinkConfig,
        progress: &'a dyn Progress,
    ) -> Self {
        let shards = layout.shards.iter().map(|_| Shard::Untouched).collect();
        Self { layout, model, config, progress, shards }
    }

    /// Finishes shards that hold no data at all (empty tensors only).
    pub(super) fn finish(&mut self) -> Result<(), SinkError> {
        for k in 0..self.shards.len() {
            if matches!(self.shards[k], Shard::Untouched) {
                self.write(k, 0, &[])?;
            }
        }
        Ok(())
    }

    fn open(&self, k: usize) -> Result<Shard, SinkError> {
        let shard = &self.layout.shards[k];
        let path = self.model.join(format!("{}.part", shard.file_name));
        let writer = ShardWriter::create(&path, shard.len, &self.config)?;
        writer.write_at(0, &shard.header)?;
        Ok(Shard::Open { writer, missing: shard.len - shard.header.len() as u64 })
    }
}

impl TileSink for Output<'_> {
    fn write(&mut self, k: usize, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if matches!(self.shards[k], Shard::Untouched) {
            self.shards[k] = self.open(k)?;
        }
        if let Shard::Open { writer, missing } = &mut self.shards[k] {
            if !bytes.is_empty() {
                writer.write_at(offset, bytes)?;
            }
            *missing -= bytes.len() as u64;
            if *missing > 0 {
                return Ok(());
            }
        }
        if let Shard::Open { writer, .. } = std::mem::replace(&mut self.shards[k], Shard::Done) {
            let name = &self.layout.shards[k].file_name;
            writer.finish()?;
            let part = self.model.join(format!("{name}.part"));
            durable::rename_noreplace(&part, &self.model.join(name))?;
            self.progress.event(&Event::ShardDone { file: name });
        }
        Ok(())
    }
}
