//! Methods that draw random numbers against mergekit 0.1.5: `fixtures/parity/random.json` (see the README there).

use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::parity;
use crate::support::checkpoint::Checkpoint;

/// Rows that are merged here; the fixtures come from more.
const ROWS: usize = 10_000;
/// Standard errors that a mean over the rows may lie off: one in 10^8 does.
const FAR: f64 = 5.7;

fn numbers(list: &Value) -> Vec<f64> {
    list.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let mean = values.clone().sum::<f64>() / ROWS as f64;
    let square = values.map(|value| (value - mean).powi(2)).sum::<f64>() / ROWS as f64;
    (mean, square.sqrt())
}

#[test]
fn what_is_kept_at_random_is_distributed_as_in_mergekit() {
    let cases = parity::json("random.json");
    let (models, cases) = cases.split_first().unwrap();
    let name = models["tensor"].as_str().unwrap();
    let row = |model: &str| numbers(&models["row"][model]);
    let base = row("base");
    let columns = base.len();
    assert_eq!(cases.len(), 22);
    for case in cases {
        let title = format!("{} {}", case["method"], case["case"]);
        let dir = TempDir::new().unwrap();
        let mut shape = vec![ROWS];
        shape.extend(numbers(&case["shape"]).into_iter().map(|length| length as usize));
        for model in ["base", "a", "b", "c"] {
            let values: Vec<f32> = row(model).iter().map(|&value| value as f32).collect();
            let checkpoint =
                Checkpoint::default().with(name, Dtype::F32, &shape, &values.repeat(ROWS));
            let config = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"});
            checkpoint.config(config).write(&dir.path().join(model), 1);
        }
        let merged = parity::merged(dir.path(), &case["recipe"].to_string()).expect(&title);
        let values = &merged[name].values;
        let [mean, sd] = ["mean", "sd"].map(|key| numbers(&case[key]));
        // The error of a mean: theirs and ours.
        let error = |sd: f64| FAR * sd * (1.0 / 40_000.0 + 1.0 / ROWS as f64).sqrt();
        for column in 0..columns {
            let delta = values.iter().skip(column).step_by(columns);
            let delta = delta.map(|&value| f64::from(value) - base[column]);
            let (ours, spread) = moments(delta.clone());
            // Rounding of the merged values comes on top.
            let slack = 1e-8;
            let (off, allowed) = ((ours - mean[column]).abs(), error(sd[column]) + slack);
            assert!(off <= allowed, "{title}: mean of column {column}: {ours} {}", mean[column]);
            // Deviations of values that are there or not: their own relative error is of the order of 1/sqrt(rows p).
            let off = (spread - sd[column]).abs();
            assert!(
                off <= 0.1 * sd[column] + slack,
                "{title}: sd of column {column}: {spread} {}",
                sd[column]
            );
            if case["kept"].is_array() {
                let theirs = numbers(&case["kept"])[column];
                let (ours, _) = moments(delta.map(|delta| f64::from(delta.abs() > 1e-9)));
                let allowed = error((theirs * (1.0 - theirs)).sqrt());
                assert!(
                    (ours - theirs).abs() <= allowed,
                    "{title}: kept in {column}: {ours} {theirs}"
                );
            }
        }
    }
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let values = |scale: f32| -> Vec<f32> { (0..5000).map(|e| (e % 89) as f32 * scale).collect() };
    for (model, scale) in [("base", 0.5), ("a", 0.75)] {
        Checkpoint::default()
            .with("x.weight", Dtype::F32, &[50, 100], &values(scale))
            .with("y.weight", Dtype::F32, &[50, 100], &values(scale))
            .config(json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
            .write(&dir.path().join(model), 1);
    }
    for method in ["dare_linear", "della"] {
        let run = |seed: u64, scope: &str| {
            let recipe = json!({
                "merge_method": method, "base_model": "base",
                "models": [{"model": "a", "parameters": {"weight": 1, "density": 0.5}}],
                "parameters": {"seed": seed, "scope": scope, "rescale": false},
            });
            let merged = parity::merged(dir.path(), &recipe.to_string()).expect(method);
            ["x.weight", "y.weight"].map(|name| merged[name].values.clone())
        };
        let [x, y] = run(1, "tensor");
        assert_ne!(x, y);
        assert_eq!([x.clone(), y], run(1, "model"));
        assert_ne!(x, run(2, "tensor")[0]);
    }
}
