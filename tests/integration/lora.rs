//! Models with LoRA adapters, applied on the way (`fixtures/lora`, made by `fixtures/make_lora.py`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, family, uniform, write_family};
use crate::support::{files, reflow, snapshot};

const ADAPTERS: [&str; 3] = ["math", "code", "prose"];

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn adapted(name: &str) -> String {
    format!("{}+{}", fixture("llama/base").display(), fixture("lora").join(name).display())
}

/// `reflow merge` of the fixtures' adapters into `out`.
fn merge(out: &Path) -> Command {
    let mut command = reflow();
    command.args(["merge", "--base"]).arg(fixture("llama/base"));
    for name in ADAPTERS {
        command.args(["--expert", &adapted(name)]);
    }
    command.arg("--out").arg(out);
    command
}

/// Applies an adapter: a whole model in f32.
fn apply(model: &str, out: &Path) {
    let mut command = reflow();
    command.args([
        "merge",
        "--method",
        "passthrough",
        "--dtype",
        "f32",
        "--expert",
        model,
        "--out",
    ]);
    command.arg(out).assert().success();
}

/// The weights of an output, by tensor.
fn weights(out: &Path) -> BTreeMap<String, (Dtype, Vec<u8>)> {
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter();
    tensors.map(|(name, view)| (name, (view.dtype(), view.data().to_vec()))).collect()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn slices_of_adapted_models_are_those_of_whole_ones() {
    let dir = TempDir::new().unwrap();
    for name in ["math", "code"] {
        apply(&adapted(name), &dir.path().join(name));
    }
    apply(fixture("llama/base").to_str().unwrap(), &dir.path().join("base"));
    let whole = |name: &str| dir.path().join(name).display().to_string();
    let base = fixture("llama/base").display().to_string();
    let merge = |out: &str, text: &str, [base, math, code]: [&str; 3]| {
        let text = text.replace("BASE", base).replace("MATH", math).replace("CODE", code);
        let recipe = dir.path().join("r.yml");
        std::fs::write(&recipe, text).unwrap();
        let out = dir.path().join(out);
        reflow().arg("merge").arg(recipe).arg("--out").arg(&out).assert().success();
        weights(&out)
    };
    let stack = "merge_method: passthrough\ndtype: float32\nslices:\n  - sources: [{model: MATH, layer_range: [0, 2]}]\n  \
                 - sources: [{model: 'CODE', layer_range: [0, 1], parameters: {scale: 0.5}}]\n  \
                 - sources: [{model: MATH, layer_range: [1, 2]}]\n";
    let crossed = "merge_method: task_arithmetic\nbase_model: BASE\ndtype: float32\nparameters: {weight: [0.3, 0.9]}\nslices:\n  \
                   - sources:\n      - {model: MATH, layer_range: [1, 2]}\n      - {model: BASE, layer_range: [0, 1]}\n      \
                   - {model: CODE, layer_range: [0, 1]}\n";
    for (name, text) in [("stack", stack), ("crossed", crossed)] {
        let ours = merge(name, text, [&base, &adapted("math"), &adapted("code")]);
        let theirs = [whole("base"), whole("math"), whole("code")];
        let theirs = merge(&format!("{name}-whole"), text, [&theirs[0], &theirs[1], &theirs[2]]);
        assert!(ours.keys().eq(theirs.keys()));
        for (tensor, values) in &ours {
            assert!(*values == theirs[tensor], "{name}: {tensor}");
        }
    }
}

#[test]
fn an_applied_adapter_has_the_bits_of_the_formula() {
    let golden = std::fs::read_to_string(fixture("golden/lora.json")).unwrap();
    let golden: BTreeMap<String, BTreeMap<String, String>> = serde_json::from_str(&golden).unwrap();
    let dir = TempDir::new().unwrap();
    apply(fixture("llama/base").to_str().unwrap(), &dir.path().join("base"));
    let base = weights(&dir.path().join("base"));
    for name in ADAPTERS {
        let out = dir.path().join(name);
        let before = snapshot(&fixture("lora"));
        apply(&adapted(name), &out);
        assert_eq!(snapshot(&fixture("lora")), before);
        assert!(golden[name].len() >= 4);
        for (tensor, (_, bytes)) in weights(&out) {
            match golden[name].get(&tensor) {
                Some(expected) => assert_eq!(sha256(&bytes), *expected, "{name} {tensor}"),
                None => assert!(bytes == base[&tensor].1, "{name} {tensor} was not adapted"),
            }
        }
    }
}

#[test]
fn experts_with_adapters_merge_as_the_models_they_make() {
    let dir = TempDir::new().unwrap();
    for name in ADAPTERS {
        apply(&adapted(name), &dir.path().join(name));
    }
    for (k, args) in [
        &["--variant", "a"][..],
        &["--variant", "d", "--scope", "tensor", "--dtype", "f32"],
        &["--method", "ties", "--param", "density=0.3", "--param", "weight=0.7"],
        &["--method", "linear", "--param", "weight=0.3", "--dtype", "f32"],
        &["--method", "model_stock", "--exclude", "*norm*"],
    ]
    .into_iter()
    .enumerate()
    {
        let (on_the_way, whole) =
            (dir.path().join(format!("a{k}")), dir.path().join(format!("b{k}")));
        let merge = |models: &dyn Fn(&str) -> String, out: &Path| {
            let mut command = reflow();
            command.arg("merge");
            if !args.contains(&"linear") {
                command.arg("--base").arg(fixture("llama/base"));
            }
            for name in ADAPTERS {
                command.args(["--expert", &models(name)]);
            }
            command.args(args).arg("--out").arg(out).assert().success();
        };
        merge(&adapted, &on_the_way);
        merge(&|name| dir.path().join(name).display().to_string(), &whole);
        assert!(weights(&on_the_way) == weights(&whole), "{args:?}");
    }
}

#[test]
fn a_base_with_an_adapter_is_the_model_that_it_makes() {
    let dir = TempDir::new().unwrap();
    apply(&adapted("code"), &dir.path().join("code"));
    // The embedding is not merged, and the output's.
    let merge = |base: &str, out: &str| {
        let mut command = reflow();
        command.args(["merge", "--base", base, "--expert", &adapted("math"), "--dtype", "f32"]);
        command.args(["--exclude", "*embed*", "--exclude", "lm_head*", "--out"]);
        command.arg(dir.path().join(out)).assert().success();
        weights(&dir.path().join(out))
    };
    let whole = dir.path().join("code").display().to_string();
    assert!(merge(&adapted("code"), "a") == merge(&whole, "b"));
    // Stored tensors keep the model's type, whatever the adapter's.
    let mut command = reflow();
    command.args(["merge", "--method", "passthrough", "--expert", &adapted("code"), "--out"]);
    command.arg(dir.path().join("kept")).assert().success();
    assert!(weights(&dir.path().join("kept")).values().all(|(dtype, _)| *dtype == Dtype::BF16));
}

#[test]
fn how_it_is_run_does_not_change_a_byte() {
    let dir = TempDir::new().unwrap();
    for scope in ["model", "tensor"] {
        let calm = dir.path().join(format!("calm-{scope}"));
        merge(&calm).args(["--scope", scope]).assert().success();
        let (expected, mut random) = (files(&calm), uniform(5));
        for k in 0..10 {
            let out = dir.path().join(format!("{scope}{k}"));
            let tile = ((random() * 3000.0) as u32 + 1).to_string();
            let (threads, io) =
                (["1", "2", "4"][k % 3], ["mmap", "pread", "direct"][(random() * 3.0) as usize]);
            let memory = if random() < 0.5 { "64MiB" } else { "512MiB" };
            merge(&out)
                .args(["--scope", scope, "--tile", &tile, "--threads", threads])
                .args(["--io", io, "--memory", memory])
                .assert()
                .success();
            assert!(files(&out) == expected, "{scope} {tile} {threads} {io} {memory}");
        }
    }
}

#[test]
fn a_model_that_several_adapters_share_is_read_once() {
    let plan = |args: &[&str]| -> Value {
        let mut command = reflow();
        command.args(["plan", "--json", "--method", "linear", "--param", "weight=1"]).args(args);
        let done = command.assert().success();
        serde_json::from_slice(&done.get_output().stdout).unwrap()
    };
    let base = fixture("llama/base").display().to_string();
    let alone = plan(&["--expert", &base]);
    let (math, prose) = (adapted("math"), adapted("prose"));
    let shared = plan(&["--expert", &base, "--expert", &math, "--expert", &prose]);
    assert_eq!(shared["plan"]["read"], alone["plan"]["read"]);
    assert_eq!(shared["plan"]["adapters"][0]["low_rank"], 12);
    assert_eq!(shared["plan"]["adapters"][1]["ranks"], json!([2, 2]));
}

#[test]
fn recipes_name_adapters_as_mergekit_does() {
    let dir = TempDir::new().unwrap();
    let path = |name: &str| fixture(name).display().to_string();
    let (base, math, code) = (path("llama/base"), path("lora/math"), path("lora/code"));
    let head = format!("merge_method: pcb\nbase_model: {base}\nmodels:\n");
    let recipes = [
        format!("{head}  - model: {base}+{math}\n  - model: {base}+{code}\n"),
        format!(
            "{head}  - model: {{model: {base}, lora: {math}}}\n  - model: {{model: {{path: {base}}}, lora: {{path: {code}}}}}\n"
        ),
    ];
    let mut made = Vec::new();
    for (k, text) in recipes.iter().enumerate() {
        let (recipe, out) = (dir.path().join(format!("{k}.yml")), dir.path().join(k.to_string()));
        std::fs::write(&recipe, text).unwrap();
        reflow().arg("merge").arg(&recipe).arg("--out").arg(&out).assert().success();
        made.push(files(&out));
    }
    assert!(made[0] == made[1]);
    let card = String::from_utf8(made[0][Path::new("README.md")].clone()).unwrap();
    assert!(card.contains("base+math") && card.contains("adapter\\_config.json"), "{card}");
    assert!(!card.contains(env!("CARGO_MANIFEST_DIR")), "{card}");
}

#[test]
fn a_killed_merge_goes_on_and_a_changed_adapter_ends_it() {
    let dir = TempDir::new().unwrap();
    let (calm, out) = (dir.path().join("calm"), dir.path().join("out"));
    let adapter = dir.path().join("math");
    std::fs::create_dir(&adapter).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(fixture("lora/math").join(name), adapter.join(name)).unwrap();
    }
    let run = |out: &Path, args: &[&str]| {
        let mut command = reflow();
        let (base, code) = (fixture("llama/base"), adapted("code"));
        let math = format!("{}+{}", base.display(), adapter.display());
        command.args(["merge", "-q", "--base"]).arg(base).args(["--expert", &math]);
        command.args(["--expert", &code, "--checkpoint", "60000", "--shard-size", "100000"]);
        command.arg("--out").arg(out).args(args).output().unwrap()
    };
    assert!(run(&calm, &[]).status.success());
    for (k, io) in (3..200).step_by(9).zip(["mmap", "pread", "direct"].into_iter().cycle()) {
        let point = format!("kill:{k}");
        let killed = !run(&out, &["--failpoint", &point]).status.success();
        if killed && !out.exists() {
            let done = run(&out, &["--io", io, "--tile", &(97 * k + 5).to_string()]);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        }
        if killed && out.exists() {
            // Killed after the commit, amid the sweeping.
            run(&out, &[]);
        }
        assert!(files(&out) == files(&calm), "{k}");
        std::fs::remove_dir_all(&out).unwrap();
        let _nothing = std::fs::remove_dir_all(dir.path().join("out.partial"));
    }
    assert!(!run(&out, &["--failpoint", "kill:25"]).status.success());
    let config = adapter.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("\"lora_alpha\": 8", "\"lora_alpha\": 9")).unwrap();
    let refused = run(&out, &[]);
    assert_eq!(refused.status.code(), Some(10));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("adapter_config.json has changed"));
}

/// A family whose first tensor an adapter of the test's own may change.
struct Hostile(TempDir);

impl Hostile {
    fn new() -> Self {
        let hostile = Self(TempDir::new().unwrap());
        write_family(hostile.0.path(), &family(1, Dtype::F32, 4), &[1]);
        hostile.adapter(&[0.5; 48], &[0.25; 102]);
        hostile
    }

    /// Rank 2 for a tensor of 51 x 24.
    fn adapter(&self, a: &[f32], b: &[f32]) {
        let module = "base_model.model.model.layers.0.mlp.up_proj";
        let adapter = Checkpoint::default()
            .with(&format!("{module}.lora_A.weight"), Dtype::F32, &[2, 24], a)
            .with(&format!("{module}.lora_B.weight"), Dtype::F32, &[51, 2], b);
        let dir = self.0.path().join("adapter");
        adapter.write(&dir, 1);
        std::fs::rename(dir.join("model.safetensors"), dir.join("adapter_model.safetensors"))
            .unwrap();
        self.config(json!({}));
    }

    fn config(&self, extra: Value) {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2});
        let (Value::Object(all), Value::Object(extra)) = (&mut config, extra) else { panic!() };
        all.extend(extra);
        std::fs::write(self.0.path().join("adapter/adapter_config.json"), config.to_string())
            .unwrap();
    }

    fn run(&self, args: &[&str]) -> assert_cmd::assert::Assert {
        let mut command = reflow();
        command.current_dir(self.0.path()).args(["merge", "--base", "base"]).args(args);
        command.args(["--out", "out"]).assert()
    }
}

#[test]
fn values_that_are_not_finite_are_named_or_count_as_the_bases() {
    let hostile = Hostile::new();
    let mut a = [0.5; 48];
    a[24 + 7] = f32::NAN;
    hostile.adapter(&a, &[0.25; 102]);
    hostile
        .run(&["--expert", "base+adapter"])
        .code(3)
        .stderr(contains("base+adapter: tensor base_model.model.model.layers.0.mlp.up_proj.lora_A.weight, element 31"))
        .stderr(contains("is NaN"));
    let all = [
        "--expert",
        "base+adapter",
        "--nonfinite",
        "base",
        "--method",
        "task_arithmetic",
        "--param",
        "weight=1",
    ];
    hostile.run(&all).success();
    let (merged, base) =
        (weights(&hostile.0.path().join("out")), weights(&hostile.0.path().join("base")));
    let tensor = "model.layers.0.mlp.up_proj.weight";
    for (k, (x, y)) in merged[tensor].1.chunks(4).zip(base[tensor].1.chunks(4)).enumerate() {
        assert_eq!(x == y, k % 24 == 7, "{k}");
    }
    // Finite matrices whose product is not.
    hostile.adapter(&[1e30; 48], &[1e30; 102]);
    std::fs::remove_dir_all(hostile.0.path().join("out")).unwrap();
    hostile.run(&["--expert", "base+adapter"]).code(3).stderr(
        contains("tensor model.layers.0.mlp.up_proj.weight, element 0").and(contains("is inf")),
    );
}

#[test]
fn what_is_wrong_is_said_before_anything_is_written() {
    let hostile = Hostile::new();
    for (model, parts) in [
        ("base+gone", ["cannot read gone", "No such file"]),
        ("base+expert1", ["expert1 is not a LoRA adapter", "no adapter_config.json"]),
        ("adapter", ["adapter is not a checkpoint", "MODEL+ADAPTER"]),
        ("gone+adapter", ["cannot read gone", "No such file"]),
        ("expert1+adapter+adapter", ["cannot read expert1+adapter", "No such file"]),
    ] {
        let done = hostile.run(&["--expert", model]).code(3);
        let stderr = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
        parts.iter().for_each(|part| assert!(stderr.contains(part), "{model}: {stderr}"));
    }
    hostile.config(json!({"use_dora": true}));
    hostile.run(&["--expert", "base+adapter"]).code(3).stderr(contains("DoRA"));
    hostile.config(json!({"peft_type": "VERA\u{1b}]0;x\u{7}"}));
    let done = hostile.run(&["--expert", "base+adapter"]).code(3).stderr(contains("VERA"));
    assert!(!done.get_output().stderr.contains(&0x1b));
    hostile.config(json!({"target_modules": ["a\u{1b}"], "odd\u{1b}": 1}));
    let done = hostile.run(&["--expert", "base+adapter"]).code(3).stderr(contains("--lenient"));
    assert!(!done.get_output().stderr.contains(&0x1b));
    hostile.run(&["--expert", "base+adapter", "--lenient"]).success();
    std::fs::remove_dir_all(hostile.0.path().join("out")).unwrap();
    hostile.config(json!({}));
    let mut inside = reflow();
    inside.current_dir(hostile.0.path()).args([
        "merge",
        "--base",
        "base",
        "--expert",
        "base+adapter",
    ]);
    inside.args(["--out", "adapter/out"]).assert().code(2).stderr(contains("never changed"));
    let there: Vec<_> = files(hostile.0.path()).into_keys().collect();
    assert!(there.iter().all(|path| !path.starts_with("out")), "{there:?}");
}

#[test]
fn a_tied_head_follows_its_embedding() {
    let dir = TempDir::new().unwrap();
    let config = json!({"model_type": "llama", "vocab_size": 5, "tie_word_embeddings": true});
    let values: Vec<f32> = (0..15).map(|k| k as f32).collect();
    let embedding = "model.embed_tokens.weight";
    let base = Checkpoint::default().config(config).with(embedding, Dtype::F32, &[5, 3], &values);
    base.write(&dir.path().join("once"), 1);
    base.with("lm_head.weight", Dtype::F32, &[5, 3], &values).write(&dir.path().join("twice"), 1);
    let adapter = |name: &str, a: &str, b: &str| {
        let of = |key: &str| format!("base_model.model.{key}");
        let adapter = Checkpoint::default()
            .with(
                &of(a),
                Dtype::F32,
                if a.contains("embedding") { &[1, 5] } else { &[1, 3] },
                &values[..if a.contains("embedding") { 5 } else { 3 }],
            )
            .with(
                &of(b),
                Dtype::F32,
                if a.contains("embedding") { &[3, 1] } else { &[5, 1] },
                &values[..if a.contains("embedding") { 3 } else { 5 }],
            );
        let dir = dir.path().join(name);
        adapter.write(&dir, 1);
        std::fs::rename(dir.join("model.safetensors"), dir.join("adapter_model.safetensors"))
            .unwrap();
        let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1});
        std::fs::write(dir.join("adapter_config.json"), config.to_string()).unwrap();
    };
    adapter("embed", "model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_B");
    adapter("head", "lm_head.lora_A.weight", "lm_head.lora_B.weight");
    let run = |model: &str, out: &str| {
        let mut command = reflow();
        command.current_dir(dir.path()).args([
            "merge",
            "--method",
            "passthrough",
            "--expert",
            model,
        ]);
        command.args(["--out", out]).assert()
    };
    run("once+embed", "a").success();
    run("twice+embed", "b").success();
    let (a, b) = (weights(&dir.path().join("a")), weights(&dir.path().join("b")));
    assert!(a == b && a.len() == 1);
    let merged: Vec<f32> =
        a[embedding].1.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let expected: Vec<f32> = (0..15).map(|k| (k + k / 3 * (k % 3)) as f32).collect();
    assert_eq!(merged, expected);
    // Stored twice, changed twice.
    let mut both = reflow();
    both.current_dir(dir.path()).args(["merge", "--method", "passthrough", "--count-aliases"]);
    both.args(["--expert", "twice+embed", "--out", "both"]).assert().success();
    let both = weights(&dir.path().join("both"));
    assert!(both["lm_head.weight"] == a[embedding] && both[embedding] == a[embedding]);
    run("twice+head", "c").code(3).stderr(contains("ties to model.embed_tokens.weight"));
    run("once+head", "c").code(3).stderr(contains("the model no tensor lm_head.weight"));
}
