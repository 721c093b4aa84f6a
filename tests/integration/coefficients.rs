//! Coefficients from files: against the numpy reference, in all forms, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use predicates::str::contains;
use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::{files, reflow};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden/adamerging")
}

fn merge(method: &str, args: &[&str]) -> assert_cmd::Command {
    let mut command = reflow();
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama"));
    command.args(["merge", "--base", "base", "--expert", "expert1", "--expert", "expert2"]);
    command.args(["--expert", "expert3", "--dtype", "f32", "--method", method]).args(args);
    command
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

/// The golden coefficients as a safetensors file.
fn as_safetensors(path: &Path) {
    let text = std::fs::read_to_string(golden().join("coefficients.json")).unwrap();
    let rows: BTreeMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
    let rows: Vec<(String, Vec<u8>)> = (rows.into_iter())
        .map(|(name, row)| (name, row.iter().flat_map(|x| x.to_le_bytes()).collect()))
        .collect();
    let views = rows.iter().map(|(name, bytes)| {
        (name, TensorView::new(safetensors::Dtype::F64, vec![3], bytes).unwrap())
    });
    serialize_to_file(views, None, path).unwrap();
}

#[test]
fn the_example_family_merges_as_the_reference_says_to_the_last_bit() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| golden().join(name).display().to_string();
    let stored = dir.path().join("c.safetensors");
    as_safetensors(&stored);
    let text = std::fs::read_to_string(golden().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&text).unwrap();
    for (method, expected) in expected {
        let forms = [
            vec!["--coefficients".to_owned(), file("coefficients.json")],
            vec!["--coefficients".to_owned(), stored.display().to_string()],
            vec![
                "--coefficients".to_owned(),
                file("positional.json"),
                "--coefficients-order".to_owned(),
                file("order.txt"),
            ],
        ];
        for (k, form) in forms.iter().enumerate() {
            let out = dir.path().join(format!("{method}{k}"));
            let args: Vec<&str> = form.iter().map(String::as_str).collect();
            merge(&method, &args).args(["--tile", "3000", "--out"]).arg(&out).assert().success();
            assert_eq!(hashes(&out), expected, "{method} {form:?}");
            let told = std::fs::read_to_string(out.join("reflow_coefficients.json")).unwrap();
            let told: BTreeMap<String, Vec<f64>> = serde_json::from_str(&told).unwrap();
            assert_eq!(told.len(), expected.len());
            reflow().arg("verify").arg(&out).assert().success();
        }
    }
}

#[test]
fn the_recipe_in_an_output_makes_it_again() {
    let dir = TempDir::new().unwrap();
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama");
    for name in ["base", "expert1", "expert2", "expert3"] {
        std::os::unix::fs::symlink(llama.join(name), dir.path().join(name)).unwrap();
    }
    let recipe = format!(
        "merge_method: adamerging\nbase_model: base\nmodels: [{{model: expert1}}, {{model: expert2}}, {{model: \
         expert3}}]\ncoefficients: {}\ncoefficients_order: {}\n",
        golden().join("positional.json").display(),
        golden().join("order.txt").display(),
    );
    std::fs::write(dir.path().join("r.yml"), recipe).unwrap();
    let merge = |recipe: &str, out: &str| {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["merge", recipe, "--out", out]).assert().success();
    };
    merge("r.yml", "one");
    let one = dir.path().join("one");
    for name in ["reflow_recipe.yml", "reflow_coefficients.json"] {
        std::fs::copy(one.join(name), dir.path().join(name)).unwrap();
    }
    merge("reflow_recipe.yml", "two");
    let (one, two) = (files(&one), files(&dir.path().join("two")));
    assert_eq!(one.keys().collect::<Vec<_>>(), two.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(two[name] == *bytes, "{}", name.display());
    }
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_read() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json");
    let refused = |text: &str, args: &[&str], parts: &[&str]| {
        std::fs::write(&path, text).unwrap();
        let mut command = merge("adamerging", args);
        let command =
            command.arg("--coefficients").arg(&path).arg("--out").arg(dir.path().join("out"));
        let mut assert = command.assert().code(2);
        for part in parts {
            assert = assert.stderr(contains(*part));
        }
        assert!(!dir.path().join("out").exists() && !dir.path().join("out.partial").exists());
    };
    refused(
        "{\"model.norm.weight\": [1, 2, 3]}",
        &[],
        &["c.json: no numbers for", "tensors that are merged (\"", "or lambda for each expert"],
    );
    refused(
        "{\"*\": [1, 2, 3], \"model.norm.wieght\": [1, 2, 3]}",
        &[],
        &["1 name that fits no tensor (\"model.norm.wieght\")", "did you mean model.norm.weight?"],
    );
    refused("{\"*\": [0.1, 0.2]}", &[], &["2 numbers for 3 experts"]);
    refused("{\"*\": [0.1, 0.2, 1e999]}", &[], &["c.json"]);
    refused("[]", &[], &["0 rows without names"]);
    refused("[[1, 1, 1], [1, 1, 1]]", &[], &["--coefficients-order"]);
    refused("{\"*\": [1, 2, 3]}", &["--method", "sce"], &["cannot be used multiple times"]);
    let mut command = merge("sce", &["--coefficients"]);
    command.arg(&path).arg("--out").arg(dir.path().join("out"));
    command.assert().code(2).stderr(contains("sce has no number for each expert"));
    merge("adamerging", &["--out"])
        .arg(dir.path().join("out"))
        .assert()
        .code(2)
        .stderr(contains("lambda"));
    let mut command = merge("adamerging", &["--coefficients", "/dev/zero", "--out"]);
    command.arg(dir.path().join("out")).assert().code(2).stderr(contains("not a regular file"));
}

/// One number for each expert is plain task arithmetic, and lambdas of PCB may come from a file, too.
#[test]
fn coefficients_are_what_parameters_are() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("c.json").display().to_string();
    std::fs::write(&path, "[0.5, 0.25, -0.125]").unwrap();
    let weights = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    for (method, args) in
        [("adamerging", vec![]), ("task_arithmetic", vec![]), ("pcb", vec!["--scope", "layer"])]
    {
        let (one, two) =
            (dir.path().join(format!("{method}1")), dir.path().join(format!("{method}2")));
        merge(method, &args).args(["--coefficients", &path, "--out"]).arg(&one).assert().success();
        let mut command = reflow();
        command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama"));
        command.args([
            "merge",
            "--base",
            "base",
            "--expert",
            "expert1=0.5",
            "--expert",
            "expert2=0.25",
        ]);
        command
            .args(["--expert", "expert3=-0.125", "--dtype", "f32", "--method", method])
            .args(&args);
        command.arg("--out").arg(&two).assert().success();
        assert!(weights(&one) == weights(&two), "{method}");
    }
}
