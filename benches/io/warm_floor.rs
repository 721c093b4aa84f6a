//! `warm_floor READS DIR...`: seconds that no merger can do without when all inputs are in the page cache: a plain
//! read of all shards by as many threads as there are cores, READS times, and a copy in memory of as many bytes as the
//! first directory holds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};

const CHUNK: usize = 1 << 20;
/// Chunks of the copy's target: more than any cache holds.
const TARGET: usize = 64;

fn shards(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in dir.read_dir().with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    Ok(found)
}

fn read_all(files: &[PathBuf], next: &AtomicUsize) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let usage = "warm_floor READS DIR...";
    let reads: usize = args.next().context(usage)?.parse().context(usage)?;
    let dirs: Vec<PathBuf> = args.map(PathBuf::from).collect();
    let mut files = Vec::new();
    for dir in &dirs {
        files.extend(shards(dir)?);
    }
    let mut output = 0;
    for file in shards(dirs.first().context(usage)?)? {
        output += file.metadata()?.len() as usize;
    }
    let threads = std::thread::available_parallelism()?.get();
    let (from, mut to) = (vec![1u8; CHUNK], vec![0u8; TARGET * CHUNK]);

    let begin = Instant::now();
    for _ in 0..reads {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let started: Vec<_> =
                (0..threads).map(|_| scope.spawn(|| read_all(&files, &next))).collect();
            started.into_iter().try_for_each(|thread| {
                thread.join().unwrap_or_else(|_| anyhow::bail!("a reader panicked"))
            })
        })?;
    }
    for chunk in 0..output.div_ceil(CHUNK) {
        let at = chunk % TARGET * CHUNK;
        to[at..at + CHUNK].copy_from_slice(std::hint::black_box(&from));
    }
    std::hint::black_box(&to);
    println!("{:.3}", begin.elapsed().as_secs_f64());
    Ok(())
}
