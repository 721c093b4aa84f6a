//! Recipe files with several merges, of which some use the outputs of others.

use std::path::Path;

use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::{contains, is_empty};
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::{files, reflow, snapshot};

const RECIPE: &str = "merge_method: slerp\nbase_model: both\nmodels: [{model: expert3}]\nparameters: {t: 0.3}\n\
                      tokenizer_source: base\n---\nname: both\nmerge_method: linear\nmodels: [{model: expert1}, {model: half}]\n\
                      parameters: {weight: 1}\n---\nname: half\nmerge_method: task_arithmetic\nbase_model: base\nmodels: [{model: \
                      expert2}]\nparameters: {weight: 0.5}\n";

fn on_disk() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(3, Dtype::F32, 11), &[2, 1]);
    dir
}

fn run(dir: &Path, command: &[&str], recipe: &str) -> assert_cmd::Command {
    std::fs::write(dir.join("r.yml"), recipe).unwrap();
    let mut reflow = reflow();
    reflow.current_dir(dir).args(command).arg("r.yml");
    reflow
}

#[test]
fn merges_run_in_order_and_give_what_they_give_one_by_one() {
    let dir = on_disk();
    let merge = run(dir.path(), &["merge", "--out", "out"], RECIPE).assert().success();
    merge.stdout("out\n").stderr(
        contains("merge 1 of 3: out.stages/half")
            .and(contains("merge 2 of 3: out.stages/both"))
            .and(contains("merge 3 of 3: out")),
    );
    let parts: Vec<&str> = RECIPE.split("---\n").collect();
    for (name, recipe) in [("half", parts[2]), ("both", parts[1]), ("alone", parts[0])] {
        let recipe = recipe.replace(&format!("name: {name}\n"), "");
        run(dir.path(), &["merge", "--out", name], &recipe).assert().success();
    }
    for (staged, alone) in
        [("out.stages/half", "half"), ("out.stages/both", "both"), ("out", "alone")]
    {
        assert_eq!(files(&dir.path().join(staged)), files(&dir.path().join(alone)), "{alone}");
    }
    reflow().arg("verify").arg(dir.path().join("out.stages/both")).assert().success();
}

#[test]
fn what_is_made_is_not_made_again_and_what_others_made_is_not_used() {
    let dir = on_disk();
    let command = ["merge", "--intermediate-dir", "parts", "--out", "out"];
    run(dir.path(), &command, RECIPE).assert().success();
    let (parts, out) = (dir.path().join("parts"), dir.path().join("out"));
    let (made, whole) = (snapshot(&parts), files(&out));
    // All there: the output is in the way, as always, and nothing is done before that is found out.
    run(dir.path(), &command, RECIPE).assert().code(5).stderr(contains("merge 1").not());
    std::fs::remove_dir_all(&out).unwrap();
    run(dir.path(), &command, RECIPE).assert().success().stderr(contains("it is made already"));
    assert_eq!((snapshot(&parts), files(&out)), (made, whole.clone()));
    // A first stage that differs makes all after it differ, whose headers are the same as before.
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::remove_dir_all(parts.join("half")).unwrap();
    let other = RECIPE.replace("weight: 0.5", "weight: 0.25");
    run(dir.path(), &command, &other)
        .assert()
        .code(5)
        .stderr(contains("parts/both exists already"));
    std::fs::remove_dir_all(parts.join("both")).unwrap();
    run(dir.path(), &command, &other).assert().success();
    assert_ne!(files(&out), whole);
}

#[test]
fn a_chain_that_was_killed_goes_on_at_the_stage_it_was_in() {
    let dir = on_disk();
    run(dir.path(), &["merge", "--out", "calm"], RECIPE).assert().success();
    for after in [3, 40, 80] {
        let failpoint = format!("kill:{after}");
        let out = format!("out{after}");
        let command = ["merge", "--failpoint", &failpoint, "--checkpoint", "3000", "--out", &out];
        // Each stage counts its calls anew: the first that makes so many stops.
        run(dir.path(), &command, RECIPE).assert().failure();
        assert!(!dir.path().join(&out).exists());
        run(dir.path(), &["merge", "--out", &out], RECIPE).assert().success();
        assert_eq!(files(&dir.path().join(&out)), files(&dir.path().join("calm")), "{after}");
    }
}

#[test]
fn the_plan_tells_what_waits_for_what() {
    let dir = on_disk();
    let before = snapshot(dir.path()).len();
    run(dir.path(), &["plan", "--out", "out"], RECIPE).assert().success().stdout(
        contains("out.stages/half:\n")
            .and(contains("out.stages/both: planned when half is made"))
            .and(contains("out: planned when both is made")),
    );
    let json = run(dir.path(), &["plan", "--out", "out", "--json"], RECIPE).assert().success();
    let json: serde_json::Value = serde_json::from_slice(&json.get_output().stdout).unwrap();
    assert_eq!(json["stages"][0]["name"], "half");
    assert_eq!(json["stages"][2]["waits_for"][0], "both");
    // The recipe, and nothing else.
    assert_eq!(snapshot(dir.path()).len(), before + 1);
    run(dir.path(), &["merge", "--out", "out"], RECIPE).assert().success();
    run(dir.path(), &["plan", "--intermediate-dir", "out.stages"], RECIPE)
        .assert()
        .success()
        .stdout(contains("the output:\n").and(contains("planned when").not()));
}

#[test]
fn what_cannot_work_stops_before_the_first_merge() {
    let dir = on_disk();
    for (recipe, command, code, part) in [
        (
            RECIPE.replace("t: 0.3", "tt: 0.3"),
            ["--intermediate-dir", "parts"],
            2,
            "no such parameter",
        ),
        (
            RECIPE.replace("model: half", "model: both"),
            ["--intermediate-dir", "parts"],
            2,
            "each needs another",
        ),
        (
            RECIPE.replace("name: half", "name: ../half"),
            ["--intermediate-dir", "parts"],
            2,
            "letters, digits",
        ),
        (
            RECIPE.to_owned(),
            ["--intermediate-dir", "out/parts"],
            2,
            "--intermediate-dir: it lies in the output",
        ),
    ] {
        let all = ["merge", "--out", "out", command[0], command[1]];
        run(dir.path(), &all, &recipe)
            .assert()
            .code(code)
            .stdout(is_empty())
            .stderr(contains(part));
        assert!(!dir.path().join("parts").exists() && !dir.path().join("out").exists());
    }
}
