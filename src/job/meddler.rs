//! A disk on which something happens before each of its calls: how tests come between two of them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::engine::sink::{RealDisk, Storage, StoredFile};

/// What is about to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Create,
    CreateDir,
    RemoveDir,
    Remove,
    Rename,
    RenameNew,
    SyncDir,
    Write,
    SetLen,
    Sync,
}

/// A call that is about to be made: of a rename, the new name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) what: What,
    pub(super) path: PathBuf,
}

type Act = dyn FnMut(&Call) -> io::Result<()> + Send;

/// The real disk, and somebody who acts before each call and may refuse it.
#[derive(Clone)]
pub(super) struct Meddled(Arc<Mutex<Act>>);

impl Meddled {
    pub(super) fn new(act: impl FnMut(&Call) -> io::Result<()> + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(act)))
    }

    /// A disk on which nothing happens any more from one call on: as if the process had been killed before it.
    pub(super) fn killed_before(call: usize) -> Self {
        let mut calls = 0;
        Self::new(move |_| {
            calls += 1;
            if calls > call { Err(dead()) } else { Ok(()) }
        })
    }

    /// A disk on which nothing happens any more once a call has been made.
    pub(super) fn killed_after(last: impl Fn(&Call) -> bool + Send + 'static) -> Self {
        let mut over = false;
        Self::new(move |call| {
            if over {
                return Err(dead());
            }
            over = last(call);
            Ok(())
        })
    }

    /// A disk that writes down its calls.
    pub(super) fn listed(calls: &Arc<Mutex<Vec<Call>>>) -> Self {
        let calls = Arc::clone(calls);
        Self::new(move |call| {
            calls.lock().unwrap().push(call.clone());
            Ok(())
        })
    }

    fn call(&self, what: What, path: &Path) -> io::Result<()> {
        (self.0.lock().unwrap())(&Call { what, path: path.to_owned() })
    }

    fn file(&self, path: &Path, inner: Box<dyn StoredFile>) -> Box<dyn StoredFile> {
        Box::new(MeddledFile { disk: self.clone(), path: path.to_owned(), inner })
    }
}

fn dead() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Storage for Meddled {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        self.call(What::Create, path)?;
        RealDisk.create(path).map(|file| self.file(path, file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        RealDisk.open(path).map(|file| self.file(path, file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.call(What::CreateDir, path)?;
        RealDisk.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.call(What::RemoveDir, path)?;
        RealDisk.remove_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.call(What::Remove, path)?;
        RealDisk.remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(What::Rename, to)?;
        RealDisk.rename(from, to)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call(What::RenameNew, to)?;
        RealDisk.rename_noreplace(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        // What a real one says when the directory is not there.
        dir.symlink_metadata()?;
        self.call(What::SyncDir, dir)
    }
}

struct MeddledFile {
    disk: Meddled,
    path: PathBuf,
    inner: Box<dyn StoredFile>,
}

impl StoredFile for MeddledFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.call(What::Write, &self.path)?;
        self.inner.write_at(bytes, offset)
    }

    fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.call(What::Write, &self.path)?;
        self.inner.write_past_cache(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.disk.call(What::SetLen, &self.path)?;
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.disk.call(What::SetLen, &self.path)?;
        self.inner.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call(What::Sync, &self.path)
    }
}
