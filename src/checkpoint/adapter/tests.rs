use std::collections::HashMap;
use std::path::PathBuf;

use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

use super::*;

const OPTIONS: OpenOptions = OpenOptions { lenient: false, unknown_types: false };

/// A model and an adapter in a directory of their own.
struct Scene(tempfile::TempDir);

type Tensors<'a> = &'a [(&'a str, Dtype, &'a [usize])];

impl Scene {
    fn new() -> Self {
        let scene = Self(tempfile::tempdir().unwrap());
        scene.model(&[
            ("embed.weight", Dtype::BF16, &[7, 4]),
            ("layers.0.q.weight", Dtype::BF16, &[6, 4]),
            ("layers.1.q.weight", Dtype::F32, &[6, 4]),
            ("layers.1.q.bias", Dtype::F32, &[6]),
            ("head.weight", Dtype::BF16, &[7, 4]),
            ("packed.weight", Dtype::U8, &[6, 4]),
        ]);
        scene
    }

    fn file(&self, dir: &str, name: &str, tensors: Tensors<'_>) {
        let dir = self.0.path().join(dir);
        std::fs::create_dir_all(&dir).unwrap();
        let views = tensors.iter().map(|(name, dtype, shape)| {
            let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
            let bytes: &'static [u8] = vec![0; bytes].leak();
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        let bytes = serialize(views, None::<HashMap<_, _>>).unwrap();
        std::fs::write(dir.join(name), bytes).unwrap();
    }

    fn model(&self, tensors: Tensors<'_>) {
        self.file("model", "model.safetensors", tensors);
    }

    fn config(&self, extra: Value) {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"});
        let (Value::Object(all), Value::Object(extra)) = (&mut config, extra) else { panic!() };
        all.extend(extra);
        std::fs::create_dir_all(self.adapter()).unwrap();
        std::fs::write(self.adapter().join(CONFIG), config.to_string()).unwrap();
    }

    fn adapter(&self) -> PathBuf {
        self.0.path().join("adapter")
    }

    fn adapt(&self, tensors: Tensors<'_>) -> Result<Catalog, String> {
        let names: Vec<String> =
            tensors.iter().map(|(name, ..)| format!("base_model.model.{name}")).collect();
        let tensors: Vec<(&str, Dtype, &[usize])> =
            tensors.iter().zip(&names).map(|(t, name)| (name.as_str(), t.1, t.2)).collect();
        self.file("adapter", WEIGHTS, &tensors);
        let mut catalog = Catalog::open(&self.0.path().join("model"), OPTIONS).unwrap();
        let adapter = Adapter::open(&self.adapter(), OPTIONS).map_err(|e| e.to_string())?;
        catalog.adapt(&adapter).map_err(|e| e.to_string())?;
        Ok(catalog)
    }
}

const A: (&str, Dtype, &[usize]) = ("layers.0.q.lora_A.weight", Dtype::F32, &[2, 4]);
const B: (&str, Dtype, &[usize]) = ("layers.0.q.lora_B.weight", Dtype::BF16, &[6, 2]);

#[test]
fn tensors_say_what_is_added_to_them() {
    let scene = Scene::new();
    scene.config(json!({"alpha_pattern": {"embed": 2}, "modules_to_save": ["head"]}));
    let catalog = scene
        .adapt(&[
            A,
            B,
            ("embed.lora_embedding_A", Dtype::F32, &[2, 7]),
            ("embed.lora_embedding_B", Dtype::F32, &[4, 2]),
            ("head.weight", Dtype::F32, &[7, 4]),
        ])
        .unwrap();
    assert_eq!(catalog.files.len(), 3);
    assert_eq!(catalog.files[2].name, CONFIG);
    let of = |name: &str| catalog.get(name).unwrap().adapted.clone();
    let linear = of("layers.0.q.weight").unwrap().low_rank.unwrap();
    assert_eq!((linear.rank, linear.scale), (2, 4.0));
    assert_eq!((linear.left.shape, linear.left.transposed), ([6, 2], false));
    assert_eq!(
        (&*linear.left.name, linear.left.dtype),
        ("base_model.model.layers.0.q.lora_B.weight", Dtype::BF16)
    );
    assert_eq!((linear.right.shape, linear.right.file), ([2, 4], 1));
    let embedding = of("embed.weight").unwrap().low_rank.unwrap();
    assert_eq!(embedding.scale, 1.0);
    assert_eq!((embedding.left.shape, embedding.left.transposed), ([2, 7], true));
    assert_eq!((embedding.right.shape, embedding.right.transposed), ([4, 2], true));
    assert!(of("layers.1.q.weight").is_none());
    let head = catalog.get("head.weight").unwrap();
    assert_eq!((head.file, &head.dtype), (1, &DType::Known(Dtype::F32)));
    let adapted = of("head.weight").unwrap();
    assert_eq!(*adapted, Adapted { dtype: DType::Known(Dtype::BF16), low_rank: None });
}

#[test]
fn a_saved_layer_may_be_adapted_as_well() {
    let scene = Scene::new();
    scene.config(json!({}));
    let base = ("layers.0.q.base_layer.weight", Dtype::F16, &[6, 4][..]);
    let catalog = scene.adapt(&[A, B, base]).unwrap();
    let tensor = catalog.get("layers.0.q.weight").unwrap();
    assert_eq!((tensor.file, &tensor.dtype), (1, &DType::Known(Dtype::F16)));
    let adapted = tensor.adapted.clone().unwrap();
    assert_eq!(adapted.dtype, DType::Known(Dtype::BF16));
    assert!(adapted.low_rank.is_some());
}

#[test]
fn inputs_as_rows_turn_the_matrices() {
    let scene = Scene::new();
    scene.model(&[("h.c_attn.weight", Dtype::F32, &[4, 12])]);
    scene.config(json!({"fan_in_fan_out": true}));
    let tensors: [(&str, Dtype, &[usize]); 2] = [
        ("h.c_attn.lora_A.weight", Dtype::F32, &[2, 4]),
        ("h.c_attn.lora_B.weight", Dtype::F32, &[12, 2]),
    ];
    let catalog = scene.adapt(&tensors).unwrap();
    let low_rank = catalog.tensors[0].adapted.clone().unwrap().low_rank.unwrap();
    assert_eq!((low_rank.left.shape, low_rank.left.transposed), ([2, 4], true));
    scene.config(json!({"fan_in_fan_out": false}));
    assert!(scene.adapt(&tensors).unwrap_err().contains("fan_in_fan_out"));
}

#[test]
fn nothing_of_an_adapter_is_dropped() {
    let scene = Scene::new();
    scene.config(json!({}));
    let cases: [(Tensors<'_>, &str); 17] = [
        (&[], "holds no tensor"),
        (&[A], "no matrix B for it"),
        (&[B], "no matrix A for it"),
        (&[A, B, ("layers.0.q.lora_A.default.weight", Dtype::F32, &[2, 4])], "several adapters"),
        (&[A, ("layers.0.q.lora_B.weight", Dtype::F32, &[5, 2])], "which make [5, 4]"),
        (&[A, ("layers.0.q.lora_B.weight", Dtype::F32, &[6, 3])], "says rank 2"),
        (&[("layers.0.q.lora_A.weight", Dtype::F32, &[3, 4]), B], "says rank 2"),
        (&[("layers.0.q.lora_A.weight", Dtype::F32, &[2, 4, 1, 1]), B], "convolutions"),
        (&[("layers.0.q.lora_A.weight", Dtype::I8, &[2, 4]), B], "no plain float"),
        (
            &[("q.lora_A.weight", Dtype::F32, &[2, 4]), ("q.lora_B.weight", Dtype::F32, &[6, 2])],
            "the model no tensor q.weight; the model has layers.0.q.weight",
        ),
        (
            &[
                ("packed.lora_A.weight", Dtype::F32, &[2, 4]),
                ("packed.lora_B.weight", Dtype::F32, &[6, 2]),
            ],
            "stores as U8",
        ),
        (&[A, B, ("score.weight", Dtype::F32, &[2, 4])], "the model no tensor score.weight"),
        (&[A, B, ("layers.1.q.bias", Dtype::F32, &[6])], "trained bias"),
        (&[A, B, ("layers.1.q.scales", Dtype::F32, &[6])], "none that LoRA knows"),
        (&[A, B, ("embed.weight", Dtype::F32, &[8, 4])], "a vocabulary that was extended"),
        (&[A, B, ("packed.weight", Dtype::F32, &[6, 4])], "stores as U8"),
        (
            &[
                A,
                B,
                ("layers.0.q.lora_embedding_A", Dtype::F32, &[2, 4]),
                ("layers.0.q.lora_embedding_B", Dtype::F32, &[6, 2]),
            ],
            "as a linear layer and as an embedding",
        ),
    ];
    for (tensors, part) in cases {
        let error = scene.adapt(tensors).err().unwrap_or_else(|| panic!("{part}"));
        assert!(error.contains(part), "{error}");
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }
    scene.config(json!({"modules_to_save": ["layers.1.q"]}));
    assert!(scene.adapt(&[A, B, ("layers.1.q.bias", Dtype::F32, &[6])]).is_ok());
}

#[test]
fn a_directory_that_is_none_says_what_it_lacks() {
    let scene = Scene::new();
    let open = || Adapter::open(&scene.adapter(), OPTIONS).unwrap_err().to_string();
    assert!(open().contains("cannot read"), "{}", open());
    std::fs::create_dir(scene.adapter()).unwrap();
    assert!(open().contains("no adapter_config.json"), "{}", open());
    scene.config(json!({}));
    assert!(open().contains("no adapter_model.safetensors"), "{}", open());
    std::fs::write(scene.adapter().join(PICKLE), "").unwrap();
    assert!(open().contains("a pickle file"), "{}", open());
    std::fs::write(scene.adapter().join(WEIGHTS), "").unwrap();
    assert!(open().contains("too few"), "{}", open());
    let whole = {
        scene.adapt(&[A, B]).unwrap();
        std::fs::read(scene.adapter().join(WEIGHTS)).unwrap()
    };
    std::fs::write(scene.adapter().join(WEIGHTS), &whole[..whole.len() - 1]).unwrap();
    assert!(open().contains("truncated"), "{}", open());
    let model = Catalog::open(&scene.adapter(), OPTIONS).unwrap_err().to_string();
    assert!(model.contains("MODEL+ADAPTER"), "{model}");
}
