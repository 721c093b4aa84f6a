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
            .with("model.layers.0.up.weight", Dtype::F32, &[1, 12], &values)
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

    /// The same with `{source: .., tokens: ..}`; `@NAME` is a model.
    fn with_tokens(&self, models: &[&str], tokenizer: &str) -> PathBuf {
        let recipe = self.recipe("task_arithmetic", models, "base");
        let named = ["base"].iter().chain(models).fold(tokenizer.to_owned(), |text, name| {
            text.replace(&format!("@{name}"), &self.path(name).display().to_string())
        });
        let text = std::fs::read_to_string(&recipe).unwrap();
        let text = text.replace("tokenizer_source: base", &format!("tokenizer: {named}"));
        std::fs::write(&recipe, text).unwrap();
        recipe
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
fn rows_of_single_tokens_come_from_where_the_recipe_says() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c"], &["<s>"], 0);
    scene.model("x", &["a", "b", "c"], &["<s>", "<x>"], 1);
    scene.model("yy", &["a", "b", "c"], &["<s>"], 0);
    let recipe = scene.with_tokens(
        &["x", "yy"],
        "{source: base, tokens: {a: {source: '@yy', force: true}, <zero>: {source: {kind: zero}}, \
         <x>: {source: {kind: model_token, model: '@yy', token: b}}, \
         <new>: {source: {kind: model_token, model: '@x', token_id: 5}}, b: }}",
    );
    scene.merge(&recipe, "out", &[]).success();
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows.len(), 7);
        // All have yy's.
        assert_eq!(rows[0], row("yy", 0));
        assert_eq!(rows[1], arithmetic(&row("base", 1), &[&row("x", 1), &row("yy", 1)]));
        assert_eq!(rows[4], [0.0; COLUMNS]);
        // x has a row of its own, base and yy take that of b in yy.
        let b = row("yy", 1);
        assert_eq!(rows[5], arithmetic(&b, &[&row("x", 4), &b]));
        assert_eq!(rows[6], row("x", 5));
    }
    let tokenizer = scene.json("out/tokenizer.json");
    let token = |k: usize| &tokenizer["added_tokens"][k];
    assert_eq!((&token(1)["content"], &token(1)["special"]), (&json!("<zero>"), &json!(false)));
    // As x says.
    assert_eq!((&token(2)["content"], &token(2)["special"]), (&json!("<x>"), &json!(true)));
    assert_eq!((&token(3)["content"], &token(3)["id"]), (&json!("<new>"), &json!(6)));
    assert_eq!(scene.json("out/config.json")["vocab_size"], 7);
    for (tokens, part) in [
        ("<new>: ", "lacks the token \"<new>\" of the recipe's `tokens`, as do all other models"),
        ("<x>: {source: '@yy'}", "yy/tokenizer.json lacks the token \"<x>\""),
        (
            "q: {source: {kind: model_token, model: '@x', token: z}}",
            "\"z\", whose row the recipe wants",
        ),
        (
            "q: {source: {kind: model_token, model: '@yy', token_id: 4}}",
            "of yy cannot follow the tokenizer: the row for \"q\" is number 4, and it has 4",
        ),
    ] {
        let recipe =
            scene.with_tokens(&["x", "yy"], &format!("{{source: base, tokens: {{{tokens}}}}}"));
        scene.merge(&recipe, "no", &[]).code(3).stderr(contains(part));
    }
}

#[test]
fn rows_are_padded_with_their_mean() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c"], &["<s>"], 4);
    scene.model("x", &["a", "b"], &["<s>", "<x>", "<y>"], 0);
    let recipe = scene.with_tokens(&["x"], "{source: union, pad_to_multiple_of: 8}");
    scene.merge(&recipe, "out", &[]).success();
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        // a b c <s> <x> <y>, and two of padding; the base's own padding is gone.
        assert_eq!(rows.len(), 8);
        let base = [
            row("base", 0),
            row("base", 1),
            row("base", 2),
            row("base", 3),
            row("x", 3),
            row("x", 4),
        ];
        let x = [row("x", 0), row("x", 1), row("base", 2), row("x", 2), row("x", 3), row("x", 4)];
        let mean = |rows: &[Vec<f32>]| -> Vec<f32> {
            (0..COLUMNS)
                .map(|k| (rows.iter().map(|row| f64::from(row[k])).sum::<f64>() / 6.0) as f32)
                .collect()
        };
        for k in 0..6 {
            assert_eq!(rows[k], arithmetic(&base[k], &[&x[k]]), "{k}");
        }
        assert_eq!(rows[6], arithmetic(&mean(&base), &[&mean(&x)]));
        assert_eq!(rows[6], rows[7]);
    }
    assert_eq!(scene.json("out/config.json")["vocab_size"], 8);
    // Nothing moves, and a multiple of what there is cuts padding off.
    let recipe = scene.with_tokens(&[], "{source: base, pad_to_multiple_of: 2}");
    let text = std::fs::read_to_string(&recipe).unwrap();
    let text = text.replace(
        "models:\n",
        &format!("models: [{{model: {}, parameters: {{weight: 1}}}}]\n", scene.path("x").display()),
    );
    std::fs::write(&recipe, text).unwrap();
    scene.merge(&recipe, "even", &[]).success();
    assert_eq!(scene.json("even/config.json")["vocab_size"], 4);
}

#[test]
fn padding_does_not_depend_on_how_it_is_run() {
    let mut scene = Scene::new();
    let words: Vec<String> = (0..301).map(|k| format!("w{k}")).collect();
    let tokens: Vec<&str> = words.iter().map(String::as_str).collect();
    scene.model("base", &tokens, &["<s>"], 3);
    scene.model("x", &tokens[1..], &["<x>", "<s>"], 0);
    let tokens = "{source: union, pad_to_multiple_of: 256, tokens: {w7: {source: {kind: zero}, force: true}}}";
    let recipe = scene.with_tokens(&["x"], tokens);
    scene.merge(&recipe, "calm", &[]).success();
    assert_eq!(scene.merged("calm")[TABLES[0]].len(), 512);
    for (k, io) in ["mmap", "pread", "direct"].into_iter().enumerate() {
        let (tile, threads) = (["1", "77", "800"][k], ["1", "3", "2"][k]);
        let args = ["--io", io, "--tile", tile, "--threads", threads, "--memory", "64MiB"];
        let out = format!("out{k}");
        scene.merge(&recipe, &out, &args).success();
        assert!(files(&scene.path(&out)) == files(&scene.path("calm")), "{io} {tile}");
    }
}

#[test]
fn words_of_other_vocabularies_join_a_union() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b"], &["<s>"], 0);
    scene.model("x", &["a", "z", "b", "y"], &["<x>"], 0);
    scene.model("yy", &["b", "<x>", "q", "y"], &["<y>"], 0);
    let recipe = scene.recipe("task_arithmetic", &["x", "yy"], "union");
    scene.merge(&recipe, "out", &[]).success().stderr(
        contains("2 tokens of x's vocabulary, as \"z\"").and(contains("without their merge")),
    );
    let tokenizer = scene.json("out/tokenizer.json");
    let added: Vec<(u64, &str, bool)> = (tokenizer["added_tokens"].as_array().unwrap().iter())
        .map(|token| {
            let special = token["special"].as_bool().unwrap();
            (token["id"].as_u64().unwrap(), token["content"].as_str().unwrap(), special)
        })
        .collect();
    let expected = [
        (2, "<s>", true),
        (3, "z", false),
        (4, "y", false),
        (5, "q", false),
        (6, "<x>", true),
        (7, "<y>", true),
    ];
    assert_eq!(added, expected);
    for (table, rows) in scene.merged("out") {
        let row = |model: &str, row: usize| scene.row(model, &table, row).to_vec();
        assert_eq!(rows[3], row("x", 1));
        let mean: Vec<f32> =
            row("x", 3).iter().zip(row("yy", 3)).map(|(x, y)| (x + y) / 2.0).collect();
        assert_eq!(rows[4], arithmetic(&mean, &[&row("x", 3), &row("yy", 3)]));
    }
}

#[test]
fn tokens_that_no_model_of_a_table_has_are_told() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b"], &["<s>"], 0);
    scene.model("x", &["a", "b"], &["<s>", "<x>"], 0);
    let [base, x] = ["base", "x"].map(|name| scene.path(name).display().to_string());
    // The embedding is the base's and the head is x's; <x> is x's.
    let recipe = scene.path("recipe.yml");
    let text = format!(
        "merge_method: passthrough\ntokenizer_source: union\nslices:\n  \
         - sources: [{{model: {base}, layer_range: [0, 1]}}]\n  - sources: [{{model: {x}, layer_range: [0, 1]}}]\n"
    );
    std::fs::write(&recipe, text).unwrap();
    scene.merge(&recipe, "out", &[]).success().stderr(
        contains("model.embed_tokens.weight: 1 of 4 rows are zeros, those of tokens that none")
            .and(contains("lm_head.weight: 1 of 4 rows are zeros").not()),
    );
    let merged = scene.merged("out");
    let (head, embedding) = (&merged[TABLES[0]], &merged[TABLES[1]]);
    assert_eq!(embedding[3], [0.0; COLUMNS]);
    assert_eq!(embedding[2], scene.row("base", TABLES[1], 2));
    assert_eq!(head[3], scene.row("x", TABLES[0], 3));
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    let mut scene = Scene::new();
    scene.model("base", &["a", "b", "c"], &["<s>"], 0);
    scene.model("x", &["a", "b", "z"], &["<s>"], 0);
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
