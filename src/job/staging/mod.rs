//! The staging directory: where an output grows until it is published.

mod files;
mod lock;
mod plan_file;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(super) use files::entries;
#[cfg(any(test, fuzzing))]
pub(super) use lock::Holder;
pub(super) use lock::holder;
pub(super) use plan_file::{Identity, InputIdentity, PlanFile, ShardName};

use super::journal::{self, Journal, Record};
use crate::engine::sink::{SinkError, Storage, durable};
use crate::error::Error;
use files::{known_files, make_dir, remove, target};
use lock::Lock;

/// Room for side files, index and journal, beside the shards.
pub(super) const OVERHEAD: u64 = 16 << 20;

/// The staging directory inside an output directory that was there before.
const INSIDE: &str = ".reflow-state";

/// Where an output is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In `OUT.partial`, beside the output, which one rename publishes.
    Beside,
    /// In `OUT/.reflow-state`: the output directory is there and empty, a mount point perhaps. Its files are
    /// published one by one, the index last.
    Inside,
}

impl Place {
    /// Where `out` is to be staged.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something is there that is not an empty directory, nor one that an earlier
    /// attempt was filling.
    pub(super) fn of(out: &Path) -> Result<Self, Error> {
        let taken = || Error::OutputExists { path: out.to_owned() };
        match out.symlink_metadata() {
            Err(_) => return Ok(Place::Beside),
            Ok(meta) if !meta.is_dir() => return Err(taken()),
            Ok(_) => {}
        }
        // A new file system has a lost+found.
        let free = |name: &String| name == INSIDE || name == "lost+found";
        let empty = entries(out)?.iter().all(free);
        if (empty && !Place::Beside.root(out).exists()) || is_publishing(&Place::Inside.root(out)) {
            Ok(Place::Inside)
        } else {
            Err(taken())
        }
    }

    /// The staging directory of `out`.
    pub(super) fn root(self, out: &Path) -> PathBuf {
        match self {
            Place::Beside => {
                let mut name = OsString::from(out.as_os_str());
                name.push(".partial");
                PathBuf::from(name)
            }
            Place::Inside => out.join(INSIDE),
        }
    }
}

/// Where plan, lock and journal lie.
pub(super) fn state_of(root: &Path) -> PathBuf {
    root.join("state")
}

/// Where the output's files are made.
pub(super) fn model_of(root: &Path) -> PathBuf {
    root.join("model")
}

/// The good records of a staging directory; none if there is no plan.
///
/// # Errors
/// [`Error::Damaged`] if its plan is.
pub(super) fn records(root: &Path) -> Result<Vec<Record>, Error> {
    let state = state_of(root);
    let Some(plan) = PlanFile::load(&state)? else { return Ok(Vec::new()) };
    let text = journal::read(&state)?.unwrap_or_default();
    let records = journal::parse(&text, &plan.fingerprint());
    Ok(records.into_iter().map(|(record, _)| record).collect())
}

fn is_publishing(root: &Path) -> bool {
    records(root).is_ok_and(|records| records.last().is_some_and(|last| last.publishing))
}

/// A locked staging directory.
pub(super) struct Staging<'a> {
    storage: &'a dyn Storage,
    place: Place,
    root: PathBuf,
    out: PathBuf,
    lock: Lock,
    plan: PlanFile,
}

impl<'a> Staging<'a> {
    /// Creates the staging directory of `out`, or opens the one that an earlier attempt at the same
    /// merge left. With `restart` what is in it is removed first.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process works there, [`Error::Foreign`] if it holds files
    /// that reflow did not make, [`Error::OtherPlan`] if it belongs to another merge, [`Error::Damaged`] if
    /// its plan is not what was written.
    pub(super) fn open(
        storage: &'a dyn Storage,
        place: Place,
        out: &Path,
        plan: PlanFile,
        restart: bool,
    ) -> Result<Self, Error> {
        let root = place.root(out);
        let state = state_of(&root);
        make_dir(storage, &root)?;
        only_ours(&root)?;
        durable::sync_dir(storage, durable::parent(&root))?;
        make_dir(storage, &state)?;
        let lock = Lock::take(&state, &root)?;
        let begun = PlanFile::load(&state);
        let mut staging = Self { storage, place, root, out: out.to_owned(), lock, plan };
        let found = staging.look(begun.as_ref().ok().and_then(Option::as_ref))?;
        // Without a plan or a record in the journal nothing is lost by starting afresh.
        let text = journal::read(&state)?.unwrap_or_default();
        let recorded = match &begun {
            Ok(Some(plan)) => !journal::parse(&text, &plan.fingerprint()).is_empty(),
            Ok(None) => false,
            Err(_) => !text.is_empty(),
        };
        match begun {
            Err(error) if recorded && !restart => return Err(error),
            Ok(Some(begun)) if recorded && !restart => {
                if let Some(what) = begun.identity.difference(&staging.plan.identity) {
                    return Err(Error::OtherPlan { path: staging.root, what });
                }
                staging.plan = begun;
            }
            _ => {
                remove(storage, &found)?;
                staging.begin()?;
            }
        }
        Ok(staging)
    }

    /// Records what is being made, before anything of it is.
    fn begin(&self) -> Result<(), Error> {
        make_dir(self.storage, &self.model())?;
        let path = self.state().join(plan_file::FILE);
        durable::write_atomic(self.storage, &path, self.plan.render().as_bytes())?;
        Ok(durable::sync_dir(self.storage, &self.root)?)
    }

    /// The journal of what is being made.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn journal(&self) -> Result<Journal, Error> {
        Journal::open(self.storage, &self.state(), &self.plan.fingerprint())
    }

    /// A record with what every record has.
    pub(super) fn record(&self, news: Record) -> Record {
        Record { plan: self.plan.fingerprint(), generation: self.lock.generation(), ..news }
    }

    /// Demands that nobody else has begun to work here.
    ///
    /// # Errors
    /// [`Error::Locked`].
    pub(super) fn check_lock(&self) -> Result<(), Error> {
        self.lock.check()
    }

    /// Where plan, lock and journal lie.
    pub(super) fn state(&self) -> PathBuf {
        state_of(&self.root)
    }

    /// Where the output's files are made.
    pub(super) fn model(&self) -> PathBuf {
        model_of(&self.root)
    }

    /// The staging directory itself.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The shard that a path in the staging directory is (to become).
    pub(super) fn shard_at(&self, path: &Path) -> Option<u32> {
        let name = path.strip_prefix(self.model()).ok()?.to_str()?;
        let found = self.plan.shards.iter().position(|shard| shard.file == target(name));
        found.map(|k| k as u32)
    }

    /// Removes a file that is not to be trusted any more.
    ///
    /// # Errors
    /// What the disk says.
    pub(super) fn discard(&self, path: &Path) -> Result<(), Error> {
        let removed = self.storage.remove_file(path);
        removed.map_err(|e| SinkError::of("remove", path, 0, e))?;
        Ok(durable::sync_dir(self.storage, durable::parent(path))?)
    }

    /// Publishes the finished files under the output's name and removes the staging directory.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something has appeared there meanwhile; nothing is replaced.
    pub(super) fn publish(self) -> Result<(), Error> {
        let model = self.model();
        durable::sync_dir(self.storage, &model)?;
        self.check_lock()?;
        match self.place {
            Place::Beside => {
                let renamed = durable::rename_noreplace(self.storage, &model, &self.out);
                renamed.map_err(|error| match error {
                    SinkError::Exists { path } => Error::OutputExists { path },
                    error => error.into(),
                })?;
                durable::sync_dir(self.storage, durable::parent(&self.out))?;
                durable::sync_dir(self.storage, &self.root)?;
            }
            Place::Inside => {
                let mut journal = self.journal()?;
                if !journal.last().is_some_and(|last| last.publishing) {
                    let last = journal.last().cloned().unwrap_or_default();
                    let Record { cursor, read, total, .. } = last;
                    let news =
                        Record { cursor, read, total, publishing: true, ..Record::default() };
                    journal.append(self.record(news))?;
                }
                self.move_files()?;
            }
        }
        drop(self.lock);
        sweep(self.storage, &self.root);
        Ok(())
    }

    /// Moves files to where they belong, those without which no loader starts last.
    fn move_files(&self) -> Result<(), Error> {
        let model = self.model();
        let groups: [fn(&str) -> bool; 4] = [
            |name| name.ends_with(".safetensors"),
            |name| name != "config.json" && !name.ends_with(".index.json"),
            |name| name == "config.json",
            |_| true,
        ];
        for group in groups {
            let names: Vec<String> = entries(&model)?.into_iter().filter(|n| group(n)).collect();
            for name in &names {
                durable::rename_noreplace(self.storage, &model.join(name), &self.out.join(name))?;
            }
            if !names.is_empty() {
                durable::sync_dir(self.storage, &self.out)?;
                durable::sync_dir(self.storage, &model)?;
            }
        }
        Ok(())
    }

    /// Removes the directory after a failure before which nothing was recorded: there is nothing to
    /// go on from. Otherwise it stays.
    pub(super) fn abandon(self) {
        let unrecorded = self.journal().is_ok_and(|journal| journal.last().is_none());
        if unrecorded
            && let Ok(found) = self.look(None)
            && remove(self.storage, &found).is_ok()
        {
            sweep(self.storage, &self.root);
        }
    }

    /// The files that an earlier attempt has left, all of which must be known. The journal comes first:
    /// it must go before what it speaks of.
    fn look(&self, begun: Option<&PlanFile>) -> Result<Vec<PathBuf>, Error> {
        only_ours(&self.root)?;
        let made = |name: &str| {
            let name = target(name);
            self.plan.makes(name) || begun.is_some_and(|begun| begun.makes(name))
        };
        let mut found = known_files(&self.state(), files::is_state)?;
        // The lock is this process's own.
        found.retain(|path| !path.ends_with(lock::FILE));
        found.sort_by_key(|path| !path.ends_with(journal::FILE));
        found.extend(known_files(&self.model(), made)?);
        Ok(found)
    }
}

/// Demands that there is nothing in a staging directory but its two rooms.
fn only_ours(root: &Path) -> Result<(), Error> {
    match entries(root)?.into_iter().find(|name| !matches!(name.as_str(), "state" | "model")) {
        Some(name) => Err(Error::Foreign { path: root.join(name) }),
        None => Ok(()),
    }
}

/// Removes what publishing leaves. The output is complete; what stays is litter, and failing now would be
/// a lie.
fn sweep(storage: &dyn Storage, root: &Path) {
    let (state, model) = (state_of(root), model_of(root));
    let names = entries(&state).unwrap_or_default();
    for name in names.iter().filter(|name| files::is_state(name)) {
        let _litter = storage.remove_file(&state.join(name));
    }
    for dir in [&state, &model, root] {
        let _litter = storage.remove_dir(dir);
    }
}

/// If an earlier attempt was stopped after everything was published: removes its litter, and tells so.
///
/// `is_ours` says whether `out` holds what would be made.
///
/// # Errors
/// What the disk says: the output's name must be durable before what it could be made from again goes.
pub(super) fn was_published(
    storage: &dyn Storage,
    out: &Path,
    is_ours: impl Fn() -> bool,
) -> Result<bool, Error> {
    for place in [Place::Beside, Place::Inside] {
        let root = place.root(out);
        let moved = root.exists() && entries(&model_of(&root)).is_ok_and(|names| names.is_empty());
        if moved && holder(&state_of(&root)).is_none() && is_ours() {
            let named = if place == Place::Beside { durable::parent(out) } else { out };
            durable::sync_dir(storage, named)?;
            sweep(storage, &root);
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes that an earlier attempt at `out` holds on the disk.
pub(super) fn held_bytes(out: &Path, place: Place) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = std::fs::read_dir(model_of(&place.root(out))).into_iter().flatten().flatten();
    files.filter_map(|entry| entry.metadata().ok()).map(|m| m.len().min(m.blocks() * 512)).sum()
}

/// The staging directory that `path` is, or is the output of.
pub(super) fn find(path: &Path) -> Option<(Place, PathBuf)> {
    let is_root = |root: &Path| state_of(root).join(plan_file::FILE).exists();
    if is_root(path) {
        let inside = path.file_name().is_some_and(|name| name == INSIDE);
        return Some((if inside { Place::Inside } else { Place::Beside }, path.to_owned()));
    }
    let places = [Place::Beside, Place::Inside].into_iter();
    places.map(|place| (place, place.root(path))).find(|(_, root)| is_root(root))
}

/// Removes a staging directory that nobody works in; returns the bytes that were in it. Nothing is removed
/// if there is anything in it that its plan does not name.
///
/// # Errors
/// [`Error::Locked`], [`Error::Foreign`], [`Error::Damaged`].
pub(super) fn clean(storage: &dyn Storage, place: Place, root: PathBuf) -> Result<u64, Error> {
    let state = state_of(&root);
    let lock = Lock::take(&state, &root)?;
    let Some(plan) = PlanFile::load(&state)? else { return Ok(0) };
    let out = PathBuf::new();
    let staging = Staging { storage, place, root, out, lock, plan };
    let found = staging.look(None)?;
    let bytes = found.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
    remove(storage, &found)?;
    sweep(storage, &staging.root);
    if staging.root.exists() {
        return Err(Error::Foreign { path: staging.root });
    }
    durable::sync_dir(storage, durable::parent(&staging.root))?;
    Ok(bytes)
}
