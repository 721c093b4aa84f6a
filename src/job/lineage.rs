//! What an output was made from, where that is outputs of other merges of the same recipe.
//!
//! Merges of the same models have the same headers, whatever is in them: only manifests tell them apart. Beside
//! `DIR/NAME` lies `DIR/NAME.inputs`, written before that is made: a hash of the manifests of what it is made from.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::manifest;
use super::reading::read_file;
use crate::engine::sink::{RealDisk, durable};
use crate::error::Error;

/// No manifest is larger.
const LARGEST: u64 = 1 << 30;

/// A hash of the manifests of the outputs `made`, which name every byte of them.
///
/// # Errors
/// If one cannot be read.
pub fn of(made: &[PathBuf]) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    for dir in made {
        let text = read_file(&dir.join(manifest::FILE), LARGEST)?.unwrap_or_default();
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(&text);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Whether `out` was made from what `lineage` says, according to what was noted before.
///
/// # Errors
/// If the note cannot be read.
pub fn is_noted(out: &Path, lineage: &str) -> Result<bool, Error> {
    let note = read_file(&place(out), 1 << 10)?;
    Ok(note.is_some_and(|note| note.trim_ascii() == lineage.as_bytes()))
}

/// Notes from what `out` is going to be made.
///
/// # Errors
/// What the disk says.
pub fn note(out: &Path, lineage: &str) -> Result<(), Error> {
    Ok(durable::write_atomic(&RealDisk, &place(out), format!("{lineage}\n").as_bytes())?)
}

fn place(out: &Path) -> PathBuf {
    let mut name = OsString::from(out.components().as_path().as_os_str());
    name.push(".inputs");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_is_known_until_a_manifest_differs() {
        let dir = tempfile::tempdir().unwrap();
        let (a, out) = (dir.path().join("a"), dir.path().join("out/"));
        std::fs::create_dir(&a).unwrap();
        let made = [a.clone()];
        let before = of(&made).unwrap();
        assert!(!is_noted(&out, &before).unwrap());
        note(&out, &before).unwrap();
        assert!(is_noted(&out, &before).unwrap());
        std::fs::write(a.join(manifest::FILE), "{}").unwrap();
        let after = of(&made).unwrap();
        assert!(after != before && !is_noted(&out, &after).unwrap());
        note(&out, &after).unwrap();
        assert!(is_noted(&out, &after).unwrap());
    }
}
