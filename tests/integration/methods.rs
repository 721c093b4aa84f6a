//! Methods of recipes: the output depends on inputs and recipe alone, for each of them.

use std::path::Path;

use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, large_family, write_family};
use crate::support::{files, reflow};

/// Recipes over base, expert1, expert2 and expert3, without the dtype.
const RECIPES: &[&str] = &[
    "{merge_method: passthrough, models: [{model: expert1, parameters: {scale: 0.7}}]}",
    "{merge_method: nearswap, base_model: base, models: [{model: expert1}], parameters: {t: 0.01}}",
    "{merge_method: slerp, base_model: base, models: [{model: expert1}], parameters: {t: [0, 0.5, 1]}}",
    "{merge_method: nuslerp, models: [{model: expert1, parameters: {weight: 0.7}}, {model: expert2, \
     parameters: {weight: 0.3}}], parameters: {nuslerp_flatten: false}}",
    "{merge_method: nuslerp, base_model: base, models: [{model: expert1, parameters: {weight: 0.7}}, {model: \
     expert2, parameters: {weight: 0.3}}], parameters: {nuslerp_flatten: false, nuslerp_row_wise: true}}",
    "{merge_method: multislerp, base_model: base, models: [{model: expert1, parameters: {weight: 0.5}}, {model: \
     expert2, parameters: {weight: 0.3}}, {model: expert3, parameters: {weight: 0.4}}]}",
    "{merge_method: karcher, models: [{model: expert1}, {model: expert2}, {model: expert3}]}",
    "{merge_method: model_stock, base_model: base, models: [{model: expert1}, {model: expert2}, {model: expert3}]}",
    "{merge_method: arcee_fusion, base_model: base, models: [{model: expert1}]}",
];

/// The usual family with a tensor of several blocks, so that tiles and pieces end within it.
fn models(dtype: Dtype, seed: u64) -> (Checkpoint, Vec<Checkpoint>) {
    large_family(3, dtype, seed, [151, 100])
}

/// The files that a recipe's merge makes.
fn made(dir: &Path, recipe: &Path, name: &str, args: &[&str], cpu: Option<&str>) -> Vec<Vec<u8>> {
    let out = dir.join(name);
    let mut command = reflow();
    command.current_dir(dir).arg("merge").arg(recipe).arg("--out").arg(&out).args(args);
    if let Some(cpu) = cpu {
        command.env("REFLOW_CPU", cpu);
    }
    command.assert().success();
    let files = files(&out);
    let weights =
        files.into_iter().filter(|(name, _)| name.extension() == Some("safetensors".as_ref()));
    let weights: Vec<Vec<u8>> = weights.map(|(_, bytes)| bytes).collect();
    std::fs::remove_dir_all(out).unwrap();
    weights
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// Tile size, threads, memory, how inputs are read, and the path of the processor.
    #[test]
    fn how_it_is_run_does_not_change_a_byte(
        dtype in prop::sample::select(vec![Dtype::BF16, Dtype::F16, Dtype::F32]),
        seed in any::<u64>(),
        tile in 1usize..12_000,
        threads in 1usize..5,
        io in prop::sample::select(vec!["mmap", "pread", "direct"]),
    ) {
        let dir = TempDir::new().unwrap();
        write_family(dir.path(), &models(dtype, seed), &[2, 1]);
        let (tile, threads) = (tile.to_string(), threads.to_string());
        for (k, text) in RECIPES.iter().enumerate() {
            let recipe = dir.path().join(format!("{k}.yml"));
            std::fs::write(&recipe, text).unwrap();
            let plain = made(dir.path(), &recipe, "plain", &[], None);
            let args = ["--tile", &tile, "--threads", &threads, "--io", io, "--memory", "512MiB"];
            let odd = made(dir.path(), &recipe, "odd", &args, Some("scalar"));
            prop_assert!(plain == odd && !plain.is_empty(), "{}", text);
        }
    }
}
