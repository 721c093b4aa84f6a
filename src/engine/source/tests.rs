//! Tests over real files: the same bytes in every mode, and every change of an input noticed.

use std::path::{Path, PathBuf};

use super::*;

const MODES: [Mode; 3] = [Mode::Mmap, Mode::Pread, Mode::Direct];
const MIB: u64 = 1 << 20;
const GRAINS: [Grain; 3] = [Grain::Huge, Grain::Exact, Grain::Sparse];

/// Writes a durable file whose every byte depends on its place and on `seed`.
fn write(dir: &Path, name: &str, len: usize, seed: u64) -> PathBuf {
    let word = |i: u64| (i ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
    let bytes: Vec<u8> = (0..len as u64).map(|i| word(i / 8)[(i % 8) as usize]).collect();
    let path = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    // Dirty pages cannot be dropped, and direct reads would have to flush them.
    std::fs::File::open(&path).unwrap().sync_all().unwrap();
    path
}

fn open(paths: &[PathBuf], config: &SourceConfig) -> Source {
    let inputs = paths.iter().map(|p| InputFile::record(p).unwrap()).collect();
    Source::open(inputs, config).unwrap()
}

fn range(file: u32, offset: u64, len: usize) -> ByteRange {
    ByteRange { file, offset, len }
}

/// Every combination that a user can ask for, with few open files to make the list of them work.
fn configs() -> Vec<SourceConfig> {
    let mut all = Vec::new();
    for mode in MODES {
        for grain in GRAINS {
            for (keep_cache, helpers) in [(false, 2), (false, 0), (true, 1)] {
                let (max_open, plain) = (Some(2), SourceConfig::new(mode));
                let config = SourceConfig { grain, keep_cache, helpers, max_open, ..plain };
                all.push(SourceConfig { before: None, ..config.clone() });
                all.push(config);
            }
        }
    }
    all
}

#[test]
fn all_modes_give_the_bytes_of_the_files() {
    let dir = tempfile::tempdir().unwrap();
    let lens = [5_000_011, 3 << 20, 1, 4096, 700_001];
    let paths: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(i, &n)| write(dir.path(), &format!("f{i}"), n, i as u64))
        .collect();
    let whole: Vec<_> = paths.iter().map(|p| std::fs::read(p).unwrap()).collect();
    let mut batches = vec![
        vec![range(0, 5_000_010, 1), range(1, (3 << 20) - 7, 7), range(2, 0, 1), range(3, 4095, 1)],
        vec![range(0, 0, 5_000_011), range(4, 4097, 8191)],
        vec![range(0, 0, 0), range(1, 3 << 20, 0), range(2, 1, 0)],
        vec![range(1, 0, 3 << 20), range(1, 1 << 20, 1 << 20), range(1, (1 << 20) + 1, 100)],
    ];
    for i in 0..40u64 {
        batches.push((0..5).map(|f| range(f, i * 9973 % lens[f as usize] as u64, 1)).collect());
        batches.push(vec![range(0, i * 100_003, 100_003), range(1, i * 70_001, 70_001)]);
    }
    for config in configs() {
        let mut source = open(&paths, &config);
        let mut kept = Vec::new();
        let mut expected_total = 0;
        for (i, batch) in batches.iter().enumerate() {
            if let Some(next) = batches.get(i + 1).filter(|_| i % 3 != 0) {
                source.prefetch(next);
                source.prefetch(next);
            }
            let tiles = source.read(batch).unwrap();
            assert_eq!(tiles.len(), batch.len());
            for (tile, r) in tiles.into_iter().zip(batch) {
                expected_total += r.len as u64;
                kept.push((tile, *r));
            }
            if kept.len() > 12 {
                // Dropped on another thread, as workers do.
                let old: Vec<_> = kept.drain(..6).collect();
                let whole = &whole;
                std::thread::scope(|s| {
                    s.spawn(move || old.iter().for_each(|(tile, r)| check(tile, r, whole)));
                });
            }
        }
        source.finish_pass();
        for (tile, r) in &kept {
            check(tile, r, &whole);
        }
        source.verify_unchanged().unwrap();
        assert_eq!(source.bytes_read(), expected_total, "{config:?}");
        assert!(source.files.open_count() == 0);
        drop(kept);
        nothing_held(source, &config);
    }
}

#[test]
fn there_is_room_for_blocks_within_reach_and_for_files_within_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> =
        (0..3).map(|i| write(dir.path(), &i.to_string(), 8 << 20, i as u64)).collect();
    for (mode, grain) in
        [(Mode::Mmap, Grain::Huge), (Mode::Mmap, Grain::Exact), (Mode::Pread, Grain::Exact)]
    {
        let block = grain.block();
        let reach = 4 * block;
        let config = SourceConfig { grain, reach, max_open: Some(2), ..SourceConfig::new(mode) };
        let mut source = open(&paths, &config);
        let small = |file, block_index: u64| [range(file, block_index * block + 5, 100)];
        // How much of a file that is not open yet will be new is not known: a block more.
        assert!(source.has_room(&[range(0, 0, (3 * block) as usize)]));
        assert!(!source.has_room(&[range(0, 0, (4 * block) as usize)]));
        source.prefetch(&[range(0, block, block as usize)]);
        assert!(source.has_room(&[range(0, 0, (4 * block) as usize)]), "one of them is there");
        source.prefetch(&[range(0, 0, (2 * block) as usize)]);
        source.prefetch(&small(1, 0));
        source.prefetch(&small(1, 1));
        assert_eq!(source.held.load(Ordering::Relaxed), reach);
        assert!(
            source.has_room(&small(1, 1)) && !source.has_room(&small(1, 2)),
            "{mode:?} {grain:?}"
        );
        assert!(source.has_room(&[]) && source.has_room(&[range(2, 0, 0)]));
        // What is read is in use until it is dropped; a copy is not.
        let tile = source.read(&small(1, 0)).unwrap();
        assert!(!source.has_room(&small(0, 2)), "{mode:?} {grain:?}: the cursor is there");
        let next = source.read(&small(1, 1)).unwrap();
        assert_eq!(source.has_room(&small(0, 2)), mode == Mode::Pread, "{mode:?} {grain:?}");
        drop(tile);
        assert!(
            source.has_room(&small(0, 2))
                && !source.has_room(&[range(0, 2 * block, 2 * block as usize)])
        );
        assert!(!source.has_room(&small(2, 0)), "a third file");
        source.finish_pass();
        drop(next);
        nothing_held(source, &config);
    }
    for (mode, reach) in [(Mode::Direct, 1 << 30), (Mode::Mmap, 0)] {
        let source = open(&paths, &SourceConfig { reach, ..SourceConfig::new(mode) });
        assert!(!source.has_room(&[range(0, 0, 1)]), "{mode:?}: not ahead of those with a permit");
    }
}

/// What was counted as in use no longer is, once the last thread that still had a file in hand has ended.
fn nothing_held(source: Source, config: &SourceConfig) {
    let held = Arc::clone(&source.held);
    drop(source);
    assert_eq!(held.load(Ordering::Relaxed), 0, "{config:?}");
}

fn check(tile: &TileBytes, r: &ByteRange, whole: &[Vec<u8>]) {
    let start = r.offset as usize;
    assert!(tile[..] == whole[r.file as usize][start..start + r.len], "{r:?}");
}

#[test]
fn open_files_stay_within_their_limit() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..50).map(|i| write(dir.path(), &format!("{i}"), 5000, i)).collect();
    for mode in MODES {
        let config = SourceConfig { max_open: Some(4), ..SourceConfig::new(mode) };
        let mut source = open(&paths, &config);
        for round in 0..2u64 {
            for file in 0..50 {
                let tiles = source.read(&[range(file, round * 100, 64)]).unwrap();
                assert_eq!(tiles[0].len(), 64);
                assert!(source.files.open_count() <= 4);
            }
        }
    }
}

#[test]
fn every_change_of_an_input_is_named() {
    type Change = fn(&Path);
    let shrink: Change =
        |p| std::fs::File::options().write(true).open(p).unwrap().set_len(9000).unwrap();
    let grow: Change =
        |p| std::fs::File::options().write(true).open(p).unwrap().set_len(9_000_000).unwrap();
    let replace: Change = |p| {
        let other = p.with_extension("new");
        std::fs::copy(p, &other).unwrap();
        std::fs::rename(&other, p).unwrap();
    };
    let rewrite: Change = |p| {
        let bytes = std::fs::read(p).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        std::fs::write(p, bytes).unwrap();
    };
    let dir = tempfile::tempdir().unwrap();
    for mode in MODES {
        for (field, change) in
            [("length", shrink), ("length", grow), ("inode", replace), ("mtime (ns)", rewrite)]
        {
            let path = write(dir.path(), "shard", 6 << 20, 1);
            // Before the first read.
            let mut source = open(std::slice::from_ref(&path), &SourceConfig::new(mode));
            change(&path);
            expect_changed(source.read(&[range(0, 5 << 20, 100)]).map(drop), field);
            // Between two reads of an open file; an open descriptor does not see a replacement.
            let path = write(dir.path(), "shard", 6 << 20, 1);
            let mut source = open(std::slice::from_ref(&path), &SourceConfig::new(mode));
            drop(source.read(&[range(0, 0, 100)]).unwrap());
            change(&path);
            if field != "inode" {
                expect_changed(source.read(&[range(0, 5 << 20, 100)]).map(drop), field);
            }
            // And at the end of the pass in any case.
            expect_changed(source.verify_unchanged(), field);
        }
    }
}

fn expect_changed(result: Result<(), SourceError>, want: &str) {
    match result {
        Err(SourceError::Changed { field, was, now, .. }) => {
            assert_eq!(field, want);
            assert_ne!(was, now);
        }
        other => panic!("{want}: {other:?}"),
    }
}

#[test]
fn ranges_outside_of_the_plan_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(dir.path(), "a", 100, 1);
    for mode in MODES {
        let mut source = open(std::slice::from_ref(&path), &SourceConfig::new(mode));
        for r in [range(0, 50, 51), range(0, u64::MAX, 2), range(0, 101, 0)] {
            source.prefetch(&[r]);
            let error = source.read(&[r]).unwrap_err();
            assert!(matches!(error, SourceError::OutOfRange { file_len: 100, .. }), "{error}");
        }
        let error = source.read(&[range(7, 0, 1)]).unwrap_err();
        assert!(matches!(error, SourceError::UnknownFile { file: 7, count: 1 }), "{error}");
    }
    let gone = InputFile { path: dir.path().join("gone"), ..InputFile::record(&path).unwrap() };
    let mut source = Source::open(vec![gone], &SourceConfig::new(Mode::Mmap)).unwrap();
    assert!(matches!(source.read(&[range(0, 0, 1)]), Err(SourceError::Open { .. })));
}

/// A file on a disk, if there is one: elsewhere page cache cannot be dropped.
#[cfg(target_os = "linux")]
fn on_disk(len: usize) -> Option<(tempfile::TempDir, PathBuf)> {
    use crate::engine::host::disk::{FileSystem, file_system};
    let dir = tempfile::tempdir().unwrap();
    if !matches!(file_system(dir.path()).unwrap(), FileSystem::LocalDisk(_)) {
        let dir = dir.path().display();
        println!("SKIPPED: {dir} is not on a disk, page cache cannot be dropped");
        return None;
    }
    let path = write(dir.path(), "shard", len, 3);
    Some((dir, path))
}

/// The promise of the module: between two reads, only blocks in use are in the page cache.
#[cfg(target_os = "linux")]
#[test]
fn page_cache_holds_what_is_in_use_and_no_more() {
    let Some((_dir, path)) = on_disk(24 << 20) else { return };
    for (mode, grain) in [
        (Mode::Mmap, Grain::Huge),
        (Mode::Mmap, Grain::Exact),
        (Mode::Pread, Grain::Exact),
        (Mode::Direct, Grain::Exact),
    ] {
        advice::drop_cache(&std::fs::File::open(&path).unwrap(), 0, 0);
        assert_eq!(resident(&path), 0, "nothing cached before");
        let mut source =
            open(std::slice::from_ref(&path), &SourceConfig { grain, ..SourceConfig::new(mode) });
        let mut held = None;
        let tile = |i: u64| range(0, 8000 + i * MIB, MIB as usize);
        for i in 0..22 {
            source.prefetch(&[tile(i + 1)]);
            // The previous tile is still in use while this one arrives.
            held = Some((source.read(&[tile(i)]).unwrap(), held.take().map(|(tiles, _)| tiles)));
            let cached = resident(&path);
            let most = grain.footprint(1, 3 * MIB);
            assert!(
                cached <= most,
                "{mode:?} {grain:?}, tile {i}: {cached} bytes cached, {most} allowed"
            );
            if mode == Mode::Mmap {
                assert!(cached >= 2 * MIB, "{mode:?} {grain:?}, tile {i}: {cached} bytes cached");
            }
        }
        drop(held);
        source.finish_pass();
        drop(source);
        assert_eq!(resident(&path), 0, "{mode:?} {grain:?}: nothing stays behind");
    }
}

/// Ways to read, of which each brings other pages into the cache.
#[cfg(target_os = "linux")]
const WAYS: [(Mode, Grain); 6] = [
    (Mode::Mmap, Grain::Huge),
    (Mode::Mmap, Grain::Exact),
    (Mode::Mmap, Grain::Sparse),
    (Mode::Pread, Grain::Exact),
    (Mode::Pread, Grain::Sparse),
    (Mode::Direct, Grain::Exact),
];

/// Leaves the first `len` bytes of a file in the page cache, and nothing else of it.
#[cfg(target_os = "linux")]
fn warm(path: &Path, len: u64) {
    let file = std::fs::File::open(path).unwrap();
    advice::no_readahead(&file);
    advice::drop_cache(&file, 0, 0);
    let len = len.min(file.metadata().unwrap().len());
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut vec![0; len as usize], 0).unwrap();
    assert_eq!(resident(path), len.next_multiple_of(4096));
}

/// Demands that about so many bytes of a file are in the page cache. A busy kernel takes a block away, or has one in hand
/// when it is dropped; what is mistaken for something else makes 8 MiB or more.
#[cfg(target_os = "linux")]
fn expect_resident(path: &Path, bytes: u64, way: (Mode, Grain)) {
    let found = resident(path);
    assert!(found.abs_diff(bytes) <= 4 * MIB, "{way:?}: {found} bytes cached, {bytes} expected");
}

/// Reads all of a file twice, some of it ahead.
#[cfg(target_os = "linux")]
fn read_twice(source: &mut Source, whole: &[u8]) {
    let tile = |i: u64| range(0, i * MIB, MIB.min(whole.len() as u64 - i * MIB) as usize);
    let count = (whole.len() as u64).div_ceil(MIB);
    for k in 0..2 * count {
        let i = k % count;
        source.prefetch(&[tile(i)]);
        // Nothing is left to be given up: waiting for that makes the kernel read on behind it.
        if k + 1 < 2 * count {
            source.prefetch(&[tile((i + 1) % count)]);
        }
        let bytes = source.read(&[tile(i)]).unwrap();
        let start = (i * MIB) as usize;
        assert!(bytes[0][..] == whole[start..start + bytes[0].len()]);
    }
    source.finish_pass();
}

#[cfg(target_os = "linux")]
#[test]
fn what_was_in_the_page_cache_before_stays_there() {
    let len = (24 << 20) + 12_345;
    let Some((_dir, path)) = on_disk(len) else { return };
    let (whole, all) = (std::fs::read(&path).unwrap(), (len as u64).next_multiple_of(4096));
    if !advice::is_cached(&std::fs::File::open(&path).unwrap(), 0, len as u64) {
        println!("SKIPPED: this kernel does not tell what is in the page cache");
        return;
    }
    for (mode, grain) in WAYS {
        let config = || SourceConfig { grain, ..SourceConfig::new(mode) };
        for cached in [0, 10 * MIB, all] {
            warm(&path, cached);
            let mut source = open(std::slice::from_ref(&path), &config());
            read_twice(&mut source, &whole);
            drop(source);
            expect_resident(&path, cached, (mode, grain));
        }
        // Nobody looks.
        warm(&path, 10 * MIB);
        let config = SourceConfig { before: None, ..config() };
        let mut source = open(std::slice::from_ref(&path), &config);
        read_twice(&mut source, &whole);
        drop(source);
        // Past the cache nothing is brought into it, and so nothing is dropped.
        expect_resident(&path, if mode == Mode::Direct { 10 * MIB } else { 0 }, (mode, grain));
    }
}

/// Where a reader before stopped amid a file, the kernel would go on reading ahead of whoever comes by.
#[cfg(target_os = "linux")]
#[test]
fn what_somebody_has_half_read_is_not_read_on() {
    use std::io::Read as _;
    let len = 96 << 20;
    let Some((_dir, path)) = on_disk(len) else { return };
    let whole = std::fs::read(&path).unwrap();
    let half_read = || {
        advice::drop_cache(&std::fs::File::open(&path).unwrap(), 0, 0);
        let mut file = std::fs::File::open(&path).unwrap();
        (0..16).for_each(|_| file.read_exact(&mut vec![0; 1 << 20]).unwrap());
        // What is under way comes.
        std::thread::sleep(std::time::Duration::from_millis(50));
        resident(&path)
    };
    if !advice::is_cached(&std::fs::File::open(&path).unwrap(), 0, len as u64) {
        println!("SKIPPED: this kernel does not tell what is in the page cache");
        return;
    }
    for (mode, grain) in WAYS {
        let cached = half_read();
        let config = SourceConfig { grain, ..SourceConfig::new(mode) };
        let mut source = open(std::slice::from_ref(&path), &config);
        read_twice(&mut source, &whole);
        drop(source);
        let left = resident(&path);
        assert!(
            left <= cached + 4 * MIB,
            "{mode:?} {grain:?}: {cached} bytes before, {left} after"
        );
    }
}

/// What one source has read, or what has gone in the meantime, is not taken for what was there before.
#[cfg(target_os = "linux")]
#[test]
fn what_was_read_in_the_run_is_not_taken_for_what_was_there() {
    let Some((_dir, path)) = on_disk(8 << 20) else { return };
    let whole = std::fs::read(&path).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    for (mode, grain) in WAYS {
        let config = SourceConfig { grain, ..SourceConfig::new(mode) };
        let mut mapped = SourceConfig::new(Mode::Mmap);
        mapped.before.clone_from(&config.before);
        // One source has all of the file in the cache, when the other comes to it.
        warm(&path, 0);
        let mut one = open(std::slice::from_ref(&path), &mapped);
        let held = one.read(&[range(0, 0, 8 << 20)]).unwrap();
        assert_eq!(resident(&path), 8 << 20);
        let mut other = open(std::slice::from_ref(&path), &config);
        read_twice(&mut other, &whole);
        drop((held, one, other));
        expect_resident(&path, 0, (mode, grain));
        // Somebody drops it between two passes.
        warm(&path, 8 << 20);
        let mut source = open(std::slice::from_ref(&path), &SourceConfig::new(mode));
        read_twice(&mut source, &whole);
        advice::drop_cache(&file, 0, 0);
        assert_eq!(resident(&path), 0, "nothing is mapped any more");
        read_twice(&mut source, &whole);
        drop(source);
        expect_resident(&path, 0, (mode, grain));
    }
}

/// Bytes of a file in the page cache.
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "asks the kernel which pages are cached")]
fn resident(path: &Path) -> u64 {
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: the bytes of the map are never looked at.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    let mut pages = vec![0u8; map.len().div_ceil(4096)];
    // SAFETY: the map is valid for its length and `pages` has one byte per page of it.
    let code =
        unsafe { libc::mincore(map.as_ptr() as *mut libc::c_void, map.len(), pages.as_mut_ptr()) };
    assert_eq!(code, 0);
    pages.iter().filter(|&&p| p & 1 == 1).count() as u64 * 4096
}
