//! SHA-256 of the shards being written, computed by a thread of its own.
//!
//! A shard's hash is one long chain: no second CPU makes it faster, and it takes longer than all else that is done with
//! finished bytes. So it is computed beside that. What is not hashed yet is in tiles whose tickets are not back, so the
//! memory it takes is planned.

use std::collections::HashMap;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use sha2::{Digest, Sha256};

use crate::engine::TileOut;

/// Hashes of shards as far as they go, by the numbers of the shards.
#[derive(Default)]
pub(super) struct Digests {
    /// Of those who have no thread.
    states: States,
    helper: Option<Helper>,
    /// Whether there can be a thread has been found out.
    started: bool,
}

impl Digests {
    /// Has the bytes of a tile hashed after those before of a shard.
    pub(super) fn add(&mut self, shard: usize, bytes: &TileOut) {
        self.send(Task::Add(shard, bytes.clone()));
    }

    /// Begins or goes on with a shard's hash.
    pub(super) fn put(&mut self, shard: usize, hasher: Sha256) {
        self.send(Task::Put(shard, hasher));
    }

    /// The hash of all that was added, which is forgotten here. Waits for it. `None` if the thread has panicked.
    pub(super) fn take(&mut self, shard: usize) -> Option<Sha256> {
        let (to, taken) = bounded(1);
        self.send(Task::Take(shard, to));
        taken.recv().ok()
    }

    fn send(&mut self, task: Task) {
        if !self.started {
            (self.helper, self.started) = (Helper::start(), true);
        }
        match self.helper.as_ref().and_then(|helper| helper.tasks.as_ref()) {
            // It shows when the hash is taken.
            Some(tasks) => drop(tasks.send(task)),
            None => self.states.run(task),
        }
    }
}

/// What is done in the order in which it is asked for.
enum Task {
    Add(usize, TileOut),
    Put(usize, Sha256),
    Take(usize, Sender<Sha256>),
}

#[derive(Default)]
struct States(HashMap<usize, Sha256>);

impl States {
    fn run(&mut self, task: Task) {
        match task {
            Task::Add(shard, bytes) => self.0.entry(shard).or_default().update(&*bytes),
            Task::Put(shard, hasher) => drop(self.0.insert(shard, hasher)),
            Task::Take(shard, to) => drop(to.send(self.0.remove(&shard).unwrap_or_default())),
        }
    }
}

/// The thread. Ends with what it has been given when this is dropped.
struct Helper {
    tasks: Option<Sender<Task>>,
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    fn start() -> Option<Self> {
        let (tasks, given): (_, Receiver<Task>) = unbounded();
        let mut states = States::default();
        // It calls nothing that is deep; small stacks keep a tight memory limit honest.
        let thread = thread::Builder::new().name("hashes".into()).stack_size(128 << 10);
        let thread = thread.spawn(move || given.into_iter().for_each(|task| states.run(task)));
        Some(Self { tasks: Some(tasks), thread: Some(thread.ok()?) })
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.tasks = None;
        if let Some(thread) = self.thread.take() {
            // Nothing in it does.
            let _panicked = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_hashed_in_order_with_and_without_a_thread() {
        for started in [false, true] {
            let mut digests = Digests { started, ..Digests::default() };
            for part in [b"ab".as_slice(), b"", b"c"] {
                digests.add(1, &TileOut::of(part));
                digests.add(2, &TileOut::of(b"x"));
            }
            let mut first = digests.take(1).unwrap();
            first.update(b"d");
            digests.put(1, first);
            digests.add(1, &TileOut::of(b"e"));
            assert_eq!(digests.take(1).unwrap().finalize(), Sha256::digest(b"abcde"));
            assert_eq!(digests.take(2).unwrap().finalize(), Sha256::digest(b"xxx"));
            assert_eq!(digests.take(2).unwrap().finalize(), Sha256::digest(b""), "it was taken");
            assert_eq!(digests.helper.is_some(), !started);
        }
    }
    #[test]
    fn a_thread_that_has_panicked_shows_and_keeps_no_tile() {
        let (tasks, given) = unbounded();
        let thread = thread::spawn(move || {
            let _first: Result<Task, _> = given.recv();
            // Without a message amid those of the tests.
            std::panic::resume_unwind(Box::new(()));
        });
        let helper = Some(Helper { tasks: Some(tasks), thread: Some(thread) });
        let mut digests = Digests { helper, started: true, ..Digests::default() };
        let bytes = TileOut::of(b"x");
        for _ in 0..3 {
            digests.add(1, &bytes);
        }
        assert!(digests.take(1).is_none());
        assert!(digests.take(1).is_none(), "still");
        drop(digests);
        assert!(bytes.is_last());
    }
}
