//! How an output gets its name, and how what staging leaves behind goes.

use std::path::{Path, PathBuf};

use super::files::{entries, is_state, known_files};
use super::{
    INSIDE, Lock, Place, PlanFile, Staging, components_of, find, is_gone, lock, model_of,
    only_ours, plan_file, records, state_of,
};
use crate::engine::sink::{SinkError, Storage, durable};
use crate::error::Error;
use crate::job::components;
use crate::job::journal::Record;
use crate::job::manifest;

/// Classes of files in the order in which they are published: those without which no loader starts come last.
const RANKS: u8 = 4;

fn rank(name: &str) -> u8 {
    match name {
        _ if name.ends_with(".safetensors") => 0,
        _ if name.ends_with(".index.json") || name == components::UNIFIED => 3,
        "config.json" => 2,
        _ => 1,
    }
}

impl Staging<'_> {
    /// Gives the finished components their name.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something has appeared there meanwhile; nothing is replaced.
    pub(in crate::job) fn publish_components(&self, dir: &Path) -> Result<(), Error> {
        let made = self.components();
        // An earlier attempt got this far.
        if !made.exists() {
            return Ok(());
        }
        self.check_lock()?;
        durable::sync_dir(self.storage, &made)?;
        rename_new(self.storage, &made, dir)?;
        durable::sync_dir(self.storage, durable::parent(dir))?;
        Ok(durable::sync_dir(self.storage, &self.root)?)
    }

    /// Publishes the finished files under the output's name and removes the staging directory. Where files
    /// appear one by one, `whole` looks at the output when all are there, and before anything goes that they could
    /// be made from again.
    ///
    /// # Errors
    /// [`Error::OutputExists`] if something has appeared there meanwhile; nothing is replaced.
    pub(in crate::job) fn publish(
        self,
        whole: impl FnOnce(&Path) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let model = self.model();
        durable::sync_dir(self.storage, &model)?;
        self.check_lock()?;
        match self.place {
            Place::Beside => {
                rename_new(self.storage, &model, &self.out)?;
                durable::sync_dir(self.storage, durable::parent(&self.out))?;
                durable::sync_dir(self.storage, &self.root)?;
            }
            Place::Inside => {
                self.fill()?;
                whole(&self.out)?;
            }
        }
        sweep(self.storage, &self.root, Some(self.lock));
        Ok(())
    }

    /// Moves all files into the output directory, as far as they are not there yet.
    fn fill(&self) -> Result<(), Error> {
        let mut journal = self.journal()?;
        let begun = journal.last().is_some_and(|last| last.publishing);
        self.demand_room(begun)?;
        if !begun {
            let Record { cursor, read, total, .. } = journal.last().cloned().unwrap_or_default();
            let news = Record { cursor, read, total, publishing: true, ..Record::default() };
            journal.append(self.record(news))?;
        }
        for class in 0..RANKS {
            self.check_lock()?;
            self.shift(&self.model(), &self.out, |name| rank(name) == class)?;
        }
        Ok(())
    }

    /// Takes back what was moved into the output directory: the reverse of [`Staging::fill`], which goes on from
    /// wherever this is stopped.
    pub(super) fn withdraw(&self, plan: &PlanFile) -> Result<(), Error> {
        for class in (0..RANKS).rev() {
            self.check_lock()?;
            self.shift(&self.out, &self.model(), |name| plan.makes(name) && rank(name) == class)?;
        }
        Ok(())
    }

    /// Moves files from one directory to another, durably.
    fn shift(&self, from: &Path, to: &Path, which: impl Fn(&str) -> bool) -> Result<(), Error> {
        let names: Vec<String> = entries(from)?.into_iter().filter(|name| which(name)).collect();
        for name in &names {
            rename_new(self.storage, &from.join(name), &to.join(name))?;
        }
        if !names.is_empty() {
            durable::sync_dir(self.storage, to)?;
            durable::sync_dir(self.storage, from)?;
        }
        Ok(())
    }

    /// Demands that there is nothing in the output directory that a loader could take for a part of the output,
    /// nor anything else that was not there when the merge began.
    fn demand_room(&self, begun: bool) -> Result<(), Error> {
        let known = |name: &String| free(name) || begun && self.plan.makes(name);
        match entries(&self.out)?.into_iter().find(|name| !known(name)) {
            Some(name) => Err(Error::OutputExists { path: self.out.join(name) }),
            None => Ok(()),
        }
    }
}

/// Whether an output directory that holds this is empty.
pub(super) fn free(name: &String) -> bool {
    // A new file system has a lost+found.
    name == INSIDE || name == "lost+found"
}

fn rename_new(storage: &dyn Storage, from: &Path, to: &Path) -> Result<(), Error> {
    durable::rename_noreplace(storage, from, to).map_err(|error| match error {
        SinkError::Exists { path } => Error::OutputExists { path },
        error => error.into(),
    })
}

/// Removes what publishing leaves. The output is complete; what stays is litter, and failing now would be
/// a lie.
pub(super) fn sweep(storage: &dyn Storage, root: &Path, lock: Option<Lock>) {
    let state = state_of(root);
    let mut names = entries(&state).unwrap_or_default();
    names.retain(|name| is_state(name) && name != lock::FILE);
    // What tells whose the others are goes last of them.
    names.sort_by_key(|name| name == plan_file::FILE);
    for name in names {
        let _litter = storage.remove_file(&state.join(name));
    }
    let _litter = [model_of(root), components_of(root)].map(|dir| storage.remove_dir(&dir));
    // While the lock is held: who waits for it finds that its file has no name any more, and begins anew.
    let _litter = storage.remove_file(&state.join(lock::FILE));
    let go = || [&state, root].map(|dir| storage.remove_dir(dir));
    let _litter = go();
    drop(lock);
    // Network file systems keep a file that is open under another name.
    if root.exists() {
        let _litter = go();
    }
}

/// If an earlier attempt was stopped after everything was published: removes its litter, and tells so.
///
/// `is_ours` says whether `out` holds what would be made.
///
/// # Errors
/// [`Error::Locked`] if somebody is about to do that. What the disk says: the output's name must be durable
/// before what it could be made from again goes.
pub(in crate::job) fn was_published(
    storage: &dyn Storage,
    out: &Path,
    is_ours: impl Fn() -> bool,
) -> Result<bool, Error> {
    for place in [Place::Beside, Place::Inside] {
        let root = place.root(out);
        if !root.exists() || !is_published(place, &root) || !is_ours() {
            continue;
        }
        let lock = match Lock::take(&state_of(&root), &root) {
            Ok(lock) => Some(lock),
            Err(error) if is_gone(&error) => None,
            Err(error) => return Err(error),
        };
        let named = if place == Place::Beside { durable::parent(out) } else { out };
        durable::sync_dir(storage, named)?;
        sweep(storage, &root, lock);
        return Ok(true);
    }
    Ok(false)
}

/// Whether all files of a staging directory have been published.
fn is_published(place: Place, root: &Path) -> bool {
    is_moved(root) && place.out(root).join(manifest::FILE).exists()
}

fn is_moved(root: &Path) -> bool {
    entries(&model_of(root)).is_ok_and(|names| names.is_empty())
}

/// The staging directory that `path` is, or is the output of, if not all of it is published.
pub(in crate::job) fn find_unpublished(path: &Path) -> Option<(Place, PathBuf)> {
    find(path).filter(|(place, root)| !is_published(*place, root))
}

/// The staging directory that `path` is, or is the output of, if only what a clean or a sweep has left of one.
pub(in crate::job) fn find_any(path: &Path) -> Option<(Place, PathBuf)> {
    let places = [Place::Beside, Place::Inside].into_iter().map(|place| (place, place.root(path)));
    let mut rests = places.filter(|(_, root)| root.is_dir() && only_ours(root).is_ok());
    find(path).or_else(|| rests.next())
}

/// Removes a staging directory that nobody works in; returns the bytes that were in it. Nothing is removed
/// if there is anything in it that its plan does not name, and nothing of an output that is whole.
///
/// # Errors
/// [`Error::Locked`], [`Error::Foreign`], [`Error::Damaged`].
pub(in crate::job) fn clean(
    storage: &dyn Storage,
    place: Place,
    root: PathBuf,
) -> Result<u64, Error> {
    let state = state_of(&root);
    let lock = match Lock::take(&state, &root) {
        Err(error) if is_gone(&error) => None,
        lock => Some(lock?),
    };
    let (lock, plan) = match (lock, PlanFile::load(&state)?) {
        (Some(lock), Some(plan)) => (lock, plan),
        (lock, _) => {
            // What is left of it belongs to nothing that could be gone on with.
            let _ours = known_files(&state, is_state)?;
            let _none = known_files(&model_of(&root), |_| false)?;
            let _none = known_files(&components_of(&root), |_| false)?;
            sweep(storage, &root, lock);
            return Ok(0);
        }
    };
    let out = place.out(&root);
    let staging = Staging { storage, place, root, out, lock, plan };
    let publishing = records(&staging.root)?.last().is_some_and(|last| last.publishing);
    // A finished output is not touched.
    if publishing && !is_moved(&staging.root) {
        staging.withdraw(&staging.plan)?;
    }
    let found = staging.look(None)?;
    let bytes = found.iter().filter_map(|path| path.metadata().ok()).map(|m| m.len()).sum();
    staging.empty(&found)?;
    let Staging { root, lock, .. } = staging;
    sweep(storage, &root, Some(lock));
    if root.exists() {
        return Err(Error::Foreign { path: root });
    }
    durable::sync_dir(storage, durable::parent(&root))?;
    Ok(bytes)
}
