//! The chat template of an output: the recipe's choice, wherever a loader looks.

use std::path::Path;

use predicates::str::contains;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::{files, reflow, snapshot};

fn write(path: &Path, text: impl AsRef<[u8]>) {
    std::fs::write(path, text).unwrap();
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `base` and three experts, each with a tokenizer of its own; the processor of the base has a template, too.
fn scene() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(3, Dtype::F32, 5), &[1]);
    for (name, template) in [
        ("base", json!("of the base {{ messages }}")),
        ("expert1", json!("of two {{ messages }}")),
        ("expert2", json!([{"name": "default", "template": "of two {{ messages }}\n"}])),
        ("expert3", json!(null)),
    ] {
        let at = dir.path().join(name);
        write(&at.join("tokenizer.json"), json!({"model": {"vocab": {}}}).to_string());
        let config = json!({"model_max_length": 1e30, "chat_template": template, "of": name});
        write(&at.join("tokenizer_config.json"), config.to_string());
    }
    write(&dir.path().join("base/chat_template.json"), json!({"chat_template": "old"}).to_string());
    dir
}

fn merge(dir: &Path, line: &str, out: &str, args: &[&str]) -> assert_cmd::assert::Assert {
    let models = ["expert1", "expert2", "expert3"];
    let models =
        models.map(|name| format!("{{model: {name}, parameters: {{lambda: 1}}}}")).join(", ");
    let models = format!("base_model: base\nmodels: [{models}]");
    write(&dir.join("r.yml"), format!("merge_method: pcb\n{models}\n{line}\n"));
    reflow().current_dir(dir).args(["merge", "r.yml", "--out", out]).args(args).assert()
}

/// What the loaders of an output find, all of them the same.
fn found(out: &Path) -> String {
    let text = std::fs::read_to_string(out.join("chat_template.jinja")).unwrap();
    for name in ["tokenizer_config.json", "chat_template.json"] {
        assert_eq!(json(&out.join(name))["chat_template"], text, "{name}");
    }
    text
}

#[test]
fn the_template_is_the_one_that_the_recipe_names() {
    let dir = scene();
    let dir = dir.path();
    let models = || ["base", "expert1", "expert2", "expert3"].map(|name| snapshot(&dir.join(name)));
    let before = models();
    merge(dir, "chat_template: chatml", "named", &[]).success();
    let named = found(&dir.join("named"));
    assert!(named.contains("'<|im_start|>'") && named.contains("add_generation_prompt"), "{named}");
    let own = "a {{ messages[0]['content'] }} \\\"b\\\"\\n";
    merge(dir, &format!("chat_template: \"{own}\""), "own", &[]).success();
    assert_eq!(found(&dir.join("own")), "a {{ messages[0]['content'] }} \"b\"\n");
    merge(dir, "chat_template: auto", "auto", &[]).success();
    assert_eq!(found(&dir.join("auto")), "of two {{ messages }}");
    // All else in these files is the base's.
    let config = json(&dir.join("auto/tokenizer_config.json"));
    assert_eq!((&config["of"], &config["model_max_length"]), (&json!("base"), &json!(1e30)));
    merge(dir, "", "none", &[]).success();
    assert!(!dir.join("none/chat_template.jinja").exists());
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let [ours, base] =
            ["none", "base"].map(|of| std::fs::read(dir.join(of).join(name)).unwrap());
        assert_eq!(ours, base, "{name}");
    }
    assert_eq!(models(), before);
    reflow().args(["verify"]).arg(dir.join("named")).assert().success();
}

#[test]
fn models_are_asked_in_order() {
    let dir = scene();
    let dir = dir.path();
    // A file of its own goes before the config, as in transformers.
    write(&dir.join("expert1/chat_template.jinja"), "{{ messages }} of one");
    merge(dir, "chat_template: auto", "auto", &[])
        .success()
        .stderr(contains("3 templates are equally frequent; that of base is taken"));
    assert_eq!(found(&dir.join("auto")), "of the base {{ messages }}");
    for name in ["base", "expert1", "expert2"] {
        write(&dir.join(name).join("tokenizer_config.json"), "{}");
    }
    std::fs::remove_file(dir.join("expert1/chat_template.jinja")).unwrap();
    std::fs::remove_file(dir.join("base/chat_template.json")).unwrap();
    merge(dir, "chat_template: auto", "nobody", &[])
        .success()
        .stderr(contains("chat_template: no model has one"));
    assert!(!dir.join("nobody/chat_template.jinja").exists());
    write(&dir.join("expert2/tokenizer_config.json"), "{");
    merge(dir, "chat_template: auto", "broken", &[])
        .code(3)
        .stderr(contains("expert2/tokenizer_config.json is malformed"));
}

#[test]
fn a_template_follows_the_components() {
    let dir = scene();
    let dir = dir.path();
    merge(dir, "chat_template: mistral", "merged", &["--components", "kept"]).success();
    let again = [
        "recombine",
        "--components",
        "kept",
        "--base",
        "base",
        "--lambda",
        "1,1,1",
        "--out",
        "again",
    ];
    reflow().current_dir(dir).args(again).assert().success();
    let mut whole = files(&dir.join("merged"));
    for (name, bytes) in files(&dir.join("again")) {
        assert!(whole.remove(&name).as_ref() == Some(&bytes), "{}", name.display());
    }
    assert!(whole.is_empty());
    merge(dir, "chat_template: auto", "no", &["--components", "more"])
        .code(2)
        .stderr(contains("whose chat template is taken"));
}
