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

/// Bytes that trials have read.
fn read(trials: &[Value]) -> u64 {
    trials.iter().map(|trial| trial["read"].as_u64().unwrap()).sum()
}

#[test]
fn one_scan_serves_all_settings_of_all_scopes_and_changes_no_byte() {
    let scene = large();
    let dir = scene.path();
    let grid = ["scope=model,layer", "variant=a,b,c,d", "keep=0.05,0.2"];
    let done = search(dir, &grid).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert_eq!(told.matches("one scan for 16 settings").count(), 1, "{told}");
    let trials = trials(dir);
    let merges = check(dir, &trials);
    // Samples of the model and of the layer that is large enough, one scan, and a map for each.
    let scan = merges[0]["scan"];
    let of = |name: &str| -> u64 { merges.iter().filter_map(|passes| passes.get(name)).sum() };
    let maps = of("merge") + of("all passes in memory");
    let alone: u64 = merges.iter().flat_map(BTreeMap::values).sum();
    let surveyed = read(&trials) - maps;
    assert!(surveyed >= scan && surveyed < scan / 10 * 12, "{surveyed} {scan}");
    assert!(alone - maps >= 15 * scan);
    for trial in &trials[1..] {
        assert!(trial["read"].as_u64().unwrap() <= scan);
    }
    let best = files(&dir.join("found/best"));
    assert!(best == files(&dir.join("saved/15")));
    let left: Vec<_> = files(&dir.join("found/work")).into_keys().collect();
    assert_eq!(left, [Path::new("journal"), Path::new("lock")]);
}

#[test]
fn output_types_share_what_was_found() {
    let scene = large();
    let dir = scene.path();
    let done = search(dir, &["dtype=keep,bf16", "keep=0.05"]).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    assert_eq!(told.matches("one scan for 2 settings").count(), 1, "{told}");
    let trials = trials(dir);
    let merges = check(dir, &trials);
    let (scan, map) = (merges[0]["scan"], merges[0]["merge"]);
    assert!(read(&trials[..1]) - map < scan / 10 * 12);
    assert_eq!(trials[1]["read"], map, "a map alone");
    assert!(merges[1].values().sum::<u64>() > 2 * map, "which takes a scan by itself");
    let sizes = [0, 1].map(|k| {
        std::fs::metadata(dir.join(format!("saved/{k}/model.safetensors"))).unwrap().len()
    });
    assert!(sizes[1] < sizes[0] / 2 + 4096, "{sizes:?}");
    // With lambdas, each type has components of its own.
    for name in ["found", "saved"] {
        std::fs::remove_dir_all(dir.join(name)).unwrap();
    }
    let grid = ["lambda=0.8,1.2", "dtype=f32,bf16", "scope=layer,model"];
    search(dir, &grid).assert().success();
    let trials = self::trials(dir);
    assert_eq!(trials.len(), 8);
    check(dir, &trials);
}

#[test]
fn lambdas_and_settings_that_one_scan_cannot_tell_go_their_own_ways() {
    let scene = small();
    let dir = scene.path();
    let grid = ["keep=0.05,0.1", "lambda=1,1.4", "scope=model,tensor", "variant=c,paper"];
    let done = search(dir, &grid).assert().success();
    let told = String::from_utf8_lossy(&done.get_output().stderr).into_owned();
    // In tensors all passes are one read anyway, and `paper` has other statistics, which it finds itself.
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
    let grid = ["keep=0.05,0.1", "scope=model,layer", "dtype=keep,f32"];
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
fn a_scan_of_all_scopes_that_is_killed_amid_units_goes_on_with_other_tiles_and_threads() {
    let scene = large();
    let dir = scene.path();
    let grid = ["keep=0.05,0.2", "scope=model,layer,tensor"];
    // So small that the largest tensor is scanned in each scope.
    let small = ["--tile", "65536", "--checkpoint", "3MiB", "--threads", "1"];
    search(dir, &grid).args(small).assert().success();
    let (expected, best) = (trials(dir), files(&dir.join("found/best")));
    let saved: Vec<_> = (0..6).map(|k| files(&dir.join(format!("saved/{k}")))).collect();
    let mut under_way = 0;
    for after in [25, 40, 55, 70, 85] {
        for name in ["found", "saved"] {
            std::fs::remove_dir_all(dir.join(name)).unwrap();
        }
        let point = format!("kill:{after}");
        let mut killed = search(dir, &grid);
        let killed = killed.args(small).args(["--failpoint", &point]).output().unwrap();
        assert!(!killed.status.success(), "{after}");
        let left = files(&dir.join("found/work/survey"));
        under_way += usize::from(left.keys().any(|name| name.starts_with("journal")));
        let other = ["--tile", "100000", "--checkpoint", "5MiB", "--threads", "3"];
        search(dir, &grid).args(other).assert().success();
        let now: Vec<_> = (0..6).map(|k| files(&dir.join(format!("saved/{k}")))).collect();
        assert!(now == saved && files(&dir.join("found/best")) == best, "{after}");
    }
    assert!(under_way > 2, "{under_way}");
    check(dir, &expected);
}

/// Layers of which a part is stored elsewhere, as another type.
fn mixed() -> TempDir {
    let dir = TempDir::new().unwrap();
    let mut random = uniform(9);
    let mut models =
        vec![Checkpoint::default().config(serde_json::json!({"model_type": "llama"})); 3];
    let layers = (0..4).flat_map(|layer| {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        [
            (name("mlp.up_proj.weight"), Dtype::BF16, [200 + 10 * layer, 256]),
            (name("mlp.gate.weight"), Dtype::F32, [90, 230]),
        ]
    });
    for (name, dtype, shape) in layers.chain([("lm_head.weight".into(), Dtype::BF16, [90, 256])]) {
        let base: Vec<f32> = (0..shape[0] * shape[1]).map(|_| (random() - 0.5) * 0.08).collect();
        for (k, model) in models.iter_mut().enumerate() {
            let step = |value: &f32| value + (random() - 0.5) * 4e-3 * k as f32;
            let values: Vec<f32> = base.iter().map(step).collect();
            *model = std::mem::take(model).with(&name, dtype, &shape, &values);
        }
    }
    let experts = models.split_off(1);
    write_family(dir.path(), &(models.remove(0), experts), &[1]);
    prepare(dir.path());
    dir
}

#[test]
fn layers_that_lie_between_each_other_share_a_scan_as_far_as_there_is_room() {
    let scene = mixed();
    let dir = scene.path();
    let grid = ["scope=tensor,model,layer", "keep=0.05,0.2"];
    let mut expected = None;
    let mut reads = BTreeSet::new();
    // Tiles so small that tensors are scanned, too.
    for mib in [24, 26, 28, 30, 34, 38, 44, 52, 64, 96, 160] {
        for name in ["found", "saved"] {
            let _none = std::fs::remove_dir_all(dir.join(name));
        }
        let memory = format!("{mib}MiB");
        let mut command = search(dir, &grid);
        command.args(["--memory", &memory, "--threads", "2", "--tile", "16384"]);
        let done = command.output().unwrap();
        if !done.status.success() {
            assert_eq!(done.status.code(), Some(9), "{}", String::from_utf8_lossy(&done.stderr));
            continue;
        }
        let saved: Vec<_> = (0..6).map(|k| files(&dir.join(format!("saved/{k}")))).collect();
        assert!(*expected.get_or_insert_with(|| saved.clone()) == saved, "{mib}");
        let _new = reads.insert(read(&trials(dir)));
    }
    let merges = check(dir, &trials(dir));
    // Beside the maps, from one scan for all to one for each merge.
    let whole = merges[2]["merge"];
    let scans: Vec<u64> = reads.iter().map(|read| (read - 6 * whole) * 10 / whole).collect();
    let (least, most) = (scans[0], scans[scans.len() - 1]);
    assert!(least == 10 && scans.len() > 2 && (30..=60).contains(&most), "{scans:?}");
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
