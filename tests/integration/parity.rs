//! Merges against mergekit 0.1.5, on the fixtures in `fixtures/parity` (see the README there).
//!
//! A method that reflow refuses is not compared, unless it is listed in [`COMPLETE`]; one that it merges must agree.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::reflow;

/// Methods of which every case must run but those in [`REFUSED`].
const COMPLETE: &[&str] = &[
    "linear",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "ram",
    "ramplus_tl",
    "passthrough",
    "nearswap",
    "slerp",
    "nuslerp",
    "multislerp",
    "karcher",
    "model_stock",
    "arcee_fusion",
];

/// The share of elements that may differ by more: method, end of the tensor's name, share. Where mergekit chooses by
/// numbers that its own rounding decides (see `docs/methods.md`), choices differ.
const UNDECIDED: &[(&str, &str, f64)] = &[
    ("arcee_fusion", "layers.1.mlp.experts.down_proj", 0.02),
    ("arcee_fusion", "layers.1.mlp.down_proj.weight", 0.15),
];

/// Cases that are refused on purpose: a merge of nothing into the base.
const REFUSED: &[&str] = &["no-experts"];

/// Cases in which a vote turns: where task vectors cancel, mergekit's sum of values rounded to bf16 may be zero when that of
/// the values themselves is not. One element in a hundred may have another sign.
const TURNING: &[&str] = &["sce bf16-three"];

/// What may differ by the table in `docs/methods.md`, in units of the last place of the largest magnitude among inputs and
/// result at the element: for results in f32, and in bf16.
pub(crate) fn tolerances() -> BTreeMap<String, (f64, f64)> {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/methods.md");
    let text = std::fs::read_to_string(docs).unwrap();
    let (_, table) = text.split_once("## Agreement with mergekit").unwrap();
    let row = |line: &str| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let method = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((method.to_owned(), (cells.get(2)?.parse().ok()?, cells.get(3)?.parse().ok()?)))
    };
    table.lines().filter_map(row).collect()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity")
}

pub(crate) fn json(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(root().join(name)).unwrap()).unwrap()
}

fn unpacked(path: &str) -> Vec<u8> {
    zstd::decode_all(std::fs::File::open(root().join(path)).unwrap()).unwrap()
}

/// A tensor, its values widened to f32.
#[derive(Clone)]
pub(crate) struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    pub(crate) values: Vec<f32>,
}

/// The tensors of a file of fixtures or of an output, by name.
pub(crate) fn tensors(file: &[u8]) -> BTreeMap<String, Tensor> {
    let file = SafeTensors::deserialize(file).unwrap();
    let widened = |view: &TensorView<'_>| match view.dtype() {
        Dtype::F32 => view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => {
            let wide = |b: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            view.data().as_chunks().0.iter().map(wide).collect()
        }
        other => panic!("{other:?}"),
    };
    let convert = |view: TensorView<'_>| Tensor {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
        values: widened(&view),
    };
    file.tensors().into_iter().map(|(name, view)| (name, convert(view))).collect()
}

/// Tensors named `GROUP/TENSOR`, by group.
pub(crate) fn grouped(path: &str) -> BTreeMap<String, BTreeMap<String, Tensor>> {
    let mut groups: BTreeMap<String, BTreeMap<String, Tensor>> = BTreeMap::new();
    for (key, tensor) in tensors(&unpacked(path)) {
        let (group, name) = key.split_once('/').unwrap();
        groups.entry(group.to_owned()).or_default().insert(name.to_owned(), tensor);
    }
    groups
}

struct Case {
    method: String,
    name: String,
    inputs: String,
    recipe: Value,
}

fn cases() -> Vec<Case> {
    let word = |case: &Value, key: &str| case[key].as_str().unwrap().to_owned();
    json("methods.json")
        .into_iter()
        .map(|case| Case {
            method: word(&case, "method"),
            name: word(&case, "case"),
            inputs: word(&case, "inputs"),
            recipe: case["recipe"].clone(),
        })
        .collect()
}

/// Writes the models of a family as checkpoints `DIR/MODEL`.
pub(crate) fn write_models(dir: &Path, models: &BTreeMap<String, BTreeMap<String, Tensor>>) {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    for (model, members) in models {
        let folder = dir.join(model);
        std::fs::create_dir_all(&folder).unwrap();
        let view =
            |t: &'static Tensor| TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap();
        let members: &'static BTreeMap<String, Tensor> = Box::leak(Box::new(members.clone()));
        let views = members.iter().map(|(name, tensor)| (name, view(tensor)));
        let bytes = serialize(views, Some(metadata.clone())).unwrap();
        std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
        let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}"#;
        std::fs::write(folder.join("config.json"), config).unwrap();
    }
}

/// Runs a recipe in `dir`, where its models are; `None` if it is refused as a recipe.
pub(crate) fn merged(dir: &Path, recipe: &str) -> Option<BTreeMap<String, Tensor>> {
    let out = TempDir::new_in(dir).unwrap();
    std::fs::write(out.path().join("recipe.yml"), recipe).unwrap();
    let to = out.path().join("merged");
    let command = &mut reflow();
    command.current_dir(dir).arg("merge").arg(out.path().join("recipe.yml")).arg("--out").arg(&to);
    let run = command.output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    match run.status.code() {
        Some(0) => Some(tensors(&std::fs::read(to.join("model.safetensors")).unwrap())),
        Some(2) => {
            println!("refused: {recipe}: {said}");
            None
        }
        _ => panic!("{recipe}: {said}"),
    }
}

/// The distance between neighbouring numbers of the type at `x`.
fn ulp(dtype: Dtype, x: f32) -> f64 {
    let bits = if dtype == Dtype::BF16 { 8 } else { 24 };
    let exponent = f64::from(x.abs().max(f32::MIN_POSITIVE)).log2().floor();
    (exponent - f64::from(bits - 1)).exp2()
}

/// The elements that differ by more than the tolerance, with the largest distance in units of the last place.
pub(crate) fn differences(
    allowed: (f64, f64),
    inputs: &[&Tensor],
    ours: &Tensor,
    theirs: &Tensor,
) -> (usize, f64) {
    let allowed = if ours.dtype == Dtype::BF16 { allowed.1 } else { allowed.0 };
    let (mut beyond, mut largest) = (0, 0.0_f64);
    for (at, (&x, &y)) in ours.values.iter().zip(&theirs.values).enumerate() {
        let size = inputs.iter().map(|t| t.values[at].abs()).fold(x.abs().max(y.abs()), f32::max);
        let distance = (f64::from(x) - f64::from(y)).abs() / ulp(ours.dtype, size);
        largest = largest.max(distance);
        beyond += usize::from(distance.is_nan() || distance > allowed);
    }
    (beyond, largest)
}

#[test]
fn every_method_that_is_there_agrees_with_mergekit() {
    let dir = TempDir::new().unwrap();
    let families: BTreeMap<String, _> = ["f32", "bf16"]
        .map(|kind| (kind.to_owned(), grouped(&format!("inputs-{kind}.safetensors.zst"))))
        .into();
    for (kind, models) in &families {
        write_models(&dir.path().join(kind), models);
    }
    let tolerances = tolerances();
    let mut results = BTreeMap::new();
    let (mut failed, mut refused) = (Vec::new(), Vec::new());
    for case in cases() {
        let results = results
            .entry(case.method.clone())
            .or_insert_with(|| grouped(&format!("methods/{}.safetensors.zst", case.method)));
        let expected = &results[&case.name];
        let title = format!("{} {}", case.method, case.name);
        let Some(ours) = merged(&dir.path().join(&case.inputs), &case.recipe.to_string()) else {
            if !REFUSED.contains(&case.name.as_str()) {
                refused.push((case.method.clone(), title));
            }
            continue;
        };
        assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{title}");
        for (name, theirs) in expected {
            let ours = &ours[name];
            assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape), "{title}: {name}");
            let inputs: Vec<&Tensor> = families[&case.inputs].values().map(|m| &m[name]).collect();
            // mergekit's sums of magnitudes are rounded in f32, ours are exact.
            let scale = if case.recipe["parameters"]["rescale"] == true { 4.0 } else { 1.0 };
            let (f32s, bf16s) = tolerances[&case.method];
            let allowed = (scale * f32s, scale * bf16s);
            let (beyond, largest) = differences(allowed, &inputs, ours, theirs);
            let all = theirs.values.len();
            let undecided =
                UNDECIDED.iter().find(|(m, t, _)| case.method == *m && name.ends_with(t));
            let turning = if TURNING.contains(&title.as_str()) { 0.01 } else { 0.0 };
            let share = undecided.map_or(turning, |(.., share)| *share);
            if beyond as f64 > share * all as f64 {
                failed.push(format!(
                    "{title}: {name}: {beyond} of {all} elements, up to {largest} ulp"
                ));
            }
        }
    }
    let lacking: Vec<_> = refused.iter().filter(|(m, _)| COMPLETE.contains(&m.as_str())).collect();
    assert!(lacking.is_empty(), "refused: {lacking:?}");
    assert!(failed.is_empty(), "differ from mergekit:\n{}", failed.join("\n"));
}

/// Guards what the comparison rests on: that all methods are there, results are whole, and selections are free of ties.
#[test]
fn the_fixtures_are_whole() {
    let cases = cases();
    for kind in ["f32", "bf16"] {
        let models = grouped(&format!("inputs-{kind}.safetensors.zst"));
        assert_eq!(models.keys().collect::<Vec<_>>(), ["a", "b", "base", "c"]);
        for (model, members) in models.iter().filter(|(model, _)| kind == "f32" && *model != "base")
        {
            for (name, tensor) in members {
                let base = &models["base"][name].values;
                let magnitudes = tensor.values.iter().zip(base).map(|(x, b)| (x - b).abs());
                let mut magnitudes: Vec<f32> = magnitudes.collect();
                magnitudes.sort_by(f32::total_cmp);
                let unchanged = magnitudes.iter().all(|&m| m == 0.0);
                let tied = magnitudes.windows(2).any(|pair| pair[0] == pair[1]);
                assert_eq!(tied, unchanged, "{model} {name}");
            }
        }
    }
    let inputs = grouped("inputs-f32.safetensors.zst");
    let methods: std::collections::BTreeSet<&str> =
        cases.iter().map(|c| c.method.as_str()).collect();
    assert_eq!(methods.len(), 20);
    assert!(tolerances().keys().eq(methods.iter()), "the table in docs/methods.md");
    for method in methods {
        let results = grouped(&format!("methods/{method}.safetensors.zst"));
        let mut listed: Vec<&str> =
            cases.iter().filter(|c| c.method == method).map(|c| c.name.as_str()).collect();
        listed.sort_unstable();
        assert_eq!(results.keys().collect::<Vec<_>>(), listed, "{method}");
        for (case, members) in &results {
            let shapes = |m: &BTreeMap<String, Tensor>| -> Vec<(String, Vec<usize>)> {
                m.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect()
            };
            assert_eq!(shapes(members), shapes(&inputs["base"]), "{method} {case}");
            assert!(members.values().all(|t| t.values.iter().all(|v| v.is_finite())));
        }
    }
    for entry in json("parameters.json") {
        let lists = ["shared", "sources"].map(|key| entry[key].as_object());
        let count = entry["tensors"].as_array().map(Vec::len);
        assert_ne!(count.is_some(), entry["error"].is_string(), "{}", entry["case"]);
        for list in lists.into_iter().flatten().flat_map(|map| map.values()) {
            assert_eq!(list.as_array().map(Vec::len), count, "{}", entry["case"]);
        }
    }
}
