//! Reads checkpoints in lockstep as a pass does, and prints speed and memory: the evidence behind the
//! choices in `engine/source`.
//!
//! `read_lockstep MODE GRAIN WINDOW_KIB AHEAD LAG keep|drop DIR...` where MODE is mmap, pread or direct,
//! GRAIN is huge, exact or sparse, AHEAD the tiles prefetched and LAG the tiles still in use behind.
//! Run it in a memory cgroup to see the peak charge.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, bail};
use reflow::engine::host::usage;
use reflow::engine::source::{ByteRange, InputFile, Source, SourceConfig};
use reflow::plan::{Grain, Mode};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [mode, grain, window, ahead, lag, keep, dirs @ ..] = args.as_slice() else {
        bail!("usage: read_lockstep MODE GRAIN WINDOW_KIB AHEAD LAG keep|drop DIR...");
    };
    let mode = match mode.as_str() {
        "mmap" => Mode::Mmap,
        "pread" => Mode::Pread,
        "direct" => Mode::Direct,
        other => bail!("unknown mode {other}"),
    };
    let grain = match grain.as_str() {
        "huge" => Grain::Huge,
        "exact" => Grain::Exact,
        "sparse" => Grain::Sparse,
        other => bail!("unknown grain {other}"),
    };
    let (window, ahead, lag): (usize, usize, usize) =
        (window.parse::<usize>()? << 10, ahead.parse()?, lag.parse()?);
    let mut inputs = Vec::new();
    let mut streams = Vec::new();
    for dir in dirs {
        streams.push(stream(dir, window, &mut inputs)?);
    }
    let config = SourceConfig { grain, keep_cache: keep == "keep", ..SourceConfig::new(mode) };
    let mut source = Source::open(inputs, &config)?;
    let count = streams.iter().map(Vec::len).min().context("no directories")?;
    let tile = |i: usize| streams.iter().map(|s| s[i]).collect::<Vec<_>>();
    let mut in_use = VecDeque::new();
    let mut sum = 0u64;
    let start = Instant::now();
    for i in 0..count {
        let first_new = if i == 0 { 1 } else { i + ahead };
        (first_new..=i + ahead)
            .filter(|&j| j < count && j > i)
            .for_each(|j| source.prefetch(&tile(j)));
        let tiles = source.read(&tile(i))?;
        for bytes in &tiles {
            let words =
                bytes.chunks_exact(8).map(|w| w.iter().fold(0, |a, &b| a << 8 | u64::from(b)));
            sum = words.fold(sum, u64::wrapping_add);
        }
        in_use.push_back(tiles);
        if in_use.len() > lag {
            in_use.pop_front();
        }
    }
    drop(in_use);
    source.finish_pass();
    source.verify_unchanged()?;
    let seconds = start.elapsed().as_secs_f64();
    let used = usage::snapshot();
    let mib = |bytes: Option<u64>| bytes.unwrap_or(0) >> 20;
    println!(
        "{:.2} GB/s {:.2} s sum {sum:x} VmHWM {} MiB cgroup peak {} MiB hits {:?}",
        source.bytes_read() as f64 / seconds / 1e9,
        seconds,
        mib(used.peak_resident),
        mib(used.cgroup_peak),
        used.limit_hits
    );
    Ok(())
}

/// Cuts all shards of a checkpoint, in order, into windows; headers are skipped so that nothing is aligned.
fn stream(dir: &str, window: usize, inputs: &mut Vec<InputFile>) -> anyhow::Result<Vec<ByteRange>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        paths.push(entry?.path());
    }
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    let mut ranges = Vec::new();
    for path in paths {
        let (file, input) = (u32::try_from(inputs.len())?, InputFile::record(&path)?);
        let mut offset = 8000;
        while offset < input.len {
            let len = window.min(usize::try_from(input.len - offset)?);
            ranges.push(ByteRange { file, offset, len });
            offset += len as u64;
        }
        inputs.push(input);
    }
    Ok(ranges)
}
