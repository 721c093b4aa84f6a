//! `reflow diff`.

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Checkpoint, reflow, snapshot};

fn llama(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama").join(name)
}

fn diff(a: &Path, b: &Path) -> Command {
    let mut command = reflow();
    command.arg("diff").arg(a).arg(b);
    command
}

fn json(command: &mut Command) -> Value {
    let done = command.arg("--json").assert().success();
    serde_json::from_slice(&done.get_output().stdout).unwrap()
}

/// All tensors of a checkpoint of bf16, by name.
fn values(dir: &Path) -> std::collections::BTreeMap<String, Vec<f64>> {
    let mut all = std::collections::BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let bytes = std::fs::read(entry).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            assert_eq!(view.dtype(), Dtype::BF16, "{name}");
            let pairs = view.data().as_chunks::<2>().0.iter();
            let row = pairs.map(|&b| half::bf16::from_le_bytes(b).to_f64()).collect();
            all.insert(name, row);
        }
    }
    all
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn minus(x: &[f64], y: &[f64]) -> Vec<f64> {
    // As reflow has it: differences are f32.
    x.iter().zip(y).map(|(x, y)| f64::from((x - y) as f32)).collect()
}

fn close(got: &Value, plain: f64, what: &str) {
    let got = got.as_f64().unwrap();
    assert!((got - plain).abs() <= 1e-9 * plain.abs().max(1e-9), "{what}: {got} {plain}");
}

/// The same for cosines: there is none where a norm is zero.
fn close_cosine(got: &Value, [x, y]: [&[f64]; 2], what: &str) {
    let norms = (dot(x, x) * dot(y, y)).sqrt();
    if norms == 0.0 {
        assert_eq!(got, &Value::Null, "{what}");
    } else {
        let (got, plain) = (got.as_f64().unwrap(), dot(x, y) / norms);
        assert!((got - plain).abs() <= 1e-9, "{what}: {got} {plain}");
    }
}

/// Checks all numbers of a row against plain loops.
fn check(row: &Value, [a, b, c]: [&[f64]; 3], what: &str) {
    let difference = minus(a, b);
    let norm = |x: &[f64]| dot(x, x).sqrt();
    close(&row["norm_a"], norm(a), what);
    close(&row["norm_b"], norm(b), what);
    close(&row["distance"], norm(&difference), what);
    close(&row["relative"], norm(&difference) / norm(a), what);
    close_cosine(&row["cosine"], [a, b], what);
    close(&row["max_difference"], difference.iter().fold(0.0, |most, x| x.abs().max(most)), what);
    assert_eq!(row["elements"], a.len(), "{what}");
    assert_eq!(row["nonfinite"], 0, "{what}");
    let zeros = |x: &[f64]| x.iter().filter(|&&x| x == 0.0).count();
    assert_eq!(row["equal_elements"], zeros(&difference), "{what}");
    let (tau, other, task) = (minus(a, c), minus(b, c), &row["task"]);
    close(&task["norm_base"], norm(c), what);
    close(&task["relative_a"], norm(&tau) / norm(c), what);
    close(&task["relative_b"], norm(&other) / norm(c), what);
    close_cosine(&task["cosine"], [&tau, &other], what);
    assert_eq!(task["zeros_a"], zeros(&tau), "{what}");
    assert_eq!(task["zeros_b"], zeros(&other), "{what}");
    let both = |f: fn(f64) -> bool| tau.iter().zip(&other).filter(|(x, y)| f(**x * **y)).count();
    assert_eq!(task["conflicts"], both(|x| x < 0.0), "{what}");
    assert_eq!(task["shared"], both(|x| x != 0.0), "{what}");
}

#[test]
fn its_numbers_are_those_of_plain_loops() {
    let [a, b, c] = ["expert1", "expert2", "base"].map(llama);
    let before = snapshot(&llama(""));
    let report = json(diff(&a, &b).arg("--base").arg(&c));
    let [a, b, c] = [a, b, c].map(|dir| values(&dir));
    let rows = report["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), a.len());
    let mut last = f64::INFINITY;
    for row in rows {
        let name = row["name"].as_str().unwrap();
        check(row, [&a[name], &b[name], &c[name]], name);
        let relative = row["relative"].as_f64().unwrap();
        assert!(relative <= last, "{name}: the most different come first");
        last = relative;
    }
    let flat = |of: &std::collections::BTreeMap<String, Vec<f64>>, part: &str| -> Vec<f64> {
        let some = of.iter().filter(|(name, _)| name.contains(part));
        some.flat_map(|(_, row)| row.clone()).collect()
    };
    let whole = [&a, &b, &c].map(|model| flat(model, ""));
    check(&report["total"], [&whole[0], &whole[1], &whole[2]], "total");
    let find = |list: &str, name: &str| -> Value {
        let groups = report[list].as_array().unwrap();
        groups.iter().find(|group| group["name"] == name).unwrap().clone()
    };
    for (list, name, part) in [
        ("layers", "model.layers.1", "model.layers.1."),
        ("kinds", "model.layers.N.mlp.up_proj.weight", "up_proj"),
    ] {
        let rows = [&a, &b, &c].map(|model| flat(model, part));
        check(&find(list, name), [&rows[0], &rows[1], &rows[2]], name);
    }
    assert_eq!(snapshot(&llama("")), before, "inputs are not touched");
}

#[test]
fn its_output_depends_on_the_models_alone() {
    let [a, b, c] = ["expert1", "expert3", "base"].map(llama);
    for form in [&["--json"][..], &["--top", "7"]] {
        let run = |how: &[&str]| {
            let done = diff(&a, &b).arg("--base").arg(&c).args(form).args(how).assert().success();
            String::from_utf8(done.get_output().stdout.clone()).unwrap()
        };
        let usual = run(&[]);
        for how in [
            &["--memory", "32MiB", "--threads", "1"][..],
            &["--tile", "1000", "--threads", "3"],
            &["--tile", "4097", "--io", "pread"],
            &["--io", "direct", "--threads", "2"],
        ] {
            assert_eq!(run(how), usual, "{how:?}");
        }
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    let a = llama("expert1");
    let report = json(&mut diff(&a, &a));
    let total = &report["total"];
    assert_eq!(total["tensors"], total["equal_tensors"]);
    assert_eq!(total["elements"], total["equal_elements"]);
    assert_eq!((&total["distance"], &total["relative"]), (&0.0.into(), &0.0.into()));
    close(&total["cosine"], 1.0, "cosine");
    assert!(total.get("task").is_none());
}

#[test]
fn what_cannot_be_compared_is_listed() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let a = Checkpoint::default()
        .with("same.0.w", Dtype::F32, &[2], &[1.0, -2.0])
        .with("typed", Dtype::F32, &[2], &[1.0, 2.0])
        .with("zero", Dtype::BF16, &[2], &[0.0, 0.0])
        .with("nan", Dtype::F16, &[3], &[1.0, f32::NAN, 2.0])
        .with("gone", Dtype::F32, &[1], &[1.0])
        .with("shaped", Dtype::F32, &[2, 1], &[1.0, 2.0])
        .with("empty", Dtype::F32, &[0, 4], &[])
        .with_bytes("ids", Dtype::I32, &[1], &[1, 2, 3, 4])
        .with_bytes("mask", Dtype::BOOL, &[2], &[1, 0]);
    let b = Checkpoint::default()
        .with("same.0.w", Dtype::F32, &[2], &[1.0, -2.0])
        .with("typed", Dtype::F16, &[2], &[1.0, 2.0])
        .with("zero", Dtype::BF16, &[2], &[3.0, 4.0])
        .with("nan", Dtype::F16, &[3], &[1.0, f32::NAN, 2.5])
        .with("new", Dtype::F32, &[1], &[1.0])
        .with("shaped", Dtype::F32, &[1, 2], &[1.0, 2.0])
        .with("empty", Dtype::F32, &[0, 4], &[])
        .with_bytes("ids", Dtype::I32, &[1], &[1, 2, 3, 5])
        .with_bytes("mask", Dtype::BOOL, &[2], &[1, 0]);
    a.write(&at("a"), 2);
    b.write(&at("b"), 1);
    a.clone().without("typed").write(&at("c"), 1);
    let report = json(diff(&at("a"), &at("b")).arg("--base").arg(at("c")));
    let names = |list: &str| -> Vec<String> {
        let list = report[list].as_array().unwrap().iter();
        list.map(|it| it["name"].as_str().or(it["a"]["name"].as_str()).unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("only_a"), ["gone"]);
    assert_eq!(names("only_b"), ["new"]);
    assert_eq!(names("unlike"), ["shaped"]);
    assert_eq!(names("codes"), ["ids", "mask"], "those that differ come first");
    assert_eq!(report["codes"][1]["equal_bytes"], true);
    assert_eq!(report["without_base"], serde_json::json!(["typed"]));
    assert_eq!(names("tensors"), ["zero", "nan", "typed", "empty", "same.0.w"]);
    let rows = &report["tensors"];
    assert_eq!((&rows[0]["relative"], &rows[0]["distance"]), (&Value::Null, &5.0.into()));
    assert_eq!(rows[0]["cosine"], Value::Null);
    assert_eq!((&rows[1]["nonfinite"], &rows[1]["distance"]), (&1.into(), &0.5.into()));
    assert_eq!(rows[2]["equal_bytes"], false);
    assert_eq!((&rows[2]["dtype_a"], &rows[2]["dtype_b"]), (&"F32".into(), &"F16".into()));
    assert_eq!(rows[2]["equal_elements"], 2);
    assert_eq!(rows[3]["equal_bytes"], true);
    diff(&at("a"), &at("b"))
        .args(["--top", "1"])
        .assert()
        .success()
        .stdout(contains("only in A: 1").and(contains(".. and 4 more")).and(contains("differs")));
}

#[test]
fn what_goes_wrong_has_the_documented_exit_codes() {
    let (a, none) = (llama("expert1"), llama("nothing-here"));
    diff(&a, &none).assert().code(3).stderr(contains("nothing-here"));
    diff(&a, &a).arg("--base").arg(&none).assert().code(3).stderr(contains("nothing-here"));
    diff(&a, &a).args(["--memory", "1MiB"]).assert().code(9).stderr(contains("--memory"));
    let adapted = llama("base+no-adapter");
    diff(&a, &adapted).assert().code(2).stderr(contains("does not apply adapters"));
    reflow().arg("diff").arg(&a).assert().code(2);
}

#[test]
fn layers_are_listed_in_the_order_of_their_numbers() {
    let dir = TempDir::new().unwrap();
    let model = |step: f32| {
        (0..12).fold(Checkpoint::default(), |model, layer| {
            let name = format!("model.layers.{layer}.mlp.weight");
            model.with(&name, Dtype::F32, &[2], &[1.0, step * layer as f32])
        })
    };
    let [a, b] = ["a", "b"].map(|name| dir.path().join(name));
    model(0.5).write(&a, 1);
    model(0.75).write(&b, 1);
    let report = json(&mut diff(&a, &b));
    let names: Vec<&str> = report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["name"].as_str().unwrap())
        .collect();
    let expected: Vec<String> = (0..12).map(|layer| format!("model.layers.{layer}")).collect();
    assert_eq!(names, expected);
}
