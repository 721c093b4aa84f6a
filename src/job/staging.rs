//! The staging directory: where an output grows until one rename publishes it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::engine::sink::{SinkError, durable};
use crate::error::{Error, IoContext};

/// Room for side files, index and journal, beside the shards.
pub(super) const OVERHEAD: u64 = 16 << 20;

/// A locked staging directory, empty but for its own state.
pub(super) struct Staging {
    root: PathBuf,
    out: PathBuf,
    /// Holds the lock as long as it lives.
    lock: File,
}

impl Staging {
    /// Creates the staging directory of `out`, or takes over what an earlier attempt left.
    ///
    /// `ours` tells whether a file name in `model/` is one that this merge makes.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process works there, [`Error::Foreign`] if it holds files
    /// that reflow did not make.
    pub(super) fn create(out: &Path, ours: impl Fn(&str) -> bool) -> Result<Self, Error> {
        let root = path_of(out);
        let state = root.join("state");
        std::fs::create_dir_all(&state).at("create", &state)?;
        let path = state.join("lock");
        let mut lock = (OpenOptions::new().read(true).write(true).create(true).truncate(false))
            .open(&path)
            .at("open", &path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unread = lock.read_to_string(&mut holder);
                return Err(Error::Locked { path: root, holder: holder.trim().to_owned() });
            }
            Err(TryLockError::Error(source)) => {
                return Err(Error::Io { operation: "lock", path, source });
            }
        }
        lock.set_len(0).at("write", &path)?;
        writeln!(lock, "process {}", std::process::id()).at("write", &path)?;
        let staging = Self { root, out: out.to_owned(), lock };
        staging.clear(ours)?;
        let model = staging.model();
        std::fs::create_dir(&model).at("create", &model)?;
        Ok(staging)
    }

    /// Where the output's files are made.
    pub(super) fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// The staging directory itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Records what is being made, for people who find the directory.
    pub(super) fn describe(&self, plan: &str) -> Result<(), Error> {
        let path = self.root.join("state/plan.json");
        Ok(durable::write_atomic(&path, plan.as_bytes())?)
    }

    /// Publishes the finished files under the output's name and removes the staging directory.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something has appeared there meanwhile; nothing is replaced.
    pub(super) fn commit(self) -> Result<(), Error> {
        let model = self.model();
        durable::fsync_dir(&model)?;
        durable::rename_noreplace(&model, &self.out).map_err(|error| match error {
            SinkError::Exists { path } => Error::OutputExists { path },
            error => error.into(),
        })?;
        let parent = self.out.parent().filter(|p| !p.as_os_str().is_empty());
        durable::fsync_dir(parent.unwrap_or(Path::new(".")))?;
        // The output is complete; what is left is litter, and failing now would be a lie.
        drop(self.lock);
        let _litter = std::fs::remove_dir_all(&self.root);
        Ok(())
    }

    /// Removes what an earlier attempt at the same output left behind.
    fn clear(&self, ours: impl Fn(&str) -> bool) -> Result<(), Error> {
        let known_state = |name: &str| matches!(target(name), "lock" | "plan.json");
        let known_model = |name: &str| ours(target(name));
        let model = self.model();
        let stale = stale_files(&model, known_model)?;
        let _checked = stale_files(&self.root.join("state"), known_state)?;
        for entry in entries(&self.root)? {
            if !matches!(entry.as_str(), "state" | "model") {
                return Err(Error::Foreign { path: self.root.join(entry) });
            }
        }
        for path in stale {
            std::fs::remove_file(&path).at("remove", &path)?;
        }
        match std::fs::remove_dir(&model) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { operation: "remove", path: model, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// The staging directory of an output.
pub(super) fn path_of(out: &Path) -> PathBuf {
    let mut name = OsString::from(out.as_os_str());
    name.push(".partial");
    PathBuf::from(name)
}

/// Bytes that an earlier attempt at `out` holds on the disk.
pub(super) fn held_bytes(out: &Path) -> u64 {
    let model = path_of(out).join("model");
    let files = std::fs::read_dir(model).into_iter().flatten().flatten();
    files.filter_map(|entry| entry.metadata().ok()).map(|m| m.len()).sum()
}

/// The file that an unfinished one would become.
fn target(name: &str) -> &str {
    let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    temporary.or_else(|| name.strip_suffix(".part")).unwrap_or(name)
}

/// The files of a directory, all of which must be known; none if there is no directory.
fn stale_files(dir: &Path, known: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
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

fn entries(dir: &Path) -> Result<Vec<String>, Error> {
    let listing = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        listing => listing.at("list", dir)?,
    };
    let mut names = Vec::new();
    for entry in listing {
        names.push(entry.at("list", dir)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
