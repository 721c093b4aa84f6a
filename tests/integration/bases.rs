//! Components, and what EMR-Merging makes, belong to one base: one that differs in a single byte, wherever, is refused.

use std::path::Path;

use predicates::str::contains;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, large_family, uniform, write_family};
use crate::support::run::merge;
use crate::support::{files, reflow};

const LARGE: &str = "model.layers.2.mlp.down_proj.weight";
const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const COPIED: &str = "model.layers.0.large.weight";

/// What is kept of experts, and how a model is made of it.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Components,
    Emr,
}

impl Way {
    const ALL: [Self; 2] = [Self::Components, Self::Emr];

    fn data(self) -> &'static str {
        match self {
            Self::Components => "components.bin",
            Self::Emr => "emr.bin",
        }
    }

    /// Merges, and leaves what is kept in `kept`.
    fn keep(self, dir: &Path, args: &[&str]) {
        let mut command = match self {
            Self::Components => {
                let mut command = merge(dir, 2, &dir.join("merged"));
                command.arg("--components").arg(dir.join("kept"));
                command
            }
            Self::Emr => {
                let mut command = merge(dir, 2, &dir.join("kept"));
                command.args(["--method", "emr"]);
                command
            }
        };
        command.args(args).assert().success();
    }

    /// Makes a model of it in `out`.
    fn make(self, dir: &Path, args: &[&str]) -> assert_cmd::assert::Assert {
        let mut command = reflow();
        command.current_dir(dir);
        match self {
            Self::Components => {
                command.args(["recombine", "--components", "kept", "--lambda", "1,1"])
            }
            Self::Emr => command.args(["apply", "--emr", "kept", "--task", "expert2"]),
        };
        command.args(["--base", "base", "--out", "out"]).args(args).assert()
    }
}

fn values(seed: u64, size: usize) -> Vec<f32> {
    let mut random = uniform(seed);
    (0..size).map(|_| random() - 0.5).collect()
}

/// Tensors of several frames, embeddings of which the base has more rows than the experts, one to be excluded, integers.
fn models() -> (Checkpoint, Vec<Checkpoint>) {
    let (base, experts) = large_family(2, Dtype::BF16, 9, [500, 300]);
    let whole = |model: Checkpoint, rows: usize, seed: u64| {
        model
            .without(EMBED)
            .with(EMBED, Dtype::BF16, &[rows, 24], &values(seed, rows * 24))
            .with(COPIED, Dtype::F32, &[100, 50], &values(seed, 5000))
            .with_bytes("ids", Dtype::I64, &[20_000], &vec![7; 160_000])
    };
    let experts = (1..).zip(experts).map(|(seed, expert)| whole(expert, 300, seed)).collect();
    (whole(base, 400, 5), experts)
}

fn bytes_mut<'a>(model: &'a mut Checkpoint, name: &str) -> &'a mut Vec<u8> {
    &mut model.tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap().3
}

/// Refuses a base with a bit flipped in each of these places, none of which the first look sees, and takes the right one.
fn demands(dir: &Path, way: Way, base: &Checkpoint, shards: usize, places: &[(&str, usize)]) {
    way.make(dir, &[]).success();
    let expected = files(&dir.join("out"));
    std::fs::remove_dir_all(dir.join("out")).unwrap();
    // In many pieces, so that a part is recorded before the fault is met; and in one.
    let pieces = ["--checkpoint", "60KB", "--threads", "1"];
    for (k, &(tensor, at)) in places.iter().enumerate() {
        let mut other = base.clone();
        let bytes = bytes_mut(&mut other, tensor);
        assert!((4096..bytes.len() - 4096).contains(&at), "{tensor} {at}");
        bytes[at] ^= 0x01;
        other.write(&dir.join("base"), shards);
        let refused = way.make(dir, if k % 2 == 0 { &pieces } else { &[] }).code(2);
        let file = if shards == 1 { "base/model.safetensors" } else { "base/model-0000" };
        refused
            .stderr(contains(file))
            .stderr(contains(format!("in tensor {tensor}")))
            .stderr(contains(way.data()));
        assert!(!dir.join("out").exists(), "{tensor} {at}");
        reflow().arg("clean").arg(dir.join("out")).assert().success();
    }
    base.write(&dir.join("base"), shards);
    way.make(dir, &pieces).success();
    assert!(files(&dir.join("out")) == expected);
}

#[test]
fn a_bit_anywhere_in_the_base_is_seen() {
    for way in Way::ALL {
        let dir = TempDir::new().unwrap();
        let family = models();
        write_family(dir.path(), &family, &[2, 1]);
        way.keep(dir.path(), &["--vocab", "common", "--exclude", "*large*"]);
        let places = [
            // The first frame of elements, the first byte of the second, the last.
            (LARGE, 5_000),
            (LARGE, 131_071),
            (LARGE, 131_072),
            (LARGE, 295_000),
            // Rows that all have, and the base's alone.
            (EMBED, 9_000),
            (EMBED, 15_000),
            // What is copied.
            (COPIED, 10_000),
            ("ids", 70_000),
        ];
        demands(dir.path(), way, &family.0, 2, &places);
    }
}

#[test]
fn a_tied_embedding_and_a_head_that_the_base_lends_are_seen() {
    let tied = |mut model: Checkpoint| {
        model.config = Some(serde_json::json!({
            "model_type": "llama", "vocab_size": 400, "tie_word_embeddings": true
        }));
        model.without(HEAD)
    };
    let table = |model: Checkpoint, name: &str, seed: u64| {
        model.without(name).with(name, Dtype::BF16, &[400, 24], &values(seed, 9_600))
    };
    let (base, experts) = large_family(2, Dtype::BF16, 9, [20, 30]);
    let base = table(tied(base), EMBED, 1);
    for way in Way::ALL {
        for unties in [false, true] {
            let dir = TempDir::new().unwrap();
            let dir = dir.path();
            let [first, second] = [0, 1].map(|i| table(tied(experts[i].clone()), EMBED, 2));
            let first = if unties { table(first, HEAD, 3) } else { first };
            let family = (base.clone(), vec![first, second]);
            write_family(dir, &family, &[1]);
            // So the head is all that is merged of it.
            let exclude: &[&str] = if unties { &["--exclude", EMBED] } else { &[] };
            way.keep(dir, exclude);
            let told = reflow().args(["inspect", "--json"]).arg(dir.join("kept")).output().unwrap();
            let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
            let names = told["tensors"].as_array().unwrap().iter().map(|t| t["name"].clone());
            assert_eq!(names.into_iter().any(|name| name == HEAD), unties);
            demands(dir, way, &family.0, 1, &[(EMBED, 9_000)]);
        }
    }
}

/// The name of the base is what the documentation says.
#[test]
fn the_name_of_the_base_is_a_hash_of_all_its_bytes() {
    for way in Way::ALL {
        let dir = TempDir::new().unwrap();
        let family = models();
        write_family(dir.path(), &family, &[2, 1]);
        way.keep(dir.path(), &["--vocab", "common", "--exclude", "*large*"]);
        let kept = dir.path().join("kept");
        let told = reflow().args(["inspect", "--json"]).arg(kept).output().unwrap();
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).unwrap();
        let mut all = String::new();
        for tensor in told["tensors"].as_array().unwrap() {
            let name = tensor["name"].as_str().unwrap();
            let (_, dtype, _, bytes) =
                family.0.tensors.iter().find(|tensor| tensor.0 == name).unwrap();
            // Integers are counted in bytes.
            let size = match dtype {
                Dtype::BF16 => 2,
                Dtype::F32 => 4,
                _ => 1,
            };
            let at = |key: &str| tensor[key].as_u64().unwrap() as usize * size;
            let bytes = &bytes[at("first")..at("first") + at("elements")];
            let mut hasher = blake3::Hasher::new();
            for frame in bytes.chunks(size << 16) {
                hasher.update(blake3::hash(frame).as_bytes());
            }
            assert_eq!(tensor["base"], *hasher.finalize().to_hex().as_str(), "{name}");
            all.push_str(tensor["base"].as_str().unwrap());
        }
        assert_eq!(told["base"], *blake3::hash(all.as_bytes()).to_hex().as_str());
        let text = reflow().arg("inspect").arg(dir.path().join("kept")).assert().success();
        text.stdout(contains(told["base"].as_str().unwrap()));
    }
}

#[test]
fn an_earlier_format_is_told_from_damage() {
    for (way, file) in Way::ALL.into_iter().zip(["components.json", "emr.json"]) {
        let dir = TempDir::new().unwrap();
        write_family(dir.path(), &large_family(2, Dtype::BF16, 2, [20, 30]), &[1]);
        way.keep(dir.path(), &[]);
        let path = dir.path().join("kept").join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen(" 2\"", " 1\"", 1)).unwrap();
        way.make(dir.path(), &[])
            .code(8)
            .stderr(contains("version (reflow "))
            .stderr(contains("1)"));
    }
}
