//! Outputs made of runs of layers: what is in them, and what is refused.

use std::path::Path;

use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, uniform};
use crate::support::{files, reflow};

const LAYERS: usize = 6;

/// A model whose numbers say whose they are. Each layer has a fused 3-D expert, and there is a tower.
fn model(seed: u64) -> Checkpoint {
    let mut random = uniform(seed);
    let types = ["full", "sliding", "full", "sliding", "full", "sliding"];
    let config = json!({"model_type": "llama", "num_hidden_layers": LAYERS, "layer_types": types,
                        "vision_config": {"num_hidden_layers": 2}});
    let mut model = Checkpoint::default().config(config);
    let mut add = |name: &str, shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| random() - 0.5).collect();
        model = std::mem::take(&mut model).with(name, Dtype::F32, shape, &values);
    };
    add("model.embed_tokens.weight", &[11, 6]);
    for n in 0..LAYERS {
        add(&format!("model.layers.{n}.self_attn.q_proj.weight"), &[6, 6]);
        add(&format!("model.layers.{n}.mlp.up_proj.weight"), &[9, 6]);
        add(&format!("model.layers.{n}.mlp.experts.down_proj"), &[2, 3, 6]);
    }
    for n in 0..2 {
        add(&format!("model.vision_tower.layers.{n}.w"), &[4]);
    }
    add("model.norm.weight", &[6]);
    add("lm_head.weight", &[11, 6]);
    model
}

fn on_disk() -> TempDir {
    let dir = TempDir::new().unwrap();
    for (at, name) in ["base", "a", "b"].into_iter().enumerate() {
        model(at as u64 + 1).write(&dir.path().join(name), at + 1);
    }
    dir
}

fn run(dir: &Path, command: &[&str], recipe: &str) -> assert_cmd::Command {
    std::fs::write(dir.join("r.yml"), recipe).unwrap();
    let mut reflow = reflow();
    reflow.current_dir(dir).args(command).arg("r.yml");
    reflow
}

/// Values of a tensor of a merged model, or of one that was written in one shard.
fn tensor(dir: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bytes = file.tensor(name).unwrap().data();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn original(seed: u64, name: &str) -> Vec<f32> {
    let model = model(seed);
    let (.., bytes) = model.tensors.iter().find(|(n, ..)| n == name).unwrap();
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

const STACK: &str = "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 4]}]\n  - sources:\n      - \
                     {model: b, layer_range: [2, 5], parameters: {scale: [{filter: mlp, value: 2}, {value: 1}]}}\n  - sources: \
                     [{model: a, layer_range: [5, 6]}]\n";

#[test]
fn a_stack_of_layers_is_numbered_anew_and_its_config_follows() {
    let dir = on_disk();
    run(dir.path(), &["merge", "--out", "out"], STACK).assert().success();
    let out = dir.path().join("out");
    let origins = [(2, 0), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (2, 5)];
    for (n, (seed, layer)) in origins.into_iter().enumerate() {
        for (part, scale) in [
            ("self_attn.q_proj.weight", 1.0),
            ("mlp.up_proj.weight", 2.0),
            ("mlp.experts.down_proj", 2.0),
        ] {
            let scale = if seed == 3 { scale } else { 1.0 };
            let expected = original(seed, &format!("model.layers.{layer}.{part}"));
            let expected: Vec<f32> = expected.iter().map(|x| x * scale).collect();
            assert_eq!(tensor(&out, &format!("model.layers.{n}.{part}")), expected, "{n} {part}");
        }
    }
    for name in ["model.embed_tokens.weight", "model.vision_tower.layers.1.w", "lm_head.weight"] {
        assert_eq!(tensor(&out, name), original(2, name), "{name}");
    }
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["num_hidden_layers"], 8);
    let types = ["full", "sliding", "full", "sliding", "full", "sliding", "full", "sliding"];
    assert_eq!(config["layer_types"], json!(types));
    assert_eq!(config["vision_config"]["num_hidden_layers"], 2);
    reflow().arg("verify").arg("--full").arg(&out).assert().success();
    // The published recipe makes the same again.
    let recipe = std::fs::read_to_string(out.join("reflow_recipe.yml")).unwrap();
    run(dir.path(), &["merge", "--out", "again"], &recipe).assert().success();
    let shard = |out: &str| std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    assert_eq!(shard("out"), shard("again"));
}

#[test]
fn the_ends_come_from_the_first_and_the_last_slice() {
    let dir = on_disk();
    let recipe =
        STACK.replace("[{model: a, layer_range: [5, 6]}]", "[{model: base, layer_range: [5, 6]}]");
    run(dir.path(), &["merge", "--out", "out"], &recipe).assert().success();
    let out = dir.path().join("out");
    for (name, seed) in [
        ("model.embed_tokens.weight", 2),
        ("model.vision_tower.layers.0.w", 2),
        ("model.norm.weight", 1),
        ("lm_head.weight", 1),
    ] {
        assert_eq!(tensor(&out, name), original(seed, name), "{name}");
    }
}

#[test]
fn slices_of_whole_models_are_the_merge_of_whole_models() {
    let dir = on_disk();
    let parameters = "parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {filter: mlp, value: [1, 0]}, {value: 0.5}]}\n";
    let slices = "slices: [{sources: [{model: base, layer_range: [0, 6]}, {model: a, layer_range: [0, 6]}]}]\n";
    let head = "merge_method: slerp\nbase_model: base\n";
    for (name, body) in [
        ("whole", "models: [{model: base}, {model: a}]\n".to_owned()),
        ("sliced", slices.to_owned()),
        ("module", format!("modules:\n  default:\n    {slices}")),
    ] {
        run(dir.path(), &["merge", "--out", name], &format!("{head}{body}{parameters}"))
            .assert()
            .success();
    }
    let of = |name: &str| {
        let mut files = files(&dir.path().join(name));
        // What tells of the recipe, and hashes of that.
        for own in ["README.md", "reflow_recipe.yml", "manifest.json"] {
            files.remove(Path::new(own));
        }
        files
    };
    assert!(of("whole").contains_key(Path::new("config.json")));
    assert_eq!(of("whole"), of("sliced"));
    assert_eq!(of("whole"), of("module"));
}

#[test]
fn the_bytes_of_slices_do_not_depend_on_tiles_threads_or_reads() {
    let dir = on_disk();
    let recipe = "merge_method: ties\nbase_model: base\nslices:\n  - sources:\n      - {model: base, layer_range: [0, 3]}\n      \
                  - {model: a, layer_range: [1, 4], parameters: {weight: 0.6}}\n      - {model: b, layer_range: [0, 3]}\n    \
                  parameters: {density: 0.4}\n  - sources:\n      - {model: base, layer_range: [3, 6]}\n      - {model: b, layer_range: \
                  [3, 6]}\nparameters: {weight: [0.2, 0.7], density: 0.6}\n";
    run(dir.path(), &["merge", "--out", "one"], recipe).assert().success();
    let command = ["merge", "--threads", "3", "--tile", "7", "--io", "pread", "--out", "two"];
    run(dir.path(), &command, recipe).assert().success();
    assert_eq!(files(&dir.path().join("one")), files(&dir.path().join("two")));
}

#[test]
fn the_plan_shows_stacks_slices_and_what_is_in_none() {
    let dir = on_disk();
    run(dir.path(), &["plan"], STACK).assert().success().stdout(
        contains(
            "model.layers.N: 8 (the donor has 6); model.vision_tower.layers.N as in its models",
        )
        .and(contains("slice  0-3 from 0-3 of a"))
        .and(contains("slice  4-6 from 2-4 of b"))
        .and(contains("slice  7 from 5 of a"))
        .and(contains("in no slice  a: layers 4 (3 tensors)"))
        .and(contains("b: layers 0-1, 5 (9 tensors), lm_head.weight, model.embed_tokens.weight")),
    );
    let plan = run(dir.path(), &["plan", "--json"], STACK).assert().success();
    let json: Value = serde_json::from_slice(&plan.get_output().stdout).unwrap();
    assert_eq!(
        json["plan"]["layers"]["slices"][1]["sources"][0],
        json!({"model": "b", "layers": [2, 5]})
    );
    assert_eq!(json["plan"]["layers"]["left_out"][1]["tensors"], 9);
}

#[test]
fn an_interrupted_stack_goes_on_only_with_the_same_layers() {
    let dir = on_disk();
    let command = ["merge", "--checkpoint", "200", "--failpoint", "kill:60", "--out", "out"];
    run(dir.path(), &command, STACK).assert().failure();
    assert!(!dir.path().join("out").exists());
    let other = STACK.replace("[0, 4]", "[0, 3]");
    run(dir.path(), &["merge", "--out", "out"], &other)
        .assert()
        .failure()
        .stderr(contains("layer_range: [0, 4]").and(contains("layer_range: [0, 3]")));
    run(dir.path(), &["merge", "--out", "out"], STACK).assert().success();
    run(dir.path(), &["merge", "--out", "whole"], STACK).assert().success();
    assert_eq!(files(&dir.path().join("out")), files(&dir.path().join("whole")));
}

#[test]
fn a_last_slice_with_more_sources_than_the_first_is_refused() {
    let dir = on_disk();
    let recipe = |first: &str, last: &str| {
        let source = |name: &str, range: &str| format!("{{model: {name}, layer_range: {range}}}");
        let sources = |names: &str, range: &str| {
            names.split(' ').map(|name| source(name, range)).collect::<Vec<_>>().join(", ")
        };
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nslices: [{{sources: [{}]}}, {{sources: [{}]}}, {{sources: [{}]}}]\n",
            sources(first, "[0, 2]"),
            sources("base a b", "[2, 4]"),
            sources(last, "[4, 6]")
        )
    };
    run(dir.path(), &["merge", "--out", "no"], &recipe("a", "a b")).assert().code(2).stderr(
        contains("slices: slice 3: it is the last and has 2 sources, and the first slice has 1"),
    );
    for (out, first, last) in [("same", "a b", "b a"), ("fewer", "a b", "b")] {
        run(dir.path(), &["merge", "--out", out], &recipe(first, last)).assert().success();
    }
    assert_eq!(tensor(&dir.path().join("fewer"), "lm_head.weight"), original(3, "lm_head.weight"));
}

#[test]
fn layers_that_a_model_lacks_are_the_bases_if_the_recipe_says_so() {
    let dir = on_disk();
    let (lacking, norm) = ("model.layers.2.mlp.up_proj.weight", "model.norm.weight");
    model(2).without(lacking).without(norm).write(&dir.path().join("odd"), 1);
    // Layers 1 to 4 of the base with 2 to 5 of the others: odd lacks the output's first.
    let recipe = "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 0.5}\nslices:\n  - sources:\n      \
                  - {model: base, layer_range: [1, 5]}\n      - {model: odd, layer_range: [2, 6]}\n      \
                  - {model: b, layer_range: [2, 6]}\n";
    run(dir.path(), &["merge", "--out", "no"], recipe).assert().code(3).stderr(
        contains(format!("odd lacks {lacking}")).and(contains(format!("odd lacks {norm}"))),
    );
    run(dir.path(), &["merge", "--out", "out"], &format!("{recipe}missing: base\n"))
        .assert()
        .success();
    let merged = |base: &str, others: &[(u64, &str)]| -> Vec<f32> {
        let base = original(1, base);
        let others: Vec<Vec<f32>> =
            others.iter().map(|(seed, name)| original(*seed, name)).collect();
        let sum = |k: usize| others.iter().fold(0.0f32, |sum, x| sum + 0.5 * (x[k] - base[k]));
        (0..base.len()).map(|k| base[k] + sum(k)).collect()
    };
    let at = |layer: usize| format!("model.layers.{layer}.mlp.up_proj.weight");
    let out = dir.path().join("out");
    assert_eq!(tensor(&out, &at(0)), merged(&at(1), &[(3, &at(2))]));
    assert_eq!(tensor(&out, &at(1)), merged(&at(2), &[(2, &at(3)), (3, &at(3))]));
    assert_eq!(tensor(&out, norm), merged(norm, &[(3, norm)]));
}

#[test]
fn layers_that_do_not_fit_together_are_refused_before_anything_is_read() {
    let dir = on_disk();
    let odd = model(9).without("model.layers.2.mlp.up_proj.weight");
    odd.write(&dir.path().join("odd"), 1);
    let flat = Checkpoint::default().with("w", Dtype::F32, &[1], &[0.0]);
    flat.write(&dir.path().join("flat"), 1);
    let other = Checkpoint::default().with("h.0.w", Dtype::F32, &[1], &[0.0]);
    other.write(&dir.path().join("other"), 1);
    let two = |second: &str, range: &str| {
        format!(
            "merge_method: linear\nparameters: {{weight: 1}}\nslices: [{{sources: [{{model: a, layer_range: [1, 4]}}, \
             {{model: {second}, layer_range: {range}}}]}}]\n"
        )
    };
    for (recipe, code, part) in [
        (
            two("b", "[4, 7]"),
            2,
            "layer_range of b in slice 1: [4, 7] asks for layers that are not there: \
                                 model.layers.N has 6 layers; END is at most 6",
        ),
        (two("odd", "[0, 3]"), 3, "odd lacks model.layers.2.mlp.up_proj.weight"),
        (two("other", "[0, 3]"), 2, "no tensors named model.layers.N, only h.N"),
        (two("flat", "[0, 3]"), 2, "only no layers"),
        (two("b", "[0, 2]"), 2, "same number of layers"),
        (two("b", "[a, 2]"), 2, "whole number"),
    ] {
        run(dir.path(), &["merge", "--out", "out"], &recipe)
            .assert()
            .code(code)
            .stderr(contains(part));
    }
    let scope = "merge_method: pcb\nbase_model: base\nslices:\n  - sources: [{model: base, layer_range: [0, 2]}, {model: a, \
                 layer_range: [0, 2]}]\n  - sources: [{model: base, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]\n";
    run(dir.path(), &["merge", "--out", "out"], scope)
        .assert()
        .code(2)
        .stderr(contains("scope: tensor"));
    let tensor = format!("{scope}parameters: {{scope: tensor, keep: 0.2}}\n");
    run(dir.path(), &["merge", "--out", "out"], &tensor)
        .assert()
        .success()
        .stderr(contains("b                     keeps"));
}
