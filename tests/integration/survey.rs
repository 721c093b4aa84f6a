//! Grids over settings of PCB: one scan for several of them, and every candidate is what a merge makes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoint::{family, uniform, write_family};
use crate::support::{Checkpoint, files, reflow};

const RECIPE: &str =
    "merge_method: pcb\nbase_model: base\nmodels: [{model: expert1}, {model: expert2}]\n";

/// Keeps every candidate; each is as good as its number.
const KEEP: &str = r#"
n=$(ls saved 2>/dev/null | wc -l); mkdir -p saved; cp -r "$1" "saved/$n"; echo "$n"
"#;

fn prepare(dir: &Path) {
    std::fs::write(dir.join("r.yml"), RECIPE).unwrap();
    std::fs::write(dir.join("score.sh"), KEEP).unwrap();
}

/// So large that units are sampled.
fn large() -> TempDir {
    let dir = TempDir::new().unwrap();
    let shapes: [(&str, &[usize]); 5] = [
        ("model.layers.0.mlp.up_proj.weight", &[1060, 1000]),
        ("model.layers.0.input_layernorm.weight", &[1000]),
        ("model.layers.1.mlp.up_proj.weight", &[30, 100]),
        ("model.layers.1.input_layernorm.weight", &[100]),
        ("lm_head.weight", &[20, 100]),
    ];
    let mut random = uniform(5);
    let mut models =
        vec![Checkpoint::default().config(serde_json::json!({"model_type": "llama"})); 3];
    for (name, shape) in shapes {
        let size: usize = shape.iter().product();
        let base: Vec<f32> = (0..size).map(|_| (random() - 0.5) * 0.08).collect();
        for (k, model) in models.iter_mut().enumerate() {
            let values: Vec<f32> = base
                .iter()
                .map(|value| {
                    let step = (0..4).map(|_| random()).sum::<f32>() - 2.0;
                    if k == 0 { *value } else { value + step * step.abs() * 1e-3 }
                })
                .collect();
            *model = std::mem::take(model).with(name, Dtype::F32, shape, &values);
        }
    }
    let experts = models.split_off(1);
    write_family(dir.path(), &(models.remove(0), experts), &[1]);
    prepare(dir.path());
    dir
}

fn small() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(2, Dtype::BF16, 17), &[2, 1]);
    prepare(dir.path());
    dir
}

fn search(dir: &Path, grid: &[&str]) -> assert_cmd::Command {
    let mut command = reflow();
    command.current_dir(dir).args(["search", "r.yml", "--out", "found", "--evaluate"]);
    command.args(["sh score.sh {model}", "--grid"]).args(grid);
    command
}

fn trials(dir: &Path) -> Vec<Value> {
    let text = std::fs::read(dir.join("found/search.json")).unwrap();
    let report: Value = serde_json::from_slice(&text).unwrap();
    report["trials"].as_array().unwrap().clone()
}

/// The settings of a trial as `reflow merge` takes them.
fn flags(trial: &Value) -> (Vec<String>, String) {
    let settings = trial["point"]["settings"].as_array().unwrap().iter();
    let flags = settings.flat_map(|setting| {
        let [name, value] = [0, 1].map(|k| setting[k].as_str().unwrap());
        [format!("--{name}"), value.to_owned()]
    });
    let lambda = trial["point"]["lambdas"][0].as_f64();
    (flags.collect(), lambda.map_or_else(String::new, |lambda| format!("={lambda}")))
}

/// A merge by itself; what it has read, pass by pass.
fn merge(dir: &Path, trial: &Value, out: &str) -> BTreeMap<String, u64> {
    let (flags, lambda) = flags(trial);
    let mut command = reflow();
    command.current_dir(dir).args(["merge", "--json", "--base", "base", "--out", out]).args(flags);
    for k in 1..=2 {
        command.arg("--expert").arg(format!("expert{k}{lambda}"));
    }
    let told = command.assert().success().get_output().stdout.clone();
    let told: Value = serde_json::from_slice(&told).unwrap();
    let pass =
        |pass: &Value| (pass["name"].as_str().unwrap().to_owned(), pass["read"].as_u64().unwrap());
    told["passes"].as_array().unwrap().iter().map(pass).collect()
}

/// Demands that the candidates which were kept are those merges.
#[track_caller]
fn check(dir: &Path, trials: &[Value]) -> Vec<BTreeMap<String, u64>> {
    let merged = trials.iter().enumerate().map(|(k, trial)| {
        let passes = merge(dir, trial, "plain");
        let same = files(&dir.join("plain")) == files(&dir.join(format!("saved/{k}")));
        assert!(same, "{trial}");
        std::fs::remove_dir_all(dir.join("plain")).unwrap();
        passes
    });
    merged.collect()
}

#[test]
fn one_scan_serves_all_settings_of_a_scope_and_changes_no_byte() {
    let scene = large();
    let dir = scene.path();
    let grid = ["scope=model,layer", "variant=a,b,c,d", "keep=0.05,0.2"];
    let done = search(dir, &grid).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert_eq!(told.matches("one scan for 8 settings").count(), 2, "{told}");
    let trials = trials(dir);
    let merges = check(dir, &trials);
    // Model scope: samples and one scan, and a map for each.
    let read = |trials: &[Value]| trials.iter().map(|t| t["read"].as_u64().unwrap()).sum::<u64>();
    let scan = merges[0]["scan"];
    for (trials, merges) in [(&trials[..8], &merges[..8]), (&trials[8..], &merges[8..])] {
        let maps: u64 = merges.iter().map(|passes| passes["merge"]).sum();
        let whole: u64 =
            merges.iter().filter_map(|passes| passes.get("all passes in memory")).sum();
        let alone: u64 = merges.iter().flat_map(BTreeMap::values).sum();
        let surveyed = read(trials) - maps - whole;
        assert!(surveyed >= merges[0]["scan"] && surveyed < scan / 10 * 11, "{surveyed} {scan}");
        assert!(alone - maps - whole >= 8 * merges[0]["scan"]);
        for trial in &trials[1..] {
            assert!(trial["read"].as_u64().unwrap() <= maps / 8 + whole / 8);
        }
    }
    let best = files(&dir.join("found/best"));
    assert!(best == files(&dir.join("saved/15")));
    let left: Vec<_> = files(&dir.join("found/work")).into_keys().collect();
    assert_eq!(left, [Path::new("journal"), Path::new("lock")]);
}

#[test]
fn lambdas_and_settings_that_one_scan_cannot_tell_go_their_own_ways() {
    let scene = small();
    let dir = scene.path();
    let grid = ["keep=0.05,0.1", "lambda=1,1.4", "scope=model,tensor", "variant=c,paper"];
    let done = search(dir, &grid).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    // In tensors all passes are one read anyway, and `paper` has other statistics.
    assert_eq!(told.matches("one scan for").count(), 1, "{told}");
    assert_eq!(told.matches("one scan for 2 settings").count(), 1, "{told}");
    let trials = trials(dir);
    assert_eq!(trials.len(), 16);
    check(dir, &trials);
}

#[test]
fn a_search_that_is_killed_in_its_scan_or_behind_it_comes_to_the_same_end() {
    let scene = small();
    let dir = scene.path();
    let grid = ["keep=0.05,0.1,0.3", "scope=model,layer"];
    search(dir, &grid).assert().success();
    let (expected, best) = (trials(dir), files(&dir.join("found/best")));
    let without_times = |trials: &[Value]| -> Vec<Value> {
        trials.iter().map(|trial| trial["point"].clone()).collect()
    };
    for after in [1, 2, 3, 4, 6, 9, 12, 20, 40] {
        for name in ["found", "saved"] {
            std::fs::remove_dir_all(dir.join(name)).unwrap();
        }
        let point = format!("kill:{after}");
        let killed = search(dir, &grid).args(["--failpoint", &point]).output().unwrap();
        assert!(!killed.status.success(), "{after}");
        search(dir, &grid).assert().success();
        assert_eq!(without_times(&trials(dir)), without_times(&expected), "{after}");
        assert!(files(&dir.join("found/best")) == best, "{after}");
    }
    check(dir, &expected);
}

#[test]
fn what_does_not_fit_in_memory_together_is_looked_at_in_smaller_groups() {
    let scene = small();
    let dir = scene.path();
    let grid = ["keep=0.05,0.1,0.2,0.3"];
    let mut seen = BTreeSet::new();
    let mut expected = None;
    for mib in (20..200).step_by(4) {
        for name in ["found", "saved"] {
            let _none = std::fs::remove_dir_all(dir.join(name));
        }
        let memory = format!("{mib}MiB");
        let mut command = search(dir, &grid);
        command.args(["--memory", &memory, "--threads", "1"]);
        let done = command.output().unwrap();
        if !done.status.success() {
            assert_eq!(done.status.code(), Some(9), "{}", String::from_utf8_lossy(&done.stderr));
            continue;
        }
        let told = String::from_utf8_lossy(&done.stderr).into_owned();
        let scans = told.lines().filter_map(|line| line.split("one scan for ").nth(1));
        let scans: Vec<&str> = scans.filter_map(|rest| rest.split(' ').next()).collect();
        let saved: Vec<_> = (0..4).map(|k| files(&dir.join(format!("saved/{k}")))).collect();
        assert!(*expected.get_or_insert_with(|| saved.clone()) == saved, "{mib}");
        let scans = scans.join(" ");
        let enough = scans == "4";
        seen.insert(scans);
        if enough {
            break;
        }
    }
    check(dir, &trials(dir));
    let seen: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(seen, ["", "2 2", "4"]);
}
