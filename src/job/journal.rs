//! How far a merge has come: one durable line per finished piece of work.
//!
//! ```text
//! state/journal       CHECK {"plan":..,"generation":..,"cursor":{..},"read":..,"total":..,"extents":[..],..}\n
//! ```
//!
//! A record is appended only when everything it speaks of is durable. CHECK is the BLAKE3 hash of
//! what follows it: a line that a crash has torn does not count, and nothing after it does. So does
//! a line of another plan, or of a process before the one whose line it follows.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::components::Grown;
use super::reading::read_file;
use crate::checkpoint::components::HEAD;
use crate::engine::sink::{SinkError, Storage, StoredFile, durable};
use crate::error::Error;

/// How far a merge has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// Elements of the copied segments that are in the output.
    pub(super) copied: u64,
    /// Units that are merged, in plan order.
    pub(super) units: u32,
    /// Finished stages of the next unit.
    pub(super) stage: u32,
    /// Elements that its next stage has seen.
    pub(super) elements: u64,
    /// Whether that stage writes: the elements are in the output.
    pub(super) writes: bool,
}

/// A run of bytes of an output shard that is durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// Which shard.
    pub(super) shard: u32,
    /// First byte in its file.
    pub(super) offset: u64,
    /// Number of bytes.
    pub(super) bytes: u64,
    /// Their BLAKE3 hash.
    pub(super) blake3: String,
}

/// A shard that is whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whole {
    /// Which shard.
    pub(super) shard: u32,
    /// The SHA-256 of its file.
    pub(super) sha256: String,
}

/// What one piece of work has done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The fingerprint of the plan that this is part of.
    pub(super) plan: String,
    /// Counts the processes that have worked here.
    pub(super) generation: u64,
    /// How far all pieces so far have come.
    pub(super) cursor: Cursor,
    /// Input bytes read so far, of those that an undisturbed merge reads.
    pub(super) read: u64,
    /// Input bytes that an undisturbed merge reads.
    pub(super) total: u64,
    /// Extents that this piece has finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) extents: Vec<Written>,
    /// The written part of the extent that the next piece goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) open: Option<Written>,
    /// Shards that this piece has finished.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) shards: Vec<Whole>,
    /// How far the components have come, if they are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) components: Option<Grown>,
    /// Whether statistics were saved with it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) statistics: bool,
    /// Whether everything is made, and files are being moved to where they belong.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) publishing: bool,
}

impl Record {
    /// Whether every run of bytes ends where a file can, and components have their head.
    fn is_possible(&self) -> bool {
        (self.extents.iter().chain(&self.open))
            .all(|written| written.offset.checked_add(written.bytes).is_some())
            && self.components.as_ref().is_none_or(|grown| grown.bytes >= HEAD)
    }

    /// Whether it speaks of bytes in this range of this shard.
    pub(super) fn touches(&self, shard: u32, offset: u64, bytes: u64) -> bool {
        let end = offset.saturating_add(bytes);
        (self.extents.iter().chain(&self.open)).any(|written| {
            written.shard == shard
                && written.offset < end
                && written.offset + written.bytes > offset
        })
    }
}

/// The name of the journal's file.
pub(super) const FILE: &str = "journal";

/// The journal of a staging directory.
pub(super) struct Journal {
    path: PathBuf,
    file: Box<dyn StoredFile>,
    /// The good records, and where each ends in the file.
    records: Vec<(Record, u64)>,
}

impl Journal {
    /// Opens the journal in `dir` that belongs to the plan with fingerprint `plan`; cuts off what
    /// does not count.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn open(storage: &dyn Storage, dir: &Path, plan: &str) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let text = read(dir)?;
        let records = parse(text.as_deref().unwrap_or_default(), plan);
        let file = match text {
            Some(_) => storage.open(&path),
            None => storage.create(&path),
        };
        let file = file.map_err(|e| SinkError::of("open", &path, 0, e))?;
        let journal = Self { path, file, records };
        let torn = text.as_ref().is_some_and(|text| text.len() as u64 > journal.end());
        if torn {
            journal.cut()?;
        }
        durable::sync_dir(storage, dir)?;
        Ok(journal)
    }

    /// All good records.
    pub(super) fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|(record, _)| record)
    }

    /// Number of good records.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The last record.
    pub(super) fn last(&self) -> Option<&Record> {
        self.records.last().map(|(record, _)| record)
    }

    /// How far the merge has come.
    pub(super) fn cursor(&self) -> Cursor {
        self.last().map(|record| record.cursor.clone()).unwrap_or_default()
    }

    /// Appends a record. What it speaks of must be durable.
    ///
    /// # Errors
    /// What the disk says. The record may be there or not.
    pub(super) fn append(&mut self, record: Record) -> Result<(), Error> {
        let line = line(&record);
        let end = self.end();
        durable::write_fully(&*self.file, &self.path, end, line.as_bytes())?;
        self.sync()?;
        self.records.push((record, end + line.len() as u64));
        Ok(())
    }

    /// Takes back all records after the first `keep`: what they speak of is to be done again.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn take_back(&mut self, keep: usize) -> Result<(), Error> {
        if keep < self.records.len() {
            self.records.truncate(keep);
            self.cut()?;
        }
        Ok(())
    }

    /// Takes back the first record that speaks of this range of a shard, and all after it. Tells whether
    /// there was one.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn take_back_bytes(
        &mut self,
        shard: u32,
        at: u64,
        bytes: u64,
    ) -> Result<bool, Error> {
        let first = self.records.iter().position(|(record, _)| record.touches(shard, at, bytes));
        first.map_or(Ok(()), |keep| self.take_back(keep))?;
        Ok(first.is_some())
    }

    /// Takes back the first record that speaks of components behind a byte, and all after it. Tells whether there
    /// was one.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn take_back_components(&mut self, at: u64) -> Result<bool, Error> {
        let speaks = |(record, _): &(Record, u64)| {
            record.components.as_ref().is_some_and(|grown| grown.bytes > at)
        };
        let first = self.records.iter().position(speaks);
        first.map_or(Ok(()), |keep| self.take_back(keep))?;
        Ok(first.is_some())
    }

    fn end(&self) -> u64 {
        self.records.last().map_or(0, |&(_, end)| end)
    }

    /// Cuts the file behind the last good record, durably: what is cut must not come back behind records
    /// that are written later.
    fn cut(&self) -> Result<(), Error> {
        let cut = self.file.set_len(self.end());
        cut.map_err(|e| SinkError::of("truncate", &self.path, 0, e))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.file.sync().map_err(|e| SinkError::sync(&self.path, 0, e))?)
    }
}

/// The bytes of the journal in a state directory; `None` if there is none.
pub(super) fn read(dir: &Path) -> Result<Option<Vec<u8>>, Error> {
    read_file(&dir.join(FILE), u64::MAX)
}

/// The good records of a journal, each with where it ends.
pub(super) fn parse(text: &[u8], plan: &str) -> Vec<(Record, u64)> {
    let (mut records, mut end, mut generation) = (Vec::new(), 0, 0);
    for line in text.split_inclusive(|&b| b == b'\n') {
        match parse_line(line) {
            Some(record) if record.plan == plan && record.generation >= generation => {
                end += line.len() as u64;
                generation = record.generation;
                records.push((record, end));
            }
            _ => break,
        }
    }
    records
}

fn parse_line(line: &[u8]) -> Option<Record> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (claimed, text) = line.split_once(' ')?;
    if blake3::hash(text.as_bytes()).to_hex().as_str() != claimed {
        return None;
    }
    serde_json::from_str(text).ok().filter(Record::is_possible)
}

pub(super) fn line(record: &Record) -> String {
    // Numbers, strings and lists: nothing that could fail.
    let text = serde_json::to_string(record).unwrap_or_default();
    format!("{} {text}\n", blake3::hash(text.as_bytes()).to_hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;
    use tempfile::TempDir;

    fn record(units: u32) -> Record {
        let extent = |offset| Written { shard: 1, offset, bytes: 10, blake3: "0".to_owned() };
        Record {
            plan: "p".to_owned(),
            cursor: Cursor { units, ..Cursor::default() },
            extents: vec![extent(u64::from(units) * 20)],
            open: Some(extent(u64::from(units) * 20 + 10)),
            ..Record::default()
        }
    }

    fn units(dir: &TempDir) -> u32 {
        Journal::open(&RealDisk, dir.path(), "p").unwrap().cursor().units
    }

    #[test]
    fn the_last_whole_record_counts_wherever_the_file_was_torn() {
        let dir = TempDir::new().unwrap();
        let mut journal = Journal::open(&RealDisk, dir.path(), "p").unwrap();
        assert_eq!(journal.cursor(), Cursor::default());
        let mut ends = vec![0];
        for units in 1..4 {
            journal.append(record(units)).unwrap();
            ends.push(std::fs::metadata(dir.path().join(FILE)).unwrap().len());
        }
        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        for len in 0..=whole.len() {
            std::fs::write(dir.path().join(FILE), &whole[..len]).unwrap();
            let expected = ends.iter().filter(|&&end| end <= len as u64).count() - 1;
            assert_eq!(units(&dir), expected as u32, "{len}");
            assert_eq!(std::fs::metadata(dir.path().join(FILE)).unwrap().len(), ends[expected]);
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(dir.path().join(FILE), &flipped).unwrap();
            assert!(units(&dir) < 3, "{at}");
        }
    }

    #[test]
    fn records_are_taken_back_from_the_first_that_speaks_of_a_byte() {
        for (at, bytes, left) in [(25, 1, 0), (45, 1, 1), (59, 100, 1), (70, 1, 2), (80, 9, 3)] {
            let dir = TempDir::new().unwrap();
            let mut journal = Journal::open(&RealDisk, dir.path(), "p").unwrap();
            (1..4).for_each(|units| journal.append(record(units)).unwrap());
            assert!(!journal.take_back_bytes(0, 0, u64::MAX).unwrap(), "another shard");
            assert_eq!(journal.take_back_bytes(1, at, bytes).unwrap(), left < 3, "{at}");
            assert_eq!(journal.len(), left, "{at}");
            journal.append(record(7)).unwrap();
            assert_eq!(units(&dir), 7);
        }
    }

    #[test]
    fn lines_of_other_plans_and_earlier_processes_do_not_count() {
        let text = |records: &[Record]| records.iter().map(line).collect::<String>();
        let by = |generation| Record { generation, ..record(1) };
        let counted = |records: &[Record]| parse(text(records).as_bytes(), "p").len();
        assert_eq!(counted(&[by(1), by(1), by(3)]), 3);
        assert_eq!(counted(&[by(1), by(3), by(2), by(3)]), 2);
        let foreign = Record { plan: "q".to_owned(), ..record(1) };
        assert_eq!(counted(&[by(1), foreign, by(1)]), 1);
    }

    #[test]
    fn what_no_file_can_hold_does_not_count() {
        let grown = |bytes| Record { components: Some(Grown { bytes }), ..record(1) };
        let far = Written { shard: 0, offset: u64::MAX, bytes: 1, blake3: "0".to_owned() };
        let beyond = Record { open: Some(far), ..record(1) };
        for (record, counts) in [(grown(HEAD), 1), (grown(HEAD - 1), 0), (beyond, 0)] {
            assert_eq!(parse(line(&record).as_bytes(), "p").len(), counts, "{record:?}");
        }
    }
}
