//! Checkpoints made for tests, written by the official crate so that reader and writer under
//! test are checked against an independent one.

use std::collections::HashMap;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};

/// A checkpoint in memory.
#[derive(Clone, Default)]
pub struct Checkpoint {
    pub tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    pub config: Option<serde_json::Value>,
}

impl Checkpoint {
    /// Adds a tensor from `f32` values, stored as `dtype`.
    pub fn with(mut self, name: &str, dtype: Dtype, shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
        let bytes = values.iter().flat_map(|&v| store(dtype, v)).collect();
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        self
    }

    /// Adds a tensor from bytes.
    pub fn with_bytes(mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes.to_vec()));
        self
    }

    /// Sets the config.
    pub fn config(mut self, config: serde_json::Value) -> Self {
        self.config = Some(config);
        self
    }

    /// Leaves out a tensor.
    pub fn without(mut self, name: &str) -> Self {
        self.tensors.retain(|(n, ..)| n != name);
        self
    }

    /// Writes a Hugging Face directory of `shards` shards (dealt round robin, so that cuts differ
    /// with the number).
    pub fn write(&self, dir: &Path, shards: usize) {
        std::fs::create_dir_all(dir).unwrap();
        if let Some(config) = &self.config {
            std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        }
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let view = |(name, dtype, shape, bytes): &(String, Dtype, Vec<usize>, Vec<u8>)| {
            let bytes: &'static [u8] = Box::leak(bytes.clone().into_boxed_slice());
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        };
        if shards == 1 {
            let bytes = serialize(self.tensors.iter().map(view), Some(metadata)).unwrap();
            std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
            return;
        }
        let mut map = serde_json::Map::new();
        for k in 0..shards {
            let name = format!("model-{:05}-of-{shards:05}.safetensors", k + 1);
            let part: Vec<_> = self.tensors.iter().skip(k).step_by(shards).collect();
            for (tensor, ..) in &part {
                map.insert(tensor.clone(), name.clone().into());
            }
            let views = part.into_iter().map(view);
            let bytes = serialize(views, Some(metadata.clone())).unwrap();
            std::fs::write(dir.join(name), bytes).unwrap();
        }
        let total: usize = self.tensors.iter().map(|(.., bytes)| bytes.len()).sum();
        let index = serde_json::json!({"metadata": {"total_size": total}, "weight_map": map});
        std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }
}

fn store(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::F64 => f64::from(value).to_le_bytes().to_vec(),
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(value).to_le_bytes().to_vec(),
        other => panic!("{other:?} is given as bytes"),
    }
}

/// Reproducible numbers in [0, 1).
pub fn uniform(seed: u64) -> impl FnMut() -> f32 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1 << 24) as f32
    }
}

/// A base and `experts` experts, llama-shaped and tiny, with ties, zeros and odd sizes.
pub fn family(experts: usize, dtype: Dtype, seed: u64) -> (Checkpoint, Vec<Checkpoint>) {
    let shapes: [(&str, &[usize]); 9] = [
        ("model.embed_tokens.weight", &[37, 24]),
        ("model.layers.0.input_layernorm.weight", &[24]),
        ("model.layers.0.mlp.up_proj.weight", &[51, 24]),
        ("model.layers.2.mlp.up_proj.weight", &[50, 24]),
        ("model.layers.10.mlp.up_proj.weight", &[49, 24]),
        ("model.layers.10.self_attn.bias", &[1]),
        ("model.norm.weight", &[23]),
        ("model.scale", &[]),
        ("lm_head.weight", &[37, 24]),
    ];
    let mut random = uniform(seed);
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24,
        "vocab_size": 37, "torch_dtype": "bfloat16", "tie_word_embeddings": false
    });
    let mut base = Checkpoint::default().config(config);
    let mut tuned = vec![base.clone(); experts];
    for (name, shape) in shapes {
        let size = shape.iter().product();
        let values: Vec<f32> = (0..size).map(|_| (random() - 0.5) * 0.08).collect();
        base = base.with(name, dtype, shape, &values);
        for (i, expert) in tuned.iter_mut().enumerate() {
            let unchanged = i == 1 && name.contains("norm");
            let changed: Vec<f32> = values
                .iter()
                .map(|v| {
                    let step = (random() - 0.5) / (random() + 0.03);
                    let keep = unchanged || random() < 0.3;
                    v + if keep { 0.0 } else { (step * 8.0).round() / 16384.0 }
                })
                .collect();
            *expert = std::mem::take(expert).with(name, dtype, shape, &changed);
        }
    }
    (base, tuned)
}

/// The same, with a tensor so large that tiles, pieces and frames end within it.
pub fn large_family(
    experts: usize,
    dtype: Dtype,
    seed: u64,
    shape: [usize; 2],
) -> (Checkpoint, Vec<Checkpoint>) {
    let (base, experts) = family(experts, dtype, seed);
    let mut random = uniform(seed.wrapping_add(7));
    let mut values = |size: f32| -> Vec<f32> {
        (0..shape[0] * shape[1]).map(|_| (random() - 0.5) * size).collect()
    };
    let name = "model.layers.2.mlp.down_proj.weight";
    let stored = values(0.1);
    let more = |expert: Checkpoint| {
        let changed: Vec<f32> = stored.iter().zip(values(0.02)).map(|(x, y)| x + y).collect();
        expert.with(name, dtype, &shape, &changed)
    };
    let experts = experts.into_iter().map(more).collect();
    (base.with(name, dtype, &shape, &stored), experts)
}

/// Writes a family to `dir`: base and expert1.., cut into the given numbers of shards.
pub fn write_family(dir: &Path, family: &(Checkpoint, Vec<Checkpoint>), shards: &[usize]) {
    let (base, experts) = family;
    base.write(&dir.join("base"), shards[0]);
    for (i, expert) in experts.iter().enumerate() {
        expert.write(&dir.join(format!("expert{}", i + 1)), shards[(i + 1) % shards.len()]);
    }
}
