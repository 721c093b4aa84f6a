//! Searches: candidates are what merges would make, evaluations may fail or hang, and a search that is killed goes on.

use std::path::Path;

use predicates::str::contains;
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::{files, reflow};

/// A family with a recipe, and a program that scores a model by the lambdas in its recipe: best at 1.1 and 0.9.
fn scene() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(2, Dtype::BF16, 11), &[2, 1]);
    let recipe =
        "merge_method: pcb\nbase_model: base\nmodels: [{model: expert1}, {model: expert2}]\n";
    std::fs::write(dir.path().join("r.yml"), recipe).unwrap();
    let score = r#"
test -e "$1/model.safetensors" || exit 9
echo x >> runs
set -- $(sed -n 's/.*{lambda: \([-0-9.e]*\)}/\1/p' "$1/reflow_recipe.yml")
echo "lambdas $1 $2"
awk -v a="$1" -v b="$2" 'BEGIN { printf "%.9f\n", 1 - (a - 1.1)^2 - (b - 0.9)^2 }'
"#;
    std::fs::write(dir.path().join("score.sh"), score).unwrap();
    dir
}

fn search(dir: &Path, args: &[&str]) -> assert_cmd::Command {
    let mut command = reflow();
    command.current_dir(dir).args(["search", "r.yml", "--out", "found"]).args(args);
    command
}

const SCORE: [&str; 2] = ["--evaluate", "sh score.sh {model}"];

fn report(dir: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join("found/search.json")).unwrap()).unwrap()
}

/// What was tried and how it ended, without times.
fn trials(report: &Value) -> Vec<(Value, Value)> {
    let trials = report["trials"].as_array().unwrap().iter();
    trials.map(|trial| (trial["point"].clone(), trial["outcome"].clone())).collect()
}

#[test]
fn evolution_comes_near_the_best_lambdas_and_the_best_is_a_merge_like_any() {
    let scene = scene();
    let dir = scene.path();
    search(dir, &SCORE).args(["--budget", "60", "--seed", "1"]).assert().success();
    let found = report(dir);
    let best = found["best"].as_u64().unwrap() as usize;
    let best = &found["trials"][best - 1];
    let score = best["outcome"]["score"].as_f64().unwrap();
    assert!(score > 0.999, "{score}");
    assert_eq!(found["trials"].as_array().unwrap().len(), 60);
    assert_eq!(found["trials"][0]["point"]["lambdas"], serde_json::json!([1.0, 1.0]));
    let lambdas: Vec<f64> =
        best["point"]["lambdas"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    let mut command = reflow();
    command.current_dir(dir).args(["merge", "--base", "base", "--out", "plain"]);
    for (i, lambda) in lambdas.iter().enumerate() {
        command.arg("--expert").arg(format!("expert{}={lambda}", i + 1));
    }
    command.assert().success();
    assert!(files(&dir.join("plain")) == files(&dir.join("found/best")));
    let svg = std::fs::read_to_string(dir.join("found/trials.svg")).unwrap();
    // One for each trial, and one for the line of the best one.
    assert_eq!(svg.matches("<title>").count(), 61);
    // What it took on the way is gone.
    let left: Vec<_> = files(&dir.join("found/work")).into_keys().collect();
    assert_eq!(left, [Path::new("journal"), Path::new("lock")]);
    search(dir, &SCORE).args(["--budget", "60", "--seed", "1"]).assert().code(5);
    // More of the same goes on.
    search(dir, &SCORE).args(["--budget", "64", "--seed", "1"]).assert().success();
    assert_eq!(trials(&report(dir))[..60], trials(&found)[..]);
}

#[test]
fn a_search_that_is_killed_goes_on_to_the_same_end() {
    let scene = scene();
    let dir = scene.path();
    let args = ["--budget", "14", "--bounds", "nlp", "--init", "1.2,0.8"];
    search(dir, &SCORE).args(args).assert().success();
    let (expected, best) = (report(dir), files(&dir.join("found/best")));
    let runs = || std::fs::read_to_string(dir.join("runs")).unwrap().lines().count();
    let undisturbed = runs();
    std::fs::remove_dir_all(dir.join("found")).unwrap();
    let mut kills = 0;
    for after in (15..).step_by(30).take(20) {
        let point = format!("kill:{after}");
        let done = search(dir, &SCORE).args(args).args(["--failpoint", &point]).output().unwrap();
        if done.status.success() {
            break;
        }
        assert!(!dir.join("found/search.json").exists());
        kills += 1;
    }
    if !dir.join("found/search.json").exists() {
        search(dir, &SCORE).args(args).assert().success();
    }
    assert!(kills > 2, "{kills}");
    assert_eq!(trials(&report(dir)), trials(&expected));
    assert!(files(&dir.join("found/best")) == best);
    // Each evaluation that was journaled was made once; a kill costs at most the one under way.
    assert!(runs() - undisturbed <= undisturbed + kills, "{} {undisturbed} {kills}", runs());
    // Another search does not go on with it.
    search(dir, &["--evaluate", "echo {model} 1"]).args(args).assert().code(10);
}

#[test]
fn failures_are_recorded_and_are_not_the_end() {
    let scene = scene();
    let dir = scene.path();
    let script = "n=$(wc -l < runs 2>/dev/null || echo 0); echo x >> runs\ncase $n in 0) exit 3;; 1) sleep 60;; \
                  2) echo nonsense;; *) echo \"0.$n\";; esac\n";
    std::fs::write(dir.join("score.sh"), script).unwrap();
    let grid = ["--grid", "keep=0.05,0.1", "scope=model,tensor", "lambda=1,1.4", "--timeout", "2"];
    search(dir, &SCORE).args(grid).assert().success().stdout(contains("8 trials, 3 failed"));
    let found = report(dir);
    let all = trials(&found);
    for (k, part) in
        ["exit code 3", "more than 2 s", "no finite number: nonsense"].iter().enumerate()
    {
        assert!(all[k].1["failure"].as_str().unwrap().contains(part), "{:?}", all[k]);
    }
    assert_eq!(found["best"], 8);
    let mut command = reflow();
    command.current_dir(dir).args(["merge", "--base", "base", "--expert", "expert1=1.4"]);
    command.args([
        "--expert",
        "expert2=1.4",
        "--keep",
        "0.1",
        "--scope",
        "tensor",
        "--out",
        "plain",
    ]);
    command.assert().success();
    assert!(files(&dir.join("plain")) == files(&dir.join("found/best")));
    // Nothing but failures is an error.
    std::fs::remove_dir_all(dir.join("found")).unwrap();
    let mut command = search(dir, &["--evaluate", "echo oh; false {model}"]);
    let none = command.args(["--grid", "lambda=1,2"]).assert().code(1);
    none.stderr(contains("none of 2 evaluations gave a score; the last one failed"));
    assert!(!dir.join("found/best").exists());
}

#[test]
fn what_makes_no_sense_is_refused_first() {
    let scene = scene();
    let dir = scene.path();
    for (args, part) in [
        (&["--evaluate", "true"][..], "must name {model}"),
        (&["--evaluate", "x {model}", "--budget", "0"], "must be above 0"),
        (&["--evaluate", "x {model}", "--init", "2,1"], "within the bounds, 0.8..1.3"),
        (&["--evaluate", "x {model}", "--init", "1,1,1"], "3 given for 2 experts"),
        (&["--evaluate", "x {model}", "--bounds", "3..1"], "LOW..HIGH"),
        (&["--evaluate", "x {model}", "--grid", "kep=0.1"], "did you mean keep?"),
        (
            &["--evaluate", "x {model}", "--grid", "keep=0.1,0.2", "--budget", "1"],
            "the grid has 2 points",
        ),
        (&["--evaluate", "x {model}", "--grid", "keep=0.1", "--seed", "3"], "cannot be used with"),
        (&["--evaluate", "x {model}", "--timeout", "1d"], "not a duration"),
    ] {
        search(dir, args).assert().code(2).stderr(contains(part));
        assert!(!dir.join("found").exists(), "{args:?}");
    }
    let gone = "merge_method: pcb\nbase_model: nowhere\nmodels: [{model: expert1}]\n";
    std::fs::write(dir.join("r.yml"), gone).unwrap();
    search(dir, &SCORE).assert().failure().stderr(contains("nowhere"));
    assert!(!dir.join("found").exists());
    let ties = "merge_method: ties\nbase_model: base\nmodels: [{model: expert1}]\nparameters: {weight: 1}\n";
    std::fs::write(dir.join("r.yml"), ties).unwrap();
    search(dir, &SCORE).assert().code(2).stderr(contains("try --grid for ties"));
    // Any method in a grid.
    let mut command = search(dir, &["--evaluate", "echo 1; : {model}"]);
    command.args(["--grid", "density=0.3,0.6", "lambda=0.5,1"]).assert().success();
    assert_eq!(report(dir)["trials"].as_array().unwrap().len(), 4);
}
