//! EMR-Merging: a directory for all tasks, and each task's model from it and the base.

use std::collections::BTreeMap;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, family, large_family, uniform, write_family};
use crate::support::run::merge;
use crate::support::{files, reflow};

/// The usual family with a tensor of several frames.
fn models(experts: usize, dtype: Dtype, seed: u64) -> (Checkpoint, Vec<Checkpoint>) {
    large_family(experts, dtype, seed, [500, 300])
}

fn unify(dir: &Path, experts: usize, out: &str) -> Command {
    let mut command = merge(dir, experts, &dir.join(out));
    command.args(["--method", "emr"]);
    command
}

fn apply(dir: &Path, task: &str, out: &str) -> Command {
    let mut command = reflow();
    command.current_dir(dir).args(["apply", "--emr", "emr", "--base", "base"]);
    command.args(["--task", task, "--out", out]);
    command
}

/// The tensors of a model: types, shapes and bytes.
fn tensors(dir: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for (name, bytes) in files(dir) {
        if name.extension() == Some("safetensors".as_ref()) {
            for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                all.insert(name, (dtype, shape, view.data().to_vec()));
            }
        }
    }
    all
}

#[track_caller]
fn same_tensors(a: &Path, b: &Path) {
    let (a, b) = (tensors(a), tensors(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, tensor) in &a {
        assert!(b[name] == *tensor, "{name} differs");
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Every operation is exactly rounded, so hashes do.
#[test]
fn rescalers_masks_and_models_are_those_of_the_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = std::fs::read(root.join("fixtures/golden/emr/expected.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_slice(&golden).unwrap();
    let dir = TempDir::new().unwrap();
    let emr = dir.path().join("emr");
    let family = root.join("fixtures/llama");
    merge(&family, 3, &emr).args(["--method", "emr", "--dtype", "f32"]).assert().success();
    let told = reflow().args(["inspect", "--json"]).arg(&emr).output().unwrap().stdout;
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    for i in 0..3 {
        let entries = told["tensors"].as_array().unwrap().iter();
        let kept: u64 = entries.map(|tensor| tensor["entries"][i].as_u64().unwrap()).sum();
        assert_eq!(kept, golden["masks"][i].as_u64().unwrap());
        for (form, key) in [("tensor-mean", "tensor_mean"), ("global-l1", "global_l1")] {
            let ours = told["rescalers"][i][key].as_f64().unwrap() as f32;
            assert_eq!(ours, golden["rescalers"][form][i].as_f64().unwrap() as f32, "{form}");
            let out = dir.path().join(form).join(i.to_string());
            std::fs::create_dir_all(out.parent().unwrap()).unwrap();
            let mut command = reflow();
            command.arg("apply").arg("--emr").arg(&emr).arg("--base").arg(family.join("base"));
            command.args(["--task", &format!("expert{}", i + 1), "--rescale", form]);
            command.arg("--out").arg(&out).assert().success();
            let made = tensors(&out);
            let expected = golden["models"][form][i].as_object().unwrap();
            for (name, hash) in expected {
                assert_eq!(sha256(&made[name].2), *hash.as_str().unwrap(), "{form} {i} {name}");
            }
            assert!(expected.len() > 10);
        }
    }
}

/// Numbers at the edges of a type: far apart, subnormal, zeros of both signs.
fn odd(dtype: Dtype, seed: u64) -> (Checkpoint, Checkpoint) {
    let mut random = uniform(seed);
    let (largest, least) = match dtype {
        Dtype::F16 => (6e4, 6e-8),
        _ => (3e38, 1e-40),
    };
    let mut values = || -> Vec<f32> {
        let mut value = || match (random() * 9.0) as u32 {
            0 => 0.0,
            1 => -0.0,
            2 => largest * (random() - 0.5),
            3 => least * (random() - 0.5),
            4 => 1.0,
            5 => 1e-5 * random(),
            _ => random() - 0.5,
        };
        (0..70_000).map(|_| value()).collect()
    };
    let (name, shape) = ("model.layers.0.odd.weight", [700, 100]);
    let (base, mut tuned) = family(1, dtype, seed);
    let base = base.with(name, dtype, &shape, &values());
    (base, tuned.remove(0).with(name, dtype, &shape, &values()))
}

#[test]
fn one_expert_and_several_that_are_the_same_come_back_byte_for_byte() {
    for dtype in [Dtype::BF16, Dtype::F16, Dtype::F32] {
        for n in [1, 3] {
            let dir = TempDir::new().unwrap();
            let dir = dir.path();
            let (base, expert) = odd(dtype, 11);
            write_family(dir, &(base, vec![expert; n]), &[2, 1]);
            unify(dir, n, "emr").assert().success();
            let task = format!("expert{n}");
            for form in ["tensor-mean", "global-l1"] {
                apply(dir, &task, form).args(["--rescale", form]).assert().success();
                same_tensors(&dir.join(form), &dir.join("expert1"));
            }
        }
    }
}

#[test]
fn an_expert_that_is_the_base_gives_the_base_and_integers_are_the_bases() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    let (base, mut experts) = models(2, Dtype::BF16, 5);
    let whole = |model: Checkpoint| model.with_bytes("ids", Dtype::I64, &[2], &[7; 16]);
    experts[1] = base.clone();
    let family = (whole(base), experts.into_iter().map(whole).collect());
    write_family(dir, &family, &[1, 2]);
    unify(dir, 2, "emr").assert().success();
    apply(dir, "expert2", "out").assert().success();
    same_tensors(&dir.join("out"), &dir.join("base"));
    // The other one has all of the unified task vector.
    apply(dir, "expert1", "other").assert().success();
    same_tensors(&dir.join("other"), &dir.join("expert1"));
    let mut other = family;
    let ids = other.1[0].tensors.iter_mut().find(|tensor| tensor.0 == "ids").unwrap();
    ids.3[9] = 8;
    let differs = dir.join("differs");
    write_family(&differs, &other, &[1]);
    unify(&differs, 2, "emr").assert().code(3).stderr(contains("ids"));
    assert!(!differs.join("emr").exists());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn how_it_is_run_does_not_change_a_byte(
        dtype in prop::sample::select(vec![Dtype::BF16, Dtype::F16, Dtype::F32]),
        experts in 1usize..4,
        (tile, threads) in (1usize..90_000, 1usize..4),
        (again, io) in (1usize..90_000, prop::sample::select(vec!["mmap", "pread", "direct"])),
        exclude in prop::sample::select(vec!["*norm*", "none"]),
        seed in any::<u64>(),
    ) {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        write_family(dir, &models(experts, dtype, seed), &[2, 1]);
        let recipe = ["--exclude", exclude, "--shard-size", "200KB"];
        unify(dir, experts, "emr").args(recipe).assert().success();
        let how = ["--tile", &tile.to_string(), "--threads", &threads.to_string(), "--io", io];
        unify(dir, experts, "other").args(recipe).args(how).args(["--memory", "200MiB"]).assert().success();
        prop_assert!(files(&dir.join("emr")) == files(&dir.join("other")));
        let task = format!("expert{experts}");
        apply(dir, &task, "plain").assert().success();
        let how = ["--tile", &again.to_string(), "--io", io, "--memory", "200MiB", "--verify"];
        apply(dir, &task, "odd").args(how).assert().success();
        prop_assert!(files(&dir.join("plain")) == files(&dir.join("odd")));
        for made in ["emr", "plain"] {
            reflow().arg("verify").arg(dir.join(made)).assert().success();
            reflow().arg("status").arg(dir.join(made)).assert().success().stdout(contains("finished"));
        }
    }
}

/// Killed before a call that writes, and at the next one, and so on: nothing looks finished before it is, and the same command
/// makes the same.
#[test]
fn a_merge_that_is_killed_anywhere_makes_the_same() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 3), &[2, 1]);
    let run = |args: &[&str]| {
        let mut command = unify(dir, 2, "emr");
        command.args(["--checkpoint", "100KB"]).args(args);
        command
    };
    let one = ["--threads", "1", "--tile", "40000"];
    run(&one).assert().success();
    let expected = files(&dir.join("emr"));
    let remove = || std::fs::remove_dir_all(dir.join("emr")).unwrap();
    remove();
    let mut killed = 0;
    for after in (0..).step_by(5) {
        let point = format!("kill:{after}");
        let ended = run(&[&one[..], &["--failpoint", &point]].concat());
        let ended = { ended }.output().unwrap().status.success();
        assert!(!dir.join("emr").exists() || files(&dir.join("emr")) == expected, "after {after}");
        if ended {
            break;
        }
        killed += 1;
        // A second kill on the way, then on to the end.
        let again = run(&["--failpoint", "kill:23", "--tile", "7001"]).output().unwrap();
        assert!(again.status.code() != Some(2), "after {after}");
        if !again.status.success() {
            reflow().arg("status").arg(dir.join("emr")).assert().success();
            run(&["--threads", "2"]).assert().success();
        }
        assert!(files(&dir.join("emr")) == expected, "after {after}");
        assert!(!dir.join("emr.partial").exists(), "after {after}");
        remove();
    }
    assert!(killed > 5, "{killed}");
    remove();
    // What a kill has left, `clean` removes.
    assert!(!run(&["--failpoint", "kill:30", "--threads", "1"]).output().unwrap().status.success());
    reflow().arg("clean").arg(dir.join("emr")).assert().success();
    assert!(!dir.join("emr.partial").exists() && !dir.join("emr").exists());
    // Into a directory that is there.
    std::fs::create_dir(dir.join("emr")).unwrap();
    run(&[]).assert().success();
    assert!(files(&dir.join("emr")) == expected);
}

#[test]
fn a_task_that_is_killed_goes_on_and_another_is_another_merge() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 4), &[2, 1]);
    unify(dir, 2, "emr").assert().success();
    apply(dir, "expert2", "whole").assert().success();
    let pieces = ["--threads", "1", "--tile", "20000", "--checkpoint", "60KB", "--failpoint"];
    for after in (0..60).step_by(7) {
        let kill = format!("kill:{after}");
        apply(dir, "expert2", "out").args(pieces).arg(kill).output().unwrap();
        apply(dir, "expert2", "out").args(["--tile", "9001"]).assert().success();
        assert!(files(&dir.join("whole")) == files(&dir.join("out")), "after {after}");
        std::fs::remove_dir_all(dir.join("out")).unwrap();
    }
    let recorded = |after: u32| {
        apply(dir, "expert2", "out").args(pieces).arg(format!("kill:{after}")).output().unwrap();
        std::fs::metadata(dir.join("out.partial/state/journal")).is_ok_and(|meta| meta.len() > 0)
    };
    assert!((10..60).any(recorded));
    apply(dir, "expert1", "out").assert().code(10);
    apply(dir, "expert2", "out").args(["--rescale", "global-l1"]).assert().code(10);
}

#[test]
fn what_is_damaged_or_does_not_belong_is_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 5), &[1]);
    unify(dir, 2, "emr").args(["--components", "kept"]).assert().code(2);
    unify(dir, 2, "emr").assert().success();
    let mut plan = reflow();
    plan.arg("plan").arg("--base").arg(dir.join("base")).arg("--expert").arg(dir.join("expert1"));
    plan.args(["--method", "emr"])
        .assert()
        .success()
        .stdout(contains("no model: one task vector and 1 masks"));
    let recipe = "{merge_method: emr, base_model: base, models: [{model: expert1}]}";
    std::fs::write(dir.join("emr.yml"), recipe).unwrap();
    let mut search = reflow();
    search.current_dir(dir).args([
        "search",
        "emr.yml",
        "--evaluate",
        "echo 1 {model}",
        "--out",
        "found",
    ]);
    search.args(["--grid", "rescale=tensor-mean,global-l1"]);
    search.assert().code(2).stderr(contains("no model that could be scored"));
    let names: Vec<_> = files(&dir.join("emr")).into_keys().collect();
    let expected = ["emr.bin", "emr.json", "manifest.json", "reflow_recipe.yml"];
    assert_eq!(names, expected.map(std::path::PathBuf::from), "nothing that a loader would take");
    reflow().arg("inspect").arg(dir.join("emr")).assert().success().stdout(contains("rescaler"));
    let task = apply(dir, "exprt2", "out").assert().code(2);
    task.stderr(contains("did you mean expert2?")).stderr(contains("expert1, expert2"));
    let task = apply(dir, "nothing like them", "out").assert().code(2);
    task.stderr(contains("\"nothing like them\" is no task of it; there are: expert1, expert2"));
    let on = |base: &str, emr: &str| {
        let mut command = reflow();
        command.current_dir(dir).args(["apply", "--emr", emr, "--base", base]);
        command.args(["--task", "expert1", "--out", "out"]).assert()
    };
    on("expert1", "emr").code(2).stderr(contains("its tensors hold other numbers"));
    on("base", "base").code(2).stderr(contains("no directory that reflow merge --method emr made"));
    merge(dir, 1, &dir.join("merged")).arg("--expert").arg(dir.join("emr")).assert().code(3);
    let data = dir.join("emr/emr.bin");
    let whole = std::fs::read(&data).unwrap();
    for at in [3, 60, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&data, &flipped).unwrap();
        reflow().arg("verify").arg(dir.join("emr")).assert().code(8).stdout(contains("emr.bin"));
        if at > 16 {
            on("base", "emr")
                .code(8)
                .stderr(contains("emr.bin").and(contains("--components").not()));
            assert!(!dir.join("out").exists());
            let _begun = std::fs::remove_dir_all(dir.join("out.partial"));
        }
    }
    std::fs::write(&data, &whole[..whole.len() - 1]).unwrap();
    on("base", "emr").code(8);
    reflow().args(["verify", "--quick"]).arg(dir.join("emr")).assert().code(8);
    std::fs::write(&data, &whole).unwrap();
    let told = dir.join("emr/emr.json");
    let text = std::fs::read_to_string(&told).unwrap();
    std::fs::write(&told, text.replacen("expert1", "expert7", 1)).unwrap();
    on("base", "emr").code(8).stderr(contains("emr.json"));
    reflow().arg("verify").arg(dir.join("emr")).assert().code(8);
    std::fs::write(&told, text).unwrap();
    on("base", "emr").success();
}
