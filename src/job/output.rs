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
    /// Not opened by this process; so many bytes of data are missing.
    Closed { missing: u64 },
    /// Being written.
    Open { writer: ShardWriter, missing: u64 },
    /// Whole, durable, under its final name.
    Done,
}

impl<'a> Output<'a> {
    /// An output of whose shards `done` bytes of data each are durable already.
    pub(super) fn new(
        layout: &'a Layout,
        done: &[u64],
        model: PathBuf,
        config: SinkConfig,
        progress: &'a dyn Progress,
    ) -> Self {
        let shards = (layout.shards.iter().zip(done))
            .map(|(shard, done)| {
                let data = shard.len - shard.header.len() as u64;
                // A shard gets its final name when it is whole, which may be before the record of
                // that is written.
                let whole =
                    model.join(&shard.file_name).metadata().is_ok_and(|m| m.len() == shard.len);
                if whole {
                    Shard::Done
                } else {
                    Shard::Closed { missing: data.saturating_sub(*done) }
                }
            })
            .collect();
        Self { layout, model, config, progress, shards }
    }

    /// Makes everything that was written durable.
    pub(super) fn sync(&self) -> Result<(), SinkError> {
        for shard in &self.shards {
            if let Shard::Open { writer, .. } = shard {
                writer.sync()?;
            }
        }
        durable::fsync_dir(&self.model)
    }

    /// Finishes shards that nothing is missing of, and that no write has finished: those without any
    /// data.
    pub(super) fn finish(&mut self) -> Result<(), SinkError> {
        (0..self.shards.len()).try_for_each(|k| self.write(k, 0, &[]))
    }

    fn open(&self, k: usize, missing: u64) -> Result<Shard, SinkError> {
        let shard = &self.layout.shards[k];
        let path = self.model.join(format!("{}.part", shard.file_name));
        let writer = if path.exists() {
            ShardWriter::reopen(&path, shard.len, &self.config)?
        } else {
            ShardWriter::create(&path, shard.len, &self.config)?
        };
        writer.write_at(0, &shard.header)?;
        Ok(Shard::Open { writer, missing })
    }
}

impl TileSink for Output<'_> {
    fn write(&mut self, k: usize, offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if let Shard::Closed { missing } = self.shards[k] {
            self.shards[k] = self.open(k, missing)?;
        }
        // What a finished shard is given again is what it holds.
        let Shard::Open { writer, missing } = &mut self.shards[k] else { return Ok(()) };
        if !bytes.is_empty() {
            writer.write_at(offset, bytes)?;
        }
        *missing = missing.saturating_sub(bytes.len() as u64);
        if *missing > 0 {
            return Ok(());
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
