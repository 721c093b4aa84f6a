//! Recipe files on the command line; what they mean is tested where they are read.

use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::{contains, is_empty};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::{reflow, snapshot};

/// `reflow COMMAND r.yml` in `dir`, where HOME is.
fn run(dir: &Path, command: &[&str], recipe: &str) -> Command {
    std::fs::write(dir.join("r.yml"), recipe).unwrap();
    let mut reflow = reflow();
    reflow.env_remove("HF_HUB_CACHE").env_remove("HF_HOME").env_remove("XDG_CACHE_HOME");
    reflow.current_dir(dir).env("HOME", dir).args(command).arg("r.yml");
    reflow
}

fn on_disk() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(2, Dtype::BF16, 3), &[2, 1]);
    dir
}

#[test]
fn models_of_the_hub_are_found_in_the_cache_and_nowhere_else() {
    let dir = on_disk();
    let recipe = "merge_method: pcb\nbase_model: base\nmodels: [{model: org/math}]\n";
    run(dir.path(), &["merge", "--out", "no"], recipe)
        .assert()
        .code(2)
        .stdout(is_empty())
        .stderr(contains("r.yml: line 3").and(contains("hf download org/math")));
    let model = dir.path().join(".cache/huggingface/hub/models--org--math");
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::create_dir_all(model.join("snapshots")).unwrap();
    std::fs::write(model.join("refs/main"), "0123abcd").unwrap();
    std::fs::rename(dir.path().join("expert1"), model.join("snapshots/0123abcd")).unwrap();
    let before = snapshot(&model);
    run(dir.path(), &["merge", "--out", "out"], recipe).assert().success();
    assert_eq!(snapshot(&model), before);
    let published = std::fs::read_to_string(dir.path().join("out/reflow_recipe.yml")).unwrap();
    assert!(published.contains("\"org/math\""), "{published}");
    // By flags, too; and a directory goes before the cache.
    let mut flags = run(dir.path(), &["plan"], recipe);
    flags.assert().success();
    let plan = |dir: &Path| {
        let mut reflow = reflow();
        reflow.env_remove("HF_HUB_CACHE").env_remove("HF_HOME").env_remove("XDG_CACHE_HOME");
        reflow.current_dir(dir).env("HOME", dir);
        reflow.args(["plan", "--base", "base", "--expert", "org/math=1.5"]);
        reflow.assert()
    };
    plan(dir.path()).success().stdout(contains("org/math"));
    std::fs::create_dir_all(dir.path().join("org/math")).unwrap();
    plan(dir.path()).code(3);
}

#[test]
fn revisions_are_those_of_the_cache() {
    let dir = on_disk();
    let model = dir.path().join(".cache/huggingface/hub/models--org--math");
    let (new, old) = ("a".repeat(40), "b".repeat(40));
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::create_dir_all(model.join("snapshots")).unwrap();
    std::fs::write(model.join("refs/main"), &new).unwrap();
    std::fs::write(model.join("refs/v1"), &old).unwrap();
    for (expert, commit) in [("expert1", &new), ("expert2", &old)] {
        std::fs::rename(dir.path().join(expert), model.join("snapshots").join(commit)).unwrap();
    }
    let merge = |out: &str, name: &str| {
        let recipe = format!("merge_method: pcb\nbase_model: base\nmodels: [{{model: {name}}}]\n");
        run(dir.path(), &["merge", "--out", out], &recipe).assert()
    };
    let old_name = format!("org/math@{old}");
    for (out, name) in [
        ("main", "org/math"),
        ("tag", "org/math@v1"),
        ("commit", &old_name),
        ("mapping", "{model: {path: org/math, revision: v1}}"),
    ] {
        merge(out, name).success();
        let published = dir.path().join(out).join("reflow_recipe.yml");
        let published = std::fs::read_to_string(published).unwrap();
        let wanted = if out == "main" { "\"org/math\"" } else { &format!("\"{old_name}\"") };
        assert!(published.contains(wanted), "{published}");
        let card = std::fs::read_to_string(dir.path().join(out).join("README.md")).unwrap();
        assert!(card.contains("\n- \"org/math\"\n"), "{card}");
    }
    let shard = |out: &str| std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap();
    assert!(shard("tag") == shard("commit") && shard("tag") == shard("mapping"));
    assert!(shard("tag") != shard("main"));
    merge("no", "org/math@v2")
        .code(2)
        .stderr(contains("line 3").and(contains("hf download org/math --revision v2")));
    merge("no", "./base@v1")
        .code(2)
        .stderr(contains("base is a directory, which has no revisions"));
    // By flags, too.
    let mut plan = reflow();
    plan.env_remove("HF_HUB_CACHE").env_remove("HF_HOME").env_remove("XDG_CACHE_HOME");
    plan.current_dir(dir.path()).env("HOME", dir.path());
    plan.args(["plan", "--base", "base", "--expert", "org/math@v1=1.5"]);
    plan.assert().success().stdout(contains(old_name));
}

#[test]
fn filters_that_do_nothing_are_warned_about() {
    let dir = on_disk();
    let recipe = "merge_method: pcb\nbase_model: base\nmodels:\n  - model: expert1\n    parameters:\n      \
                  lambda: [{value: 1}, {filter: mlp, value: 2}]\n  - model: expert2\nparameters: {lambda: {filter: mpl, value: 1}}\n";
    run(dir.path(), &["plan"], recipe).assert().success().stderr(
        contains("lambda of expert1: the filter \"mlp\" is never used")
            .and(contains("lambda: the filter \"mpl\" matches no tensor")),
    );
    run(
        dir.path(),
        &["plan"],
        &recipe.replace("mpl", "mlp").replace("{value: 1}, {filter: mlp, value: 2}", "1"),
    )
    .assert()
    .success()
    .stderr(contains("filter").not());
}

#[test]
fn what_a_recipe_cannot_have_stops_before_any_model_is_looked_at() {
    let dir = TempDir::new().unwrap();
    let small = "merge_method: pcb\nbase_model: ./no\nmodels: [{model: ./no/such}]\n";
    for (text, part) in [
        (format!("{small}slices: []\n"), "exactly one of"),
        (
            small.replace(
                "models: [{model: ./no/such}]",
                "modules: {m: {models: [{model: a}]}, n: {models: [{model: a}]}}",
            ),
            "the module \"m\" is unknown",
        ),
        (format!("{small}parameters: {{kep: 1}}\n"), "did you mean `keep`?"),
        (small.replace("pcb", "PCB"), "did you mean pcb?"),
    ] {
        run(dir.path(), &["merge", "--out", "out"], &text).assert().code(2).stderr(contains(part));
    }
}
