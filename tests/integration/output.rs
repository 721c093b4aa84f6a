//! What a finished output looks like, and what is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::run::merge;
use crate::support::{Checkpoint, files, snapshot};

/// A family on disk: (directory, base values by name).
fn on_disk(experts: usize, dtype: Dtype) -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(experts, dtype, 3), &[2, 3, 1]);
    dir
}

fn open(dir: &Path, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

#[test]
fn every_shard_opens_with_the_official_crate_and_the_index_names_them_all() {
    let dir = on_disk(2, Dtype::BF16);
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out).args(["--shard-size", "6000"]).assert().success();
    let index: serde_json::Value =
        serde_json::from_slice(&open(&out, "model.safetensors.index.json")).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let mut total = 0;
    let mut seen = Vec::new();
    for (name, bytes) in
        files(&out).iter().filter(|(n, _)| n.extension().is_some_and(|e| e == "safetensors"))
    {
        let shard = SafeTensors::deserialize(bytes).unwrap();
        let (_, header) = SafeTensors::read_metadata(bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "pt");
        for (tensor, view) in shard.tensors() {
            assert_eq!(map[&tensor], name.to_str().unwrap());
            assert_eq!(view.data().as_ptr() as usize % 2, bytes.as_ptr() as usize % 2);
            total += view.data().len() as u64;
            seen.push(tensor);
        }
    }
    seen.sort();
    assert_eq!(seen, map.keys().cloned().collect::<Vec<_>>());
    assert_eq!(index["metadata"]["total_size"], total);
    assert_eq!(index["metadata"]["total_parameters"], total / 2);
    assert!(map.values().any(|file| file == "model-00001-of-00003.safetensors"), "{map:?}");
}

#[test]
fn one_shard_has_the_plain_name_and_no_index() {
    let dir = on_disk(1, Dtype::F32);
    let out = dir.path().join("out");
    merge(dir.path(), 1, &out).assert().success();
    assert!(out.join("model.safetensors").exists());
    assert!(!out.join("model.safetensors.index.json").exists());
    assert!(!dir.path().join("out.partial").exists());
    let mode = |file: &str| out.join(file).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("model.safetensors"), mode("config.json")), (0o644, 0o644));
}

#[test]
fn the_output_type_is_written_to_the_config_and_the_tensors() {
    let dir = on_disk(2, Dtype::BF16);
    for (flag, dtype, config) in [
        ("f32", Dtype::F32, "float32"),
        ("f16", Dtype::F16, "float16"),
        ("keep", Dtype::BF16, "bfloat16"),
    ] {
        let out = dir.path().join(flag);
        merge(dir.path(), 2, &out).args(["--dtype", flag]).assert().success();
        let bytes = open(&out, "model.safetensors");
        let shard = SafeTensors::deserialize(&bytes).unwrap();
        assert!(shard.tensors().iter().all(|(_, view)| view.dtype() == dtype));
        let json: serde_json::Value = serde_json::from_slice(&open(&out, "config.json")).unwrap();
        assert_eq!(json["torch_dtype"], config);
    }
}

#[test]
fn side_files_are_the_bases_byte_for_byte_and_no_path_is_published() {
    let dir = on_disk(2, Dtype::BF16);
    let base = dir.path().join("base");
    for file in
        ["tokenizer.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json"]
    {
        std::fs::write(base.join(file), format!("{{\"made for\": \"{file}\"}}")).unwrap();
    }
    std::fs::write(base.join("modeling_custom.py"), "print()").unwrap();
    std::fs::write(base.join("consolidated.pth"), "junk").unwrap();
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out).assert().success();
    for file in
        ["tokenizer.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json"]
    {
        assert_eq!(open(&out, file), open(&base, file));
    }
    assert!(!out.join("modeling_custom.py").exists() && !out.join("consolidated.pth").exists());
    let card = String::from_utf8(open(&out, "README.md")).unwrap();
    assert!(
        card.contains("base_model") && card.contains("expert2") && card.contains("pcb"),
        "{card}"
    );
    let parent = dir.path().to_str().unwrap().as_bytes();
    for (name, bytes) in files(&out) {
        assert!(!bytes.windows(parent.len()).any(|w| w == parent), "{name:?} holds a path");
    }
}

#[test]
fn the_published_recipe_is_a_recipe() {
    let dir = on_disk(2, Dtype::BF16);
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out).args(["--lambda", "1.3", "--keep", "0.2"]).assert().success();
    let again = dir.path().join("again");
    let mut command = crate::support::reflow();
    command.current_dir(dir.path()).arg("merge").arg(out.join("reflow_recipe.yml"));
    command.arg("--out").arg(&again).assert().success();
    assert_eq!(open(&out, "model.safetensors"), open(&again, "model.safetensors"));
}

#[test]
fn odd_paths_are_paths() {
    let dir = on_disk(2, Dtype::BF16);
    std::fs::rename(dir.path().join("expert1"), dir.path().join("ex =1.5 ü")).unwrap();
    let mut command = crate::support::reflow();
    command.current_dir(dir.path()).args(["merge", "--base", "./base/", "--out", "o u t//"]);
    // The first is a directory whose name looks like one with a lambda.
    command.args(["--expert", "ex =1.5 ü", "--expert", "ex =1.5 ü=1.25"]).assert().success();
    let names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    let card = String::from_utf8(open(&dir.path().join("o u t"), "README.md")).unwrap();
    assert!(
        card.contains("| ex =1.5 ü | lambda 1 |")
            && card.contains("| ex =1.5 ü (2) | lambda 1.25 |"),
        "{card}"
    );
}

#[test]
fn an_existing_output_is_refused_and_left_alone() {
    let dir = on_disk(1, Dtype::BF16);
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    std::fs::write(out.join("precious"), "data").unwrap();
    let before = snapshot(dir.path());
    merge(dir.path(), 1, &out).assert().code(5).stderr(contains("exists already"));
    assert_eq!(before, snapshot(dir.path()));
}

#[test]
fn outputs_inside_inputs_and_around_them_are_refused() {
    let dir = on_disk(1, Dtype::BF16);
    let before = snapshot(dir.path());
    merge(dir.path(), 1, &dir.path().join("base/out"))
        .assert()
        .code(2)
        .stderr(contains("inside the input base"));
    merge(dir.path(), 1, &dir.path().join("nowhere/out")).assert().code(2);
    assert_eq!(before, snapshot(dir.path()));
}

#[test]
fn foreign_files_in_the_staging_directory_stop_the_merge() {
    let dir = on_disk(1, Dtype::BF16);
    let out = dir.path().join("out");
    let model = dir.path().join("out.partial/model");
    std::fs::create_dir_all(&model).unwrap();
    std::fs::write(model.join("thesis.txt"), "mine").unwrap();
    merge(dir.path(), 1, &out).assert().code(5).stderr(contains("thesis.txt"));
    assert_eq!(std::fs::read(model.join("thesis.txt")).unwrap(), b"mine");
    std::fs::remove_file(model.join("thesis.txt")).unwrap();
    std::fs::write(model.join("model.safetensors.part"), "left over").unwrap();
    merge(dir.path(), 1, &out).assert().success();
}

#[test]
fn inputs_are_not_touched() {
    let dir = on_disk(2, Dtype::BF16);
    let inputs: Vec<_> =
        ["base", "expert1", "expert2"].map(|d| snapshot(&dir.path().join(d))).into();
    merge(dir.path(), 2, &dir.path().join("out")).assert().success();
    let after: Vec<_> =
        ["base", "expert1", "expert2"].map(|d| snapshot(&dir.path().join(d))).into();
    assert_eq!(inputs, after);
}

#[test]
fn single_files_are_checkpoints_too() {
    let dir = TempDir::new().unwrap();
    let (base, experts) = family(1, Dtype::F32, 9);
    write_family(dir.path(), &(base, experts), &[1]);
    let out = dir.path().join("out");
    crate::support::reflow()
        .arg("merge")
        .arg("--base")
        .arg(dir.path().join("base/model.safetensors"))
        .arg("--expert")
        .arg(dir.path().join("expert1/model.safetensors"))
        .arg("--out")
        .arg(&out)
        .assert()
        .success();
    assert!(out.join("config.json").exists());
}

#[test]
fn hub_cache_links_are_followed() {
    let dir = on_disk(1, Dtype::BF16);
    let blobs = dir.path().join("models--org--expert/blobs");
    let snapshot = dir.path().join("models--org--expert/snapshots/0123abcd");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::create_dir_all(&snapshot).unwrap();
    for (i, (name, bytes)) in files(&dir.path().join("expert1")).into_iter().enumerate() {
        std::fs::write(blobs.join(format!("blob{i}")), bytes).unwrap();
        std::os::unix::fs::symlink(format!("../../blobs/blob{i}"), snapshot.join(name)).unwrap();
    }
    let out = dir.path().join("out");
    crate::support::reflow()
        .arg("merge")
        .arg("--base")
        .arg(dir.path().join("base"))
        .arg("--expert")
        .arg(&snapshot)
        .arg("--out")
        .arg(&out)
        .assert()
        .success();
    let card = String::from_utf8(open(&out, "README.md")).unwrap();
    assert!(card.contains("org/expert"), "{card}");
}

#[test]
fn an_empty_tensor_survives() {
    let dir = TempDir::new().unwrap();
    let empty = |c: Checkpoint| c.with("model.empty", Dtype::F32, &[0, 4], &[]);
    let (base, experts) = family(1, Dtype::F32, 2);
    let experts = experts.into_iter().map(empty).collect();
    write_family(dir.path(), &(empty(base), experts), &[1]);
    let out = dir.path().join("out");
    merge(dir.path(), 1, &out).assert().success();
    let bytes = open(&out, "model.safetensors");
    assert_eq!(
        SafeTensors::deserialize(&bytes).unwrap().tensor("model.empty").unwrap().shape(),
        [0, 4]
    );
}

#[test]
fn a_file_size_limit_is_an_error_and_not_a_death() {
    let dir = on_disk(2, Dtype::BF16);
    let out = dir.path().join("out");
    let script = format!(
        "ulimit -f 4; exec {} merge --base {base}/base --expert {base}/expert1 --expert {base}/expert2 --out {}",
        env!("CARGO_BIN_EXE_reflow"),
        out.display(),
        base = dir.path().display()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("file size limit") && !out.exists(), "{stderr}");
    // Room again: the same command goes on.
    merge(dir.path(), 2, &out).assert().success();
}

#[test]
fn few_file_descriptors_are_enough_for_many_shards() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(3, Dtype::BF16, 4), &[9, 8, 7, 6]);
    let out = |name: &str| dir.path().join(name);
    let run = |limit: &str, name: &str| {
        let script = format!(
            "{limit}; exec {} merge -q --shard-size 2000 --base {d}/base --expert {d}/expert1 --expert {d}/expert2 \
             --expert {d}/expert3 --out {}",
            env!("CARGO_BIN_EXE_reflow"),
            out(name).display(),
            d = dir.path().display()
        );
        std::process::Command::new("sh").args(["-c", &script]).status().unwrap()
    };
    assert!(run("ulimit -n 16", "few").success() && run("true", "many").success());
    assert_eq!(files(&out("few")), files(&out("many")));
}
