//! Writes one shard as a pass does, and prints speed and memory: the evidence behind the choices in
//! `engine/sink`.
//!
//! `write_shard FILE MIB CHUNK_KIB [buffered|direct]`: MIB mebibytes in 1 MiB tiles, written past the page cache in
//! chunks of `CHUNK_KIB`, or through it and pushed to disk after as much. FILE must not exist and is removed
//! afterwards.
#![expect(clippy::print_stdout, reason = "a measuring program")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::bail;
use reflow::engine::host::usage;
use reflow::engine::sink::{Lane, RealDisk, ShardWriter, SinkConfig};
use reflow::recipe::WriteRequest;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [file, mib, chunk, way @ ..] = args.as_slice() else {
        bail!("usage: write_shard FILE MIB CHUNK_KIB [buffered|direct]");
    };
    let write = match way.first().map(String::as_str) {
        None => WriteRequest::Auto,
        Some("buffered") => WriteRequest::Buffered,
        Some("direct") => WriteRequest::Direct,
        Some(other) => bail!("{other} is neither buffered nor direct"),
    };
    let (file, mib, chunk): (_, u64, u64) = (PathBuf::from(file), mib.parse()?, chunk.parse()?);
    let tile = vec![7u8; 1 << 20];
    let start = Instant::now();
    let config = SinkConfig { chunk: chunk << 10, write, ..SinkConfig::default() };
    let writer = ShardWriter::create(&RealDisk, &file, mib << 20, &config)?;
    let writer = writer.by_way_of(&Arc::new(Lane::new(config.chunk)));
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
