//! How far a merge has come: one durable line per finished piece of work.
//!
//! ```text
//! state/journal       CHECK {"copied":..,"units":..,"stage":..,"elements":..,"writes":..}\n
//! state/fold-U-S-E    CHECK (binary), then the merged state of stage S of unit U after E elements, zstd
//! ```
//!
//! A record is appended only when everything it speaks of is durable. CHECK is the BLAKE3 hash of
//! what follows it: a line that a crash has torn does not count, and nothing after it does.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::engine::sink::durable;
use crate::error::{Error, IoContext};

/// How far a merge has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// The journal of a staging directory.
pub(super) struct Journal {
    dir: PathBuf,
    file: File,
}

const FILE: &str = "journal";
const PREFIX: &str = "fold-";

impl Journal {
    /// Whether `name` is a file that the journal keeps.
    pub(super) fn owns(name: &str) -> bool {
        name == FILE || name.starts_with(PREFIX)
    }

    /// Whether the journal in `dir` says that something is done.
    pub(super) fn has_records(dir: &Path) -> bool {
        std::fs::read(dir.join(FILE)).is_ok_and(|text| last(&text).1 > 0)
    }

    /// Opens the journal in `dir`; returns the last good record, and cuts off what follows it.
    pub(super) fn open(dir: &Path) -> Result<(Self, Cursor), Error> {
        let path = dir.join(FILE);
        let mut file = (OpenOptions::new().read(true).write(true).create(true).truncate(false))
            .open(&path)
            .at("open", &path)?;
        let mut text = Vec::new();
        let _size = file.read_to_end(&mut text).at("read", &path)?;
        let (cursor, good) = last(&text);
        file.set_len(good).at("truncate", &path)?;
        let _end = file.seek(SeekFrom::Start(good)).at("read", &path)?;
        durable::fsync_dir(dir)?;
        Ok((Self { dir: dir.to_owned(), file }, cursor))
    }

    /// Records how far the merge has come. What the record speaks of must be durable.
    pub(super) fn record(&mut self, cursor: &Cursor) -> Result<(), Error> {
        let path = self.dir.join(FILE);
        let text = serde_json::to_string(cursor).unwrap_or_default();
        let line = format!("{} {text}\n", check(text.as_bytes()).to_hex());
        self.file.write_all(line.as_bytes()).at("write", &path)?;
        self.file.sync_data().at("make durable", &path)
    }

    /// Saves the state of a stage after some of its elements, durably, before the record about it.
    pub(super) fn save(&self, at: &Cursor, state: &[u8]) -> Result<(), Error> {
        let path = self.path(at.units, at.stage, at.elements);
        let packed = zstd::encode_all(state, 1).at("compress", &path)?;
        let mut bytes = check(&packed).as_bytes().to_vec();
        bytes.extend(packed);
        Ok(durable::write_atomic(&path, &bytes)?)
    }

    /// A saved state; `None` if it is gone or damaged.
    pub(super) fn state(&self, unit: u32, stage: u32, elements: u64) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.path(unit, stage, elements)).ok()?;
        let (claimed, packed) = bytes.split_first_chunk::<32>()?;
        if check(packed).as_bytes() != claimed {
            return None;
        }
        zstd::decode_all(packed).ok()
    }

    /// Removes snapshots that no resume will ask for.
    pub(super) fn forget(&self, useless: impl Fn(u32, u32, u64) -> bool) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let numbers: Vec<u64> = (name.strip_prefix(PREFIX).unwrap_or_default().split('-'))
                .filter_map(|n| n.parse().ok())
                .collect();
            if let [unit, stage, elements] = numbers[..]
                && useless(unit as u32, stage as u32, elements)
            {
                // What is left is removed with the staging directory.
                let _litter = std::fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, unit: u32, stage: u32, elements: u64) -> PathBuf {
        self.dir.join(format!("{PREFIX}{unit}-{stage}-{elements}"))
    }
}

fn check(bytes: &[u8]) -> blake3::Hash {
    blake3::hash(bytes)
}

/// The last good record and where it ends.
fn last(text: &[u8]) -> (Cursor, u64) {
    let (mut cursor, mut good) = (Cursor::default(), 0);
    for line in text.split_inclusive(|&b| b == b'\n') {
        let Some(parsed) = parse(line) else { break };
        cursor = parsed;
        good += line.len() as u64;
    }
    (cursor, good)
}

fn parse(line: &[u8]) -> Option<Cursor> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (claimed, text) = line.split_once(' ')?;
    if check(text.as_bytes()).to_hex().as_str() != claimed {
        return None;
    }
    serde_json::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn cursor(units: u32, elements: u64) -> Cursor {
        Cursor { units, elements, ..Cursor::default() }
    }

    #[test]
    fn the_last_whole_record_counts_wherever_the_file_was_torn() {
        let dir = TempDir::new().unwrap();
        let (mut journal, empty) = Journal::open(dir.path()).unwrap();
        assert_eq!(empty, Cursor::default());
        let mut ends = vec![0];
        for units in 1..4 {
            journal.record(&cursor(units, 0)).unwrap();
            ends.push(std::fs::metadata(dir.path().join(FILE)).unwrap().len());
        }
        let whole = std::fs::read(dir.path().join(FILE)).unwrap();
        for len in 0..=whole.len() {
            std::fs::write(dir.path().join(FILE), &whole[..len]).unwrap();
            let expected = ends.iter().filter(|&&end| end <= len as u64).count() as u32 - 1;
            let (_, found) = Journal::open(dir.path()).unwrap();
            assert_eq!(found.units, expected, "{len}");
            assert_eq!(
                std::fs::metadata(dir.path().join(FILE)).unwrap().len(),
                ends[expected as usize]
            );
        }
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(dir.path().join(FILE), &flipped).unwrap();
            assert!(Journal::open(dir.path()).unwrap().1.units < 3, "{at}");
        }
    }

    #[test]
    fn a_state_comes_back_whole_or_not_at_all() {
        let dir = TempDir::new().unwrap();
        let (mut journal, _) = Journal::open(dir.path()).unwrap();
        let state: Vec<u8> = (0..100_000u32).map(|i| (i / 700) as u8).collect();
        let cursor = cursor(2, 77);
        journal.save(&cursor, &state).unwrap();
        journal.record(&cursor).unwrap();
        let (journal, found) = Journal::open(dir.path()).unwrap();
        assert_eq!(found, cursor);
        assert_eq!(journal.state(2, 0, 77).unwrap(), state);
        let path = journal.path(2, 0, 77);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert_eq!(journal.state(2, 0, 77), None, "{at}");
        }
        journal.forget(|unit, _, _| unit < 3);
        assert!(!path.exists());
    }
}
