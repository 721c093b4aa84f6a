//! What can be made again when a disk has lost it.

use super::components;
use super::journal::{Cursor, Record};
use super::staging::Staging;
use crate::engine::EngineError;
use crate::engine::sink::SinkError;
use crate::error::Error;
use crate::method::MethodError;
/// What was made again already.
#[derive(Default)]
pub(super) struct Redo {
    shards: Vec<u32>,
    /// Units and stages.
    scans: Vec<(u32, u32)>,
    statistics: bool,
}

impl Redo {
    /// Whether the error concerns bytes of a shard that can be made again: what was recorded of them is taken
    /// back then, and the next attempt begins before it.
    ///
    /// A shard that could not be synced is thrown away, since nobody knows what it holds. Once: a disk that
    /// fails again is not to be trusted. A scan whose parcels were lost is made again, also once.
    pub(super) fn can(&mut self, staging: &Staging<'_>, error: &Error) -> Result<bool, Error> {
        if let Error::Engine(EngineError::Method { error: MethodError::Lost(_), .. }) = error {
            return self.can_scan(staging);
        }
        let (Error::Sink(sink) | Error::Engine(EngineError::Sink(sink))) = error else {
            return Ok(false);
        };
        if matches!(sink, SinkError::Sync { .. } | SinkError::Damaged { .. }) {
            // Whoever works here now relies on what would be taken back.
            staging.check_lock()?;
        }
        match sink {
            SinkError::Sync { path, .. } => {
                let Some(shard) = staging.shard_at(path).filter(|k| !self.shards.contains(k))
                else {
                    return Ok(false);
                };
                self.shards.push(shard);
                staging.discard(path)?;
                let _any = staging.journal()?.take_back_bytes(shard, 0, u64::MAX)?;
                Ok(true)
            }
            SinkError::Damaged { path, offset, len } => match staging.shard_at(path) {
                Some(shard) => staging.journal()?.take_back_bytes(shard, *offset, *len),
                None if components::is_data(path) => {
                    staging.journal()?.take_back_components(*offset)
                }
                // The next attempt takes back what the file belongs to.
                None if path.starts_with(staging.state()) => {
                    Ok(!std::mem::replace(&mut self.statistics, true))
                }
                None => Ok(false),
            },
            _ => Ok(false),
        }
    }

    /// Takes back all records of the stage that the last one speaks of: its parcels were lost.
    fn can_scan(&mut self, staging: &Staging<'_>) -> Result<bool, Error> {
        staging.check_lock()?;
        let mut journal = staging.journal()?;
        let Cursor { units, stage, .. } = journal.cursor();
        let scan = (units, stage);
        if self.scans.contains(&scan) {
            return Ok(false);
        }
        self.scans.push(scan);
        // A record without elements is about the end of what came before.
        let of_it = |record: &Record| {
            let Cursor { units, stage, elements, .. } = record.cursor;
            (units, stage) == scan && elements > 0
        };
        let first = journal.records().position(of_it);
        first.map_or(Ok(()), |keep| journal.take_back(keep))?;
        Ok(first.is_some())
    }
}
