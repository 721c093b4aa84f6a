//! A disk that stops the process at one of its calls: how tests look at every state between two of them.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::sink::{Storage, StoredFile};
use crate::recipe::{Failpoint, Stop};

/// Passes calls on until the failpoint is reached.
pub(super) struct Watched<S> {
    inner: S,
    count: Arc<Count>,
}

struct Count {
    point: Failpoint,
    calls: AtomicU64,
}

impl<S> Watched<S> {
    /// Watches the calls to a disk.
    pub(super) fn new(inner: S, point: Failpoint) -> Self {
        Self { inner, count: Arc::new(Count { point, calls: AtomicU64::new(0) }) }
    }
}

impl Count {
    fn call(&self) {
        if self.calls.fetch_add(1, Ordering::Relaxed) != self.point.after {
            return;
        }
        let signal = match self.point.how {
            Stop::Kill => rustix::process::Signal::KILL,
            Stop::Pause => rustix::process::Signal::STOP,
        };
        // A process may always signal itself.
        let _sent = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
}

impl<S: Storage> Storage for Watched<S> {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        self.count.call();
        self.inner.create(path).map(|file| self.watch(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        self.inner.open(path).map(|file| self.watch(file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.remove_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.rename(from, to)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.rename_noreplace(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.count.call();
        self.inner.sync_dir(dir)
    }
}

impl<S> Watched<S> {
    fn watch(&self, inner: Box<dyn StoredFile>) -> Box<dyn StoredFile> {
        Box::new(WatchedFile { inner, count: Arc::clone(&self.count) })
    }
}

struct WatchedFile {
    inner: Box<dyn StoredFile>,
    count: Arc<Count>,
}

impl StoredFile for WatchedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.count.call();
        self.inner.write_at(bytes, offset)
    }

    fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.count.call();
        self.inner.write_past_cache(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.count.call();
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.count.call();
        self.inner.reserve(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.count.call();
        self.inner.sync()
    }

    fn start_writeback(&self, range: (u64, u64)) -> io::Result<()> {
        self.inner.start_writeback(range)
    }

    fn await_writeback(&self, range: (u64, u64)) -> io::Result<()> {
        self.inner.await_writeback(range)
    }

    fn drop_cache(&self, range: (u64, u64)) {
        self.inner.drop_cache(range);
    }
}
