//! RegMean: against the numpy reference, the same bytes however it is run, and what is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use predicates::str::contains;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

use crate::support::checkpoint::uniform;
use crate::support::{Checkpoint, files, reflow};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures");

/// The Gram matrix of a layer's inputs as `fixtures/make_evidence.py` has them: whole numbers, so that it is exact.
fn gram(width: usize, tensor: usize, expert: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width * width];
    for token in 0..40 {
        let value = |j: usize| {
            let k = (token * width + j) as u64;
            let x =
                (k * 2_654_435_761 + tensor as u64 * 40_503 + expert as u64 * 97_531) % (1 << 32);
            if j + 1 == width { 1.0 } else { ((x >> 8) % 7) as f32 - 3.0 }
        };
        let x: Vec<f32> = (0..width).map(value).collect();
        for (row, a) in sum.chunks_exact_mut(width).zip(&x) {
            row.iter_mut().zip(&x).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sum
}

/// Values in f32 of all tensors of a checkpoint in f32 or bf16.
fn tensors(dir: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut found = BTreeMap::new();
    for (name, bytes) in files(dir) {
        if name.extension() != Some("safetensors".as_ref()) {
            continue;
        }
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let value = |b: &[u8]| match *b {
                [a, b] => f32::from_bits(u32::from(u16::from_le_bytes([a, b])) << 16),
                [a, b, c, d] => f32::from_le_bytes([a, b, c, d]),
                _ => panic!("{name} is no float"),
            };
            let size = view.data().len() / view.shape().iter().product::<usize>();
            let values = view.data().chunks_exact(size).map(value).collect();
            found.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
    }
    found
}

#[test]
fn the_example_family_merges_as_the_reference_says() {
    let dir = TempDir::new().unwrap();
    let shapes = tensors(&Path::new(FIXTURES).join("llama/expert1"));
    for expert in 0..3 {
        let mut made = Checkpoint::default();
        for (t, (name, (shape, _))) in shapes.iter().enumerate() {
            if name.contains("proj") || name.contains("lm_head") {
                // Either name will do, and any float type that holds it.
                let key = if t % 2 == 0 { name } else { name.trim_end_matches(".weight") };
                let (width, dtype) = (shape[1], if expert == 1 { Dtype::F64 } else { Dtype::F32 });
                made = made.with(key, dtype, &[width, width], &gram(width, t, expert));
            }
        }
        made.write(&dir.path().join(format!("gram{expert}")), 1 + expert);
    }
    let golden = std::fs::read_to_string(Path::new(FIXTURES).join("golden/regmean.json")).unwrap();
    let golden: serde_json::Value = serde_json::from_str(&golden).unwrap();
    let weighted = ["expert1=0.5", "expert2=0", "expert3=2"];
    for (case, experts, args) in [
        ("plain", ["expert1", "expert2", "expert3"], &[][..]),
        ("weighted", weighted, &["--param", "alpha=0.5", "--param", "ridge=1e-3"]),
    ] {
        let out = dir.path().join(case);
        let mut command = reflow();
        command.current_dir(Path::new(FIXTURES).join("llama"));
        command.args(["merge", "--method", "regmean", "--dtype", "f32"]).args(args);
        for (k, expert) in experts.into_iter().enumerate() {
            command.args(["--expert", expert, "--gram"]).arg(dir.path().join(format!("gram{k}")));
        }
        let merge = command.arg("--out").arg(&out).assert().success();
        merge.stderr(contains(
            "6 of 21 tensors have no gram for every model, and are the plain mean",
        ));
        for (name, (_, values)) in tensors(&out) {
            let expected = &golden[case][&name];
            let largest = values.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            let step = expected["step"].as_u64().unwrap() as usize;
            let sampled = expected["values"].as_array().unwrap();
            assert!(sampled.len() >= values.len() / step);
            for (value, expected) in values.iter().step_by(step).zip(sampled) {
                let off = (f64::from(*value) - expected.as_f64().unwrap()).abs();
                assert!(off <= 4e-7 * f64::from(largest), "{case} {name}: {off}");
            }
            let norm = values.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
            let off = (norm / expected["norm"].as_f64().unwrap() - 1.0).abs();
            assert!(off < 1e-6, "{case} {name}: {off}");
        }
        reflow().arg("verify").arg(&out).assert().success();
    }
}

/// Three models with a layer of several runs, one stored as Conv1D, one square, and a norm; and their Gram matrices.
fn models(dir: &Path, dtype: Dtype, seed: u64) {
    let mut random = uniform(seed);
    let layers: [(&str, &[usize], usize); 4] = [
        ("h.0.attn.weight", &[90, 410], 410),
        ("h.0.c_attn.weight", &[37, 51], 37),
        ("h.0.square.weight", &[33, 33], 33),
        ("h.1.mlp.weight", &[11, 130], 130),
    ];
    for model in 1..=3 {
        let (mut weights, mut grams) = (Checkpoint::default(), Checkpoint::default());
        for (name, shape, width) in layers {
            let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| random() - 0.5).collect();
            weights = weights.with(name, dtype, shape, &values);
            grams = grams.with(name, Dtype::F32, &[width, width], &gram(width, model, 7));
        }
        let bias: Vec<f32> = (0..37).map(|_| random() - 0.5).collect();
        weights.with("h.0.bias", dtype, &[37], &bias).write(&dir.join(format!("m{model}")), model);
        grams.write(&dir.join(format!("g{model}")), 3);
    }
    std::fs::write(dir.join("r.yml"), RECIPE).unwrap();
}

const RECIPE: &str = "merge_method: regmean\nmodels: [{model: m1}, {model: m2}, {model: m3}]\ngram: [g1, g2, g3]\n\
    parameters: {layout: [{filter: c_attn, value: in_out}, {filter: square, value: in_out}, {value: out_in}]}\n\
    shard_size: 60000\n";

fn merge(dir: &Path, recipe: &str, out: &str) -> assert_cmd::Command {
    let mut command = reflow();
    command.current_dir(dir).args(["merge", recipe, "--out", out]);
    command
}

#[test]
fn how_it_is_run_does_not_change_a_byte() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::F32, 5);
    merge(dir.path(), "r.yml", "plain").arg("--statistics").assert().success();
    let plain = files(&dir.path().join("plain"));
    for (k, args) in [
        ["--tile", "700", "--threads", "1", "--io", "pread", "--memory", "80MiB"],
        ["--tile", "9", "--threads", "3", "--io", "direct", "--memory", "1GiB"],
        ["--tile", "50000", "--threads", "5", "--io", "mmap", "--memory", "100MiB"],
    ]
    .into_iter()
    .enumerate()
    {
        for cpu in ["scalar", ""] {
            let out = format!("odd{k}{cpu}");
            let mut command = merge(dir.path(), "r.yml", &out);
            command.args(args).arg("--statistics").env("REFLOW_CPU", cpu).assert().success();
            assert!(files(&dir.path().join(&out)) == plain, "{args:?} {cpu}");
        }
    }
}

/// What a run says that it reads.
fn read(dir: &Path, args: &[&str]) -> u64 {
    let told = reflow().current_dir(dir).args(args).arg("--json").assert().success();
    let told: serde_json::Value = serde_json::from_slice(&told.get_output().stdout).unwrap();
    told.pointer("/plan/read").or_else(|| told.get("read")).unwrap().as_u64().unwrap()
}

#[test]
fn statistics_cost_a_read_only_where_models_cannot_be_held_and_are_the_same() {
    let dir = TempDir::new().unwrap();
    let mut random = uniform(21);
    let mut values = |shape: &[usize]| -> Vec<f32> {
        (0..shape.iter().product()).map(|_| random() - 0.5).collect()
    };
    for model in 1..=3 {
        let (mut weights, mut grams) = (Checkpoint::default(), Checkpoint::default());
        for (name, shape) in [("large.weight", [1500, 400]), ("small.weight", [70, 30])] {
            weights = weights.with(name, Dtype::F32, &shape, &values(&shape));
            let name = name.trim_end_matches(".weight");
            grams = grams.with(name, Dtype::F32, &[shape[1]; 2], &gram(shape[1], model, 5));
        }
        weights.write(&dir.path().join(format!("m{model}")), 1);
        grams.write(&dir.path().join(format!("g{model}")), 1);
    }
    let recipe = "merge_method: regmean\nmodels: [{model: m1}, {model: m2}, {model: m1}, {model: m2}, {model: m3}]\n\
        gram: [g1, g2, g3, g1, g2]\n";
    std::fs::write(dir.path().join("r.yml"), recipe).unwrap();
    let plan = ["plan", "r.yml", "--statistics"];
    let refused = reflow().current_dir(dir.path()).args(plan).args(["--memory", "1MiB"]).output();
    let message = String::from_utf8(refused.unwrap().stderr).unwrap();
    let least = message.split("--memory ").nth(1).unwrap().split(';').next().unwrap();
    let merged = |out: &str, more: &[&str]| {
        let args = [&["merge", "r.yml", "--out", out, "--io", "pread"], more].concat();
        (read(dir.path(), &args), files(&dir.path().join(out)))
    };
    let (unseen, _) = merged("unseen", &[]);
    let (held, roomy) = merged("roomy", &["--statistics"]);
    assert_eq!((held, read(dir.path(), &plan)), (unseen, unseen));
    let (again, tight) = merged("tight", &["--statistics", "--memory", least]);
    // The second model and the third, once each: the first is read anyway, the small tensor fits.
    assert_eq!(again, unseen + 2 * 4 * 1500 * 400);
    assert_eq!(read(dir.path(), &[&plan[..], &["--memory", least]].concat()), again);
    assert!(roomy == tight);
}

#[test]
fn statistics_are_about_what_is_stored() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::BF16, 11);
    let unseen = read(dir.path(), &["merge", "r.yml", "--out", "unseen"]);
    let seen = read(dir.path(), &["merge", "r.yml", "--out", "out", "--statistics"]);
    assert_eq!((seen, read(dir.path(), &["plan", "r.yml", "--statistics"])), (unseen, unseen));
    let told = std::fs::read(dir.path().join("out/reflow_statistics.json")).unwrap();
    let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
    let all: Vec<_> =
        ["m1", "m2", "m3", "out"].iter().map(|name| tensors(&dir.path().join(name))).collect();
    let rows = told["tensors"].as_array().unwrap();
    assert_eq!(rows.len(), all[0].len());
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let values: Vec<&Vec<f32>> = all.iter().map(|tensors| &tensors[name].1).collect();
        assert_eq!(row["elements"], values[0].len());
        let mut products = row["products"].as_array().unwrap().iter();
        for (i, a) in values.iter().enumerate() {
            for b in &values[i..] {
                let plain: f64 = a.iter().zip(*b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                let found = products.next().unwrap().as_f64().unwrap();
                assert!((found - plain).abs() <= 1e-9 * values[0].len() as f64, "{name} {i}");
            }
            let largest = a.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
            assert_eq!(row["magnitudes"][i]["largest"].as_f64().unwrap() as f32, largest);
        }
    }
    reflow().current_dir(dir.path()).args(["report", "out"]).assert().success();
}

#[test]
fn a_weight_that_is_stored_as_conv1d_is_the_same_transposed() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::F32, 6);
    merge(dir.path(), "r.yml", "out").assert().success();
    let made = tensors(&dir.path().join("out"));
    for model in 1..=3 {
        let mut turned = Checkpoint::default();
        for (name, (shape, values)) in tensors(&dir.path().join(format!("m{model}"))) {
            let turn = name.contains("c_attn") || name.contains("square");
            if let ([rows, columns], true) = (&shape[..], turn) {
                let place = |k: usize| values[k % rows * columns + k / rows];
                let values: Vec<f32> = (0..values.len()).map(place).collect();
                turned = turned.with(&name, Dtype::F32, &[*columns, *rows], &values);
            } else {
                turned = turned.with(&name, Dtype::F32, &shape, &values);
            }
        }
        turned.write(&dir.path().join(format!("t{model}")), 1);
    }
    let recipe = "merge_method: regmean\nmodels: [{model: t1}, {model: t2}, {model: t3}]\ngram: [g1, g2, g3]\n";
    std::fs::write(dir.path().join("t.yml"), recipe).unwrap();
    merge(dir.path(), "t.yml", "turned").assert().success();
    for (name, (shape, values)) in tensors(&dir.path().join("turned")) {
        let (own, other) = &made[&name];
        if *own == shape && !name.contains("square") {
            assert_eq!(*other, values, "{name}");
        } else {
            let (rows, columns) = (own[0], own[1]);
            let back: Vec<f32> =
                (0..values.len()).map(|k| values[k % columns * rows + k / columns]).collect();
            assert_eq!(*other, back, "{name}");
        }
    }
}

#[test]
fn a_kill_costs_one_tensor_and_changes_no_byte() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::BF16, 7);
    merge(dir.path(), "r.yml", "calm").arg("--statistics").assert().success();
    let calm = files(&dir.path().join("calm"));
    let mut resumed = 0;
    for stop in (2..90).step_by(4) {
        let kill = format!("kill:{stop}");
        let mut command = merge(dir.path(), "r.yml", "out");
        let killed = !command
            .args(["--statistics", "--failpoint", &kill, "--threads", "2"])
            .output()
            .unwrap()
            .status
            .success();
        if killed && !dir.path().join("out").exists() {
            let journal = dir.path().join("out.partial/state/journal");
            resumed += usize::from(
                std::fs::read_to_string(journal).is_ok_and(|text| text.contains("\"units\":2")),
            );
            merge(dir.path(), "r.yml", "out")
                .args(["--statistics", "--threads", "1", "--io", "pread"])
                .assert()
                .success();
        } else if killed {
            let _any = std::fs::remove_dir_all(dir.path().join("out.partial"));
        }
        assert!(files(&dir.path().join("out")) == calm, "{stop}");
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
    assert!(resumed > 0, "no kill came between two tensors");
}

#[test]
fn one_model_and_equal_models_come_out_as_they_are() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::F32, 8);
    let m1 = tensors(&dir.path().join("m1"));
    for models in
        ["[{model: m1}]\ngram: [g1]", "[{model: m1}, {model: m1}, {model: m1}]\ngram: [g1, g2, g3]"]
    {
        let recipe =
            RECIPE.replace("[{model: m1}, {model: m2}, {model: m3}]\ngram: [g1, g2, g3]", models);
        std::fs::write(dir.path().join("same.yml"), recipe).unwrap();
        merge(dir.path(), "same.yml", "out").assert().success();
        assert_eq!(tensors(&dir.path().join("out")), m1);
        std::fs::remove_dir_all(dir.path().join("out")).unwrap();
    }
}

#[test]
fn the_plan_tells_what_is_read_and_a_limit_that_is_too_small_names_tensor_and_cure() {
    let dir = TempDir::new().unwrap();
    models(dir.path(), Dtype::F32, 9);
    let told = |args: &[&str]| {
        let mut command = reflow();
        let output = command.current_dir(dir.path()).args(args).assert().success();
        serde_json::from_slice::<serde_json::Value>(&output.get_output().stdout).unwrap()
    };
    let plan = &told(&["plan", "r.yml", "--json"])["plan"];
    assert_eq!(plan["read"], told(&["merge", "r.yml", "--out", "out", "--json"])["read"]);
    assert!(plan["memory"]["solve_bytes"].as_u64().unwrap() > 4 * 410 * 410 + 12 * 410 * 90);
    let mut big = Checkpoint::default();
    big = big.with("x.weight", Dtype::F32, &[2, 2000], &vec![1.0; 4000]);
    big.write(&dir.path().join("big"), 1);
    let zeros = vec![0; 2000 * 2000 * 2];
    let grams = Checkpoint::default().with_bytes("x", Dtype::BF16, &[2000, 2000], &zeros);
    grams.write(&dir.path().join("zeros"), 1);
    let run = |memory: &str| {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["plan", "--method", "regmean", "--expert", "big"]);
        command.args(["--gram", "zeros", "--memory", memory]).assert()
    };
    let refused = run("30MiB").code(9).stderr(contains("solving for x.weight"));
    let text = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    let needed: u64 =
        text.split("--memory ").nth(1).unwrap().split("MiB").next().unwrap().parse().unwrap();
    let _enough = run(&format!("{needed}MiB")).success();
    let _too_small = run(&format!("{}MiB", needed - 1)).code(9);
}

/// A model with one layer of three inputs, and a file with a Gram matrix for it.
fn one(dir: &Path, name: &str, tensor: &str, shape: &[usize], values: &[f32]) -> PathBuf {
    let model = Checkpoint::default().with("a.weight", Dtype::F32, &[2, 3], &[1.0; 6]);
    model.write(&dir.join("m"), 1);
    let dir = dir.join(name);
    Checkpoint::default().with(tensor, Dtype::F32, shape, values).write(&dir, 1);
    dir
}

#[test]
fn what_is_no_gram_matrix_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let refused = |gram: &Path, parts: &[&str]| {
        let mut command = reflow();
        command.current_dir(dir.path()).args(["merge", "--method", "regmean", "--expert", "m"]);
        let mut failed = command.arg("--gram").arg(gram).args(["--out", "out"]).assert().code(3);
        for part in parts {
            failed = failed.stderr(contains(*part));
        }
        assert!(!dir.path().join("out").exists());
    };
    let good = [4.0, 1.0, 0.0, 1.0, 3.0, 2.0, 0.0, 2.0, 5.0];
    for (name, at, bad, shown) in [
        ("negative", 4, -3.0, "a.weight has -3 at element 4"),
        ("nan", 5, f32::NAN, "a.weight has NaN at element 5"),
        ("infinite", 0, f32::INFINITY, "a.weight has inf at element 0"),
    ] {
        let mut values = good;
        values[at] = bad;
        let gram = one(dir.path(), name, "a", &[3, 3], &values);
        let header = std::fs::read(gram.join("model.safetensors")).unwrap();
        let offset = 8 + u64::from_le_bytes(header[..8].try_into().unwrap()) + 4 * at as u64;
        refused(
            &gram,
            &[name, shown, &format!("(file offset {offset})"), "Gram matrices are finite"],
        );
    }
    let mut crooked = good;
    crooked[2] = 2.0;
    refused(&one(dir.path(), "crooked", "a", &[3, 3], &crooked), &["a.weight", "not symmetric"]);
    refused(&one(dir.path(), "flat", "a", &[9], &good), &["flat: a is [9], and should be [9, 9]"]);
    refused(&one(dir.path(), "long", "a", &[3, 4], &[1.0; 12]), &["long: a is [3, 4]"]);
    let two = one(dir.path(), "two", "a.weight", &[2, 2], &[1.0; 4]);
    refused(
        &two,
        &["a.weight is about 2 inputs", "3 inputs (layout out_in)", "set layout: in_out"],
    );
    let five = one(dir.path(), "five", "a", &[5, 5], &[0.0; 25]);
    refused(&five, &["a.weight is about 5 inputs"]);
    let other = one(dir.path(), "other", "model.a", &[3, 3], &good);
    refused(&other, &["other: none of its tensors", "model.a"]);
    let short = dir.path().join("short.safetensors");
    std::fs::write(&short, b"\x10\0\0\0\0\0\0\0{}").unwrap();
    refused(&short, &["short.safetensors"]);
    // Two tokens do not tell three weights.
    let few = one(dir.path(), "few", "a", &[3, 3], &[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]);
    let mut command = reflow();
    command
        .current_dir(dir.path())
        .args(["merge", "--method", "regmean", "--expert", "m", "--gram"]);
    command.arg(few).args(["--param", "alpha=1", "--param", "ridge=0", "--out", "out"]);
    command.assert().code(3).stderr(contains("not positive definite at input 1"));
}
