//! The staging directory: where an output grows until it is published.

mod commit;
mod files;
mod lock;
mod plan_file;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

pub(super) use commit::{clean, find_any, find_unpublished, was_published};
pub(super) use files::entries;
#[cfg(any(test, fuzzing))]
pub(super) use lock::Holder;
pub(super) use lock::holder;
pub(super) use plan_file::{Identity, InputIdentity, PlanFile, ShardName};

use super::journal::{self, Journal, Record};
use crate::checkpoint::components::Kind;
use crate::engine::sink::{SinkError, Storage, durable};
use crate::error::{Error, IoContext};
use commit::{free, sweep};
use files::{known_files, make_dir, target};
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

    /// The output that is staged in `root`.
    pub(super) fn out(self, root: &Path) -> PathBuf {
        match self {
            Place::Beside => root.with_extension(""),
            Place::Inside => durable::parent(root).to_owned(),
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

/// Where components are made.
pub(super) fn components_of(root: &Path) -> PathBuf {
    root.join("components")
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
        let lock = take_over(storage, &root)?;
        let mut staging = Self { storage, place, root, out: out.to_owned(), lock, plan };
        match staging.take_up(restart) {
            Ok(()) => Ok(staging),
            Err(error) => {
                staging.leave_no_trace();
                Err(error)
            }
        }
    }

    /// Goes on with what an earlier attempt has left, or begins.
    fn take_up(&mut self, restart: bool) -> Result<(), Error> {
        // Whoever had the lock before may have published.
        if Place::of(&self.out)? != self.place {
            return Err(Error::OutputExists { path: self.out.clone() });
        }
        let begun = PlanFile::load(&self.state());
        let found = self.look(begun.as_ref().ok().and_then(Option::as_ref))?;
        // Without a plan or a record in the journal nothing is lost by starting afresh.
        let text = journal::read(&self.state())?.unwrap_or_default();
        let begun = match begun {
            Ok(Some(plan)) => plan,
            Err(error) if !text.is_empty() && !restart => return Err(error),
            _ => return self.begin(&found),
        };
        let records = journal::parse(&text, &begun.fingerprint());
        let Some((last, _)) = records.last() else { return self.begin(&found) };
        // The lock's file may have been lost, and records of a smaller generation would not count.
        self.lock.outnumber(last.generation)?;
        let differs = begun.identity.difference(&self.plan.identity);
        let moved = last.publishing && entries(&self.model())?.is_empty();
        match differs {
            // A finished output is not touched.
            Some(_) if moved => Err(Error::OutputExists { path: self.out.clone() }),
            Some(what) if !restart => Err(Error::OtherPlan { path: self.root.clone(), what }),
            _ if restart && last.publishing => {
                self.withdraw(&begun)?;
                let found = self.look(Some(&begun))?;
                self.begin(&found)
            }
            _ if restart => self.begin(&found),
            _ => {
                self.plan = begun;
                // It is gone if the output was published, and then taken away.
                make_dir(self.storage, &self.model())?;
                Ok(durable::sync_dir(self.storage, &self.root)?)
            }
        }
    }

    /// Removes what there is, and records what is being made, before anything of it is.
    fn begin(&self, found: &[PathBuf]) -> Result<(), Error> {
        self.empty(found)?;
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

    /// Where components are made.
    pub(super) fn components(&self) -> PathBuf {
        components_of(&self.root)
    }

    /// Where frames are made: components have a directory of their own.
    pub(super) fn frames(&self, kind: Kind) -> PathBuf {
        match kind {
            Kind::Shares => self.components(),
            Kind::Unified => self.model(),
        }
    }

    /// Where the output will be.
    pub(super) fn out(&self) -> &Path {
        &self.out
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

    /// Removes the directory after a failure before which nothing was recorded: there is nothing to
    /// go on from. Otherwise it stays, and so it does if somebody else has begun to work here.
    pub(super) fn abandon(self) {
        let ours = self.check_lock().is_ok();
        if ours
            && records(&self.root).is_ok_and(|records| records.is_empty())
            && let Ok(found) = self.look(None)
            && self.empty(&found).is_ok()
        {
            sweep(self.storage, &self.root, Some(self.lock));
        }
    }

    /// Removes the directory if there is nothing in it but what taking the lock has made.
    fn leave_no_trace(self) {
        let empty = |dir: &Path| {
            entries(dir).is_ok_and(|names| names.iter().all(|name| name == lock::FILE))
        };
        if empty(&self.state()) && empty(&self.model()) && self.check_lock().is_ok() {
            sweep(self.storage, &self.root, Some(self.lock));
        }
    }

    /// Removes what [`Staging::look`] has found.
    fn empty(&self, found: &[PathBuf]) -> Result<(), Error> {
        for path in found {
            // Without the plan nobody knows whose the others are.
            if path.ends_with(plan_file::FILE) && self.model().exists() {
                durable::sync_dir(self.storage, &self.model())?;
            }
            self.storage.remove_file(path).at("remove", path)?;
            if path.ends_with(journal::FILE) {
                durable::sync_dir(self.storage, &self.state())?;
            }
        }
        Ok(())
    }

    /// The files that an earlier attempt has left, all of which must be known. The journal comes first: it must
    /// go before what it speaks of. The plan, which names the others, comes last.
    fn look(&self, begun: Option<&PlanFile>) -> Result<Vec<PathBuf>, Error> {
        only_ours(&self.root)?;
        let made = |name: &str| {
            let name = target(name);
            self.plan.makes(name) || begun.is_some_and(|begun| begun.makes(name))
        };
        let mut found = known_files(&self.state(), files::is_state)?;
        // The lock is this process's own.
        found.retain(|path| !path.ends_with(lock::FILE));
        found.extend(known_files(&self.model(), made)?);
        found.extend(known_files(&self.components(), files::is_component)?);
        found.sort_by_key(|path| match () {
            () if path.ends_with(journal::FILE) => 0,
            () if path.ends_with(plan_file::FILE) => 2,
            () => 1,
        });
        Ok(found)
    }
}

/// Makes a staging directory unless it is there, and locks it.
fn take_over(storage: &dyn Storage, root: &Path) -> Result<Lock, Error> {
    /// Somebody can be just sweeping up this often, and no more.
    const TRIES: u32 = 100;
    let state = state_of(root);
    let mut tries = 0;
    loop {
        make_dir(storage, root)?;
        only_ours(root)?;
        durable::sync_dir(storage, durable::parent(root))?;
        let made = make_dir(storage, &state).map_err(Error::from);
        match made.and_then(|()| Lock::take(&state, root)) {
            Err(error) if is_gone(&error) && tries < TRIES => tries += 1,
            taken => return taken,
        }
    }
}

/// Whether an operation failed because a file or directory is not there.
fn is_gone(error: &Error) -> bool {
    let (Error::Io { source, .. } | Error::Sink(SinkError::Io { source, .. })) = error else {
        return false;
    };
    source.kind() == std::io::ErrorKind::NotFound
}

/// Demands that there is nothing in a staging directory but its rooms.
fn only_ours(root: &Path) -> Result<(), Error> {
    match entries(root)?
        .into_iter()
        .find(|name| !matches!(name.as_str(), "state" | "model" | "components"))
    {
        Some(name) => Err(Error::Foreign { path: root.join(name) }),
        None => Ok(()),
    }
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
