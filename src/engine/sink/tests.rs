//! Shards written past the page cache: on a disk that does it, refuses it, does it by halves, or fails.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::file::ShardFile;
use super::{Lane, RealDisk, ShardWriter, SinkConfig, SinkError, Storage, StoredFile};
use crate::engine::host::disk::{FileSystem, file_system};
use crate::recipe::WriteRequest::{self, Auto, Buffered, Direct};

/// What becomes of writes past the cache.
#[derive(Clone, Copy, Debug)]
enum Past {
    Written,
    /// From this one on the system does not do them.
    Refused(usize),
    /// At most so many bytes are written.
    Short(usize),
    /// This one fails.
    Fails(usize, i32),
    /// This one panics.
    Panics(usize),
}

/// The real disk, but for writes past the cache.
#[derive(Clone)]
struct Odd {
    past: Past,
    /// Those that were tried.
    tried: Arc<AtomicUsize>,
    /// Where and how much was written, in order; without the way.
    written: Arc<Mutex<Vec<(u64, usize)>>>,
}

impl Odd {
    fn new(past: Past) -> Self {
        Self { past, tried: Arc::default(), written: Arc::default() }
    }

    fn tried(&self) -> usize {
        self.tried.load(Ordering::Relaxed)
    }

    fn file(&self, inner: Box<dyn StoredFile>) -> Box<dyn StoredFile> {
        Box::new(OddFile { disk: self.clone(), inner })
    }
}

impl Storage for Odd {
    fn create(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        RealDisk.create(path).map(|file| self.file(file))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn StoredFile>> {
        RealDisk.open(path).map(|file| self.file(file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(from, to)
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename_noreplace(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(dir)
    }
}

struct OddFile {
    disk: Odd,
    inner: Box<dyn StoredFile>,
}

impl StoredFile for OddFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.disk.written.lock().unwrap().push((offset, bytes.len()));
        self.inner.write_at(bytes, offset)
    }

    fn write_past_cache(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        assert!(offset.is_multiple_of(4096) && bytes.len().is_multiple_of(4096));
        assert!(!bytes.is_empty());
        assert_eq!(bytes.as_ptr() as usize % 4096, 0);
        let number = self.disk.tried.fetch_add(1, Ordering::Relaxed);
        let bytes = match self.disk.past {
            Past::Refused(from) if number >= from => {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            Past::Fails(this, error) if number == this => {
                return Err(io::Error::from_raw_os_error(error));
            }
            Past::Panics(this) if number == this => panic!("on purpose"),
            Past::Short(most) => {
                // As a disk that stops amid a page.
                let n = most.min(bytes.len());
                self.disk.written.lock().unwrap().push((offset, n));
                return self.inner.write_at(&bytes[..n], offset);
            }
            _ => bytes,
        };
        self.disk.written.lock().unwrap().push((offset, bytes.len()));
        self.inner.write_past_cache(bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(len)
    }

    fn sync(&self) -> io::Result<()> {
        // Durability is what the simulator of power cuts is for.
        Ok(())
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

fn config(chunk: u64, write: WriteRequest) -> SinkConfig {
    SinkConfig { chunk, keep_cache: false, write }
}

/// A new shard and the lane that it goes by.
fn shard(disk: &Odd, path: &Path, len: u64, config: &SinkConfig, lane: &Arc<Lane>) -> ShardWriter {
    ShardWriter::create(disk, path, len, config).unwrap().by_way_of(lane)
}

fn is_local_disk(dir: &Path) -> bool {
    file_system(dir).is_ok_and(FileSystem::is_worth_direct_writes)
}

/// What is done to two shards of one lane.
#[derive(Clone, Debug)]
enum Step {
    /// Goes on where the last write to this shard ended, or at some other place.
    Write {
        shard: usize,
        at: Option<u64>,
        len: usize,
    },
    Flush(usize),
    Sync(usize),
    /// Synced, closed and opened again.
    Reopen(usize),
    /// Closed without a sync, opened again, and all of it written again.
    Lose(usize),
}

const LEN: u64 = 90_001;

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![4 => Just(None), 1 => (0..LEN).prop_map(Some), 1 => (0..LEN / 4096).prop_map(|k| Some(k * 4096))];
    let len = prop_oneof![0usize..9000, 1usize..200, Just(4096), Just(16_384), 0usize..60_000];
    prop_oneof![
        8 => (0usize..2, at, len).prop_map(|(shard, at, len)| Step::Write { shard, at, len }),
        2 => (0usize..2).prop_map(Step::Flush),
        1 => (0usize..2).prop_map(Step::Sync),
        1 => (0usize..2).prop_map(Step::Reopen),
        1 => (0usize..2).prop_map(Step::Lose),
    ]
}

fn past() -> impl Strategy<Value = Past> {
    prop_oneof![
        4 => Just(Past::Written),
        1 => (0usize..5).prop_map(Past::Refused),
        2 => prop_oneof![Just(1usize), Just(4096), Just(5000), Just(20_000)].prop_map(Past::Short),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_is_written_is_what_plain_writes_give(
        steps in prop::collection::vec(step(), 1..40), past in past(), chunk in 1u64..40_000, keep_cache: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a.part"), dir.path().join("b.part")];
        let (disk, lane) = (Odd::new(past), Arc::new(Lane::new(chunk)));
        let config = SinkConfig { keep_cache, ..config(chunk, Direct) };
        let mut writers = [0, 1].map(|k| Some(shard(&disk, &paths[k], LEN, &config, &lane)));
        let mut want = [vec![0u8; LEN as usize], vec![0u8; LEN as usize]];
        let (mut ends, mut value) = ([0u64; 2], 0u8);
        let reopen = |k: usize| Some(ShardWriter::reopen(&disk, &paths[k], LEN, &config).unwrap().by_way_of(&lane));
        for step in steps {
            match step {
                Step::Write { shard, at, len } => {
                    let at = at.unwrap_or(ends[shard]);
                    let len = len.min((LEN - at) as usize);
                    let bytes: Vec<u8> = (0..len).map(|i| value.wrapping_add((i * 7 / 3) as u8)).collect();
                    value = value.wrapping_add(41);
                    writers[shard].as_ref().unwrap().write_at(at, &bytes).unwrap();
                    want[shard][at as usize..at as usize + len].copy_from_slice(&bytes);
                    ends[shard] = at + len as u64;
                }
                Step::Flush(k) => {
                    writers[k].as_ref().unwrap().flush().unwrap();
                    prop_assert!(std::fs::read(&paths[k]).unwrap() == want[k]);
                }
                Step::Sync(k) => {
                    writers[k].as_ref().unwrap().sync().unwrap();
                    prop_assert!(std::fs::read(&paths[k]).unwrap() == want[k]);
                }
                Step::Reopen(k) => {
                    writers[k].take().unwrap().finish().unwrap();
                    prop_assert!(std::fs::read(&paths[k]).unwrap() == want[k]);
                    writers[k] = reopen(k);
                }
                Step::Lose(k) => {
                    writers[k] = None;
                    let left = std::fs::read(&paths[k]).unwrap();
                    writers[k] = reopen(k);
                    prop_assert!(std::fs::read(&paths[k]).unwrap() == left, "nobody writes any more");
                    writers[k].as_ref().unwrap().write_at(0, &want[k]).unwrap();
                    ends[k] = LEN;
                }
            }
        }
        for k in 0..2 {
            writers[k].take().unwrap().finish().unwrap();
            prop_assert!(std::fs::read(&paths[k]).unwrap() == want[k]);
        }
    }
}

#[test]
fn only_large_shards_on_local_disks_pass_the_cache_by_unless_told() {
    let dir = tempfile::tempdir().unwrap();
    let local = is_local_disk(dir.path());
    let (small, large) = (1 << 20, 6 << 20);
    let cases = [
        (Auto, small, false),
        (Auto, large, local),
        (Buffered, large, false),
        (Direct, small, true),
    ];
    for (i, (write, len, passes)) in cases.into_iter().enumerate() {
        let (disk, lane) = (Odd::new(Past::Written), Arc::new(Lane::new(1 << 20)));
        let path = dir.path().join(i.to_string());
        let writer = shard(&disk, &path, len, &config(1 << 20, write), &lane);
        let bytes: Vec<u8> = (0..len).map(|i| (i >> 5) as u8).collect();
        let (header, data) = bytes.split_at(1234);
        writer.write_at(0, header).unwrap();
        for (k, part) in data.chunks(300_007).enumerate() {
            writer.write_at(1234 + k as u64 * 300_007, part).unwrap();
        }
        writer.finish().unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
        assert_eq!(disk.tried() > 0, passes, "{write:?} {len}");
        // One run, whoever wrote it: header and data together, in whole chunks where the disk does that.
        let written = disk.written.lock().unwrap().clone();
        let ends = written.iter().map(|(at, n)| at + *n as u64);
        assert!(
            written.iter().skip(1).map(|w| w.0).eq(ends.take(written.len() - 1)),
            "{written:?}"
        );
        if passes {
            assert_eq!(disk.tried() as u64, len >> 20);
        }
    }
}

#[test]
fn a_system_that_refuses_is_asked_once() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lane) = (Odd::new(Past::Refused(0)), Arc::new(Lane::new(1 << 20)));
    let path = dir.path().join("a.part");
    let writer = shard(&disk, &path, 5 << 20, &config(1 << 20, Direct), &lane);
    for k in 0..5u8 {
        writer.write_at(u64::from(k) << 20, &vec![k; 1 << 20]).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(disk.tried(), 1);
    let bytes = std::fs::read(&path).unwrap();
    assert!((0..5u8).all(|k| bytes[usize::from(k) << 20] == k));
}

/// Writes a shard of 40 chunks one of which fails: the errors that were told, and how many chunks were tried.
fn failing(past: Past) -> (Vec<SinkError>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lane) = (Odd::new(past), Arc::new(Lane::new(4096)));
    let (bad, good) = (dir.path().join("bad.part"), dir.path().join("good.part"));
    let config = config(4096, Direct);
    let writer = shard(&disk, &bad, 40 * 4096, &config, &lane);
    let mut errors = Vec::new();
    for k in 0..40 {
        errors.extend(writer.write_at(k * 4096, &[7; 4096]).err());
    }
    errors.extend(writer.flush().err());
    errors.extend(writer.sync().err());
    errors.extend(writer.write_at(0, &[7; 4096]).err());
    errors.extend(writer.finish().err());
    let tried = disk.tried();
    // The other shard has no part in it.
    let writer = shard(&disk, &good, 8192, &config, &lane);
    writer.write_at(0, &[9; 8192]).unwrap();
    writer.finish().unwrap();
    assert_eq!(std::fs::read(good).unwrap(), [9; 8192]);
    (errors, tried)
}

#[test]
fn a_failed_chunk_is_told_once_and_fails_the_shard_for_good() {
    for this in [0, 1, 17, 39] {
        let (errors, tried) = failing(Past::Fails(this, libc::EIO));
        assert_eq!(tried, this + 1, "nothing is written into a file that is lost");
        assert!(errors.len() >= 4, "{errors:?}");
        assert!(errors.iter().all(|e| matches!(e, SinkError::Sync { .. })), "{errors:?}");
        let told = |e: &&SinkError| matches!(e, SinkError::Sync { source, .. } if source.raw_os_error().is_some());
        assert_eq!(errors.iter().filter(told).count(), 1, "{errors:?}");
        assert!(told(&&errors[0]), "{errors:?}");

        let (errors, tried) = failing(Past::Fails(this, libc::ENOSPC));
        assert_eq!(tried, this + 1);
        assert!(matches!(errors[0], SinkError::NoSpace { needed: 4096, .. }), "{errors:?}");
        assert!(errors.len() >= 4);
        assert!(errors[1..].iter().all(|e| matches!(e, SinkError::Sync { .. })), "{errors:?}");
    }
    assert!(failing(Past::Fails(5, libc::EINTR)).0.is_empty());
    assert!(failing(Past::Fails(5, libc::EOPNOTSUPP)).0.is_empty());
}

#[test]
fn who_asks_while_a_chunk_fails_is_told_why() {
    let dir = tempfile::tempdir().unwrap();
    let (path, config) = (dir.path().join("a.part"), config(4096, Direct));
    let file = ShardFile::new(path.clone(), RealDisk.create(&path).unwrap(), 4096, &config);
    file.queue();
    // The thread that writes is here: it has seen the failure, and not yet told of it.
    let error = file.fail(io::Error::from_raw_os_error(libc::EIO));
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| file.check_failed());
        std::thread::sleep(std::time::Duration::from_millis(50));
        file.unqueue(Err(error));
        let told = asking.join().unwrap();
        assert!(
            matches!(&told, Err(SinkError::Sync { source, .. }) if source.raw_os_error() == Some(libc::EIO)),
            "{told:?}"
        );
    });
}

#[test]
fn a_panic_fails_the_shard_and_nobody_waits_for_ever() {
    for this in [0, 1, 39] {
        let (errors, tried) = failing(Past::Panics(this));
        assert_eq!(tried, this + 1);
        assert!(errors.len() >= 4, "{errors:?}");
        assert!(errors.iter().all(|e| matches!(e, SinkError::Sync { .. })), "{errors:?}");
    }
}

#[test]
fn what_was_dropped_is_not_written_later() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, lane) = (Odd::new(Past::Written), Arc::new(Lane::new(1 << 20)));
    let paths = [dir.path().join("a.part"), dir.path().join("b.part")];
    let config = config(1 << 20, Direct);
    let writer = shard(&disk, &paths[0], 8192, &config, &lane);
    writer.write_at(0, &[1; 8192]).unwrap();
    drop(writer);
    for _ in 0..3 {
        // The buffer came back: there are two of them again.
        let writer = ShardWriter::create(&disk, &paths[1], 6 << 20, &config).unwrap();
        let writer = writer.by_way_of(&lane);
        writer.write_at(0, &vec![2; 6 << 20]).unwrap();
        writer.finish().unwrap();
        std::fs::remove_file(&paths[1]).unwrap();
    }
    assert_eq!(std::fs::read(&paths[0]).unwrap(), [0; 8192]);
}
