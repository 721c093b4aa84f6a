//! One process at a time.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext};
use crate::patience::patiently;

/// The name of the lock's file.
pub(in crate::job) const FILE: &str = "lock";

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
}

impl Holder {
    /// What a lock file says; an empty holder if it makes no sense.
    pub(in crate::job) fn parse(text: &[u8]) -> Self {
        serde_json::from_slice(text).unwrap_or_default()
    }

    /// The one that comes after `before`.
    pub(in crate::job) fn of_this_process(before: &Self) -> Self {
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        Self {
            pid: std::process::id(),
            host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            boot_id: boot_id.unwrap_or_default().trim().to_owned(),
            generation: before.generation.saturating_add(1),
        }
    }

    pub(in crate::job) fn describe(&self) -> String {
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
    _file: File,
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
        let mut file = patiently(|| options.open(&path)).at("open", &path)?;
        let mut text = Vec::new();
        // Whatever it says, it is replaced.
        let _unread = file.read_to_end(&mut text);
        let before = Holder::parse(&text);
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Locked { path: root.to_owned(), holder: before.describe() });
            }
            // A file system without locks: the check has to do.
            Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) if error.raw_os_error() == Some(libc::ENOLCK) => {}
            Err(TryLockError::Error(source)) => {
                return Err(Error::Io { operation: "lock", path, source });
            }
        }
        let holder = Holder::of_this_process(&before);
        let text = serde_json::to_string(&holder).unwrap_or_default();
        file.set_len(0).at("write", &path)?;
        let _start = file.seek(SeekFrom::Start(0)).at("write", &path)?;
        file.write_all(text.as_bytes()).at("write", &path)?;
        Ok(Self { path, holder, _file: file })
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
}
