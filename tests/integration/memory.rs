//! `--memory` holds, page cache included, in a real memory cgroup.
//!
//! Needs root and a memory controller; without them the tests say so and pass.

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::json;
use tempfile::TempDir;

use crate::support::checkpoint::uniform;

const MIB: u64 = 1 << 20;

/// A memory cgroup of this test's own, v1 or v2.
struct Cgroup {
    path: PathBuf,
    v2: bool,
}

impl Cgroup {
    fn create(limit: u64) -> Option<Self> {
        let name = format!("reflow-test-{}-{limit}", std::process::id());
        for (root, v2) in [("/sys/fs/cgroup/memory", false), ("/sys/fs/cgroup", true)] {
            let path = Path::new(root).join(&name);
            let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            if std::fs::create_dir(&path).is_ok() {
                let group = Self { path, v2 };
                if std::fs::write(group.path.join(file), limit.to_string()).is_ok() {
                    let swap = if v2 { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
                    let value = if v2 { 0 } else { limit };
                    let _no_swap_to_limit =
                        std::fs::write(group.path.join(swap), value.to_string());
                    return Some(group);
                }
            }
        }
        eprintln!("NOT TESTED: no memory cgroup can be made here (needs root and a controller)");
        None
    }

    fn run(&self, args: &[&str]) -> Output {
        let procs = self.path.join("cgroup.procs");
        let script = format!("echo $$ > {} && exec \"$@\"", procs.display());
        Command::new("sh")
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_reflow")])
            .args(args)
            .output()
            .unwrap()
    }

    fn peak(&self) -> u64 {
        let file = if self.v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        std::fs::read_to_string(self.path.join(file)).unwrap().trim().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _still_busy = std::fs::remove_dir(&self.path);
    }
}

/// A base and three experts of 115 M parameters in bf16, mostly holes that read as zeros. One
/// tensor has 197 MB, three times the limit.
fn sparse_family(dir: &Path) {
    let tensors: [(&str, [u64; 2]); 4] = [
        ("lm_head.weight", [1000, 2048]),
        ("model.embed_tokens.weight", [48_000, 2048]),
        ("model.layers.0.mlp.down_proj.weight", [2048, 3000]),
        ("model.layers.0.mlp.up_proj.weight", [4096, 2048]),
    ];
    for (member, name) in ["base", "expert1", "expert2", "expert3"].iter().enumerate() {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let mut header = json!({"__metadata__": {"format": "pt"}});
        let mut end = 0;
        for (name, shape) in tensors {
            let len = shape[0] * shape[1] * 2;
            header[name] =
                json!({"dtype": "BF16", "shape": shape, "data_offsets": [end, end + len]});
            end += len;
        }
        let header = header.to_string();
        let mut file = File::create(dir.join("model.safetensors")).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        let start = 8 + header.len() as u64;
        file.set_len(start + end).unwrap();
        let mut random = uniform(member as u64);
        let mut offset = start;
        for (_, shape) in tensors {
            let bytes: Vec<u8> = (0..400_000)
                .flat_map(|_| half::bf16::from_f32(random() * 0.1 - 0.05).to_le_bytes())
                .collect();
            file.write_all_at(&bytes, offset).unwrap();
            offset += shape[0] * shape[1] * 2;
        }
    }
}

fn merge_in(group: &Cgroup, dir: &Path, out: &str, extra: &[&str]) -> Output {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (base, e1, e2, e3) = (path("base"), path("expert1"), path("expert2"), path("expert3"));
    let out = path(out);
    let mut args = vec!["merge", "--base", &base, "--expert", &e1, "--expert", &e2];
    args.extend(["--expert", &e3, "--out", &out]);
    args.extend(extra);
    group.run(&args)
}

/// Page cache that this process has filled by writing is not charged to whoever reads it.
fn drop_page_cache(dir: &Path) {
    for file in crate::support::snapshot(dir) {
        if let Ok(file) = File::open(file.0) {
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
    }
}

/// Reads the first half of each file, one byte after the other: somebody else is charged for that, and the kernel reads on ahead.
fn read_half(dir: &Path) {
    let paths = crate::support::snapshot(dir).into_iter().map(|file| file.0);
    for path in paths.filter(|path| path.is_file()) {
        let mut file = File::open(path).unwrap();
        let half = file.metadata().unwrap().len() / 2;
        std::io::copy(&mut Read::by_ref(&mut file).take(half), &mut std::io::sink()).unwrap();
    }
}

/// On a real disk: the page cache of a tmpfs cannot be dropped.
fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_merge_stays_inside_its_limit_and_inside_a_container_of_that_size() {
    let (Some(roomy), Some(tight)) = (Cgroup::create(1024 * MIB), Cgroup::create(64 * MIB)) else {
        return;
    };
    let dir = scratch();
    sparse_family(dir.path());
    let cold = ["auto", "mmap", "pread", "direct"].map(|io| (io, false));
    for (io, half_read) in cold.into_iter().chain([("mmap", true), ("pread", true)]) {
        let out = format!("roomy-{io}");
        drop_page_cache(dir.path());
        if half_read {
            read_half(dir.path());
        }
        succeeded(&merge_in(&roomy, dir.path(), &out, &["--memory", "64MiB", "--io", io]));
        let peak = roomy.peak();
        let state = if half_read { "half read" } else { "cold" };
        assert!(peak <= 64 * MIB, "{io}, {state}: {} MiB with --memory 64MiB", peak / MIB);
        std::fs::remove_dir_all(dir.path().join(&out)).unwrap();
    }
    // Without --memory the container's limit is found and kept.
    drop_page_cache(dir.path());
    succeeded(&merge_in(&tight, dir.path(), "tight", &[]));
}

#[test]
fn a_limit_that_is_too_small_is_refused_with_one_that_works() {
    let Some(group) = Cgroup::create(512 * MIB) else { return };
    let dir = scratch();
    sparse_family(dir.path());
    let output = merge_in(&group, dir.path(), "out", &["--memory", "8MiB"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(9), "{message}");
    let needed = message.split("--memory ").nth(1).unwrap().split(';').next().unwrap();
    let output = merge_in(&group, dir.path(), "out", &["--memory", needed]);
    succeeded(&output);
    let limit: u64 = needed.trim_end_matches("MiB").parse().unwrap();
    assert!(group.peak() <= limit * MIB, "{} MiB with --memory {needed}", group.peak() / MIB);
}

#[test]
fn planning_very_many_tensors_stays_inside_the_limit_too() {
    let Some(group) = Cgroup::create(800 * MIB) else { return };
    let dir = scratch();
    for (name, value) in [("base", 0.25f32), ("expert", 0.5)] {
        let mut header = serde_json::Map::new();
        for n in 0..40_000 {
            let (layer, expert) = (n / 500, n % 500);
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight");
            let tensor =
                json!({"dtype": "F32", "shape": [1, 1], "data_offsets": [4 * n, 4 * n + 4]});
            header.insert(name, tensor);
        }
        let header = serde_json::Value::Object(header).to_string();
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend((0..40_000).flat_map(|_| value.to_le_bytes()));
        std::fs::create_dir_all(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("model.safetensors"), bytes).unwrap();
    }
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (base, expert) = (path("base"), path("expert"));
    let plan = |memory: &str| {
        group.run(&["plan", "--base", &base, "--expert", &expert, "--memory", memory])
    };
    let refused = plan("8MiB");
    assert_eq!(refused.status.code(), Some(9));
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    let needed = message.split("--memory ").nth(1).unwrap().split(';').next().unwrap().trim();
    let limit: u64 = needed.trim_end_matches("MiB").parse().unwrap();
    let Some(small) = Cgroup::create(limit * MIB) else { return };
    drop_page_cache(dir.path());
    let out = path("out");
    succeeded(
        &small.run(&[
            "merge", "--base", &base, "--expert", &expert, "--out", &out, "--memory", needed,
        ]),
    );
    assert!(small.peak() <= limit * MIB);
}
