//! Merges by slices against mergekit 0.1.5, on `fixtures/parity/slices.*` (see the README there).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::parity::{self, Tensor};

/// A tensor's name without the number of its layer.
fn part(name: &str) -> String {
    name.split('.').filter(|part| part.parse::<u32>().is_err()).collect::<Vec<_>>().join(".")
}

fn config(layers: usize) -> Value {
    json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers})
}

/// What differs between a merge and mergekit's.
fn differs(
    ours: &BTreeMap<String, Tensor>,
    theirs: &BTreeMap<String, Tensor>,
    models: &BTreeMap<String, BTreeMap<String, Tensor>>,
    allowed: (f64, f64),
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, theirs) in theirs {
        let (ours, part) = (&ours[name], part(name));
        // Layers move: the size of what an element was made of is that of any layer's.
        let inputs = models.values().flatten().filter(|(n, _)| self::part(n) == part);
        let inputs: Vec<&Tensor> = inputs.map(|(_, tensor)| tensor).collect();
        let inputs = if allowed.0 > 0.0 { inputs } else { Vec::new() };
        let (beyond, largest) = parity::differences(allowed, &inputs, ours, theirs);
        if beyond > 0 {
            found.push(format!("{name}: {beyond} elements, up to {largest} ulp"));
        }
    }
    found
}

#[test]
fn slices_agree_with_mergekit() {
    let dir = TempDir::new().unwrap();
    let mut groups = parity::grouped("slices.safetensors.zst");
    let cases = parity::json("slices.json");
    let results: BTreeMap<String, _> = cases
        .iter()
        .map(|case| case["case"].as_str().unwrap().to_owned())
        .map(|case| (case.clone(), groups.remove(&case).unwrap()))
        .collect();
    assert_eq!(groups.keys().collect::<Vec<_>>(), ["a", "b", "base"]);
    parity::write_models(dir.path(), &groups);
    for model in groups.keys() {
        std::fs::write(dir.path().join(model).join("config.json"), config(6).to_string()).unwrap();
    }
    for case in &cases {
        let (title, recipe) = (case["case"].as_str().unwrap(), case["recipe"].as_str().unwrap());
        let method = recipe.split("merge_method: ").nth(1).unwrap().lines().next().unwrap();
        let out = dir.path().join(format!("{title}-merged"));
        let merge = crate::support::reflow()
            .current_dir(dir.path())
            .args(["merge", "--out"])
            .arg(&out)
            .arg(write(dir.path(), recipe))
            .assert()
            .success();
        drop(merge);
        let ours = parity::tensors(&std::fs::read(out.join("model.safetensors")).unwrap());
        let theirs = &results[title];
        assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{title}");
        let allowed = parity::tolerances()[method];
        assert_eq!(differs(&ours, theirs, &groups, allowed), Vec::<String>::new(), "{title}");
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        let config: Value = serde_json::from_str(&config).unwrap();
        assert_eq!(config["num_hidden_layers"], case["layers"], "{title}");
    }
    assert_eq!(cases.len(), 6);
}

fn write(dir: &Path, recipe: &str) -> std::path::PathBuf {
    let path = dir.join("recipe.yml");
    std::fs::write(&path, recipe).unwrap();
    path
}
