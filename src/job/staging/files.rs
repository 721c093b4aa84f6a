//! The files of a staging directory: all of them are known by name.

use std::io;
use std::path::{Path, PathBuf};

use super::{lock, plan_file};
use crate::engine::sink::{SinkError, Storage};
use crate::error::{Error, IoContext};
use crate::job::components;
use crate::job::journal;
use crate::job::parcels::Shelf;
use crate::job::snapshots::Snapshots;
use crate::patience::patiently;

/// Whether `name` is one that the state directory may hold.
pub(super) fn is_state(name: &str) -> bool {
    let name = target(name);
    matches!(name, lock::FILE | plan_file::FILE | journal::FILE)
        || Snapshots::owns(name)
        || Shelf::owns(name)
}

/// Whether `name` is one that the directory of components may hold.
pub(super) fn is_component(name: &str) -> bool {
    components::NAMES.contains(&target(name))
}

/// The file that an unfinished one would become.
pub(super) fn target(name: &str) -> &str {
    let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    temporary.or_else(|| name.strip_suffix(".part")).unwrap_or(name)
}

/// The files of a directory, all of which must be known; none if there is no directory.
pub(super) fn known_files(dir: &Path, known: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for name in entries(dir)? {
        let path = dir.join(&name);
        let is_file = path.symlink_metadata().is_ok_and(|m| m.is_file());
        if !is_file || !known(&name) {
            return Err(Error::Foreign { path });
        }
        paths.push(path);
    }
    Ok(paths)
}

/// The names in a directory, sorted; none if there is no directory.
pub(in crate::job) fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let listing = match patiently(|| std::fs::read_dir(dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.at("list", dir)?,
    };
    let mut names = Vec::new();
    for entry in listing {
        names.push(entry.at("list", dir)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Makes a directory, unless it is there.
pub(super) fn make_dir(storage: &dyn Storage, path: &Path) -> Result<(), SinkError> {
    match storage.create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(SinkError::of("create", path, 0, e))
        }
        _ => Ok(()),
    }
}
