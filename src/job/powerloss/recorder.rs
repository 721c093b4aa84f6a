//! A disk that does everything, and writes down what.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::disk::{Disk, Fate, Node, Op};
use crate::engine::sink::{RealDisk, Storage, StoredFile};

/// Works on the real disk below a directory; syncs are only written down.
#[derive(Clone)]
pub(super) struct Recorder {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

struct State {
    disk: Disk,
    log: Vec<Op>,
}

impl State {
    fn record(&mut self, op: Op) {
        self.disk.apply(&op, Fate::Kept);
        self.log.push(op);
    }
}

impl Recorder {
    /// Records what is done below `root`.
    pub(super) fn new(root: &Path) -> Self {
        let state = State { disk: Disk::load(root), log: Vec::new() };
        Self { root: root.to_owned(), state: Arc::new(Mutex::new(state)) }
    }

    /// What is there.
    pub(super) fn disk(&self) -> Disk {
        self.state.lock().unwrap().disk.clone()
    }

    /// What has been done.
    pub(super) fn log(&self) -> Vec<Op> {
        self.state.lock().unwrap().log.clone()
    }

    /// A path as its directory's node and its name.
    fn place(&self, path: &Path) -> Option<(Node, String)> {
        let path = path.strip_prefix(&self.root).unwrap();
        let dir = self.state.lock().unwrap().disk.find(path.parent().unwrap())?;
        Some((dir, path.file_name().unwrap().to_str().unwrap().to_owned()))
    }

    fn node(&self, path: &Path) -> Option<Node> {
        self.state.lock().unwrap().disk.find(path.strip_prefix(&self.root).unwrap())
    }

    fn record(&self, op: impl FnOnce(&Disk) -> Op) {
        let mut state = self.state.lock().unwrap();
        let op = op(&state.disk);
        state.record(op);
    }

    fn handle(&self, node: Node, inner: Box<dyn StoredFile>) -> Box<dyn StoredFile> {
        Box::new(RecordedFile { recorder: self.clone(), node, inner })
    }

    fn moved(&self, from: &Path, to: &Path) {
        let (node, from, to) = (self.node(from).unwrap(), self.place(from), self.place(to));
        self.record(|_| Op::Move { node, from: from.unwrap(), to: to.unwrap() });
    }
}

impl Storage for Recorder {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let file = RealDisk.create(path)?;
        let (dir, name) = self.place(path).unwrap();
        self.record(|disk| Op::File { dir, name, node: disk.unused() });
        Ok(self.handle(self.node(path).unwrap(), file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        let file = RealDisk.open(path)?;
        Ok(self.handle(self.node(path).unwrap(), file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)?;
        let (dir, name) = self.place(path).unwrap();
        self.record(|disk| Op::Dir { dir, name, node: disk.unused() });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let place = self.place(path);
        RealDisk.remove_dir(path)?;
        let (dir, name) = place.unwrap();
        self.record(|_| Op::Remove { dir, name });
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        // The lock's file is made past the recorder: nothing depends on what becomes of it.
        let known = self.node(path).and_then(|_| self.place(path));
        RealDisk.remove_file(path)?;
        if let Some((dir, name)) = known {
            self.record(|_| Op::Remove { dir, name });
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)?;
        self.moved(from, to);
        Ok(())
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename_noreplace(from, to)?;
        self.moved(from, to);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = self.node(dir).unwrap();
        self.record(|_| Op::SyncDir { dir });
        Ok(())
    }
}

struct RecordedFile {
    recorder: Recorder,
    node: Node,
    inner: Box<dyn StoredFile>,
}

impl StoredFile for RecordedFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let n = self.inner.write_at(bytes, offset)?;
        let (node, bytes) = (self.node, bytes[..n].to_vec());
        self.recorder.record(|_| Op::Write { node, offset: offset as usize, bytes });
        Ok(n)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.recorder.record(|_| Op::SetLen { node: self.node, len: len as usize });
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)?;
        self.recorder.record(|_| Op::SetLen { node: self.node, len: len as usize });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.recorder.record(|_| Op::SyncFile { node: self.node });
        Ok(())
    }
}
