//! The output depends on inputs and recipe alone.

use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::files;
use crate::support::run::merge;

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Tile size, threads, memory, how inputs are read and how they are cut into shards.
    #[test]
    fn how_it_is_run_does_not_change_a_byte(
        variant in prop::sample::select(vec!["a", "b", "c", "d", "paper"]),
        scope in prop::sample::select(vec!["model", "layer", "tensor"]),
        dtype in prop::sample::select(vec![Dtype::BF16, Dtype::F16, Dtype::F32]),
        experts in 1usize..4,
        seed in any::<u64>(),
        tile in 1usize..3000,
        threads in 1usize..5,
        io in prop::sample::select(vec!["mmap", "pread", "direct"]),
        shards in prop::collection::vec(1usize..5, 1..4),
    ) {
        let dir = TempDir::new().unwrap();
        let models = family(experts, dtype, seed);
        let run = |name: &str, cut: &[usize], args: &[&str]| {
            let inputs = dir.path().join(format!("{name}-in"));
            write_family(&inputs, &models, cut);
            let out = dir.path().join(name);
            merge(&inputs, experts, &out)
                .args(["--variant", variant, "--scope", scope, "--shard-size", "4000"])
                .args(args)
                .assert()
                .success();
            let mut made = files(&out);
            // The card lists the input files, which differ by how they are cut; the manifest has its hash.
            for name in ["README.md", "manifest.json"] {
                prop_assert!(made.remove(std::path::Path::new(name)).is_some());
            }
            Ok(made)
        };
        let plain = run("plain", &[1], &[])?;
        let (tile, threads) = (tile.to_string(), threads.to_string());
        let odd = run(
            "odd",
            &shards,
            &["--tile", &tile, "--threads", &threads, "--io", io, "--memory", "512MiB"],
        )?;
        prop_assert!(plain == odd);
        prop_assert!(plain.len() > 3);
    }
}

#[test]
fn a_merge_can_be_repeated_to_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(3, Dtype::BF16, 7), &[2, 3]);
    let out = |k| dir.path().join(format!("out{k}"));
    for k in 0..2 {
        merge(dir.path(), 3, &out(k)).assert().success();
    }
    assert_eq!(files(&out(0)), files(&out(1)));
}
