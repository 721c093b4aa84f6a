//! Components: any lambdas from one merge, byte for byte what a merge with them makes; kept and read whole or not at all.

use std::path::Path;

use predicates::str::contains;
use proptest::prelude::*;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, large_family, write_family};
use crate::support::run::merge;
use crate::support::{files, reflow};

/// The usual family with a tensor of several frames.
fn models(experts: usize, dtype: Dtype, seed: u64) -> (Checkpoint, Vec<Checkpoint>) {
    large_family(experts, dtype, seed, [500, 300])
}

/// The same directories: names and bytes.
#[track_caller]
fn same(a: &Path, b: &Path) {
    let (a, b) = (files(a), files(b));
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in &a {
        assert!(b[name] == *bytes, "{} differs", name.display());
    }
}

/// A merge with these lambdas.
fn fresh(dir: &Path, lambdas: &[f64], args: &[&str], out: &str) {
    let mut command = reflow();
    command.current_dir(dir).args(["merge", "--base", "base", "--out", out]).args(args);
    for (i, lambda) in lambdas.iter().enumerate() {
        command.arg("--expert").arg(format!("expert{}={lambda}", i + 1));
    }
    command.assert().success();
}

fn recombine(dir: &Path, lambdas: &[f64], args: &[&str], out: &str) -> assert_cmd::assert::Assert {
    let lambdas: Vec<String> = lambdas.iter().map(ToString::to_string).collect();
    let mut command = reflow();
    command.current_dir(dir).args(["recombine", "--components", "kept", "--base", "base"]);
    command.arg(format!("--lambda={}", lambdas.join(","))).args(["--out", out]).args(args);
    command.assert()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    #[test]
    fn recombined_is_merged_byte_for_byte(
        (dtype, out_dtype) in (
            prop::sample::select(vec![Dtype::BF16, Dtype::F16, Dtype::F32]),
            prop::sample::select(vec!["keep", "f32", "bf16"]),
        ),
        variant in prop::sample::select(vec!["a", "b", "c", "d", "paper"]),
        scope in prop::sample::select(vec!["model", "layer", "tensor"]),
        keep in 0.01f64..0.6,
        lambdas in prop::collection::vec(-3.0f64..3.0, 1..4),
        (tile, threads) in (1usize..90_000, 1usize..4),
        (again, io) in (1usize..90_000, prop::sample::select(vec!["mmap", "pread", "direct"])),
        seed in any::<u64>(),
    ) {
        let dir = TempDir::new().unwrap();
        let dir = dir.path();
        write_family(dir, &models(lambdas.len(), dtype, seed), &[2, 1]);
        let keep = keep.to_string();
        let recipe = ["--variant", variant, "--scope", scope, "--keep", &keep, "--dtype", out_dtype];
        let recipe = [&recipe[..], &["--exclude", "*norm*", "--shard-size", "200KB"]].concat();
        let run = ["--tile", &tile.to_string(), "--threads", &threads.to_string()];
        let ones = vec![1.0; lambdas.len()];
        fresh(dir, &ones, &[&recipe[..], &run, &["--components", "kept"]].concat(), "first");
        fresh(dir, &ones, &[&recipe[..], &["--components", "again"]].concat(), "plain");
        same(&dir.join("first"), &dir.join("plain"));
        same(&dir.join("kept"), &dir.join("again"));
        fresh(dir, &lambdas, &recipe, "merged");
        let how = ["--tile", &again.to_string(), "--io", io, "--memory", "200MiB"];
        recombine(dir, &lambdas, &how, "recombined").success();
        same(&dir.join("merged"), &dir.join("recombined"));
        reflow().arg("verify").arg(dir.join("kept")).assert().success();
    }
}

/// Killed before a call that writes, and at the next one, and so on: neither directory looks finished before it is, and
/// the same command makes the same of both.
#[test]
fn a_merge_that_is_killed_anywhere_makes_the_same_components() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 3), &[2, 1]);
    let run = |args: &[&str]| {
        let mut command = merge(dir, 2, &dir.join("out"));
        command
            .args(["--checkpoint", "100KB"])
            .arg("--components")
            .arg(dir.join("kept"))
            .args(args);
        command
    };
    let one = ["--threads", "1", "--tile", "40000"];
    run(&one).assert().success();
    let expected = (files(&dir.join("out")), files(&dir.join("kept")));
    let remove = || ["out", "kept"].map(|name| std::fs::remove_dir_all(dir.join(name)).unwrap());
    remove();
    let mut killed = 0;
    for after in (0..).step_by(9) {
        let point = format!("kill:{after}");
        let args = [&one[..], &["--failpoint", &point]].concat();
        let ended = run(&args).output().unwrap().status.success();
        for name in ["out", "kept"] {
            let there = files_if_there(&dir.join(name));
            let expected = if name == "out" { &expected.0 } else { &expected.1 };
            assert!(there.is_none_or(|there| there == *expected), "{name} after {after}");
        }
        if ended {
            break;
        }
        killed += 1;
        // A second kill on the way, then on to the end.
        let again = run(&["--failpoint", "kill:23", "--tile", "7001"]).output().unwrap();
        assert!(again.status.code() != Some(2), "after {after}");
        if !again.status.success() {
            run(&["--threads", "2"]).assert().success();
        }
        assert!(files(&dir.join("out")) == expected.0, "after {after}");
        assert!(files(&dir.join("kept")) == expected.1, "after {after}");
        assert!(!dir.join("out.partial").exists(), "after {after}");
        remove();
    }
    assert!(killed > 5, "{killed}");
}

fn files_if_there(dir: &Path) -> Option<std::collections::BTreeMap<std::path::PathBuf, Vec<u8>>> {
    dir.exists().then(|| files(dir))
}

#[test]
fn a_recombination_that_is_killed_goes_on() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 4), &[2, 1]);
    fresh(dir, &[1.0, 1.0], &["--components", "kept"], "first");
    fresh(dir, &[0.7, 1.9], &[], "merged");
    let pieces = ["--threads", "1", "--tile", "20000", "--checkpoint", "60KB"];
    for after in (0..60).step_by(7) {
        let kill = format!("kill:{after}");
        let args = [&pieces[..], &["--failpoint", &kill]].concat();
        recombine(dir, &[0.7, 1.9], &args, "out");
        recombine(dir, &[0.7, 1.9], &["--tile", "9001"], "out").success();
        same(&dir.join("merged"), &dir.join("out"));
        std::fs::remove_dir_all(dir.join("out")).unwrap();
    }
    // What was begun with other lambdas is another merge.
    let recorded = |after: u32| {
        let kill = format!("kill:{after}");
        recombine(dir, &[0.7, 1.9], &[&pieces[..], &["--failpoint", &kill]].concat(), "out");
        std::fs::metadata(dir.join("out.partial/state/journal")).is_ok_and(|meta| meta.len() > 0)
    };
    assert!((10..60).any(recorded));
    recombine(dir, &[0.7, 1.8], &[], "out").code(10);
}

#[test]
fn what_is_damaged_or_does_not_belong_is_refused() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 5), &[1]);
    fresh(dir, &[1.0, 1.0], &["--components", "kept"], "first");
    recombine(dir, &[1.0], &[], "out").code(2).stderr(contains("1 given for 2 experts"));
    recombine(dir, &[1.0, 1e39], &[], "out").code(2).stderr(contains("f32"));
    let on = |base: &str, kept: &str| {
        let mut command = reflow();
        command.current_dir(dir).args(["recombine", "--components", kept, "--base", base]);
        command.args(["--lambda", "1,1", "--out", "out"]).assert()
    };
    on("expert1", "kept").code(2).stderr(contains("its tensors hold other numbers"));
    on("base", "base").code(2).stderr(contains("holds no components"));
    on("base", "nowhere").code(2);
    let data = dir.join("kept/components.bin");
    let whole = std::fs::read(&data).unwrap();
    for at in [60, whole.len() / 2, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 1;
        std::fs::write(&data, &flipped).unwrap();
        on("base", "kept").code(8).stderr(contains("components.bin"));
        assert!(!dir.join("out").exists());
        reflow().arg("verify").arg(dir.join("kept")).assert().code(8).stdout(contains("frame"));
        let _begun = std::fs::remove_dir_all(dir.join("out.partial"));
    }
    std::fs::write(&data, &whole[..whole.len() - 1]).unwrap();
    on("base", "kept").code(8);
    std::fs::write(&data, &whole).unwrap();
    let told = dir.join("kept/components.json");
    let text = std::fs::read_to_string(&told).unwrap();
    std::fs::write(&told, text.replacen("expert1", "expert7", 1)).unwrap();
    on("base", "kept").code(8).stderr(contains("components.json"));
    std::fs::write(&told, text).unwrap();
    on("base", "kept").success();
}

#[test]
fn a_base_that_is_an_expert_too_is_refused_at_once() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 5), &[1]);
    for (more, key) in [
        (&["--components", "kept"][..], "--components: base is the base and one of the experts"),
        (&["--method", "emr"], "merge_method: base is the base and one of the experts"),
    ] {
        for args in [&["plan"][..], &["merge", "--out", "out"]] {
            let mut command = reflow();
            command.current_dir(dir).args(args).args(["--base", "base"]);
            command.args(["--expert", "expert1", "--expert", "base"]).args(more);
            command.assert().code(2).stderr(contains(key));
            assert!(!dir.join("out.partial").exists() && !dir.join("kept").exists());
        }
    }
}

/// What is told of components is no more to be trusted than any other file, though its check is right.
#[test]
fn what_cannot_be_is_damage_whatever_its_check_says() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 5), &[1]);
    let mut command = merge(dir, 2, &dir.join("first"));
    command.arg("--components").arg(dir.join("kept")).assert().success();
    let told = dir.join("kept/components.json");
    let text = std::fs::read_to_string(&told).unwrap();
    let check = text.split('"').nth(7).unwrap();
    let files = text.rfind(r#""files": ["#).unwrap();
    let end = files + text[files..].find(']').unwrap();
    let without_files = format!(r#"{}"files": [{}"#, &text[..files], &text[end..]);
    let one_model = text.replacen(r#"\n  - model: \"expert2\""#, "", 1);
    for (changed, part) in [(without_files, "not as it was written"), (one_model, "has 1 models")] {
        assert!(changed.len() < text.len());
        let open = changed.replacen(check, "", 1);
        let check = blake3::hash(open.as_bytes()).to_hex();
        let empty = r#""blake3": """#;
        let closed = open.replacen(empty, &format!(r#""blake3": "{check}""#), 1);
        std::fs::write(&told, closed).unwrap();
        recombine(dir, &[1.0, 1.0], &[], "out").code(8).stderr(contains(part));
        assert!(!dir.join("out").exists() && !dir.join("out.partial").exists());
    }
    std::fs::write(&told, &text).unwrap();
    recombine(dir, &[1.0, 1.0], &[], "out").success();
}

#[test]
fn the_place_of_components_is_checked_first() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path();
    write_family(dir, &models(2, Dtype::BF16, 6), &[1]);
    std::fs::create_dir(dir.join("taken")).unwrap();
    let at = |kept: &str, args: &[&str]| {
        let mut command = merge(dir, 2, &dir.join("out"));
        command.arg("--components").arg(dir.join(kept)).args(args).assert()
    };
    at("taken", &[]).code(5).stderr(contains("taken exists already"));
    at("out/kept", &[]).code(7);
    at("out", &[]).code(2).stderr(contains("must not lie in the output"));
    at("base/kept", &[]).code(2).stderr(contains("overlaps the input base"));
    at("kept", &["--method", "sce"]).code(2).stderr(contains("sce has no shares"));
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        at(shm.join("reflow-kept").to_str().unwrap(), &[]).code(2).stderr(contains("file system"));
    }
    assert!(!dir.join("out").exists() && !dir.join("out.partial").exists());
    // Begun without them, a merge does not go on with them.
    let recorded = |after: u32| {
        let mut command = merge(dir, 2, &dir.join("out"));
        command.args(["--threads", "1", "--checkpoint", "50KB", "--failpoint"]);
        command.arg(format!("kill:{after}")).output().unwrap();
        std::fs::metadata(dir.join("out.partial/state/journal")).is_ok_and(|meta| meta.len() > 0)
    };
    assert!((10..60).any(recorded));
    at("kept", &[]).code(10).stderr(contains("without --components"));
    at("kept", &["--restart"]).success();
    // Into a directory that is there.
    std::fs::remove_dir_all(dir.join("out")).unwrap();
    std::fs::create_dir(dir.join("out")).unwrap();
    at("other", &[]).success();
    same(&dir.join("kept"), &dir.join("other"));
}

#[test]
fn the_tables_of_a_large_models_frames_are_planned() {
    let dir = TempDir::new().unwrap();
    // Holes: nothing but headers is read.
    let (rows, columns) = (1u64 << 18, 1u64 << 12);
    let header = serde_json::json!({"w": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [0, rows * columns * 2]}});
    let header = header.to_string();
    for name in ["base", "expert1"] {
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        let path = dir.path().join(name).join("model.safetensors");
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.set_len(bytes.len() as u64 + rows * columns * 2).unwrap();
    }
    let fixed = |args: &[&str]| {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["plan", "--base", "base", "--expert", "expert1"]);
        let told = command.args(args).arg("--json").assert().success().get_output().stdout.clone();
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        told["plan"]["memory"]["fixed_bytes"].as_u64().unwrap()
    };
    let frames = rows * columns / 65536;
    assert!(fixed(&["--components", "kept"]) >= fixed(&[]) + 4 * frames);
}
