//! Tensors that are merged whole, from samples of what is in memory: the same bytes as by selection, and as streamed.

use safetensors::Dtype;
use tempfile::TempDir;

use crate::support::checkpoint::{Checkpoint, large_family, uniform, write_family};
use crate::support::files;
use crate::support::run::merge;

/// Enough elements for a sample.
const SHAPE: [usize; 2] = [1100, 1024];

/// A base and experts with four tensors: ordinary changes in bf16, one magnitude only, nothing but zeros, and changes in a
/// few rows.
pub(crate) fn family(experts: usize) -> (Checkpoint, Vec<Checkpoint>) {
    let elements = SHAPE[0] * SHAPE[1];
    let mut random = uniform(11);
    let base: Vec<f32> = (0..elements).map(|_| (random() - 0.5) * 0.08).collect();
    let names = ["l.0.tuned", "l.1.one", "l.2.same", "l.3.rows"];
    let with = |models: Checkpoint, name: &str, values: &[f32]| {
        models.with(name, Dtype::BF16, &SHAPE, values)
    };
    let model = names.iter().fold(Checkpoint::default(), |model, name| with(model, name, &base));
    let tuned = (0..experts).map(|i| {
        let mut random = uniform(i as u64 + 5);
        let mut step = |e: usize, name: &str| match name {
            "l.0.tuned" => (random() - 0.5).powi(3) * 0.04,
            "l.1.one" => [0.25, -0.25][(e >> i) % 2],
            "l.3.rows" if e / SHAPE[1] % 100 == 7 => 0.5,
            _ => 0.0,
        };
        names.iter().fold(Checkpoint::default(), |model, name| {
            let values: Vec<f32> =
                base.iter().enumerate().map(|(e, x)| x + step(e, name)).collect();
            with(model, name, &values)
        })
    });
    (model, tuned.collect())
}

/// Arguments of the methods that have something to select.
const METHODS: [&[&str]; 6] = [
    &["ties", "--param", "weight=1", "--param", "density=0.2"],
    &["breadcrumbs", "--param", "weight=1", "--param", "density=0.3", "--param", "gamma=0.05"],
    &[
        "breadcrumbs_ties",
        "--param",
        "weight=0.5",
        "--param",
        "density=0.2",
        "--param",
        "rescale=true",
    ],
    &["sce", "--param", "select_topk=0.1"],
    &["pcb"],
    &["pcb", "--variant", "d"],
];

#[test]
fn selection_and_streaming_make_the_same_bytes() {
    let dir = TempDir::new().unwrap();
    write_family(dir.path(), &family(3), &[1, 2]);
    for (k, method) in METHODS.iter().enumerate() {
        let run = |name: &str, experts: usize, args: &[&str]| {
            let out = dir.path().join(format!("{name}-{k}-{experts}"));
            merge(dir.path(), experts, &out)
                .args(["--scope", "tensor", "--method"])
                .args(*method)
                .args(args)
                .assert()
                .success();
            let mut made = files(&out);
            made.remove(std::path::Path::new("manifest.json"));
            std::fs::remove_dir_all(&out).unwrap();
            made
        };
        for experts in [1, 3] {
            let sampled = run("sampled", experts, &[]);
            assert!(sampled == run("radix", experts, &["--selection", "radix"]), "{method:?}");
            // No tensor fits in a tile.
            let tile = ["--tile", "100000", "--threads", "1"];
            assert!(sampled == run("streamed", experts, &tile), "{method:?}");
        }
    }
}

#[test]
fn a_value_that_is_not_finite_is_refused_by_name_or_counted_once() {
    let dir = TempDir::new().unwrap();
    let (base, mut experts) = family(2);
    // Not the first tensor: samples of this one are taken ahead where tensors are streamed.
    let (_, _, _, bytes) = &mut experts[1].tensors[1];
    // Where the sample may or may not look.
    for place in [1000, 70_000, 500_000] {
        bytes[2 * place..2 * place + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    }
    write_family(dir.path(), &(base, experts), &[1]);
    let ways: [&[&str]; 2] = [&[], &["--tile", "100000"]];
    for (method, tile) in METHODS.into_iter().flat_map(|method| ways.map(|tile| (method, tile))) {
        let out = dir.path().join("out");
        let refused = merge(dir.path(), 2, &out)
            .args(tile)
            .args(["--scope", "tensor", "--method"])
            .args(method)
            .assert()
            .failure();
        let error = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
        assert!(error.contains("l.1.one") && error.contains("NaN"), "{error}");
        let made = merge(dir.path(), 2, &out)
            .args(tile)
            .args(["--restart", "--nonfinite", "base", "--json", "--scope", "tensor", "--method"])
            .args(method)
            .assert()
            .success();
        let told: serde_json::Value = serde_json::from_slice(&made.get_output().stdout).unwrap();
        assert_eq!(told["replaced"], 3, "{method:?} {told}");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

/// A tensor that a tile has room for is merged whole, though it ends amid what must meet in a block or a frame.
#[test]
fn a_tensor_that_fits_in_a_tile_is_not_cut() {
    let dir = TempDir::new().unwrap();
    // More than a frame, and neither whole blocks nor whole frames.
    let (shape, kept) = ([301, 233], dir.path().join("kept"));
    write_family(dir.path(), &large_family(2, Dtype::BF16, 5, shape), &[1, 2]);
    let methods: [&[&str]; 4] = [
        &["model_stock"],
        &["multislerp", "--param", "weight=1"],
        &["nuslerp", "--param", "weight=1"],
        &["pcb", "--scope", "tensor", "--components", kept.to_str().unwrap()],
    ];
    for method in methods {
        let run = |tile: usize| {
            let out = dir.path().join("out");
            let mut command = merge(dir.path(), 2, &out);
            command.arg("--method").args(method).args(["--tile", &tile.to_string()]);
            command.assert().success();
            [&out, &kept].map(|made| {
                let files = made.exists().then(|| files(made));
                let _none = std::fs::remove_dir_all(made);
                files
            })
        };
        let elements = shape[0] * shape[1];
        let expected = run(4096);
        for tile in [elements - 1, elements, elements + 900, 1 << 20] {
            assert!(run(tile) == expected, "{method:?} {tile}");
        }
    }
}
