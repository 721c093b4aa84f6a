//! The staging directory: where an output grows until one rename publishes it.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use crate::engine::sink::{SinkError, durable};
use crate::error::{Error, IoContext};

/// Room for side files, index and journal, beside the shards.
pub(super) const OVERHEAD: u64 = 16 << 20;

const LOCK: &str = "lock";
const PLAN: &str = "plan.json";

/// What a staging directory belongs to: everything that decides the bytes of the output.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The version of reflow.
    pub(super) version: String,
    /// The recipe, with absolute paths.
    pub(super) recipe: String,
    /// All input files.
    pub(super) inputs: Vec<InputIdentity>,
}

/// An input file as it was when the merge began.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputIdentity {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    pub(super) mtime_ns: String,
    pub(super) header_sha256: String,
}

impl Identity {
    /// What differs, in words.
    fn difference(&self, now: &Self) -> Option<String> {
        if self.version != now.version {
            let (begun, now) = (&self.version, &now.version);
            return Some(format!("it was begun by reflow {begun}, and this is {now}"));
        }
        if self.recipe != now.recipe {
            let lines = self.recipe.lines().zip(now.recipe.lines());
            let changed = lines.into_iter().find(|(begun, now)| begun != now);
            return Some(changed.map_or_else(
                || "its recipe has other experts or keys".to_owned(),
                |(begun, now)| {
                    format!("its recipe says `{}` and this one `{}`", begun.trim(), now.trim())
                },
            ));
        }
        let changed = self.inputs.iter().zip(&now.inputs).find(|(begun, now)| begun != now);
        if let Some((begun, _)) = changed {
            return Some(format!("the input {} has changed since", begun.path.display()));
        }
        (self.inputs.len() != now.inputs.len()).then(|| "its inputs have other files".to_owned())
    }
}

/// A locked staging directory.
pub(super) struct Staging {
    root: PathBuf,
    out: PathBuf,
    /// Holds the lock as long as it lives.
    lock: File,
}

impl Staging {
    /// Creates the staging directory of `out`, or opens the one that an earlier attempt at the same
    /// merge left. With `restart` what is in it is removed first.
    ///
    /// `ours` tells whether a file name in `model/` is one that this merge makes.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process works there, [`Error::Foreign`] if it holds files
    /// that reflow did not make, [`Error::OtherPlan`] if it belongs to another merge.
    pub(super) fn open(
        out: &Path,
        identity: &Identity,
        restart: bool,
        ours: impl Fn(&str) -> bool,
    ) -> Result<Self, Error> {
        let root = path_of(out);
        let state = root.join("state");
        std::fs::create_dir_all(&state).at("create", &state)?;
        let path = state.join(LOCK);
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
        let found = staging.look(&ours)?;
        // Without a plan or a record in the journal nothing is lost by starting afresh.
        let recorded =
            Journal::has_records(&staging.state()) && staging.state().join(PLAN).exists();
        if recorded && !restart {
            staging.check(identity)?;
        } else {
            remove(&found)?;
            staging.begin(identity)?;
        }
        Ok(staging)
    }

    /// Records what is being made, before anything of it is.
    fn begin(&self, identity: &Identity) -> Result<(), Error> {
        let model = self.model();
        match std::fs::create_dir(&model) {
            Err(source) if source.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(Error::Io { operation: "create", path: model, source });
            }
            _ => {}
        }
        let text = serde_json::to_string_pretty(identity).unwrap_or_default();
        durable::write_atomic(&self.state().join(PLAN), text.as_bytes())?;
        Ok(durable::fsync_dir(&self.root)?)
    }

    /// Demands that what an earlier attempt began is what is asked for now.
    fn check(&self, identity: &Identity) -> Result<(), Error> {
        let path = self.state().join(PLAN);
        let text = std::fs::read(&path).at("read", &path)?;
        let begun: Option<Identity> = serde_json::from_slice(&text).ok();
        match begun.as_ref().map(|begun| begun.difference(identity)) {
            Some(None) => Ok(()),
            Some(Some(what)) => Err(Error::OtherPlan { path: self.root.clone(), what }),
            None => Err(Error::OtherPlan {
                path: self.root.clone(),
                what: "its state/plan.json cannot be read".to_owned(),
            }),
        }
    }

    /// Where plan, lock and journal lie.
    pub(super) fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    /// Where the output's files are made.
    pub(super) fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// The staging directory itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
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
        drop(self.lock);
        sweep(&self.root);
        Ok(())
    }

    /// Removes the directory after a failure before which nothing was recorded: there is nothing to
    /// go on from. Otherwise it stays.
    pub(super) fn abandon(self, ours: impl Fn(&str) -> bool) {
        if !Journal::has_records(&self.state())
            && let Ok(found) = self.look(&ours)
            && remove(&found).is_ok()
        {
            // Only empty directories and the lock are left; if not, the next attempt sees to them.
            let _lock = std::fs::remove_file(self.state().join(LOCK));
            let _state = std::fs::remove_dir(self.state());
            let _model = std::fs::remove_dir(self.model());
            let _root = std::fs::remove_dir(&self.root);
        }
    }

    /// The files that an earlier attempt has left, all of which must be known.
    fn look(&self, ours: &impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
        for entry in entries(&self.root)? {
            if !matches!(entry.as_str(), "state" | "model") {
                return Err(Error::Foreign { path: self.root.join(entry) });
            }
        }
        let mut found = known_files(&self.model(), |name| ours(target(name)))?;
        let state = known_files(&self.state(), |name| {
            matches!(target(name), LOCK | PLAN) || Journal::owns(target(name))
        })?;
        // The lock is this process's own.
        found.extend(state.into_iter().filter(|path| !path.ends_with(LOCK)));
        Ok(found)
    }
}

/// Removes what a commit leaves. The output is complete; what stays is litter, and failing now would be
/// a lie. The plan goes last: with it the next attempt can tell that the commit has happened.
fn sweep(root: &Path) {
    let state = root.join("state");
    let names = entries(&state).unwrap_or_default();
    for name in names.iter().filter(|name| *name != PLAN) {
        let _litter = std::fs::remove_file(state.join(name));
    }
    let _litter = std::fs::remove_file(state.join(PLAN));
    let _litter = std::fs::remove_dir(&state);
    let _litter = std::fs::remove_dir(root);
}

/// Whether an earlier attempt at the same merge was killed right after its commit: then its litter is
/// removed, and there is nothing left to do.
pub(super) fn was_committed(out: &Path, identity: &Identity) -> bool {
    let root = path_of(out);
    let plan = std::fs::read(root.join("state").join(PLAN));
    let begun: Option<Identity> = plan.ok().and_then(|text| serde_json::from_slice(&text).ok());
    let same = begun.is_some_and(|begun| begun.difference(identity).is_none());
    let committed = same && !root.join("model").exists() && out.is_dir();
    if committed {
        sweep(&root);
    }
    committed
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

fn remove(files: &[PathBuf]) -> Result<(), Error> {
    files.iter().try_for_each(|path| std::fs::remove_file(path).at("remove", path))
}

/// The file that an unfinished one would become.
fn target(name: &str) -> &str {
    let temporary = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
    temporary.or_else(|| name.strip_suffix(".part")).unwrap_or(name)
}

/// The files of a directory, all of which must be known; none if there is no directory.
fn known_files(dir: &Path, known: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, Error> {
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
