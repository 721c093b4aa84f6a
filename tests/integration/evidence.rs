//! Methods that are told about each model what data says of it: Fisher merging.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use predicates::str::contains;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::checkpoint::{family, uniform, write_family};
use crate::support::{Checkpoint, files, reflow};

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/llama");

/// Fisher information as `fixtures/make_evidence.py` has it.
fn information(count: usize, tensor: usize, expert: usize) -> Vec<f32> {
    let value = |k: usize| {
        let x = (k as u64 * 2_654_435_761 + tensor as u64 * 40_503 + expert as u64 * 97_531)
            % (1 << 32);
        let root = (x >> 8) as f32 * 2_f32.powi(-24);
        if (x >> 3).is_multiple_of(8) { 0.0 } else { root * root * 2_f32.powi(-10) }
    };
    (0..count).map(value).collect()
}

/// Names and shapes of the example family's tensors.
fn shapes() -> Vec<(String, Vec<usize>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(Path::new(LLAMA).join("expert1")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension() == Some("safetensors".as_ref()) {
            let bytes = std::fs::read(path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            found.extend(file.iter().map(|(name, view)| (name.to_owned(), view.shape().to_vec())));
        }
    }
    found.sort();
    found
}

/// SHA-256 of each tensor's bytes.
fn hashes(out: &Path) -> BTreeMap<String, String> {
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let hash = |bytes: &[u8]| {
        Sha256::digest(bytes).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
    };
    file.tensors().into_iter().map(|(name, view)| (name, hash(view.data()))).collect()
}

/// A file with one tensor of Fisher information.
fn one(dir: &Path, name: &str, tensor: &str, shape: &[usize], values: &[f32]) -> PathBuf {
    let dir = dir.join(name);
    Checkpoint::default().with(tensor, Dtype::F32, shape, values).write(&dir, 1);
    dir
}

#[test]
fn the_example_family_merges_as_the_reference_says_to_the_last_bit() {
    let dir = TempDir::new().unwrap();
    for expert in 0..3 {
        let mut made = Checkpoint::default();
        for (t, (name, shape)) in shapes().into_iter().enumerate() {
            if !name.contains("norm") {
                let values = information(shape.iter().product(), t, expert);
                made = made.with(&name, Dtype::F32, &shape, &values);
            }
        }
        made.write(&dir.path().join(format!("fisher{expert}")), 1 + expert);
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden/fisher.json");
    let golden = std::fs::read_to_string(golden).unwrap();
    let golden: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&golden).unwrap();
    let weighted = ["expert1=0.5", "expert2=0", "expert3=2"];
    let cases = [
        ("plain", ["expert1", "expert2", "expert3"], &[][..]),
        ("weighted", weighted, &["--param", "epsilon=0", "--tile", "3000"]),
    ];
    for (case, experts, args) in cases {
        let out = dir.path().join(case);
        let mut command = reflow();
        command.current_dir(LLAMA).args(["merge", "--method", "fisher", "--dtype", "f32"]);
        for (k, expert) in experts.into_iter().enumerate() {
            command.args(["--expert", expert]).arg("--fisher");
            command.arg(dir.path().join(format!("fisher{k}")));
        }
        let merge = command.args(args).arg("--out").arg(&out).assert().success();
        merge.stderr(contains(
            "5 of 21 tensors have no fisher for every model, and are the plain mean",
        ));
        assert_eq!(hashes(&out), golden[case], "{case}");
        reflow().arg("verify").arg(&out).assert().success();
    }
}

/// The usual family, with Fisher information of each expert.
fn weighed(dir: &Path, dtype: Dtype, seed: u64) {
    let (base, experts) = family(3, dtype, seed);
    write_family(dir, &(base, experts.clone()), &[2, 1]);
    let mut random = uniform(seed.wrapping_add(9));
    for (k, expert) in experts.into_iter().enumerate() {
        let mut known = Checkpoint::default();
        for (name, _, shape, _) in expert.tensors {
            let count = shape.iter().product();
            let values: Vec<f32> = (0..count).map(|_| (random() - 0.2).max(0.0)).collect();
            if name != "model.scale" {
                known = known.with(
                    &name,
                    if k == 1 { Dtype::BF16 } else { Dtype::F32 },
                    &shape,
                    &values,
                );
            }
        }
        known.write(&dir.join(format!("known{}", k + 1)), 1 + k % 2);
    }
    std::fs::write(dir.join("r.yml"), RECIPE).unwrap();
}

const RECIPE: &str = "merge_method: fisher\nmodels: [{model: expert1}, {model: expert2, parameters: {weight: [1, 3]}}, \
    {model: expert3}]\nfisher: [known1, known2, known3]\nshard_size: 5000\n";

fn merge(dir: &Path, recipe: &str, out: &str) -> assert_cmd::Command {
    let mut command = reflow();
    command.current_dir(dir).args(["merge", recipe, "--out", out]);
    command
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    #[test]
    fn how_it_is_run_does_not_change_a_byte(
        dtype in prop::sample::select(vec![Dtype::BF16, Dtype::F16, Dtype::F32]),
        seed in any::<u64>(),
        tile in 1usize..2_000,
        threads in 1usize..5,
        io in prop::sample::select(vec!["mmap", "pread", "direct"]),
    ) {
        let dir = TempDir::new().unwrap();
        weighed(dir.path(), dtype, seed);
        merge(dir.path(), "r.yml", "plain").assert().success();
        let (tile, threads) = (tile.to_string(), threads.to_string());
        let mut odd = merge(dir.path(), "r.yml", "odd");
        odd.args(["--tile", &tile, "--threads", &threads, "--io", io, "--memory", "64MiB"]);
        odd.env("REFLOW_CPU", "scalar").assert().success();
        prop_assert!(files(&dir.path().join("plain")) == files(&dir.path().join("odd")));
    }
}

#[test]
fn the_recipe_in_an_output_makes_it_again_and_its_card_names_all_files() {
    let dir = TempDir::new().unwrap();
    weighed(dir.path(), Dtype::F32, 3);
    merge(dir.path(), "r.yml", "a").assert().success();
    merge(dir.path(), "a/reflow_recipe.yml", "b").assert().success();
    let made = files(&dir.path().join("a"));
    let again = files(&dir.path().join("b"));
    assert_eq!(again.len(), made.len());
    // The card tells what the recipe says, in which defaults are filled in now; the manifest has its hash.
    let told = |name: &Path| name.ends_with("README.md") || name.ends_with("manifest.json");
    for (name, bytes) in again.iter().filter(|(name, _)| !told(name)) {
        assert!(made[name] == *bytes, "{}", name.display());
    }
    let card = String::from_utf8(made[Path::new("README.md")].clone()).unwrap();
    for name in ["known1", "known2", "known3"] {
        assert!(card.contains(name), "{card}");
    }
}

#[test]
fn one_model_and_equal_models_come_out_as_they_are() {
    let dir = TempDir::new().unwrap();
    weighed(dir.path(), Dtype::F32, 5);
    let weights = |out: &str| {
        let files = files(&dir.path().join(out));
        files
            .into_iter()
            .filter(|(name, _)| name.ends_with("model.safetensors"))
            .collect::<Vec<_>>()
    };
    for (models, fisher) in [
        (&["expert1"][..], &["known1"][..]),
        (&["expert1", "expert1", "expert1"], &["known1", "known2", "known3"]),
    ] {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["merge", "--method", "fisher", "--out", "out"]);
        command.args(models.iter().flat_map(|model| ["--expert", model]));
        command.args(fisher.iter().flat_map(|file| ["--fisher", file]));
        command.assert().success();
        let mut plain = reflow();
        plain.current_dir(dir.path()).args(["merge", "--method", "passthrough"]);
        plain.args(["--expert", "expert1", "--out", "same"]).assert().success();
        assert_eq!(weights("out"), weights("same"));
        for out in ["out", "same"] {
            std::fs::remove_dir_all(dir.path().join(out)).unwrap();
        }
    }
}

#[test]
fn a_resume_notices_that_what_is_known_has_changed() {
    let dir = TempDir::new().unwrap();
    weighed(dir.path(), Dtype::F32, 4);
    let stopped = |out: &str| {
        let mut command = merge(dir.path(), "r.yml", out);
        command.args(["--checkpoint", "2000", "--failpoint", "kill:30"]).assert().failure();
        assert!(dir.path().join(format!("{out}.partial/state/journal")).exists());
    };
    merge(dir.path(), "r.yml", "calm").assert().success();
    stopped("again");
    merge(dir.path(), "r.yml", "again").assert().success();
    assert!(files(&dir.path().join("calm")) == files(&dir.path().join("again")));
    stopped("other");
    let path = dir.path().join("known1/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let refused = merge(dir.path(), "r.yml", "other").assert().code(10);
    refused.stderr(contains("known1/model.safetensors has changed since"));
}

#[test]
fn the_plan_counts_what_is_read_beside_the_weights() {
    let dir = TempDir::new().unwrap();
    weighed(dir.path(), Dtype::F32, 4);
    let output = |args: &[&str]| {
        let mut command = reflow();
        let output = command.current_dir(dir.path()).args(args).assert().success();
        serde_json::from_slice::<serde_json::Value>(&output.get_output().stdout).unwrap()
    };
    let plan = &output(&["plan", "r.yml", "--json"])["plan"];
    let merged = output(&["merge", "r.yml", "--out", "out", "--json"]);
    assert_eq!(plan["read"], merged["read"]);
    // Three models in f32, weights of two in f32 and of one in bf16, all but one element.
    let elements = plan["merged_parameters"].as_u64().unwrap();
    assert_eq!(plan["read"].as_u64(), Some(elements * 22 - 10));
    assert_eq!(plan["experts"].as_array().unwrap().len(), 3);
    assert_eq!(plan["evidence"], serde_json::json!(["fisher", ["known1", "known2", "known3"]]));
}

#[test]
fn what_cannot_weigh_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let model = Checkpoint::default().with("a.weight", Dtype::F32, &[2, 3], &[1.0; 6]);
    model.with("b", Dtype::F32, &[3], &[1.0; 3]).write(&dir.path().join("m"), 1);
    let refused = |fisher: &Path, code: i32, parts: &[&str]| {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["merge", "--method", "fisher", "--expert", "m"]);
        let mut failed =
            command.arg("--fisher").arg(fisher).args(["--out", "out"]).assert().code(code);
        for part in parts {
            failed = failed.stderr(contains(*part));
        }
        assert!(!dir.path().join("out").exists());
    };
    let values = |bad: f32| [0.0, 1.0, bad, 2.0, bad, 0.0];
    for (name, bad, shown) in
        [("neg", -1e-9, "-0.000000001"), ("nan", f32::NAN, "NaN"), ("inf", f32::INFINITY, "inf")]
    {
        let file = one(dir.path(), name, "a.weight", &[2, 3], &values(bad));
        let header = std::fs::read(file.join("model.safetensors")).unwrap();
        let offset = 8 + u64::from_le_bytes(header[..8].try_into().unwrap()) + 8;
        let place = format!("a.weight has {shown} at element 2 (file offset {offset})");
        refused(&file, 3, &[name, &place]);
    }
    let shape = one(dir.path(), "shape", "a.weight", &[3, 2], &[1.0; 6]);
    refused(&shape, 3, &["shape: a.weight is [3, 2], and [2, 3] in the model"]);
    let other = one(dir.path(), "other", "module.a.weight", &[2, 3], &[1.0; 6]);
    refused(&other, 3, &["other: none of its tensors", "module.a.weight", "a.weight, b"]);
    let ints = dir.path().join("ints");
    Checkpoint::default().with_bytes("b", Dtype::I32, &[3], &[0; 12]).write(&ints, 1);
    refused(&ints, 3, &["ints: b is I32"]);
    refused(&dir.path().join("nowhere"), 3, &["nowhere"]);
    let short = dir.path().join("short.safetensors");
    std::fs::write(&short, b"\x10\0\0\0\0\0\0\0{}").unwrap();
    refused(&short, 3, &["short.safetensors"]);
}

#[test]
fn recipes_that_do_not_say_enough_are_refused() {
    let dir = TempDir::new().unwrap();
    weighed(dir.path(), Dtype::F32, 4);
    let refused = |recipe: &str, parts: &[&str]| {
        std::fs::write(dir.path().join("bad.yml"), recipe).unwrap();
        let mut failed = merge(dir.path(), "bad.yml", "out").assert().code(2);
        for part in parts {
            failed = failed.stderr(contains(*part));
        }
    };
    let models = "models: [{model: expert1}, {model: expert2}]\n";
    refused(&format!("merge_method: fisher\n{models}"), &["fisher: ", "0 given for 2 models"]);
    refused(
        &format!("merge_method: fisher\n{models}fisher: [known1]\n"),
        &["1 given for 2 models"],
    );
    refused(
        &format!(
            "merge_method: linear\n{models}fisher: [known1, known2]\nparameters: {{weight: 1}}\n"
        ),
        &["linear does not use it; it is for fisher"],
    );
    refused(
        &format!(
            "merge_method: fisher\n{models}fisher: [known1, known2]\nparameters: {{weight: -1}}\n"
        ),
        &["weight", "too small"],
    );
    refused(
        &format!(
            "merge_method: fisher\n{models}fisher: [known1, known2]\ntokenizer_source: union\n"
        ),
        &["leave the tokenizer out"],
    );
    let slices = "slices: [{sources: [{model: expert1, layer_range: [0, 1]}, {model: expert2, layer_range: [0, 1]}]}]\n";
    refused(
        &format!("merge_method: fisher\n{slices}fisher: [known1, known2]\n"),
        &["whole models, not slices"],
    );
    refused(&format!("merge_method: fisher\n{models}fisher: known1\n"), &["fisher"]);
    let none = format!(
        "merge_method: fisher\n{models}fisher: [known1, known2]\nparameters: {{weight: 0}}\n"
    );
    std::fs::write(dir.path().join("zero.yml"), none).unwrap();
    merge(dir.path(), "zero.yml", "out").assert().code(3).stderr(contains("add up to zero"));
}
