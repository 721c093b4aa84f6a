//! Malformed and malicious inputs: one per rule, each refused with its exit code and a message that names the place,
//! quickly, in little memory, leaving nothing behind.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use predicates::str::contains;
use safetensors::Dtype;
use serde::Deserialize;
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, family, write_family};
use crate::support::run::merge;
use crate::support::{reflow, snapshot};

#[derive(Deserialize)]
struct Case {
    #[serde(rename = "case")]
    name: String,
    path: String,
    message: String,
    /// `ok` if `--lenient` lets it pass.
    lenient: String,
}

fn bad() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/bad")
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> =
        serde_json::from_slice(&std::fs::read(bad().join("expected.json")).unwrap()).unwrap();
    assert!(cases.len() > 60);
    cases
}

/// Runs a merge in 200 MiB of address space, with the bad input as the expert.
fn merge_limited(base: &Path, expert: &Path, out: &Path, extra: &[&str]) -> Output {
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -v 204800; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_reflow")])
        .args(["merge", "--memory", "64MiB", "--threads", "1", "--base"])
        .arg(base)
        .arg("--expert")
        .arg(expert)
        .arg("--out")
        .arg(out)
        .args(extra)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begin.elapsed() < Duration::from_secs(100), "hangs on {}", expert.display());
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn every_rule_has_its_message_and_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base");
    Checkpoint::default().with("w", Dtype::F32, &[2], &[1.0, 2.0]).write(&base, 1);
    let out = dir.path().join("out");
    let before = snapshot(&bad());
    for case in cases() {
        let path = bad().join(&case.path);
        let begin = Instant::now();
        let result = merge_limited(&base, &path, &out, &[]);
        let stderr = String::from_utf8_lossy(&result.stderr);
        assert_eq!(result.status.code(), Some(3), "{}: {stderr}", case.name);
        assert!(stderr.contains(&case.message), "{}: {stderr}", case.name);
        let file = path.file_name().unwrap().to_str().unwrap();
        assert!(stderr.contains(file), "{} does not name its file: {stderr}", case.name);
        assert!(begin.elapsed() < Duration::from_secs(1), "{} took long", case.name);
        assert!(
            !stderr.contains('\x1b') && !stderr.contains("panicked"),
            "{}: {stderr}",
            case.name
        );
        assert!(!out.exists() && !dir.path().join("out.partial").exists(), "{}", case.name);
    }
    assert_eq!(before, snapshot(&bad()));
}

#[test]
fn lenient_lets_the_harmless_ones_pass_and_no_others() {
    for case in cases().iter().filter(|case| case.message != "unknown type F12") {
        let command = reflow().args(["inspect", "--lenient"]).arg(bad().join(&case.path)).ok();
        assert_eq!(command.is_ok(), case.lenient == "ok", "{}", case.name);
    }
}

#[test]
fn types_of_the_future_can_be_listed() {
    reflow()
        .args(["inspect", "--json"])
        .arg(bad().join("unknown-type.safetensors"))
        .assert()
        .success()
        .stdout(contains("\"F12\""));
}

#[test]
fn pipes_devices_and_loops_are_refused_without_waiting() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base");
    Checkpoint::default().with("w", Dtype::F32, &[2], &[1.0, 2.0]).write(&base, 1);
    let expert = dir.path().join("expert");
    std::fs::create_dir(&expert).unwrap();
    let shard = expert.join("model.safetensors");
    rustix::fs::mknodat(rustix::fs::CWD, &shard, rustix::fs::FileType::Fifo, 0o644.into(), 0)
        .unwrap();
    let out = dir.path().join("out");
    let refused = |what: &str| {
        let result = merge_limited(&base, &expert, &out, &[]);
        let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
        assert_eq!(result.status.code(), Some(3), "{what}: {stderr}");
        assert!(stderr.contains("model.safetensors"), "{what}: {stderr}");
    };
    refused("pipe");
    std::fs::remove_file(&shard).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &shard).unwrap();
    refused("device");
    std::fs::remove_file(&shard).unwrap();
    std::os::unix::fs::symlink("model.safetensors", &shard).unwrap();
    refused("loop");
    std::fs::remove_file(&shard).unwrap();
    std::fs::create_dir(&shard).unwrap();
    refused("directory");
}

#[test]
fn a_header_of_a_hundred_megabytes_of_nothing_is_refused_in_little_memory() {
    let dir = TempDir::new().unwrap();
    let base = dir.path().join("base");
    Checkpoint::default().with("w", Dtype::F32, &[2], &[1.0, 2.0]).write(&base, 1);
    let path = dir.path().join("huge.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&99_999_999u64.to_le_bytes()).unwrap();
    file.write_all(b"{").unwrap();
    file.set_len(8 + 99_999_999).unwrap();
    let result = merge_limited(&base, &path, &dir.path().join("out"), &[]);
    assert_eq!(result.status.code(), Some(3), "{}", String::from_utf8_lossy(&result.stderr));
}

#[test]
fn the_official_crate_reads_whatever_is_accepted() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(2, Dtype::BF16, 1), &[3, 2, 1]);
    merge(dir.path(), 2, &dir.path().join("out")).assert().success();
    for file in snapshot(dir.path()).into_iter().map(|(path, ..)| path) {
        if file.extension().is_some_and(|e| e == "safetensors") {
            reflow().arg("inspect").arg(&file).assert().success();
            safetensors::SafeTensors::deserialize(&std::fs::read(&file).unwrap()).unwrap();
        }
    }
}

#[test]
fn a_strange_manifest_is_a_finding_and_nothing_is_waited_for() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(1, Dtype::F32, 3), &[1, 1]);
    let out = dir.path().join("out");
    merge(dir.path(), 1, &out).assert().success();
    let manifest = out.join("manifest.json");
    let verify = || reflow().arg("verify").arg(&out).timeout(Duration::from_secs(20)).assert();
    verify().success();
    std::fs::remove_file(&manifest).unwrap();
    assert!(Command::new("mkfifo").arg(&manifest).status().unwrap().success());
    verify().code(8).stdout(contains("manifest.json"));
    std::fs::remove_file(&manifest).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &manifest).unwrap();
    verify().code(8).stdout(contains("manifest.json"));
}

#[test]
fn what_is_not_there_is_not_called_damaged() {
    let verify = || reflow().args(["verify", "/nowhere"]).assert();
    verify().code(3).stdout("").stderr(contains("cannot read /nowhere: No such file"));
}

#[test]
fn a_checkpoint_of_an_impossible_size_is_refused() {
    // Only where files may have such holes.
    let Ok(dir) = TempDir::new_in("/dev/shm") else { return };
    let header = r#"{"w":{"dtype":"F8_E4M3","shape":[4503599627370496],"data_offsets":[0,4503599627370496]}}"#;
    let path = dir.path().join("model.safetensors");
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    if file.set_len(8 + header.len() as u64 + (1 << 52)).is_err() {
        eprintln!("NOT TESTED: this file system has no file of 4 PiB");
        return;
    }
    reflow().arg("inspect").arg(&path).assert().code(3).stderr(contains("more than 4 PiB"));
}
