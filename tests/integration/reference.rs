//! Whole merges against the numpy reference (`fixtures/golden/llama`, made by `fixtures/make_golden.py`).

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::SafeTensors;
use tempfile::TempDir;

use crate::support::reflow;

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn tensors(bytes: &[u8]) -> BTreeMap<String, Vec<f32>> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect()
}

/// Values may differ by 1e-5 of a large task-vector element; a handful of elements on a threshold may differ more, where one
/// side keeps them and the other does not.
#[test]
fn the_example_family_merges_as_the_reference_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for variant in ["a", "d"] {
        for scope in ["model", "tensor"] {
            let golden =
                root.join(format!("fixtures/golden/llama/{variant}-{scope}.safetensors.zst"));
            let expected = zstd::decode_all(std::fs::File::open(golden).unwrap()).unwrap();
            let dir = TempDir::new().unwrap();
            let out = dir.path().join("out");
            reflow()
                .current_dir(root)
                .args([
                    "merge",
                    "--base",
                    "fixtures/llama/base",
                    "--expert",
                    "fixtures/llama/expert1=1.2",
                ])
                .args([
                    "--expert",
                    "fixtures/llama/expert2",
                    "--expert",
                    "fixtures/llama/expert3=0.9",
                ])
                .args(["--variant", variant, "--scope", scope, "--dtype", "f32", "--out"])
                .arg(&out)
                .assert()
                .success();
            let merged = tensors(&std::fs::read(out.join("model.safetensors")).unwrap());
            let expected = tensors(&expected);
            assert_eq!(merged.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            let (mut beyond, mut changed) = (0, 0);
            for (name, expected) in &expected {
                for (ours, theirs) in merged[name].iter().zip(expected) {
                    // The largest task-vector elements of the family are about 0.02; one f32 ulp at 1 is 1.2e-7.
                    beyond += usize::from((ours - theirs).abs() > 2.5e-7);
                    changed += usize::from(ours.to_bits() != theirs.to_bits());
                }
            }
            assert!(beyond <= 4, "{variant} {scope}: {beyond} elements beyond the tolerance");
            assert!(
                changed < 20_000,
                "{variant} {scope}: {changed} elements differ in their last bits"
            );
        }
    }
}
