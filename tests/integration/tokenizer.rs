//! Models whose tokens have other numbers: rows of embeddings follow their tokens.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, uniform};
use crate::support::{files, reflow, snapshot};

const TABLES: [&str; 2] = ["lm_head.weight", "model.embed_tokens.weight"];
const COLUMNS: usize = 5;

/// Models with tokenizers of their own, in a directory.
struct Scene {
    dir: TempDir,
    /// The rows of each model's tables, by model and tensor.
    rows: BTreeMap<(String, String), Vec<Vec<f32>>>,
}

impl Scene {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), rows: BTreeMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A model with these tokens in order, `added` ones at the end, and padding.
    fn model(&mut self, name: &str, tokens: &[&str], added: &[&str], padding: usize) {
        let count = tokens.len() + added.len();
        let rows = count + padding;
        let mut random = uniform(name.len() as u64 * 77 + u64::from(name.as_bytes()[0]));
        let config =
            json!({"model_type": "llama", "vocab_size": rows, "tie_word_embeddings": false});
        let mut model = Checkpoint::default().config(config);
        for table in TABLES {
            let values: Vec<f32> = (0..rows * COLUMNS).map(|_| random() - 0.5).collect();
            let chunks = values.chunks(COLUMNS).map(<[f32]>::to_vec).collect();
            self.rows.insert((name.to_owned(), table.to_owned()), chunks);
            model = model.with(table, Dtype::F32, &[rows, COLUMNS], &values);
        }
        let values: Vec<f32> = (0..12).map(|_| random()).collect();
        model
            .with("model.layers.0.up.weight", Dtype::F32, &[4, 3], &values)
            .write(&self.path(name), 1);
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().zip(0..).map(|(token, id)| ((*token).to_owned(), json!(id))).collect();
        let added: Vec<Value> = added
            .iter()
            .zip(tokens.len()..)
            .map(
                |(token, id)| json!({"id": id, "content": token, "special": true, "lstrip": false}),
            )
            .collect();
        let tokenizer = json!({"version": "1.0", "added_tokens": added,
                               "model": {"type": "WordLevel", "vocab": vocab, "unk_token": tokens[0]}});
        std::fs::write(self.path(name).join("tokenizer.json"), format!("{tokenizer:#}")).unwrap();
        std::fs::write(
            self.path(name).join("tokenizer_config.json"),
            format!("{{\"of\": \"{name}\", \"added_tokens_decoder\": {{}}}}"),
        )
        .unwrap();
    }

    fn recipe(&self, method: &str, models: &[&str], source: &str) -> PathBuf {
        let shown = |name: &str| self.path(name).display().to_string();
        let base = match method {
            "linear" => String::new(),
            _ => format!("base_model: {}\n", shown("base")),
        };
        let listed = models
            .iter()
            .map(|model| format!("  - {{model: {}, parameters: {{weight: 0.5}}}}\n", shown(model)));
        let listed: Vec<String> = listed.collect();
        let source = match source {
            "base" | "union" => source.to_owned(),
            model => shown(model),
        };
        let text = format!(
            "merge_method: {method}\n{base}models:\n{}tokenizer_source: {source}\n",
            listed.concat()
        );
        let recipe = self.path("recipe.yml");
        std::fs::write(&recipe, text).unwrap();
        recipe
    }

    fn merge(&self, recipe: &Path, out: &str, args: &[&str]) -> assert_cmd::assert::Assert {
        reflow().arg("merge").arg(recipe).arg("--out").arg(self.path(out)).args(args).assert()
    }

    /// The tables of an output, by tensor.
    fn merged(&self, out: &str) -> BTreeMap<String, Vec<Vec<f32>>> {
        let bytes = std::fs::read(self.path(out).join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        TABLES
            .into_iter()
            .map(|table| {
                let view = file.tensor(table).unwrap();
                let values: Vec<f32> =
                    view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
                (table.to_owned(), values.chunks(COLUMNS).map(<[f32]>::to_vec).collect())
            })
            .collect()
    }

    fn row(&self, model: &str, table: &str, row: usize) -> &[f32] {
        &self.rows[&(model.to_owned(), table.to_owned())][row]
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(file)).unwrap()).unwrap()
    }
}

/// base + 0.5 * sum of (row - base), one rounding for each operation.
fn arithmetic(base: &[f32], rows: &[&[f32]]) -> Vec<f32> {
    (0..base.len())
        .map(|k| {
            let sum = rows.iter().fold(0.0f32, |sum, row| sum + 0.5 * (row[k] - base[k]));
            base[k] + sum
        })
        .collect()
}

#[test]
fn a_union_has_the_rows_of_all() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c"], &["<s>"], 1);
    scene.model("x", &["a", "b", "c"], &["<s>", "<x>", "<both>"], 0);
    scene.model("yy", &["a", "b", "c"], &["<s>", "<both>"], 2);
    let before: Vec<_> =
        ["base", "x", "yy"].iter().map(|name| snapshot(&scene.path(name))).collect();
    let recipe = scene.recipe("task_arithmetic", &["x", "yy"], "union");
    scene.merge(&recipe, "out", &[]).success().stderr(contains("rows of yy are moved"));
    let after: Vec<_> =
        ["base", "x", "yy"].iter().map(|name| snapshot(&scene.path(name))).collect();
    assert_eq!(before, after);
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows.len(), 6);
        for (k, merged) in rows.iter().enumerate().take(4) {
            assert_eq!(*merged, arithmetic(&row("base", k), &[&row("x", k), &row("yy", k)]), "{k}");
        }
        // <x> is one model's, and all others count as having it.
        assert_eq!(rows[4], row("x", 4));
        // <both> is two models', and the base has their mean.
        let mean: Vec<f32> =
            row("x", 5).iter().zip(row("yy", 4)).map(|(x, y)| (x + y) / 2.0).collect();
        assert_eq!(rows[5], arithmetic(&mean, &[&row("x", 5), &row("yy", 4)]));
    }
    let tokenizer = scene.json("out/tokenizer.json");
    let added: Vec<(u64, &str)> = (tokenizer["added_tokens"].as_array().unwrap().iter())
        .map(|token| (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap()))
        .collect();
    assert_eq!(added, [(3, "<s>"), (4, "<x>"), (5, "<both>")]);
    let config = scene.json("out/tokenizer_config.json");
    assert_eq!(config["of"], "base");
    assert_eq!(config["added_tokens_decoder"]["5"]["content"], "<both>");
    assert_eq!(scene.json("out/config.json")["vocab_size"], 6);
}

#[test]
fn a_models_tokenizer_orders_all_rows() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c", "d"], &[], 2);
    scene.model("x", &["d", "a", "e", "b"], &["<x>"], 1);
    let recipe = scene.recipe("task_arithmetic", &["x"], "x");
    scene.merge(&recipe, "out", &[]).success();
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows.len(), 6);
        for (k, of_base) in [(0, 3), (1, 0), (3, 1)] {
            assert_eq!(rows[k], arithmetic(&row("base", of_base), &[&row("x", k)]), "{k}");
        }
        assert_eq!((&rows[2], &rows[4]), (&row("x", 2), &row("x", 4)));
        // Padding of both.
        assert_eq!(rows[5], arithmetic(&row("base", 5), &[&row("x", 5)]));
    }
    assert_eq!(scene.json("out/tokenizer_config.json")["of"], "x");
    assert_eq!(scene.json("out/config.json")["vocab_size"], 6);
    // The base's: the other way round, and without the tokens that it lacks.
    let recipe = scene.recipe("task_arithmetic", &["x"], "base");
    scene.merge(&recipe, "other", &[]).success();
    for (table, rows) in scene.merged("other") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows.len(), 6);
        assert_eq!(rows[1], arithmetic(&row("base", 1), &[&row("x", 3)]));
        // x lacks c: its row counts as the base's.
        assert_eq!(rows[2], row("base", 2));
    }
    assert_eq!(scene.json("other/tokenizer_config.json")["of"], "base");
}

#[test]
fn without_a_base_the_first_model_is_the_beginning() {
    let mut scene = Scene::new();
    scene.model("x", &["a", "b"], &["<x>"], 0);
    scene.model("yy", &["a", "b"], &["<y>"], 0);
    let recipe = scene.recipe("linear", &["x", "yy"], "union");
    scene.merge(&recipe, "out", &[]).success();
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows.len(), 4);
        for (merged, from) in [(2, row("x", 2)), (3, row("yy", 2))] {
            let near = rows[merged].iter().zip(&from).all(|(a, b)| (a - b).abs() < 1e-6);
            assert!(near, "{:?} {from:?}", rows[merged]);
        }
    }
}

#[test]
fn how_it_is_run_does_not_change_a_byte() {
    let mut scene = Scene::new();
    let words: Vec<String> = (0..300).map(|k| format!("w{k}")).collect();
    let tokens: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut shuffled = tokens.clone();
    let mut random = uniform(3);
    for k in (1..shuffled.len()).rev() {
        shuffled.swap(k, (random() * (k + 1) as f32) as usize);
    }
    scene.model("base", &tokens, &["<s>"], 3);
    scene.model("x", &shuffled, &["<x>", "<s>"], 0);
    scene.model("yy", &tokens[..290], &["<x>", "<y>"], 9);
    for method in ["pcb", "ties", "linear"] {
        let models: &[&str] = if method == "linear" { &["base", "x", "yy"] } else { &["x", "yy"] };
        let source = if method == "ties" { "x" } else { "base" };
        let recipe = scene.recipe(method, models, source);
        if method == "pcb" {
            let text =
                std::fs::read_to_string(&recipe).unwrap().replace("weight: 0.5", "lambda: 0.9");
            std::fs::write(&recipe, text).unwrap();
        }
        let text = std::fs::read_to_string(&recipe).unwrap();
        if method == "linear" {
            let base = scene.path("base");
            std::fs::write(&recipe, format!("base_model: {}\n{text}", base.display())).unwrap();
        }
        let calm = format!("calm-{method}");
        scene.merge(&recipe, &calm, &[]).success();
        for (k, io) in ["mmap", "pread", "direct", "mmap"].into_iter().enumerate() {
            let out = format!("{method}{k}");
            let tile = ((random() * 700.0) as u32 + 1).to_string();
            let threads = ["1", "3"][k % 2];
            let args = ["--io", io, "--tile", &tile, "--threads", threads, "--memory", "64MiB"];
            scene.merge(&recipe, &out, &args).success();
            assert!(files(&scene.path(&out)) == files(&scene.path(&calm)), "{method} {io} {tile}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c"], &["<s>"], 0);
    scene.model("x", &["a", "b", "z"], &["<s>"], 0);
    let recipe = scene.recipe("task_arithmetic", &["x"], "union");
    scene
        .merge(&recipe, "out", &[])
        .code(3)
        .stderr(contains("\"z\" in its model, which base lacks").and(contains("x/tokenizer.json")));
    let tokenizer = scene.path("x/tokenizer.json");
    let good = std::fs::read_to_string(&tokenizer).unwrap();
    std::fs::write(&tokenizer, &good[..good.len() / 2]).unwrap();
    let recipe = scene.recipe("task_arithmetic", &["x"], "base");
    scene.merge(&recipe, "out", &[]).code(3).stderr(contains("x/tokenizer.json is malformed"));
    // A token beyond the rows.
    std::fs::write(&tokenizer, good.replace("\"id\": 3", "\"id\": 4")).unwrap();
    scene.merge(&recipe, "out", &[]).code(3).stderr(contains("numbers up to 4, and it 4 rows"));
    std::fs::remove_file(&tokenizer).unwrap();
    scene.merge(&recipe, "out", &[]).code(3).stderr(contains("has no tokenizer.json"));
    std::fs::remove_file(scene.path("x/tokenizer_config.json")).unwrap();
    scene
        .merge(&recipe, "out", &[])
        .success()
        .stderr(contains("x has no tokenizer: its rows are taken"));
}
