//! One process at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext};
use crate::patience::patiently;

/// The name of the lock's file.
pub(in crate::job) const FILE: &str = "lock";
/// Where the system has a number for each of its starts, and a new one for whoever asks.
const RANDOM: &str = "/proc/sys/kernel/random";
/// How often a lock is asked for that nobody holds and that cannot be had: a millisecond each time.
const TRIES: u32 = 2_000;

/// Who holds a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::job) struct Holder {
    /// Process number.
    pub(in crate::job) pid: u32,
    /// Name of the machine.
    pub(in crate::job) host: String,
    /// Which run of that machine's system.
    pub(in crate::job) boot_id: String,
    /// Counts the holders of this lock.
    pub(in crate::job) generation: u64,
    /// What no other holder has: process numbers and names are the same in many containers.
    #[serde(default)]
    pub(in crate::job) nonce: String,
}

impl Holder {
    /// What a lock file says; an empty holder if it makes no sense.
    pub(in crate::job) fn parse(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_default()
    }

    /// The one that comes after `before`.
    pub(in crate::job) fn of_this_process(before: &Self) -> Self {
        // Where there is none of these files the other fields have to do.
        let random = |name| std::fs::read_to_string(Path::new(RANDOM).join(name));
        let text = |name| random(name).unwrap_or_default().trim().to_owned();
        Self {
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot_id: text("boot_id"),
            generation: before.generation.saturating_add(1),
            nonce: text("uuid"),
        }
    }

    pub(in crate::job) fn describe(&self) -> String {
        if self.pid == 0 {
            return "which has not said yet who it is".to_owned();
        }
        // The file may hold anything.
        let host: String = self.host.chars().filter(|c| !c.is_control()).collect();
        format!("process {} on {host}", self.pid)
    }
}

/// A held lock. Ends with the process, however that ends: a stale lock holds nobody up.
///
/// The system's lock decides. Where it lies (network file systems on which every host gets it), the
/// newest holder wins: each writes its own text into the file, and [`Lock::check`], before anything is recorded
/// or published, finds that it has been replaced. What two holders write meanwhile is the same bytes.
pub(in crate::job) struct Lock {
    path: PathBuf,
    holder: Holder,
    /// Holds the lock as long as it lives.
    file: File,
}

impl Lock {
    /// Takes the lock in a state directory.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it.
    pub(in crate::job) fn take(state: &Path, root: &Path) -> Result<Self, Error> {
        let path = state.join(FILE);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut text = Vec::new();
        for _ in 0..TRIES {
            let mut file = patiently(|| options.open(&path)).at("open", &path)?;
            let asked = ask(&file, &path)?;
            text.clear();
            // Whatever it says, it is replaced.
            let _unread = file.read_to_end(&mut text);
            match asked {
                Asked::Ours => {
                    let holder = Holder::of_this_process(&Holder::parse(&text));
                    let lock = Self { path, holder, file };
                    lock.write()?;
                    return Ok(lock);
                }
                Asked::Theirs => break,
                Asked::Unclear => {
                    drop(file);
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
        let holder = Holder::parse(&text).describe();
        Err(Error::Locked { path: root.to_owned(), holder })
    }

    fn write(&self) -> Result<(), Error> {
        let text = serde_json::to_string(&self.holder).unwrap_or_default();
        self.file.set_len(0).at("write", &self.path)?;
        self.file.write_all_at(text.as_bytes(), 0).at("write", &self.path)
    }

    /// Counts this holder behind one that is known of otherwise.
    ///
    /// # Errors
    /// What the disk says.
    pub(in crate::job) fn outnumber(&mut self, generation: u64) -> Result<(), Error> {
        if self.holder.generation > generation {
            return Ok(());
        }
        self.holder.generation = generation.saturating_add(1);
        self.write()
    }

    /// Counts the holders of this lock, this one included.
    pub(in crate::job) fn generation(&self) -> u64 {
        self.holder.generation
    }

    /// Demands that nobody else has taken the lock since.
    ///
    /// # Errors
    /// [`Error::Locked`]; what the disk says.
    pub(in crate::job) fn check(&self) -> Result<(), Error> {
        let text = match patiently(|| std::fs::read(&self.path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            text => text.at("read", &self.path)?,
        };
        let now: Option<Holder> = serde_json::from_slice(&text).ok();
        if now.as_ref() == Some(&self.holder) {
            return Ok(());
        }
        let holder = now.map_or_else(|| "its lock file is gone".to_owned(), |now| now.describe());
        Err(Error::Locked { path: self.path.clone(), holder })
    }
}

impl Drop for Lock {
    /// Closing the file is not enough: a child process that another thread is about to start has it open, too, until its
    /// program runs.
    fn drop(&mut self) {
        // Where it cannot be unlocked it was not locked.
        let _unlocked = self.file.unlock();
    }
}

enum Asked {
    Ours,
    Theirs,
    /// To be asked again.
    Unclear,
}

/// Asks the system for a lock on a file that was opened by this name.
fn ask(file: &File, path: &Path) -> Result<Asked, Error> {
    let failed = |source| Error::Io { operation: "lock", path: path.to_owned(), source };
    match file.try_lock() {
        Ok(()) => {}
        // A file system without locks: the check has to do.
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
        Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::ENOLCK) => {}
        Err(TryLockError::Error(source)) => return Err(failed(source)),
        Err(TryLockError::WouldBlock) => {
            return match file.try_lock_shared() {
                // Somebody only looks whether it is held, which takes a moment.
                Ok(()) => Ok(Asked::Unclear),
                Err(TryLockError::WouldBlock) => Ok(Asked::Theirs),
                Err(TryLockError::Error(source)) => Err(failed(source)),
            };
        }
    }
    // Who had it before may have removed the file meanwhile: nobody else would find this one.
    let ours = file.metadata().at("examine", path)?;
    match path.metadata() {
        Ok(named) if (named.dev(), named.ino()) == (ours.dev(), ours.ino()) => Ok(Asked::Ours),
        Ok(_) => Ok(Asked::Unclear),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Asked::Unclear),
        Err(source) => Err(failed(source)),
    }
}

/// Who works in a state directory at this moment, if anybody does.
pub(in crate::job) fn holder(state: &Path) -> Option<String> {
    let mut file = patiently(|| File::open(state.join(FILE))).ok()?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut text = Vec::new();
            let _unread = file.read_to_end(&mut text);
            Some(Holder::parse(&text).describe())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(holder(dir.path()), None);
        let lock = Lock::take(dir.path(), dir.path()).unwrap();
        let told = format!("process {}", std::process::id());
        match Lock::take(dir.path(), dir.path()) {
            Err(Error::Locked { holder, .. }) => assert!(holder.starts_with(&told), "{holder}"),
            _ => panic!("locked twice"),
        }
        assert!(holder(dir.path()).unwrap().starts_with(&told));
        drop(lock);
        assert_eq!(Lock::take(dir.path(), dir.path()).unwrap().generation(), 2);
    }

    #[test]
    fn it_ends_although_a_child_has_its_file_open() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), dir.path()).unwrap();
        let child = lock.file.try_clone().unwrap();
        drop(lock);
        assert_eq!(holder(dir.path()), None);
        assert!(Lock::take(dir.path(), dir.path()).is_ok());
        drop(child);
    }

    #[test]
    fn stale_locks_block_nobody_and_odd_ones_neither() {
        let dir = tempfile::tempdir().unwrap();
        let pid = std::process::id();
        // A process number in use again, another start of the machine; no text at all; a directory's worth.
        let stale = format!(r#"{{"pid":{pid},"host":"h","boot_id":"b","generation":41}}"#);
        for (text, generation) in [(stale.as_str(), 42), ("", 1), ("process 12", 1), ("\0\0", 1)] {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            let lock = Lock::take(dir.path(), dir.path()).unwrap();
            assert_eq!(lock.generation(), generation);
            lock.check().unwrap();
        }
    }

    #[test]
    fn a_holder_notices_that_it_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(dir.path(), dir.path()).unwrap();
        let other = Holder { pid: 7, host: "elsewhere".to_owned(), ..lock.holder.clone() };
        std::fs::write(dir.path().join(FILE), serde_json::to_string(&other).unwrap()).unwrap();
        match lock.check() {
            Err(Error::Locked { holder, .. }) => assert_eq!(holder, "process 7 on elsewhere"),
            other => panic!("{other:?}"),
        }
        std::fs::remove_file(dir.path().join(FILE)).unwrap();
        assert!(matches!(lock.check(), Err(Error::Locked { .. })));
    }

    #[test]
    fn who_only_looks_does_not_hold_up_who_begins() {
        let dir = tempfile::tempdir().unwrap();
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let _joined = scope.spawn(|| {
                    while !over.load(std::sync::atomic::Ordering::Relaxed) {
                        let _anybody = holder(dir.path());
                    }
                });
            }
            let taken: Vec<_> =
                (0..200).map(|_| Lock::take(dir.path(), dir.path()).map(drop)).collect();
            over.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(taken.into_iter().all(|taken| taken.is_ok()));
        });
    }

    #[test]
    fn two_never_hold_it_also_where_its_file_is_removed_each_time() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let (inside, times) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let _joined = scope.spawn(|| {
                    for _ in 0..1_000 {
                        let Ok(lock) = Lock::take(dir.path(), dir.path()) else { continue };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        lock.check().unwrap();
                        times.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        std::fs::remove_file(dir.path().join(FILE)).unwrap();
                    }
                });
            }
        });
        assert!(times.into_inner() > 100);
    }
}
