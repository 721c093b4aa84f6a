//! What folds have gathered, saved so that a merge can go on amid one.
//!
//! ```text
//! state/fold-U-S-E    BLAKE3 (32 bytes), then the merged state of stage S of unit U after E elements, zstd
//! state/seen-U-S-E    the same with what statistics were gathered since the record before
//! ```

use std::path::{Path, PathBuf};

use super::reading::read_file;
use crate::engine::sink::{Storage, durable};
use crate::error::{Error, IoContext};

const FOLD: &str = "fold-";
const SEEN: &str = "seen-";

/// The saved states of a staging directory.
pub(super) struct Snapshots<'a> {
    storage: &'a dyn Storage,
    dir: PathBuf,
    prefix: &'static str,
}

impl<'a> Snapshots<'a> {
    /// Those of folds in a state directory.
    pub(super) fn new(storage: &'a dyn Storage, dir: &Path) -> Self {
        Self { storage, dir: dir.to_owned(), prefix: FOLD }
    }

    /// Statistics about the merge.
    pub(super) fn seen(storage: &'a dyn Storage, dir: &Path) -> Self {
        Self { prefix: SEEN, ..Self::new(storage, dir) }
    }

    /// Whether `name` is the name of a saved state.
    pub(super) fn owns(name: &str) -> bool {
        [FOLD, SEEN].iter().any(|prefix| numbers(prefix, name).is_some())
    }

    /// Saves the state of a stage after some of its elements, durably, before the record about it.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn save(
        &self,
        (unit, stage, elements): (u32, u32, u64),
        state: &[u8],
    ) -> Result<(), Error> {
        let path = self.path(unit, stage, elements);
        let packed = zstd::encode_all(state, 1).at("compress", &path)?;
        let mut bytes = blake3::hash(&packed).as_bytes().to_vec();
        bytes.extend(packed);
        Ok(durable::write_atomic(self.storage, &path, &bytes)?)
    }

    /// A saved state; `None` if it is gone or damaged.
    ///
    /// # Errors
    /// What the disk says: a state that cannot be read for a moment is worth hours.
    pub(super) fn load(
        &self,
        unit: u32,
        stage: u32,
        elements: u64,
    ) -> Result<Option<Vec<u8>>, Error> {
        let path = self.path(unit, stage, elements);
        let bytes = read_file(&path, u64::MAX)?;
        let state =
            bytes.unwrap_or_default().split_first_chunk::<32>().and_then(|(claimed, packed)| {
                let sound = blake3::hash(packed).as_bytes() == claimed;
                sound.then(|| zstd::decode_all(packed).ok())?
            });
        Ok(state)
    }

    /// Removes states that no resume will ask for.
    pub(super) fn forget(&self, useless: impl Fn(u32, u32, u64) -> bool) {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries {
            if let Some((unit, stage, elements)) =
                numbers(self.prefix, &entry.file_name().to_string_lossy())
                && useless(unit, stage, elements)
            {
                // What is left is removed with the staging directory.
                let _litter = self.storage.remove_file(&entry.path());
            }
        }
    }

    /// Where a state is saved.
    pub(super) fn path(&self, unit: u32, stage: u32, elements: u64) -> PathBuf {
        self.dir.join(format!("{}{unit}-{stage}-{elements}", self.prefix))
    }
}

fn numbers(prefix: &str, name: &str) -> Option<(u32, u32, u64)> {
    let mut parts = name.strip_prefix(prefix)?.split('-');
    let numbers =
        (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    parts.next().is_none().then_some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sink::RealDisk;

    #[test]
    fn a_state_comes_back_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = Snapshots::new(&RealDisk, dir.path());
        let state: Vec<u8> = (0..100_000u32).map(|i| (i / 700) as u8).collect();
        snapshots.save((2, 0, 77), &state).unwrap();
        assert_eq!(snapshots.load(2, 0, 77).unwrap().unwrap(), state);
        let path = snapshots.path(2, 0, 77);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, flipped).unwrap();
            assert_eq!(snapshots.load(2, 0, 77).unwrap(), None, "{at}");
        }
        assert_eq!(snapshots.load(2, 1, 77).unwrap(), None);
        std::fs::create_dir(snapshots.path(2, 1, 77)).unwrap();
        assert_eq!(snapshots.load(2, 1, 77).unwrap_err().exit_code(), 5, "it is no file");
        snapshots.forget(|unit, _, _| unit > 2);
        assert!(path.exists());
        snapshots.forget(|unit, _, _| unit < 3);
        assert!(!path.exists());
    }

    #[test]
    fn names_are_exact() {
        assert!(Snapshots::owns("fold-0-1-2") && Snapshots::owns("seen-0-1-2"));
        for name in ["fold-", "fold-1-2", "fold-1-2-3-4", "fold-a-1-2", "unfold-1-2-3"] {
            assert!(!Snapshots::owns(name), "{name}");
        }
    }
}
