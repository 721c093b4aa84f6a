//! How tensors of base and experts are matched, and what happens to those that do not match.

use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use tempfile::TempDir;

use crate::support::Checkpoint;
use crate::support::checkpoint::{uniform, write_family};
use crate::support::run::merge;

const W: &str = "model.layers.0.mlp.up_proj.weight";
const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut random = uniform(seed);
    (0..n).map(|_| random() - 0.5).collect()
}

/// A small model with an embedding of `rows` rows.
fn model(rows: usize, seed: u64) -> Checkpoint {
    Checkpoint::default()
        .config(json!({"model_type": "llama", "vocab_size": rows}))
        .with(W, Dtype::F32, &[40, 50], &values(2000, seed))
        .with(EMBED, Dtype::F32, &[rows, 10], &values(rows * 10, seed + 100))
}

fn tied(mut model: Checkpoint) -> Checkpoint {
    model.config =
        Some(json!({"model_type": "llama", "vocab_size": 30, "tie_word_embeddings": true}));
    model
}

/// Adds a head that is a copy of the embedding.
fn with_copied_head(model: Checkpoint) -> Checkpoint {
    let (_, dtype, shape, bytes) = model.tensors.iter().find(|t| t.0 == EMBED).unwrap().clone();
    model.with_bytes(HEAD, dtype, &shape, &bytes)
}

fn tensor(dir: &TempDir, out: &str, name: &str) -> Option<(Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    let shard = SafeTensors::deserialize(&bytes).unwrap();
    let view = shard.tensor(name).ok()?;
    let floats = view.data().chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    Some((view.shape().to_vec(), floats))
}

#[test]
fn all_mismatches_are_named_at_once() {
    let dir = TempDir::new().unwrap();
    let expert = model(30, 1)
        .without(EMBED)
        .without(W)
        .with(W, Dtype::F32, &[50, 40], &values(2000, 1))
        .with("extra.weight", Dtype::F32, &[2], &[1.0, 2.0]);
    write_family(dir.path(), &(model(30, 0), vec![expert]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out"))
        .assert()
        .code(3)
        .stderr(contains("expert1 lacks model.embed_tokens.weight"))
        .stderr(contains("[50, 40] in expert1 and [40, 50] in the base"))
        .stderr(contains("expert1 has extra.weight"))
        .stderr(contains("--missing base"));
    assert!(!dir.path().join("out.partial").exists());
}

#[test]
fn missing_tensors_can_count_as_unchanged() {
    let dir = TempDir::new().unwrap();
    let family = (model(30, 0), vec![model(30, 1).without(EMBED), model(30, 2)]);
    write_family(dir.path(), &family, &[1]);
    let filled = family.1[0].clone().with(EMBED, Dtype::F32, &[30, 10], &values(300, 100));
    let whole = TempDir::new().unwrap();
    write_family(whole.path(), &(family.0, vec![filled, model(30, 2)]), &[1]);
    merge(dir.path(), 2, &dir.path().join("out")).args(["--missing", "base"]).assert().success();
    merge(whole.path(), 2, &whole.path().join("out")).assert().success();
    assert_eq!(tensor(&dir, "out", EMBED), tensor(&whole, "out", EMBED));
    assert_eq!(tensor(&dir, "out", W), tensor(&whole, "out", W));
}

#[test]
fn a_larger_vocabulary_is_an_error_or_merged_as_far_as_all_have_it() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(model(30, 0), vec![model(32, 1), model(28, 2)]), &[1]);
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out).assert().code(3).stderr(contains("--vocab common"));
    merge(dir.path(), 2, &out).args(["--vocab", "common", "--keep", "0.5"]).assert().success();
    let (shape, merged) = tensor(&dir, "out", EMBED).unwrap();
    let base = values(300, 100);
    assert_eq!(shape, [30, 10]);
    assert_eq!(merged[280..], base[280..]);
    assert_ne!(merged[..280], base[..280]);
}

#[test]
fn excluded_tensors_are_the_bases() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(model(30, 0), vec![model(30, 1)]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out"))
        .args(["--exclude", "*embed*", "--keep", "0.5"])
        .assert()
        .success();
    assert_eq!(tensor(&dir, "out", EMBED).unwrap().1, values(300, 100));
    merge(dir.path(), 1, &dir.path().join("out2"))
        .args(["--include", "*embed*", "--keep", "0.5"])
        .assert()
        .success();
    assert_eq!(tensor(&dir, "out2", W).unwrap().1, values(2000, 0));
    merge(dir.path(), 1, &dir.path().join("out3"))
        .args(["--include", "nothing*"])
        .assert()
        .code(2)
        .stderr(contains("nothing to merge"));
}

#[test]
fn integers_are_copied_if_all_agree_and_named_if_not() {
    let ids = |last: u8| {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, last];
        move |m: Checkpoint| m.with_bytes("model.position_ids", Dtype::I64, &[2], &bytes)
    };
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(ids(5)(model(30, 0)), vec![ids(5)(model(30, 1))]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out")).args(["--dtype", "bf16"]).assert().success();
    let bytes = std::fs::read(dir.path().join("out/model.safetensors")).unwrap();
    let shard = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(shard.tensor("model.position_ids").unwrap().data()[15], 5);

    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(ids(5)(model(30, 0)), vec![ids(6)(model(30, 1))]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out"))
        .assert()
        .code(3)
        .stderr(contains("model.position_ids"))
        .stderr(contains("byte 15"));
}

#[test]
fn block_scaled_f8_is_never_averaged() {
    let scaled = |first: u8| {
        move |m: Checkpoint| {
            m.with_bytes("q.weight", Dtype::F8_E4M3, &[2, 2], &[first, 57, 58, 59]).with(
                "q.weight_scale_inv",
                Dtype::F32,
                &[1, 1],
                &[0.25],
            )
        }
    };
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(scaled(56)(model(30, 0)), vec![scaled(57)(model(30, 1))]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out")).assert().code(3).stderr(contains("q.weight"));
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(scaled(56)(model(30, 0)), vec![scaled(56)(model(30, 1))]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out")).assert().success();
}

#[test]
fn plain_f8_and_f64_are_merged() {
    let add = |seed: u64| {
        move |m: Checkpoint| {
            let codes: Vec<u8> = (0..200u64).map(|i| ((i * 7 + seed * 13) % 120) as u8).collect();
            m.with_bytes("a.weight", Dtype::F8_E4M3, &[200], &codes)
                .with_bytes("b.weight", Dtype::F8_E5M2, &[200], &codes)
                .with("c.weight", Dtype::F64, &[200], &values(200, seed))
        }
    };
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &(add(0)(model(30, 0)), vec![add(1)(model(30, 1))]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out")).args(["--keep", "0.9"]).assert().success();
    let bytes = std::fs::read(dir.path().join("out/model.safetensors")).unwrap();
    let shard = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(shard.tensor("c.weight").unwrap().dtype(), Dtype::F64);
    assert_eq!(shard.tensor("a.weight").unwrap().dtype(), Dtype::F8_E4M3);
}

#[test]
fn values_that_are_not_finite_are_named_or_taken_from_the_base() {
    let dir = TempDir::new().unwrap();
    let mut broken = values(2000, 1);
    broken[1234] = f32::NAN;
    let expert = model(30, 1).without(W).with(W, Dtype::F32, &[40, 50], &broken);
    write_family(dir.path(), &(model(30, 0), vec![expert, model(30, 2)]), &[1]);
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out)
        .assert()
        .code(3)
        .stderr(contains("expert1"))
        .stderr(contains(W))
        .stderr(contains("element 1234"))
        .stderr(contains("NaN"));
    assert!(!out.exists() && !dir.path().join("out.partial").exists());
    merge(dir.path(), 2, &out).args(["--nonfinite", "base"]).assert().success();
    assert!(tensor(&dir, "out", W).unwrap().1.iter().all(|v| v.is_finite()));
}

#[test]
fn merged_values_that_do_not_fit_are_an_error() {
    let dir = TempDir::new().unwrap();
    let base = Checkpoint::default().with(W, Dtype::F32, &[4], &[1e5, 1.0, 2.0, 3.0]);
    let expert = Checkpoint::default().with(W, Dtype::F32, &[4], &[1e5, 2.0, 2.5, 3.0]);
    write_family(dir.path(), &(base, vec![expert]), &[1]);
    merge(dir.path(), 1, &dir.path().join("out"))
        .args(["--dtype", "f16", "--keep", "0.9"])
        .assert()
        .code(3)
        .stderr(contains("element 0"))
        .stderr(contains("--dtype bf16"));
    merge(dir.path(), 1, &dir.path().join("out")).args(["--dtype", "bf16"]).assert().success();
}

#[test]
fn a_tied_head_is_one_parameter_however_it_is_stored() {
    let plain = TempDir::new().unwrap();
    write_family(plain.path(), &(tied(model(30, 0)), vec![model(30, 1), model(30, 2)]), &[1]);
    merge(plain.path(), 2, &plain.path().join("out")).assert().success();

    let stored = TempDir::new().unwrap();
    let experts = vec![with_copied_head(model(30, 1)), model(30, 2)];
    write_family(stored.path(), &(with_copied_head(tied(model(30, 0))), experts), &[1]);
    merge(stored.path(), 2, &stored.path().join("out")).assert().success();
    for name in [W, EMBED, HEAD] {
        assert_eq!(tensor(&plain, "out", name), tensor(&stored, "out", name), "{name}");
    }
    assert!(tensor(&stored, "out", HEAD).is_none());
}

#[test]
fn a_head_that_one_expert_unties_becomes_a_tensor_of_its_own() {
    let dir = TempDir::new().unwrap();
    let untied = model(30, 1).with(HEAD, Dtype::F32, &[30, 10], &values(300, 77));
    write_family(dir.path(), &(tied(model(30, 0)), vec![untied, model(30, 2)]), &[1]);
    merge(dir.path(), 2, &dir.path().join("out"))
        .args(["--keep", "0.5"])
        .assert()
        .success()
        .stderr(contains("lm_head.weight"));
    let (_, head) = tensor(&dir, "out", HEAD).unwrap();
    assert_ne!(Some(head), tensor(&dir, "out", EMBED).map(|(_, v)| v));
    let config = std::fs::read_to_string(dir.path().join("out/config.json")).unwrap();
    assert!(config.contains("\"tie_word_embeddings\": false"), "{config}");
}
