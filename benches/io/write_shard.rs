//! Writes one shard as a pass does, and prints speed and memory: the evidence behind the choices in
//! `engine/sink`.
//!
//! `write_shard FILE MIB CHUNK_KIB`: MIB mebibytes in 1 MiB tiles, pushed to disk each `CHUNK_KIB`. FILE
//! must not exist and is removed afterwards.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::path::PathBuf;
use std::time::Instant;

use anyhow::bail;
use reflow::engine::host::usage;
use reflow::engine::sink::{RealDisk, ShardWriter, SinkConfig};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, mib, chunk] = args.as_slice() else {
        bail!("usage: write_shard FILE MIB CHUNK_KIB");
    };
    let (file, mib, chunk): (_, u64, u64) = (PathBuf::from(file), mib.parse()?, chunk.parse()?);
    let tile = vec![7u8; 1 << 20];
    let start = Instant::now();
    let config = SinkConfig { chunk: chunk << 10, ..SinkConfig::default() };
    let writer = ShardWriter::create(&RealDisk, &file, mib << 20, &config)?;
    for i in 0..mib {
        writer.write_at(i << 20, &tile)?;
    }
    writer.finish()?;
    let seconds = start.elapsed().as_secs_f64();
    let used = usage::snapshot();
    println!(
        "{:.2} GB/s cgroup peak {} MiB hits {:?}",
        (mib << 20) as f64 / seconds / 1e9,
        used.cgroup_peak.unwrap_or(0) >> 20,
        used.limit_hits
    );
    std::fs::remove_file(&file)?;
    Ok(())
}
