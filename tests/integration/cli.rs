//! Arguments, messages, exit codes.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::{contains, is_empty, is_match, starts_with};
use safetensors::Dtype;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::checkpoint::{family, write_family};
use crate::support::reflow;
use crate::support::run::merge;

fn on_disk() -> TempDir {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(2, Dtype::BF16, 3), &[2, 1]);
    dir
}

#[test]
fn help_names_the_commands_and_exit_codes() {
    reflow().arg("--help").assert().success().stdout(contains("merge").and(contains("Exit codes")));
    reflow().args(["merge", "--help"]).assert().success().stdout(
        contains("--memory <SIZE>").and(contains("[default: 0.1]")).and(contains("--tile").not()),
    );
    reflow().arg("--version").assert().success().stdout(starts_with("reflow "));
}

#[test]
fn what_cannot_be_used_is_named_with_exit_code_2() {
    for (args, part) in [
        (&["merge", "--out", "o"][..], "--expert"),
        (&["plan", "--expert", "e"], "--base"),
        (&["merge", "--base", "b", "--out", "o"], "--expert"),
        (&["merge", "--base", "b", "--expert", "e"], "--out"),
        (&["merge", "r.yml", "--base", "b", "--out", "o"], "cannot be used with"),
        (&["merge", "r.yml", "--keep", "0.2", "--out", "o"], "cannot be used with"),
        (&["merge", "--bsae", "b"], "--base"),
        (&["plan", "--base", "b", "--expert", "e", "--variant", "e"], "known: a, b, c, d, paper"),
        (&["plan", "--base", "b", "--expert", "e", "--memory", "lots"], "512MiB"),
        (
            &["plan", "--base", "b", "--expert", "e", "--keep", "1"],
            "not a fraction between 0 and 1",
        ),
        (
            &["plan", "--base", "b", "--expert", "e", "--keep", "0"],
            "not a fraction between 0 and 1",
        ),
        (
            &["plan", "--base", "b", "--expert", "e", "--keep", "NaN"],
            "not a fraction between 0 and 1",
        ),
        (&["plan", "--base", "b", "--expert", "e", "--method", "pbc"], "did you mean pcb?"),
        (&["plan", "nowhere.yml"], "nowhere.yml"),
        (&["plan", "--base", "b", "--expert", "e", "--exclude", "a[b"], "a[b"),
    ] {
        let dir = on_disk();
        let mut command = reflow();
        command.current_dir(dir.path());
        std::fs::rename(dir.path().join("base"), dir.path().join("b")).unwrap();
        std::fs::rename(dir.path().join("expert1"), dir.path().join("e")).unwrap();
        command.args(args).assert().code(2).stderr(contains(part)).stdout(is_empty());
    }
}

#[test]
fn a_path_that_is_no_checkpoint_is_an_input_error() {
    let dir = on_disk();
    let mut command = reflow();
    command.args(["plan", "--base"]).arg(dir.path().join("nowhere"));
    command.arg("--expert").arg(dir.path().join("expert1"));
    command.assert().code(3).stderr(contains("nowhere"));
}

#[test]
fn the_plan_tells_what_will_happen_and_reads_no_data() {
    let dir = on_disk();
    let mut command = reflow();
    command.args(["plan", "--json", "--memory", "100MiB", "--base"]).arg(dir.path().join("base"));
    for i in 1..=2 {
        command.arg("--expert").arg(dir.path().join(format!("expert{i}")));
    }
    command.arg("--out").arg(dir.path().join("out"));
    let output = command.assert().success().get_output().stdout.clone();
    let json: Value = serde_json::from_slice(&output).unwrap();
    let plan = &json["plan"];
    assert_eq!(plan["merged_tensors"], 9);
    assert_eq!(plan["merged_parameters"], plan["parameters"]);
    let passes: Vec<&str> =
        plan["passes"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(passes, ["scan", "merge"]);
    assert_eq!(plan["read"].as_u64().unwrap(), 2 * 3 * 2 * plan["parameters"].as_u64().unwrap());
    assert_eq!(plan["memory"]["limit"], 100 << 20);
    assert_eq!(plan["shards"][0]["file"], "model.safetensors");
    assert!(json["space"]["needed"].as_u64().unwrap() > 0);
    assert!(!dir.path().join("out.partial").exists());
}

#[test]
fn the_plan_of_the_example_reads_well() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = reflow()
        .current_dir(root)
        .args([
            "plan",
            "fixtures/llama/recipe.yml",
            "--memory",
            "64MiB",
            "--threads",
            "2",
            "--io",
            "mmap",
        ])
        .assert()
        .success()
        .get_output()
        .stdout
        .clone();
    insta::assert_snapshot!(String::from_utf8(output).unwrap());
}

#[test]
fn a_recipe_file_and_flags_give_the_same_bytes() {
    let dir = on_disk();
    let recipe = "merge_method: pcb\nbase_model: base\nmodels:\n  - model: expert1\n    parameters: {lambda: 1.5}\n  \
                  - model: expert2\nparameters: {variant: c, keep: 0.2, scope: tensor}\ndtype: float32\n";
    std::fs::write(dir.path().join("r.yml"), recipe).unwrap();
    let run = |out: &str, args: &[&str]| {
        let mut command = reflow();
        command.current_dir(dir.path()).arg("merge").args(args).args(["--out", out]);
        command.assert().success();
        std::fs::read(dir.path().join(out).join("model.safetensors")).unwrap()
    };
    let file = run("o1", &["r.yml"]);
    let flags = run(
        "o2",
        &[
            "--base",
            "base",
            "--expert",
            "expert1=1.5",
            "--expert",
            "expert2",
            "--variant",
            "c",
            "--keep",
            "0.2",
            "--scope",
            "tensor",
            "--dtype",
            "f32",
        ],
    );
    assert!(file == flags);
}

#[test]
fn data_goes_to_stdout_and_messages_to_stderr() {
    let dir = on_disk();
    let out = dir.path().join("out");
    merge(dir.path(), 2, &out)
        .assert()
        .success()
        .stdout(format!("{}\n", out.display()))
        .stderr(is_match(r"expert1 +keeps \d+ of \d+").unwrap());
    let quiet = dir.path().join("quiet");
    merge(dir.path(), 2, &quiet).arg("-q").assert().success().stderr(is_empty());
    let report =
        merge(dir.path(), 2, &dir.path().join("json")).args(["-q", "--json"]).assert().success();
    let json: Value = serde_json::from_slice(&report.get_output().stdout).unwrap();
    assert_eq!(json["units"][0]["experts"][1]["expert"], "expert2");
    assert!(json["units"][0]["experts"][0]["figures"]["threshold"].is_number());
}

#[test]
fn json_messages_are_json_lines_also_when_it_fails() {
    let dir = on_disk();
    let out = dir.path().join("out");
    for (code, last) in [(0, "summary"), (5, "exit_error")] {
        let done = merge(dir.path(), 2, &out).args(["--log-format", "json"]).assert().code(code);
        let stderr = String::from_utf8(done.get_output().stderr.clone()).unwrap();
        let lines: Vec<Value> = stderr.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines.last().unwrap()["message_type"], last);
    }
}

#[test]
fn inspect_lists_and_groups() {
    let dir = on_disk();
    let inspect = || {
        let mut command = reflow();
        command.arg("inspect").arg(dir.path().join("base"));
        command
    };
    inspect().assert().success().stdout(contains("9 tensors").and(contains("BF16 [51, 24]")));
    inspect()
        .arg("--tensors")
        .assert()
        .success()
        .stdout(contains("model.layers.10.self_attn.bias"));
    let json = inspect().arg("--json").assert().success().get_output().stdout.clone();
    let json: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["tensors"].as_array().unwrap().len(), 9);
    assert_eq!(json["files"].as_array().unwrap().len(), 2);
}

#[test]
fn a_reader_that_goes_away_or_a_full_stdout_is_no_panic() {
    let dir = on_disk();
    let script = format!(
        "{} inspect {} | true",
        env!("CARGO_BIN_EXE_reflow"),
        dir.path().join("base").display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_reflow"))
        .arg("inspect")
        .arg(dir.path().join("base"))
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    assert!(stderr.contains("standard output"), "{stderr}");
}

#[test]
fn ctrl_c_stops_soon_and_the_same_command_goes_on() {
    let dir = TempDir::new().unwrap();
    // Large enough to be caught at work: holes read as zeros, and tiles of 16 elements take their time.
    let models = family(2, Dtype::BF16, 3);
    write_family(dir.path(), &models, &[1]);
    let out = dir.path().join("out");
    let start = |tile: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_reflow"));
        command
            .args(["merge", "--tile", tile, "--variant", "d", "--base"])
            .arg(dir.path().join("base"));
        for _ in 0..30 {
            command.arg("--expert").arg(dir.path().join("expert1"));
        }
        command.arg("--out").arg(&out).stderr(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let plan = dir.path().join("out.partial/state/plan.json");
        let _none_yet = std::fs::remove_file(&plan);
        let mut child = start("1");
        while !plan.exists() {
            assert!(child.try_wait().unwrap().is_none(), "it was too quick to be interrupted");
            std::thread::sleep(Duration::from_millis(1));
        }
        let begin = Instant::now();
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(begin.elapsed() < Duration::from_secs(2));
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains("run the same command again"), "{stderr}");
        assert!(!out.exists());
    }
    assert!(start("4096").wait_with_output().unwrap().status.success());
    assert!(out.join("model.safetensors").exists() && !dir.path().join("out.partial").exists());
}

#[test]
fn two_at_once_are_kept_apart() {
    let dir = on_disk();
    let out = dir.path().join("out");
    let state = dir.path().join("out.partial/state");
    std::fs::create_dir_all(&state).unwrap();
    let lock = std::fs::File::create(state.join("lock")).unwrap();
    lock.lock().unwrap();
    merge(dir.path(), 2, &out).assert().code(11).stderr(contains("another reflow"));
    drop(lock);
    merge(dir.path(), 2, &out).assert().success();
}
