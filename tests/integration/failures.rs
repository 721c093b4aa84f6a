//! Wherever a merge fails, it ends: no thread waits for one that is gone.

use std::time::Duration;

use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::Checkpoint;
use crate::support::checkpoint::uniform;
use crate::support::run::{merge, reflow};

const LONG: Duration = Duration::from_mins(1);

fn model(seed: u64, codes: &[u8]) -> Checkpoint {
    let mut random = uniform(seed);
    let values: Vec<f32> = (0..20_000).map(|_| random() - 0.5).collect();
    Checkpoint::default().with("a.weight", Dtype::BF16, &[200, 100], &values).with_bytes(
        "codes",
        Dtype::U8,
        &[codes.len()],
        codes,
    )
}

fn family(codes: &[u8]) -> TempDir {
    let dir = TempDir::new().unwrap();
    model(1, &vec![7; 20_000]).write(&dir.path().join("base"), 1);
    model(2, codes).write(&dir.path().join("expert1"), 1);
    dir
}

#[test]
fn a_worker_that_fails_ends_the_pass_however_many_tiles_are_to_come() {
    let mut codes = vec![7; 20_000];
    codes[0] = 8;
    let dir = family(&codes);
    for threads in ["1", "2", "5"] {
        let mut command = merge(dir.path(), 1, &dir.path().join("out"));
        let command = command.args(["--tile", "16", "--threads", threads]).timeout(LONG);
        command.assert().code(3).stderr(contains("tensor codes"));
    }
}

#[test]
fn a_writer_that_fails_ends_the_pass_however_many_tiles_are_to_come() {
    let dir = family(&vec![7; 20_000]);
    for threads in [1, 2, 5] {
        let mut command = assert_cmd::Command::new("sh");
        let program = env!("CARGO_BIN_EXE_reflow");
        let script = format!(
            "ulimit -f 16; exec {program} merge --base base --expert expert1 --out out --tile 16 --threads {threads}"
        );
        let command = command.current_dir(dir.path()).args(["-c", &script]).timeout(LONG);
        command.assert().code(6).stderr(contains("model.safetensors.part"));
    }
}

#[test]
fn a_merged_value_that_no_type_holds_is_refused_with_what_helps() {
    let dir = family(&vec![7; 20_000]);
    for (dtype, weight, advice) in [
        ("float16", "1e6", "F16; use --dtype bf16 or --dtype f32"),
        (
            "bfloat16",
            "3e39",
            "BF16; no type holds much larger ones: use smaller weights or lambdas",
        ),
        ("float32", "3e39", "F32; no type holds much larger ones: use smaller weights or lambdas"),
    ] {
        let recipe = format!(
            "merge_method: linear\nmodels: [{{model: base, parameters: {{weight: {weight}}}}}]\n\
            parameters: {{normalize: false}}\nout_dtype: {dtype}\n"
        );
        std::fs::write(dir.path().join("r.yml"), recipe).unwrap();
        let mut command = reflow();
        let command = command.current_dir(dir.path()).args(["merge", "r.yml", "--out", dtype]);
        command.assert().code(3).stderr(contains("tensor a.weight").and(contains(advice)));
        assert!(!dir.path().join(dtype).exists());
    }
}
