//! A model of a file system that forgets: what is durable, and what a power cut may leave of the rest.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// A file or directory, by number.
pub(super) type Node = usize;

/// The root of what is modelled.
pub(super) const ROOT: Node = 0;

/// What arrives whole or not at all.
const PAGE: usize = 4096;

/// One change of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A new, empty file gets a name.
    File { dir: Node, name: String, node: Node },
    /// A new, empty directory gets a name.
    Dir { dir: Node, name: String, node: Node },
    /// A name goes.
    Remove { dir: Node, name: String },
    /// A node gets another name, in place of what had it.
    Move { node: Node, from: (Node, String), to: (Node, String) },
    /// Bytes are written.
    Write { node: Node, offset: usize, bytes: Vec<u8> },
    /// A file gets another length.
    SetLen { node: Node, len: usize },
    /// The content of a file is durable from here on.
    SyncFile { node: Node },
    /// The names in a directory are durable from here on.
    SyncDir { dir: Node },
}

impl Op {
    /// What it does, without the bytes.
    pub(super) fn brief(&self) -> String {
        match self {
            Self::Write { node, offset, bytes } => {
                format!("Write {{ node: {node}, offset: {offset}, {} bytes }}", bytes.len())
            }
            other => format!("{other:?}"),
        }
    }
}

/// What a power cut makes of a change that is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Dropped,
    /// Only some of the pages arrived, or of less than one the first half.
    Torn,
    /// The bytes are zeros: the length arrived, the content did not.
    Zeros,
    /// Something else is there.
    Garbage,
}

#[derive(Clone, Debug)]
enum Content {
    File(Vec<u8>),
    Dir(BTreeMap<String, Node>),
}

/// All nodes of a file system.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    nodes: BTreeMap<Node, Content>,
}

impl Disk {
    /// What lies in a directory now, all of it durable.
    pub(super) fn load(root: &Path) -> Self {
        let mut disk = Self { nodes: BTreeMap::from([(ROOT, Content::Dir(BTreeMap::new()))]) };
        disk.load_dir(root, ROOT);
        disk
    }

    fn load_dir(&mut self, path: &Path, dir: Node) {
        for entry in std::fs::read_dir(path).unwrap().map(Result::unwrap) {
            let (node, path) = (self.nodes.len(), entry.path());
            let content = if path.is_dir() {
                Content::Dir(BTreeMap::new())
            } else {
                Content::File(std::fs::read(&path).unwrap())
            };
            let is_dir = path.is_dir();
            self.nodes.insert(node, content);
            self.names(dir).insert(entry.file_name().into_string().unwrap(), node);
            if is_dir {
                self.load_dir(&path, node);
            }
        }
    }

    fn names(&mut self, dir: Node) -> &mut BTreeMap<String, Node> {
        match self.nodes.get_mut(&dir) {
            Some(Content::Dir(names)) => names,
            other => panic!("{dir} is no directory: {other:?}"),
        }
    }

    /// The node that a relative path names.
    pub(super) fn find(&self, path: &Path) -> Option<Node> {
        path.iter().try_fold(ROOT, |dir, name| match self.nodes.get(&dir) {
            Some(Content::Dir(names)) => names.get(name.to_str().unwrap()).copied(),
            _ => None,
        })
    }

    /// The content of a file.
    pub(super) fn read(&self, path: &Path) -> Option<&[u8]> {
        match self.nodes.get(&self.find(path)?) {
            Some(Content::File(bytes)) => Some(bytes),
            _ => None,
        }
    }

    /// The names in a directory.
    pub(super) fn list(&self, path: &Path) -> Vec<&str> {
        match self.find(path).and_then(|node| self.nodes.get(&node)) {
            Some(Content::Dir(names)) => names.keys().map(String::as_str).collect(),
            _ => Vec::new(),
        }
    }

    /// A number that no node has.
    pub(super) fn unused(&self) -> Node {
        self.nodes.keys().last().map_or(0, |last| last + 1)
    }

    /// Makes a change, as much of it as its fate leaves.
    pub(super) fn apply(&mut self, op: &Op, fate: Fate) {
        if fate == Fate::Dropped {
            // The node itself is there, for what is done with it later and arrives.
            match op {
                Op::File { node, .. } => drop(self.nodes.insert(*node, Content::File(Vec::new()))),
                Op::Dir { node, .. } => {
                    drop(self.nodes.insert(*node, Content::Dir(BTreeMap::new())));
                }
                _ => {}
            }
            return;
        }
        match op {
            Op::File { dir, name, node } => {
                self.nodes.insert(*node, Content::File(Vec::new()));
                self.names(*dir).insert(name.clone(), *node);
            }
            Op::Dir { dir, name, node } => {
                self.nodes.insert(*node, Content::Dir(BTreeMap::new()));
                self.names(*dir).insert(name.clone(), *node);
            }
            Op::Remove { dir, name } => {
                let node = self.names(*dir).get(name).copied();
                // A directory that still has names in it stays.
                let full = node.is_some_and(
                    |node| matches!(&self.nodes[&node], Content::Dir(names) if !names.is_empty()),
                );
                if !full {
                    self.names(*dir).remove(name);
                }
            }
            Op::Move { node, to, .. } => {
                // It has one name at a time, also where an earlier move of it was dropped.
                for content in self.nodes.values_mut() {
                    if let Content::Dir(names) = content {
                        names.retain(|_, named| named != node);
                    }
                }
                self.names(to.0).insert(to.1.clone(), *node);
            }
            Op::Write { node, offset, bytes } => {
                let bytes = match fate {
                    Fate::Torn => bytes[..torn(bytes.len())].to_vec(),
                    Fate::Zeros => vec![0; bytes.len()],
                    Fate::Garbage => bytes.iter().map(|byte| byte ^ 0xA5).collect(),
                    Fate::Kept | Fate::Dropped => bytes.clone(),
                };
                let file = self.file(*node);
                file.resize(file.len().max(offset + bytes.len()), 0);
                file[*offset..offset + bytes.len()].copy_from_slice(&bytes);
            }
            Op::SetLen { node, len } => self.file(*node).resize(*len, 0),
            Op::SyncFile { .. } | Op::SyncDir { .. } => {}
        }
    }

    fn file(&mut self, node: Node) -> &mut Vec<u8> {
        match self.nodes.get_mut(&node) {
            Some(Content::File(bytes)) => bytes,
            other => panic!("{node} is no file: {other:?}"),
        }
    }

    /// Makes the files and directories for real.
    pub(super) fn store(&self, root: &Path) {
        self.store_dir(root, ROOT);
    }

    fn store_dir(&self, path: &Path, dir: Node) {
        let Content::Dir(names) = &self.nodes[&dir] else { panic!("{dir} is no directory") };
        for (name, node) in names {
            let path = path.join(name);
            match &self.nodes[node] {
                Content::File(bytes) => std::fs::write(&path, bytes).unwrap(),
                Content::Dir(_) => {
                    std::fs::create_dir(&path).unwrap();
                    self.store_dir(&path, *node);
                }
            }
        }
    }

    /// A hash of all names and contents.
    pub(super) fn fingerprint(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.hash_dir(ROOT, &mut hasher);
        hasher.finalize()
    }

    fn hash_dir(&self, dir: Node, hasher: &mut blake3::Hasher) {
        let Content::Dir(names) = &self.nodes[&dir] else { return };
        for (name, node) in names {
            hasher.update(name.as_bytes());
            match &self.nodes[node] {
                Content::File(bytes) => {
                    hasher.update(b"\0f");
                    hasher.update(&bytes.len().to_le_bytes());
                    hasher.update(bytes);
                }
                Content::Dir(_) => {
                    hasher.update(b"\0d");
                    self.hash_dir(*node, hasher);
                    hasher.update(b"\0e");
                }
            }
        }
    }
}

/// How many bytes of a torn write arrive.
fn torn(len: usize) -> usize {
    if len > PAGE { len / PAGE / 2 * PAGE + PAGE * usize::from(len < 2 * PAGE) } else { len / 2 }
}

/// The changes among the first `cut` that nothing has made durable by then.
pub(super) fn unsynced(log: &[Op], cut: usize) -> Vec<usize> {
    let (mut files, mut dirs, mut found) = (HashSet::new(), HashSet::new(), Vec::new());
    for (i, op) in log[..cut].iter().enumerate().rev() {
        let durable = match op {
            Op::SyncFile { node } => {
                files.insert(*node);
                true
            }
            Op::SyncDir { dir } => {
                dirs.insert(*dir);
                true
            }
            Op::Write { node, .. } | Op::SetLen { node, .. } => files.contains(node),
            Op::File { dir, .. } | Op::Dir { dir, .. } | Op::Remove { dir, .. } => {
                dirs.contains(dir)
            }
            // Its old name goes and its new one comes at once, and both directories tell of it.
            Op::Move { from, to, .. } => dirs.contains(&from.0) && dirs.contains(&to.0),
        };
        if !durable {
            found.push(i);
        }
    }
    found.reverse();
    found
}
