//! Tests of shards that are not written from front to back, and of writing that is stopped and gone on with: their
//! hashes are those of the files.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::journal::Record;
use super::output::{Output, Place};
use super::scene::{Random, Scene, empty_dir};
use crate::checkpoint::hex;
use crate::engine::sink::{RealDisk, SinkConfig};
use crate::engine::{TileOut, TileSink};
use crate::plan::Plan;
use crate::progress::Silent;
use crate::recipe::{Scope, WriteRequest};

/// What a merge would write: a shard, an offset in it, and the bytes.
type Write = (usize, u64, Vec<u8>);

/// Random bytes for all segments, in any order, cut anyhow; each segment's from its start to its end.
fn writes(plan: &Plan, random: &mut Random) -> Vec<Write> {
    let mut segments: Vec<_> = plan.segments.iter().collect();
    for i in 1..segments.len() {
        segments.swap(i, random.below(i + 1));
    }
    let mut writes = Vec::new();
    for segment in segments {
        let (mut at, end) = (0, segment.elements * u64::from(segment.out_size));
        while at < end {
            let most = [40, 3_000, 20_000][random.below(3)];
            let len = (1 + random.below(most) as u64).min(end - at);
            let bytes = (0..len).map(|_| random.next() as u8).collect();
            writes.push((segment.shard as usize, segment.offset + at, bytes));
            at += len;
        }
    }
    writes
}

fn open<'a>(
    plan: &'a Plan,
    dir: &Path,
    records: &[(Record, usize)],
    write: WriteRequest,
) -> Output<'a> {
    let config = SinkConfig { chunk: 4 << 10, write, ..SinkConfig::default() };
    let place = Place { storage: &RealDisk, model: dir.to_owned(), config, progress: &Silent };
    Output::new(plan, place, records.iter().map(|(record, _)| record)).unwrap()
}

/// Writes all, stops now and then, sometimes behind the last record, and goes on from there.
fn written(plan: &Plan, writes: &[Write], random: &mut Random) {
    let dir = empty_dir();
    let mut records: Vec<(Record, usize)> = Vec::new();
    let (mut done, mut stops) = (0, 0);
    let hashes = loop {
        let request = [WriteRequest::Auto, WriteRequest::Buffered, WriteRequest::Direct];
        let mut output = open(plan, dir.path(), &records, request[random.below(3)]);
        let stop = done + 1 + random.below(writes.len());
        while done < stop.min(writes.len()) {
            let (shard, offset, bytes) = &writes[done];
            output.write(*shard, *offset, &TileOut::of(bytes)).unwrap();
            done += 1;
            if random.below(6) == 0 {
                records.push((output.sync().unwrap(), done));
            }
        }
        if done < stop {
            output.finish().unwrap();
            break output.hashes().unwrap();
        }
        stops += 1;
        assert!(stops < 100, "no progress");
        done = records.last().map_or(0, |(_, done)| *done);
    };
    for (k, shard) in plan.layout.shards.iter().enumerate() {
        let mut expected = vec![0; shard.len as usize];
        expected[..shard.header.len()].copy_from_slice(&shard.header);
        for (_, offset, bytes) in writes.iter().filter(|(shard, _, _)| *shard == k) {
            expected[*offset as usize..][..bytes.len()].copy_from_slice(bytes);
        }
        assert!(std::fs::read(dir.path().join(&shard.file_name)).unwrap() == expected, "{k}");
        assert_eq!(hashes.shards[k], hex(&Sha256::digest(&expected)), "{k}");
    }
}

#[test]
fn hashes_are_those_of_the_files_wherever_there_are_holes_and_stops() {
    let scene = Scene::new(Scope::Model, false);
    for shard_size in [14_000, 1 << 20] {
        let scene = scene.other(|recipe| recipe.shard_size = shard_size);
        let job = scene.job(Scene::settings());
        for seed in 1..60 {
            let mut random = Random(seed);
            let writes = writes(&job.plan, &mut random);
            written(&job.plan, &writes, &mut random);
        }
    }
}
