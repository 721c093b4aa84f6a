//! Statistics about a merge: what an independent loop over inputs and output finds, the same bytes however it was run.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use predicates::str::contains;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, family, write_family};
use crate::support::run::merge;
use crate::support::{files, reflow};

const FILE: &str = "reflow_statistics.json";

fn statistics(out: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(out.join(FILE)).unwrap()).unwrap()
}

/// The values of all tensors of plain floats.
fn values(tensors: impl Iterator<Item = (String, Dtype, Vec<u8>)>) -> BTreeMap<String, Vec<f32>> {
    let decode = |(name, dtype, bytes): (String, Dtype, Vec<u8>)| {
        let values: Vec<f32> = match dtype {
            Dtype::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            }
            Dtype::F16 | Dtype::BF16 => {
                let half = bytes.chunks_exact(2).map(|b| u16::from_le_bytes(b.try_into().unwrap()));
                let is_bf16 = dtype == Dtype::BF16;
                half.map(|b| {
                    if is_bf16 { bf16::from_bits(b).to_f32() } else { f16::from_bits(b).to_f32() }
                })
                .collect()
            }
            _ => return None,
        };
        Some((name, values))
    };
    tensors.filter_map(decode).collect()
}

fn of_checkpoint(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<f32>> {
    values(
        checkpoint
            .tensors
            .iter()
            .map(|(name, dtype, _, bytes)| (name.clone(), *dtype, bytes.clone())),
    )
}

fn of_output(out: &Path) -> BTreeMap<String, Vec<f32>> {
    let shards = files(out)
        .into_iter()
        .filter(|(name, _)| name.extension().is_some_and(|e| e == "safetensors"));
    let tensors = shards.flat_map(|(_, bytes)| {
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let all = read.tensors().into_iter();
        all.map(|(name, view)| (name, view.dtype(), view.data().to_vec())).collect::<Vec<_>>()
    });
    values(tensors)
}

#[track_caller]
fn close(got: &Value, plain: f64, what: &str) {
    let got = got.as_f64().unwrap();
    assert!((got - plain).abs() <= 1e-9 * plain.abs() + 1e-18, "{what}: {got} {plain}");
}

/// Compares the rows with plain loops in doubles over what was merged.
fn check(found: &Value, base: &Checkpoint, experts: &[Checkpoint], out: &Path) {
    let (base, merged) = (of_checkpoint(base), of_output(out));
    let experts: Vec<_> = experts.iter().map(of_checkpoint).collect();
    let tensors = found["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), merged.len());
    let mut names: Vec<&str> = tensors.iter().map(|row| row["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, merged.keys().map(String::as_str).collect::<Vec<_>>());
    for row in tensors {
        let name = row["name"].as_str().unwrap();
        let base = &base[name];
        let minus = |values: &Vec<f32>| -> Vec<f32> {
            values.iter().zip(base).map(|(x, base)| x - base).collect()
        };
        let mut rows: Vec<Vec<f32>> = experts.iter().map(|expert| minus(&expert[name])).collect();
        rows.push(minus(&merged[name]));
        assert_eq!(row["elements"], base.len());
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        close(&row["base"], dot(base, base), name);
        let mut products = row["products"].as_array().unwrap().iter();
        for (i, x) in rows.iter().enumerate() {
            for y in &rows[i..] {
                let (plain, size) = (dot(x, y), (dot(x, x) * dot(y, y)).sqrt());
                let got = products.next().unwrap().as_f64().unwrap();
                assert!((got - plain).abs() <= 1e-9 * size, "{name} {i}: {got} {plain}");
            }
            let told = &row["magnitudes"][i];
            assert_eq!(told["zeros"], x.iter().filter(|&&v| v == 0.0).count());
            let largest = x.iter().fold(0f32, |most, v| most.max(v.abs()));
            assert_eq!(told["largest"].as_f64().unwrap() as f32, largest);
            let mut counts = BTreeMap::new();
            for v in x.iter().filter(|&&v| v != 0.0) {
                let exponent = (f64::from(v.abs()).log2().floor() as i64).clamp(-40, 7);
                *counts.entry(exponent).or_insert(0u64) += 1;
            }
            let from = told["from"].as_i64().unwrap();
            let listed = (from..).zip(told["counts"].as_array().unwrap());
            let listed = listed.map(|(at, count)| (at, count.as_u64().unwrap()));
            assert_eq!(listed.filter(|&(_, count)| count > 0).collect::<BTreeMap<_, _>>(), counts);
        }
        assert!(products.next().is_none());
        let column = |k: usize| rows[..experts.len()].iter().map(move |row| row[k]);
        let shared = |&k: &usize| column(k).filter(|&v| v != 0.0).count() > 1;
        let both = |&k: &usize| column(k).any(|v| v > 0.0) && column(k).any(|v| v < 0.0);
        assert_eq!(row["shared"], (0..base.len()).filter(shared).count(), "{name}");
        assert_eq!(row["conflicts"], (0..base.len()).filter(both).count(), "{name}");
        assert_eq!(row.get("nonfinite"), None);
    }
}

#[test]
fn the_numbers_are_those_of_plain_loops() {
    for (k, (dtype, more)) in [
        (Dtype::BF16, &["--keep", "0.3"][..]),
        (
            Dtype::F32,
            &["--keep", "0.2", "--variant", "paper", "--scope", "layer", "--dtype", "bf16"],
        ),
        (Dtype::F16, &["--method", "ties", "--dialect", "paper"]),
        // Its blocks hold values, and not differences.
        (Dtype::F32, &["--method", "arcee_fusion"]),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let experts = if k == 3 { 1 } else { 3 };
        let all = family(experts, dtype, 5 + k as u64);
        write_family(dir, &all, &[2, 1, 3]);
        let out = dir.join("out");
        let run =
            merge(dir, experts, &out).args(["--statistics", "--json"]).args(more).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let found = statistics(&out);
        check(&found, &all.0, &all.1, &out);
        let names = ["expert1", "expert2", "expert3"];
        assert_eq!(found["experts"], json!(names[..experts]));
        assert_eq!((&found["base"], &found["copied"]), (&json!("base"), &json!(0)));
        let sum = |key: &str, expert: usize| -> f64 {
            let rows = found["tensors"].as_array().unwrap().iter();
            rows.map(|row| row[key][expert].as_f64().unwrap()).sum()
        };
        let report: Value = serde_json::from_slice(&run.stdout).unwrap();
        match k {
            0 | 1 => {
                // The report tells the same of the whole, summed by the method itself.
                for expert in 0..3 {
                    let told = |key: &str| -> f64 {
                        let units = report["units"].as_array().unwrap().iter();
                        units.map(|unit| unit["experts"][expert][key].as_f64().unwrap()).sum()
                    };
                    assert_eq!(sum("kept", expert), told("kept"));
                    if k == 0 {
                        assert!((sum("scores", expert) - told("weight")).abs() < 1e-9);
                    }
                    assert!(sum("kept", expert) > 100.0);
                }
            }
            2 => {
                let kept = ties(&all.0, &all.1, 0.2);
                assert_eq!([0, 1, 2].map(|expert| sum("kept", expert) as usize).to_vec(), kept);
                assert_eq!(found["tensors"][0].get("scores"), None);
            }
            _ => {
                // What is kept is the expert's, all else the base's.
                for row in found["tensors"].as_array().unwrap() {
                    let moved = row["elements"].as_u64().unwrap()
                        - row["magnitudes"][1]["zeros"].as_u64().unwrap();
                    assert_eq!(row["kept"], json!([moved]));
                }
            }
        }
        reflow().arg("verify").arg(&out).assert().success();
        reflow().arg("inspect").arg(&out).assert().success();
    }
}

/// How many elements TIES takes of each expert, by its definition over the whole model: of the largest magnitudes, those that have the sign
/// of the sum, or that of most sums where it is zero.
fn ties(base: &Checkpoint, experts: &[Checkpoint], density: f64) -> Vec<usize> {
    let base = of_checkpoint(base);
    let trimmed = |expert: &Checkpoint| -> Vec<f32> {
        let values = of_checkpoint(expert);
        let taus =
            values.iter().flat_map(|(name, x)| x.iter().zip(&base[name]).map(|(x, y)| x - y));
        let taus: Vec<f32> = taus.collect();
        let mut sizes: Vec<f32> = taus.iter().map(|x| x.abs()).collect();
        sizes.sort_by(f32::total_cmp);
        let least = sizes[sizes.len() - (sizes.len() as f64 * density) as usize - 1];
        taus.iter().map(|&x| if x.abs() >= least { x } else { 0.0 }).collect()
    };
    let rows: Vec<Vec<f32>> = experts.iter().map(trimmed).collect();
    let votes: Vec<f32> =
        (0..rows[0].len()).map(|k| rows.iter().fold(0.0, |sum, row| sum + row[k])).collect();
    let count = |sign: f32| votes.iter().filter(|&&vote| vote * sign > 0.0).count();
    let majority = if count(1.0) > count(-1.0) { 1.0 } else { -1.0 };
    let elected = |vote: f32| if vote == 0.0 { majority } else { vote };
    let agree = |row: &Vec<f32>| {
        row.iter().zip(&votes).filter(|(x, vote)| **x * elected(**vote) > 0.0).count()
    };
    rows.iter().map(agree).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    #[test]
    fn how_it_is_run_changes_no_byte_of_them_and_they_change_no_byte_of_the_output(
        method in prop::sample::select(vec![
            &["--method", "pcb", "--keep", "0.3"][..],
            &["--method", "pcb", "--keep", "0.2", "--scope", "tensor"],
            &["--method", "pcb", "--scope", "layer", "--variant", "d", "--components", "kept"],
            &["--method", "ties", "--param", "density=0.3", "--param", "weight=0.5"],
            &["--method", "della", "--param", "density=0.5", "--param", "weight=0.5"],
            &["--method", "dare_ties", "--param", "density=0.5", "--param", "weight=0.5"],
            &["--method", "sce", "--param", "select_topk=0.5"],
            &["--method", "ram"],
        ]),
        dtype in prop::sample::select(vec![Dtype::BF16, Dtype::F32]),
        (tile, threads) in (1usize..4000, 1usize..4),
        io in prop::sample::select(vec!["mmap", "pread", "direct"]),
        checkpoint in prop::sample::select(vec!["1KB", "5KB", "1MB"]),
        seed in any::<u64>(),
    ) {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        let all = family(3, dtype, seed);
        write_family(dir, &all, &[2, 1]);
        let run = |out: &str, args: &[&str]| {
            merge(Path::new("."), 3, Path::new(out)).current_dir(dir).args(method).args(args).assert().success();
            let _used = std::fs::remove_dir_all(dir.join("kept"));
            files(&dir.join(out))
        };
        let plain = run("plain", &[]);
        let one = run("one", &["--statistics"]);
        let (tile, threads) = (tile.to_string(), threads.to_string());
        let other = run("other", &[
            "--statistics", "--tile", &tile, "--threads", &threads, "--io", io, "--checkpoint", checkpoint,
        ]);
        prop_assert!(one == other, "{tile} {threads}");
        let same = |files: &BTreeMap<_, Vec<u8>>| {
            let mut files = files.clone();
            files.retain(|name: &std::path::PathBuf, _| name != Path::new(FILE) && name != Path::new("manifest.json"));
            files
        };
        prop_assert_eq!(one.len(), plain.len() + 1);
        prop_assert!(same(&one) == same(&plain));
        check(&statistics(&dir.join("one")), &all.0, &all.1, &dir.join("one"));
    }
}

#[test]
fn a_merge_that_is_killed_anywhere_finds_the_same() {
    for (seed, method) in [(3, &["--keep", "0.2"][..]), (4, &["--scope", "tensor"])] {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        write_family(dir, &family(2, Dtype::BF16, seed), &[2, 1]);
        let out = dir.join("out");
        let run = |args: &[&str]| {
            let mut command = merge(dir, 2, &out);
            command.args(["--statistics", "--checkpoint", "1500"]).args(method).args(args);
            command
        };
        run(&["--threads", "1", "--tile", "700"]).assert().success();
        let expected = files(&out);
        std::fs::remove_dir_all(&out).unwrap();
        let mut killed = 0;
        for after in (0..).step_by(11) {
            let point = format!("kill:{after}");
            let args = ["--threads", "1", "--tile", "500", "--failpoint", &point];
            let ended = run(&args).output().unwrap().status.success();
            assert!(!out.exists() || files(&out) == expected, "after {after}");
            if ended {
                break;
            }
            killed += 1;
            if !run(&["--failpoint", "kill:19", "--tile", "301"]).output().unwrap().status.success()
            {
                run(&["--threads", "2"]).assert().success();
            }
            assert!(files(&out) == expected, "after {after}");
            assert!(!dir.join("out.partial").exists());
            std::fs::remove_dir_all(&out).unwrap();
        }
        assert!(killed > 10, "{killed}");
    }
}

/// A staging directory in which a merge was stopped that had recorded some statistics.
fn stopped(dir: &Path) -> Vec<std::path::PathBuf> {
    for after in 20.. {
        let point = format!("kill:{after}");
        let mut command = merge(dir, 2, &dir.join("out"));
        command.args([
            "--statistics",
            "--threads",
            "1",
            "--checkpoint",
            "1500",
            "--failpoint",
            &point,
        ]);
        assert!(!command.output().unwrap().status.success());
        let state = dir.join("out.partial/state");
        let files = std::fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
        let mut seen: Vec<_> = files
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("seen-"))
            .collect();
        if seen.len() > 2 {
            seen.sort();
            return seen;
        }
    }
    unreachable!()
}

#[test]
fn what_is_damaged_on_the_way_is_gathered_again() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &family(2, Dtype::BF16, 7), &[1]);
    let out = dir.join("out");
    merge(dir, 2, &out).arg("--statistics").assert().success();
    let expected = files(&out);
    for harm in 0..3 {
        std::fs::remove_dir_all(&out).unwrap();
        let seen = stopped(dir);
        let one = &seen[harm % seen.len()];
        if harm == 0 {
            std::fs::remove_file(one).unwrap();
        } else {
            let mut bytes = std::fs::read(one).unwrap();
            let at = bytes.len() - harm * 20;
            bytes[at] ^= 1;
            std::fs::write(one, bytes).unwrap();
        }
        merge(dir, 2, &out).arg("--statistics").assert().success();
        assert!(files(&out) == expected, "{harm}");
    }
    // Begun with them, a merge does not go on without.
    std::fs::remove_dir_all(&out).unwrap();
    stopped(dir);
    merge(dir, 2, &out)
        .assert()
        .code(10)
        .stderr(contains("with --statistics, and this is without"));
}

#[test]
fn degenerate_models_have_statistics() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let ids = |checkpoint: Checkpoint| checkpoint.with_bytes("ids", Dtype::I64, &[2], &[7; 16]);
    let (base, experts) = family(1, Dtype::BF16, 9);
    let (base, tuned) = (ids(base), ids(experts[0].clone()));
    let all = (base.clone(), vec![tuned.clone(), base.clone()]);
    write_family(dir, &all, &[1, 2]);
    // An expert that is the base, and integers.
    merge(dir, 2, &dir.join("out")).arg("--statistics").assert().success();
    let found = statistics(&dir.join("out"));
    assert_eq!(found["copied"], 1);
    for row in found["tensors"].as_array().unwrap() {
        let products = row["products"].as_array().unwrap();
        assert_eq!(
            (&products[1], &products[3], &products[4]),
            (&json!(0.0), &json!(0.0), &json!(0.0))
        );
        assert_eq!(row["magnitudes"][1]["zeros"], row["elements"]);
        assert_eq!(row["magnitudes"][1]["counts"], json!([]));
        assert_eq!((&row["conflicts"], &row["shared"]), (&json!(0), &json!(0)));
        assert_eq!(row["kept"][1], 0);
    }
    // A single expert.
    merge(dir, 1, &dir.join("one")).arg("--statistics").assert().success();
    let merged = files(&dir.join("one"));
    let one = statistics(&dir.join("one"));
    assert_eq!(one["experts"], json!(["expert1"]));
    assert_eq!(one["tensors"][0]["products"].as_array().unwrap().len(), 3);
    assert!(merged.contains_key(Path::new(FILE)));
    // None that is the base.
    let mut command = reflow();
    command.current_dir(dir).args([
        "merge",
        "--method",
        "linear",
        "--expert",
        "expert1=1",
        "--expert",
        "expert2=0",
    ]);
    command
        .args(["--param", "normalize=false", "--statistics", "--out", "linear"])
        .assert()
        .success();
    let found = statistics(&dir.join("linear"));
    assert_eq!(found["base"], Value::Null);
    for row in found["tensors"].as_array().unwrap() {
        assert_eq!(row["base"], 0.0);
        // Their values: the merge is the first of both.
        let of = |k: usize| row["products"][k].as_f64().unwrap();
        assert_eq!((of(0), of(0)), (of(2), of(5)));
    }
    // What weighs elements is no expert; what makes no model has none.
    let known = Checkpoint::default().with("model.norm.weight", Dtype::F32, &[23], &[0.5; 23]);
    known.write(&dir.join("known"), 1);
    let mut command = reflow();
    command.current_dir(dir).args([
        "merge",
        "--method",
        "fisher",
        "--statistics",
        "--out",
        "fisher",
    ]);
    for expert in ["expert1", "expert2"] {
        command.args(["--expert", expert, "--fisher", "known"]);
    }
    command.assert().success();
    let found = statistics(&dir.join("fisher"));
    assert_eq!(found["experts"], json!(["expert1", "expert2"]));
    for row in found["tensors"].as_array().unwrap() {
        assert_eq!((row["products"].as_array().unwrap().len(), row.get("models")), (6, None));
    }
    merge(dir, 2, &dir.join("emr"))
        .args(["--method", "emr", "--statistics"])
        .assert()
        .code(2)
        .stderr(contains("emr makes no model"));
    // Values that are not finite count as zero.
    let holes = Checkpoint::default().with("w", Dtype::F32, &[3], &[1.0, f32::NAN, 2.0]);
    holes.write(&dir.join("holes"), 1);
    let whole = Checkpoint::default().with("w", Dtype::F32, &[3], &[1.5, 3.0, 2.0]);
    whole.write(&dir.join("whole"), 1);
    let mut command = reflow();
    command.current_dir(dir).args([
        "merge",
        "--base",
        "whole",
        "--expert",
        "holes",
        "--method",
        "task_arithmetic",
    ]);
    command.args(["--param", "weight=1", "--nonfinite", "base", "--statistics", "--out", "holed"]);
    command.assert().success();
    let found = statistics(&dir.join("holed"));
    assert_eq!(found["tensors"][0]["products"], json!([0.25, 0.25, 0.25]));
    assert_eq!(found["tensors"][0]["magnitudes"][0]["zeros"], 2);
}

#[test]
fn tied_heads_count_once_and_slices_name_their_models() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let tied = |mut checkpoint: Checkpoint| {
        let embedding = checkpoint.tensors[0].3.clone();
        let head =
            checkpoint.tensors.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
        head.3 = embedding;
        let mut config = checkpoint.config.clone().unwrap();
        config["tie_word_embeddings"] = json!(true);
        checkpoint.config(config)
    };
    let (base, experts) = family(2, Dtype::BF16, 11);
    let all = (tied(base), experts.into_iter().map(tied).collect::<Vec<_>>());
    write_family(dir, &all, &[1, 2]);
    merge(dir, 2, &dir.join("out")).arg("--statistics").assert().success();
    let found = statistics(&dir.join("out"));
    let names: Vec<&str> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"model.embed_tokens.weight") && !names.contains(&"lm_head.weight"),
        "{names:?}"
    );
    let recipe = "
slices:
  - sources: [{model: expert1, layer_range: [0, 1]}]
  - sources: [{model: expert2, layer_range: [0, 1]}]
merge_method: passthrough
dtype: bfloat16
";
    let one_layer = |checkpoint: &Checkpoint| Checkpoint {
        tensors: checkpoint
            .tensors
            .iter()
            .filter(|(name, ..)| !name.contains("layers.2") && !name.contains("layers.10"))
            .cloned()
            .collect(),
        config: checkpoint.config.clone(),
    };
    for (i, expert) in all.1.iter().enumerate() {
        let path = dir.join(format!("expert{}", i + 1));
        std::fs::remove_dir_all(&path).unwrap();
        one_layer(expert).write(&path, 1);
    }
    std::fs::write(dir.join("recipe.yml"), recipe).unwrap();
    let mut command = reflow();
    command
        .current_dir(dir)
        .args(["merge", "recipe.yml", "--statistics", "--out", "sliced"])
        .assert()
        .success();
    let found = statistics(&dir.join("sliced"));
    let models: BTreeMap<&str, &Value> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["name"].as_str().unwrap(), &row["models"]))
        .collect();
    assert_eq!(models["model.layers.0.mlp.up_proj.weight"], &json!([0]));
    assert_eq!(models["model.layers.1.mlp.up_proj.weight"], &json!([1]));
}
