//! Reads the golden files in `fixtures/golden`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use crate::kernel::{Float, Kernels};

/// One merge by the reference: what went in and what came out. n experts, d elements.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) variant: String,
    pub(crate) keep: f64,
    pub(crate) lambdas: Vec<f32>,
    pub(crate) base: Vec<f32>,
    pub(crate) experts: Vec<Vec<f32>>,
    /// Clamp bounds; empty for the variant `paper`.
    pub(crate) lo: Vec<f32>,
    pub(crate) hi: Vec<f32>,
    pub(crate) threshold: Vec<f32>,
    pub(crate) top: Vec<f32>,
    /// Elements with a weight, per expert.
    pub(crate) kept: Vec<i64>,
    /// n rows of d: 1 where the weight is above 0.
    pub(crate) mask: Vec<u8>,
    /// The merged task vector.
    pub(crate) delta: Vec<f32>,
    /// The largest value averaged at each element.
    pub(crate) largest: Vec<f32>,
}

/// All cases of a folder below `fixtures/golden`, by name.
pub(crate) fn load_all(folder: &str) -> Vec<Case> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| load(path)).collect()
}

fn load(path: &Path) -> Case {
    let bytes = zstd::decode_all(std::fs::File::open(path).unwrap()).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let metadata = header.metadata().clone().unwrap();
    let floats = |name: &str| -> Vec<f32> {
        let Ok(tensor) = file.tensor(name) else { return Vec::new() };
        let mut values = vec![0.0; tensor.shape().iter().product()];
        let kernels = Kernels::available().next().unwrap();
        kernels.decode(Float::from_dtype(tensor.dtype()).unwrap(), tensor.data(), &mut values);
        values
    };
    let kept = file.tensor("kept").unwrap();
    assert_eq!(kept.dtype(), Dtype::I64);
    let lambdas: Vec<f32> = metadata["lambdas"].split(',').map(|x| x.parse().unwrap()).collect();
    Case {
        name: path.file_name().unwrap().to_string_lossy().into_owned(),
        variant: metadata["variant"].clone(),
        keep: metadata["keep"].parse().unwrap(),
        base: floats("base"),
        experts: (0..lambdas.len()).map(|i| floats(&format!("expert.{i}"))).collect(),
        lambdas,
        lo: floats("lo"),
        hi: floats("hi"),
        threshold: floats("threshold"),
        top: floats("top"),
        kept: kept.data().as_chunks().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        mask: file.tensor("mask").unwrap().data().to_vec(),
        delta: floats("delta"),
        largest: floats("largest"),
    }
}

#[test]
fn the_cases_are_whole() {
    let cases = load_all("pcb");
    assert!(cases.len() > 40);
    for case in &cases {
        let (n, d) = (case.experts.len(), case.base.len());
        assert!(n > 0 && case.experts.iter().all(|e| e.len() == d), "{}", case.name);
        assert_eq!((case.mask.len(), case.delta.len(), case.largest.len()), (n * d, d, d));
        for (row, &kept) in case.mask.chunks(d).zip(&case.kept) {
            assert_eq!(row.iter().map(|&m| i64::from(m)).sum::<i64>(), kept, "{}", case.name);
        }
    }
    for variant in ["a", "b", "c", "d", "paper"] {
        assert!(cases.iter().filter(|c| c.variant == variant).count() >= 12, "{variant}");
    }
}
